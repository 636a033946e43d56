//! A database's files, moved from a copy of a cluster into the cluster that went on since.

mod support;

use loomworks_postgres::moving::{self, Landing};
use loomworks_postgres::sql::run;
use loomworks_postgres::{Cluster, Installation, config, databases};
use loomworks_testkit::{Server, installation, installation_of};
use support::{Copy, execute, stop_at_once, text};

/// A server, and a copy of it as it was when its database `shop` had been filled.
struct Pair {
    source: Copy,
    target: Server,
}

const SHOP: &str = "
    CREATE TABLE items (id int PRIMARY KEY, value text COMPRESSION pglz, extra text);
    INSERT INTO items SELECT n, md5(n::text), repeat(md5(n::text), 100) FROM generate_series(1, 3000) n;
    DELETE FROM items WHERE id % 3 = 0;
    UPDATE items SET value = 'changed' WHERE id % 5 = 0;
    CREATE INDEX ON items USING gin (to_tsvector('simple', value));
    CREATE INDEX ON items (extra);
    CREATE UNLOGGED TABLE forgotten AS SELECT * FROM items;
    CREATE MATERIALIZED VIEW summary AS SELECT count(*) FROM items;
    CREATE SEQUENCE numbers; SELECT nextval('numbers');
    SELECT lo_from_bytea(4711, 'a large object');
    BEGIN; SELECT * FROM items FOR UPDATE; SAVEPOINT s; SELECT * FROM items FOR KEY SHARE; COMMIT;
    ALTER TABLE items OWNER TO owner_of_shop; GRANT SELECT ON items TO reader; GRANT SELECT ON items TO passing";

/// All rows, what is computed from them, a sequence and a large object.
const CONTENT: &str = "SELECT (SELECT md5(string_agg(i::text, '' ORDER BY id)) FROM public.items i)
    || (SELECT s::text FROM public.summary s) || (SELECT last_value FROM public.numbers)
    || encode(lo_get(4711), 'escape')";

async fn pair(installation: Installation) -> Pair {
    let target = Server::start_with(installation).await;
    let at = &target.cluster;
    execute(at, "postgres", "CREATE ROLE owner_of_shop; CREATE ROLE reader; CREATE ROLE passing")
        .await
        .unwrap();
    let mut admin = at.connect("postgres").await.unwrap();
    databases::ensure(&mut admin, "shop", "owner_of_shop").await.unwrap();
    let mut shop = at.connect("shop").await.unwrap();
    run(&mut shop, "SET search_path = public".into()).await.unwrap();
    for statement in SHOP.split(';') {
        run(&mut shop, statement.to_owned()).await.unwrap();
    }
    // Of a session and of a transaction that do not come along.
    run(&mut shop, "CREATE TEMPORARY TABLE a_sessions AS SELECT 1".into()).await.unwrap();
    let prepared = "BEGIN; INSERT INTO public.items VALUES (-1, 'never', ''); PREPARE TRANSACTION 'half'";
    execute(at, "shop", prepared).await.unwrap();

    // As a backup has it: sessions and transactions have not ended.
    stop_at_once(at);
    let copy = Copy::of(&target);
    let source = &copy.0;
    at.start().await.unwrap();
    let settings = config::Recovering { socket_directory: &source.socket_directory }.render();
    // Otherwise it counts as started when it has begun to recover.
    let more = format!("hot_standby = on\nmax_prepared_transactions = 10\nport = {}\n", source.port);
    source.configure(&(settings + &more)).unwrap();
    source.start().await.unwrap();
    execute(at, "shop", "ROLLBACK PREPARED 'half'").await.unwrap();
    Pair { target, source: copy }
}

/// What `pg_amcheck` does, which other versions come without.
async fn check(cluster: &Cluster, database: &str) {
    let indexes = "CREATE EXTENSION amcheck SCHEMA public;
        SELECT public.bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = relam
        WHERE relkind = 'i' AND amname = 'btree' AND relpersistence = 'p'";
    execute(cluster, database, indexes).await.unwrap();
    let tables = "SELECT coalesce(string_agg(relname || ': ' || msg, ', '), '') FROM pg_class c, public.verify_heapam(c.oid)
        WHERE relkind IN ('r', 'm', 't') AND relpersistence = 'p'";
    assert_eq!(text(cluster, database, tables).await, "");
}

#[tokio::test]
async fn what_was_moved_is_whole_and_survives_a_crash() {
    move_and_crash(installation().await).await;
}

#[tokio::test]
async fn the_same_on_other_versions_that_are_there() {
    for major in [16, 17, 18] {
        if let Some(installation) = installation_of(major).await {
            move_and_crash(installation).await;
        }
    }
}

