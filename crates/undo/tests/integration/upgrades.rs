//! What an app's upgrade does to its tables: the recording follows it.

use loomworks_undo::{Mode, install};

use crate::tenant::{Tenant, run};

const GOODS: &str = "CREATE TABLE good (id int PRIMARY KEY, name text, price numeric);
    INSERT INTO good VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3);";

impl Tenant {
    /// What agents do to a table's rows is recorded with all columns that it has now.
    async fn records_all_of(&self, table: &str, after: &str) {
        let before = self.bytes(table).await;
        for statement in [
            format!("UPDATE {table} SET id = id + 100"),
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table}"),
        ] {
            let operation = self.by_agent(&statement).await;
            assert_ne!(self.bytes(table).await, before, "{after}: {statement}");
            self.undo(operation).await;
            assert_eq!(self.bytes(table).await, before, "{after}: {statement}");
        }
        let operation =
            self.by_agent(&format!("INSERT INTO {table} (id) SELECT max(id) + 1 FROM {table}")).await;
        self.undo(operation).await;
        assert_eq!(self.bytes(table).await, before, "{after}: INSERT");
    }

    /// The columns that are recorded of a table, by their slots.
    async fn recorded(&self, table: &str) -> String {
        self.value(&format!(
            "SELECT string_agg(format('%s %s %s', slot, a.name, type), ', ' ORDER BY slot) FROM loomworks.attribute a
             JOIN loomworks.relation r ON r.id = a.relation_id WHERE attnum IS NOT NULL AND r.oid = '{table}'::regclass"
        ))
        .await
    }
}

#[tokio::test]
async fn whatever_columns_a_table_gets_are_recorded() {
    let tenant = Tenant::with(GOODS).await;
    tenant
        .by_app(
            "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE DOMAIN short AS varchar(9) CHECK (length(VALUE) < 8);
             CREATE TYPE spot AS (x int, y date)",
        )
        .await;
    for upgrade in [
        "ALTER TABLE good ADD COLUMN stock int DEFAULT 7",
        "ALTER TABLE good ADD COLUMN one text DEFAULT '1', ADD COLUMN two varchar(5) DEFAULT '22', ADD three timestamptz DEFAULT '2026-01-01 12:00+02'",
        "ALTER TABLE good ADD COLUMN feels mood DEFAULT 'sad', ADD COLUMN code short DEFAULT 'x', ADD COLUMN at spot DEFAULT '(1,2026-02-03)', ADD feelings mood[] DEFAULT '{glad,sad}'",
        "ALTER TABLE good ADD COLUMN double numeric GENERATED ALWAYS AS (price * 2) STORED",
        "ALTER TABLE good DROP COLUMN one, ADD COLUMN one bytea DEFAULT '\\x0102'",
        "ALTER TABLE good DROP COLUMN three, DROP COLUMN code, ADD COLUMN four real DEFAULT 0.1",
        "ALTER TABLE good ALTER COLUMN two TYPE varchar(9), ALTER COLUMN stock TYPE bigint, ADD COLUMN five int DEFAULT 5",
        "ALTER TABLE good RENAME COLUMN five TO six; ALTER TABLE good RENAME COLUMN four TO five; ALTER TABLE good RENAME COLUMN six TO four",
        "ALTER TABLE good ADD COLUMN \"%1$s, %I '\"\" $f$ \\ select\" text DEFAULT '%s'",
        "ALTER TABLE good ADD COLUMN \"%s of a mood\" mood DEFAULT 'glad'",
        "BEGIN; ALTER TABLE good ADD COLUMN gone int; SAVEPOINT s; ALTER TABLE good DROP COLUMN gone, ADD COLUMN kept int DEFAULT 3; ROLLBACK TO s; COMMIT",
        "CREATE INDEX ON good (gone); ALTER TABLE good ADD CONSTRAINT positive CHECK (id > 0), ADD COLUMN last serial",
    ] {
        tenant.by_app(upgrade).await;
        tenant.records_all_of("good", upgrade).await;
    }
}

