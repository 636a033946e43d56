//! What tenants do: all kinds of relations, indexes and transactions, and things that only the log sees.

use loomworks_postgres::PgConnection;

use crate::server::{Server, ask, close, run};

/// What a tenant's rows are marked with.
pub(crate) fn marker(database: &str) -> String {
    format!("MARK{}KRAM", database.to_uppercase())
}

/// Tables of a tenant, with each kind of index.
pub(crate) async fn prepare(connection: &mut PgConnection, database: &str) {
    let mark = marker(database);
    run(
        connection,
        &format!(
            "CREATE EXTENSION amcheck;
CREATE SEQUENCE numbers;
CREATE TABLE things (id bigint PRIMARY KEY DEFAULT nextval('numbers'), name text, tags int[], place point, seen timestamptz DEFAULT now(), body text);
ALTER TABLE things ALTER body SET STORAGE EXTERNAL;
CREATE INDEX things_hash ON things USING hash (name);
CREATE INDEX things_gin ON things USING gin (tags);
CREATE INDEX things_gist ON things USING gist (place);
CREATE INDEX things_spgist ON things USING spgist (place);
CREATE INDEX things_brin ON things USING brin (id) WITH (pages_per_range = 2);
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY, body text);
CREATE TABLE counters (id int PRIMARY KEY, value bigint) WITH (fillfactor = 40);
INSERT INTO counters SELECT n, 0 FROM generate_series(1, 300) n;
CREATE TABLE pending (id serial PRIMARY KEY, name text);
CREATE TABLE parents (id int PRIMARY KEY, name text);
CREATE TABLE children (id serial PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE, name text);
INSERT INTO parents SELECT n, '{mark}' || n FROM generate_series(1, 50) n;
CREATE MATERIALIZED VIEW summary AS SELECT count(*) FROM things;
"
        ),
    )
    .await;
}

/// One round of a tenant's work. Each leaves other things behind.
pub(crate) async fn work(server: &Server, database: &str, round: u32) {
    let mark = marker(database);
    let mut connection = server.connect(database).await;
    run(
        &mut connection,
        &format!(
            "INSERT INTO things (name, tags, place, body) SELECT '{mark}' || n, ARRAY[n % 17, n % 5, {round}], point(n % 100, n % 37), (SELECT string_agg(md5(random()::text), '{mark}') FROM generate_series(1, CASE n % 40 WHEN 0 THEN 300 ELSE 3 END)) FROM generate_series(1, 700) n;
UPDATE counters SET value = value + id;
UPDATE things SET name = name || '{round}', place = point(id % 50, {round}) WHERE id % 3 = 0;
DELETE FROM things WHERE id % 7 = {round};
INSERT INTO fleeting SELECT n, '{mark}' FROM generate_series({round}000, {round}200) n;
INSERT INTO children (parent, name) SELECT 10 + n % 40, '{mark}' FROM generate_series(1, 200) n;
DELETE FROM parents WHERE id = {round};
BEGIN;
INSERT INTO parents VALUES (1000 + {round}, '{mark}top');
SAVEPOINT one;
INSERT INTO parents VALUES (2000 + {round}, '{mark}sub');
SAVEPOINT two;
UPDATE counters SET value = value + 1 WHERE id < 10;
ROLLBACK TO two;
RELEASE one;
COMMIT;
BEGIN;
INSERT INTO things (name) SELECT 'never{mark}' FROM generate_series(1, 300);
ROLLBACK;
BEGIN;
SELECT count(*) FROM (SELECT 1 FROM counters WHERE id < 20 FOR SHARE) locked;
SAVEPOINT three;
UPDATE counters SET value = value + 2 WHERE id < 5;
COMMIT;
SELECT lo_from_bytea(0, convert_to(repeat('{mark}', 400), 'UTF8'));
SELECT pg_logical_emit_message(false, '{mark}', '{mark}prefix');
SELECT pg_logical_emit_message(true, '{mark}', repeat('{mark}', 700));
REFRESH MATERIALIZED VIEW summary;
VACUUM things;
ANALYZE things;
BEGIN;
CREATE TABLE round_{round} AS SELECT id, name, body FROM things WHERE id % 11 = 0;
CREATE INDEX round_{round}_name ON round_{round} (name, id);
COMMIT;
BEGIN;
INSERT INTO pending (name) VALUES ('{mark}prepared');
SAVEPOINT inside;
INSERT INTO pending (name) VALUES ('{mark}prepared inside');
PREPARE TRANSACTION '{database}-{round}-later';
BEGIN;
INSERT INTO pending (name) VALUES ('{mark}regretted');
PREPARE TRANSACTION '{database}-{round}-never';
ROLLBACK PREPARED '{database}-{round}-never';
"
        ),
    )
    .await;
    if round > 1 {
        let before = round - 1;
        run(&mut connection, &format!("COMMIT PREPARED '{database}-{before}-later';\n")).await;
    }
    let more = match round {
        1 => "CLUSTER things USING things_pkey;\nREINDEX INDEX things_hash;\nTRUNCATE fleeting;\n",
        2 => {
            "VACUUM FULL counters;\nTRUNCATE round_1;\nINSERT INTO round_1 SELECT 1, 'again', '';\n\
             REINDEX TABLE things;\nALTER TABLE children ADD COLUMN more int DEFAULT 5;\n"
        }
        3 => {
            "DROP TABLE round_1;\nVACUUM (FREEZE) things;\nVACUUM FULL pg_class;\nALTER TABLE things DROP COLUMN seen;\n\
             CREATE INDEX CONCURRENTLY things_late ON things (name text_pattern_ops);\n"
        }
        _ => "DROP TABLE round_2;\n",
    };
    run(&mut connection, more).await;
    close(connection).await;
}