async fn move_and_crash(installation: Installation) {
    let pair = pair(installation).await;
    let (here, there) = (&pair.target.cluster, &pair.source.0);
    let wanted = text(here, "shop", CONTENT).await;
    // The cluster goes on: what all databases share is written, a role goes, and the database is spoilt.
    execute(here, "shop", "DELETE FROM public.items; DROP OWNED BY passing; DROP ROLE passing")
        .await
        .unwrap();
    execute(here, "postgres", "ALTER ROLE reader SET work_mem = '1MB'; CREATE ROLE later").await.unwrap();

    let mut recovered = there.connect("shop").await.unwrap();
    let mut admin = here.connect("postgres").await.unwrap();
    assert_eq!(moving::strangers(&mut recovered, &mut admin).await.unwrap(), ["passing"]);
    run(&mut recovered, "DROP OWNED BY passing".into()).await.unwrap();
    assert_eq!(moving::obstacle(&mut recovered, &mut admin, "owner_of_shop").await.unwrap(), None);
    moving::freeze(&mut recovered).await.unwrap().expect("frozen");
    // Again, as after a crash in between.
    let frozen = moving::freeze(&mut recovered).await.unwrap().expect("frozen");

    let landing = Landing { name: "landing", oid: moving::next_oid(&mut admin).await.unwrap() };
    moving::make_landing(&mut admin, landing).await.unwrap();
    moving::land(there, &frozen, here, landing).await.unwrap();
    let number = moving::next_oid(&mut admin).await.unwrap();
    moving::settle(&mut admin, &frozen, landing, "moved", number).await.unwrap();
    assert_eq!(databases::oid(&mut admin, "moved").await.unwrap(), Some(number));
    // Nobody was let in so far.
    let limit =
        "SELECT datconnlimit || coalesce(datacl::text, 'public') FROM pg_database WHERE datname = 'moved'";
    assert_eq!(text(here, "postgres", limit).await, "0{postgres=CTc/postgres}");
    drop(admin);
    stop_at_once(here);
    here.start().await.unwrap();

    execute(here, "postgres", "DROP DATABASE landing").await.unwrap();
    assert_eq!(text(here, "moved", CONTENT).await, wanted);
    check(here, "moved").await;
    let left = "SELECT count(*)::text FROM pg_class WHERE relname = 'a_sessions'";
    assert_eq!(text(here, "moved", left).await, "0");
    let older = "SELECT max(age(relfrozenxid))::text FROM pg_class WHERE relisshared AND relkind = 'r'";
    assert_eq!(text(here, "moved", older).await, text(here, "shop", older).await, "of what all share");
    execute(here, "moved", "VACUUM").await.unwrap();
    execute(here, "moved", "INSERT INTO public.items VALUES (-2, 'more', '')").await.unwrap();
    // Its roles are known to be needed.
    execute(here, "postgres", "DROP DATABASE shop WITH (FORCE)").await.unwrap();
    for role in ["owner_of_shop", "reader"] {
        let error = execute(here, "postgres", &format!("DROP ROLE {role}")).await.unwrap_err();
        assert!(error.to_string().contains("cannot be dropped"), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_be_moved_says_why() {
    let pair = pair(installation().await).await;
    let (here, there) = (&pair.target.cluster, &pair.source.0);
    let mut admin = here.connect("postgres").await.unwrap();
    run(&mut admin, "CREATE ROLE later".into()).await.unwrap();
    let mut recovered = there.connect("shop").await.unwrap();
    let why = moving::obstacle(&mut recovered, &mut admin, "later").await.unwrap().expect("an obstacle");
    assert!(why.contains("role"), "{why}");

    execute(there, "postgres", "CREATE DATABASE odd TEMPLATE template0 LOCALE 'C' STRATEGY wal_log")
        .await
        .unwrap();
    let mut odd = there.connect("odd").await.unwrap();
    let why = moving::obstacle(&mut odd, &mut admin, "owner_of_shop").await.unwrap().expect("an obstacle");
    assert!(why.contains("locale"), "{why}");

    // Somebody works in it.
    let mut other = there.connect("shop").await.unwrap();
    run(&mut other, "BEGIN; SELECT pg_current_xact_id()".into()).await.unwrap();
    assert!(moving::freeze(&mut recovered).await.unwrap().is_none());
    run(&mut other, "COMMIT".into()).await.unwrap();
    assert!(moving::freeze(&mut recovered).await.unwrap().is_some());

    execute(there, "postgres", "CREATE TABLESPACE elsewhere LOCATION ''").await.unwrap();
    run(&mut recovered, "CREATE TABLE public.away (id int) TABLESPACE elsewhere".into()).await.unwrap();
    let why = moving::obstacle(&mut recovered, &mut admin, "owner_of_shop").await.unwrap();
    assert!(why.is_some_and(|why| why.contains("tablespace")), "{why:?}");
}