#[tokio::test]
async fn a_column_keeps_its_slot_and_one_of_another_type_gets_a_new_one() {
    let tenant = Tenant::with(GOODS).await;
    assert_eq!(tenant.recorded("good").await, "1 id integer, 2 name text, 3 price numeric");
    tenant.by_app("ALTER TABLE good DROP COLUMN name, ADD COLUMN name text, ADD COLUMN stock int").await;
    assert_eq!(tenant.recorded("good").await, "1 id integer, 3 price numeric, 4 name text, 5 stock integer");
    tenant.by_app("ALTER TABLE good RENAME COLUMN price TO cost").await;
    tenant.by_app("ALTER TABLE good ALTER COLUMN stock TYPE bigint, ADD COLUMN price money").await;
    let recorded = "1 id integer, 3 cost numeric, 4 name text, 6 stock bigint, 7 price money";
    assert_eq!(tenant.recorded("good").await, recorded);
    tenant.by_app("ALTER TABLE good ALTER COLUMN stock SET DEFAULT 4; COMMENT ON TABLE good IS 'x'").await;
    assert_eq!(tenant.recorded("good").await, recorded);
    install(&mut tenant.admin().await, &tenant.owner).await.unwrap();
    assert_eq!(tenant.recorded("good").await, recorded);
}

#[tokio::test]
async fn a_change_of_before_an_upgrade_is_undone_after_it() {
    let tenant = Tenant::with(GOODS).await;
    let update = tenant.by_agent("UPDATE good SET price = 9").await;
    let delete = tenant.by_agent("DELETE FROM good WHERE id = 3").await;
    tenant
        .by_app(
            "ALTER TABLE good RENAME COLUMN price TO cost; ALTER TABLE good RENAME TO article;
             ALTER TABLE article ADD COLUMN price text DEFAULT 'x'; CREATE TABLE good (id int);
             ALTER TABLE good ADD COLUMN price int",
        )
        .await;
    tenant.records_all_of("article", "names changed and a column added").await;
    let later = tenant.by_agent("UPDATE article SET price = 'y' WHERE id = 1").await;
    tenant.undo(delete).await;
    tenant.try_undo(&[update, later], Mode::Strict).await.unwrap();
    assert_eq!(tenant.rows("article").await, "(1,a,1,x) (2,b,2,x) (3,c,3,x)");
}

#[tokio::test]
async fn partitions_and_heirs_get_columns_with_their_parent() {
    let tenant = Tenant::with(
        "CREATE TABLE part (id int, region text, v int) PARTITION BY LIST (region);
         CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a') PARTITION BY RANGE (id);
         CREATE TABLE part_a_1 PARTITION OF part_a FOR VALUES FROM (0) TO (1000);
         CREATE TABLE part_b PARTITION OF part FOR VALUES IN (NULL, 'b');
         CREATE TABLE base (id int, v int); CREATE TABLE heir (extra text) INHERITS (base);
         INSERT INTO part VALUES (1, 'a', 1), (2, 'a', 2), (3, 'b', 3);
         INSERT INTO base VALUES (1, 1); INSERT INTO heir VALUES (2, 2, 'x')",
    )
    .await;
    for upgrade in [
        "ALTER TABLE part ADD COLUMN note text DEFAULT 'n'; ALTER TABLE base ADD COLUMN note text DEFAULT 'n'",
        "ALTER TABLE part RENAME COLUMN v TO w; ALTER TABLE base RENAME COLUMN v TO w",
        "ALTER TABLE part ALTER COLUMN w TYPE bigint; ALTER TABLE base ALTER COLUMN w TYPE bigint",
        "ALTER TABLE part DROP COLUMN w, ADD COLUMN w text DEFAULT 'w'; ALTER TABLE base DROP COLUMN w, ADD COLUMN w text DEFAULT 'w'",
        "ALTER TABLE part DETACH PARTITION part_b; ALTER TABLE part_b ADD COLUMN own int; ALTER TABLE part_b DROP COLUMN own;
         ALTER TABLE part ATTACH PARTITION part_b FOR VALUES IN (NULL, 'b'); ALTER TABLE heir ADD COLUMN own int DEFAULT 4",
    ] {
        tenant.by_app(upgrade).await;
        tenant.records_all_of("part", upgrade).await;
        tenant.records_all_of("base", upgrade).await;
        tenant.records_all_of("heir", upgrade).await;
    }
}