/// What a tenant has, without what recovery may change by right (unlogged rows, a sequence's read-ahead).
pub(crate) async fn digest(connection: &mut PgConnection) -> Vec<String> {
    let tables = ask(
        connection,
        "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relkind IN ('r', 'm') \
         AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace",
    )
    .await;
    let mut digest = Vec::new();
    for table in tables.split_whitespace() {
        let rows = format!(
            "SELECT count(*) || ' ' || coalesce(md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))), '') FROM {table} t"
        );
        digest.push(format!("{table} {}", ask(connection, &rows).await));
    }
    for (what, query) in [
        (
            "objects",
            "SELECT count(*) || ' ' || coalesce(md5(string_agg(md5(loid || data::text), '' ORDER BY loid, pageno)), '') FROM pg_largeobject",
        ),
        (
            "prepared",
            "SELECT string_agg(gid, ' ' ORDER BY gid) FROM pg_prepared_xacts WHERE database = current_database()",
        ),
        ("roles", "SELECT string_agg(rolname, ' ' ORDER BY rolname) FROM pg_roles WHERE rolname !~ '^pg_'"),
        ("databases", "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database"),
        (
            "columns",
            "SELECT md5(string_agg(attrelid::regclass || attname, ' ' ORDER BY attrelid::regclass::text, attnum)) FROM pg_attribute",
        ),
    ] {
        digest.push(format!("{what} {}", ask(connection, query).await));
    }
    // The same rows by each index.
    run(connection, "SET enable_seqscan = off;\nSET enable_indexonlyscan = off;\n").await;
    for (index, condition) in [
        ("hash", "name = (SELECT max(name) FROM things)"),
        ("gin", "tags @> ARRAY[3]"),
        ("gist", "place <@ box '(5,0),(20,30)'"),
        ("brin", "id BETWEEN 100 AND 700"),
    ] {
        let query = format!("SELECT count(*) || ' ' || coalesce(sum(id), 0) FROM things WHERE {condition}");
        digest.push(format!("{index} {}", ask(connection, &query).await));
    }
    run(connection, "RESET enable_seqscan;\nRESET enable_indexonlyscan;\n").await;
    digest
}