#[tokio::test]
async fn tables_get_and_lose_columns_with_a_type() {
    let tenant = Tenant::with(
        "CREATE TYPE shape AS (id int, v int); CREATE TABLE thing OF shape; INSERT INTO thing VALUES (1, 1);
         CREATE TYPE mood AS ENUM ('glad'); CREATE TABLE person (id int, feels mood, name text);
         INSERT INTO person VALUES (1, 'glad', 'a')",
    )
    .await;
    for upgrade in [
        "ALTER TYPE shape ADD ATTRIBUTE note text CASCADE; UPDATE thing SET note = 'x'",
        "ALTER TYPE shape RENAME ATTRIBUTE v TO w CASCADE",
        "ALTER TYPE shape DROP ATTRIBUTE w CASCADE",
        "ALTER TYPE mood RENAME TO temper",
        "DROP TYPE temper CASCADE",
    ] {
        tenant.by_app(upgrade).await;
        tenant.records_all_of("thing", upgrade).await;
        tenant.records_all_of("person", upgrade).await;
    }
}

#[tokio::test]
async fn the_function_that_records_stays_ours() {
    let tenant = Tenant::with(GOODS).await;
    let its = "SELECT format('%s %s %s %s', proowner::regrole, prosecdef, proacl, proconfig) FROM pg_proc
               WHERE pronamespace = 'loomworks'::regnamespace AND proname = 'capture_1'";
    let before = tenant.value(its).await;
    assert_eq!(
        before,
        "loomworks_log t {loomworks_log=X/loomworks_log} {\"search_path=pg_catalog, pg_temp\"}"
    );
    tenant.by_app("ALTER TABLE good ADD COLUMN note text").await;
    assert_eq!(tenant.value(its).await, before);
}

#[tokio::test]
async fn an_upgrade_cannot_switch_the_recording() {
    let tenant = Tenant::with(&format!("{GOODS} CREATE TABLE heir () INHERITS (good)")).await;
    for table in ["good", "heir"] {
        for switch in [
            "DISABLE TRIGGER ALL",
            "DISABLE TRIGGER USER",
            "DISABLE TRIGGER \"!loomworks_truncate\"",
            "ENABLE TRIGGER \"!loomworks_row\"",
            "ENABLE REPLICA TRIGGER \"!loomworks_operation\"",
            "ADD COLUMN note text, DISABLE TRIGGER \"!loomworks_row\"",
        ] {
            let statement = format!("ALTER TABLE {table} {switch}");
            let refused = run(&mut tenant.app().await, &statement).await.unwrap_err().to_string();
            assert!(refused.contains("cannot be changed"), "{statement}: {refused}");
        }
    }
    tenant.by_app("DROP TABLE heir").await;
    let refused = run(&mut tenant.app().await, "ALTER TABLE good DISABLE TRIGGER ALL").await.unwrap_err();
    assert!(refused.to_string().contains("the recording of public.good cannot be changed"), "{refused}");
}

#[tokio::test]
async fn a_recording_that_a_superuser_has_broken_stops_upgrades_until_it_is_installed_again() {
    let tenant = Tenant::with(GOODS).await;
    for broken in [
        "ALTER TABLE good DISABLE TRIGGER \"!loomworks_row\"",
        "DROP TRIGGER \"!loomworks_truncate\" ON good",
        "ALTER TRIGGER \"!loomworks_operation\" ON good RENAME TO \"!loomworks_other\"",
    ] {
        run(&mut tenant.admin().await, broken).await.unwrap();
        for upgrade in ["ALTER TABLE good ADD COLUMN note text", "CREATE TABLE another (id int)"] {
            let refused = run(&mut tenant.app().await, upgrade).await.unwrap_err().to_string();
            assert!(
                refused.contains("the recording of public.good cannot be changed"),
                "{broken}: {refused}"
            );
        }
        run(&mut tenant.admin().await, "DROP TRIGGER IF EXISTS \"!loomworks_other\" ON good").await.unwrap();
        install(&mut tenant.admin().await, &tenant.owner).await.unwrap();
        tenant.by_app("ALTER TABLE good ADD COLUMN note text DEFAULT 'n'").await;
        tenant.records_all_of("good", broken).await;
        tenant.by_app("ALTER TABLE good DROP COLUMN note").await;
    }
}

#[tokio::test]
async fn a_table_that_a_superuser_has_made_is_recorded_once_it_is_changed() {
    let tenant = Tenant::with(GOODS).await;
    let made = format!(
        "CREATE TABLE made (id int); INSERT INTO made VALUES (1); ALTER TABLE made OWNER TO {}",
        tenant.owner
    );
    run(&mut tenant.admin().await, &made).await.unwrap();
    tenant.by_app("ALTER TABLE made ADD COLUMN note text DEFAULT 'n'").await;
    tenant.records_all_of("made", "made by a superuser").await;
}
