//! Limits hold for everybody who works in the database, and nobody there can lift them.

use loomworks_undo::{Limits, Users, block, set_limits, unblock, usage};

use crate::tenant::{Tenant, run};

const USERS: &str = "CREATE TABLE users (login text PRIMARY KEY, active boolean NOT NULL DEFAULT true);
                     CREATE TABLE notes (id int PRIMARY KEY, writer text REFERENCES users ON DELETE SET NULL);";

async fn limit(tenant: &Tenant, users: i32, ai: i32) {
    let limits = Limits {
        users: Some(Users { table: "public.users", active: "active" }),
        max_users: Some(users),
        max_ai_operations_daily: Some(ai),
    };
    set_limits(&mut tenant.admin().await, &limits).await.unwrap();
}

/// Why the app may not do it.
async fn refused(tenant: &Tenant, statements: &str) -> String {
    match run(&mut tenant.app().await, statements).await {
        Ok(()) => panic!("the app may: {statements}"),
        Err(sqlx::Error::Database(error)) => error.message().to_owned(),
        Err(error) => panic!("{statements}: {error}"),
    }
}

#[tokio::test]
async fn no_way_of_writing_makes_one_user_too_many() {
    let tenant = Tenant::with(USERS).await;
    tenant.by_app("INSERT INTO users VALUES ('a', true), ('b', true), ('gone', false)").await;
    limit(&tenant, 3, 100).await;
    let said = refused(&tenant, "INSERT INTO users SELECT 'n' || n FROM generate_series(1, 2) n").await;
    assert_eq!(
        said,
        "loomworks: this tenant may have 3 users; 2 are in use, 1 are left, 2 more were asked for"
    );
    tenant.by_app("INSERT INTO users VALUES ('c')").await;
    for more in [
        "INSERT INTO users VALUES ('d')",
        "UPDATE users SET active = true",
        "INSERT INTO users VALUES ('gone') ON CONFLICT (login) DO UPDATE SET active = true",
        "MERGE INTO users USING (VALUES ('d')) v (login) ON users.login = v.login WHEN NOT MATCHED THEN INSERT VALUES (v.login)",
        "WITH x AS (INSERT INTO users VALUES ('d') RETURNING 1) SELECT * FROM x",
        "CREATE TABLE heir () INHERITS (users); INSERT INTO heir VALUES ('d')",
        "CREATE TABLE heir (LIKE users INCLUDING ALL); ALTER TABLE heir INHERIT users; INSERT INTO heir VALUES ('d')",
        "ALTER TABLE users ADD COLUMN note text; INSERT INTO users VALUES ('d')",
        "REVOKE ALL ON users FROM loomworks_quota; ALTER TABLE users ADD COLUMN note text; INSERT INTO users VALUES ('d')",
        "ALTER TABLE users RENAME TO people; INSERT INTO people VALUES ('d')",
        "BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO users VALUES ('d')",
    ] {
        assert!(
            refused(&tenant, more).await.contains("may have 3 users; 3 are in use, 0 are left"),
            "{more}"
        );
    }
    // What takes no place is free, and a place that is given back can be had again.
    tenant.by_app("INSERT INTO users VALUES ('e', false); UPDATE users SET login = login").await;
    tenant.by_app("DELETE FROM users WHERE login = 'a'; INSERT INTO users VALUES ('d')").await;
    assert_eq!(usage(&mut tenant.undoer().await).await.unwrap().users, Some(3));
}

#[tokio::test]
async fn two_who_want_the_last_place_do_not_both_get_it() {
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let tenant = Tenant::with(USERS).await;
        limit(&tenant, 1, 100).await;
        let (mut first, mut second) = (tenant.app().await, tenant.app().await);
        let begin = format!("BEGIN ISOLATION LEVEL {isolation}; SELECT * FROM users");
        run(&mut first, &begin).await.unwrap();
        run(&mut second, &begin).await.unwrap();
        run(&mut first, "INSERT INTO users VALUES ('first')").await.unwrap();
        let waiting =
            tokio::spawn(
                async move { run(&mut second, "INSERT INTO users VALUES ('second'); COMMIT").await },
            );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert!(!waiting.is_finished(), "{isolation}: the second one waits");
        run(&mut first, "COMMIT").await.unwrap();
        waiting.await.unwrap().expect_err(isolation);
        assert_eq!(tenant.value("SELECT count(*)::text FROM users").await, "1", "{isolation}");
    }
}

#[tokio::test]
async fn agents_are_counted_and_people_are_not() {
    let tenant = Tenant::with(USERS).await;
    limit(&tenant, 100, 3).await;
    tenant.by_agent("INSERT INTO users VALUES ('one')").await;
    // What is rolled back does not count, and what touches nothing recorded neither.
    let mut agent = tenant.agent().await;
    run(&mut agent, "BEGIN; INSERT INTO users VALUES ('x'); ROLLBACK; SELECT * FROM users").await.unwrap();
    tenant.by_agent("CREATE TABLE mine (id int)").await;
    let third = tenant.by_agent("TRUNCATE mine").await;
    let before = tenant.rows("users").await;
    for more in [
        "UPDATE users SET active = false",
        "TRUNCATE users CASCADE",
        "CREATE TABLE other ()",
        "DROP TABLE mine",
    ] {
        assert!(tenant.refused(more).await.contains("3 operations a day"), "{more}");
    }
    assert_eq!(tenant.rows("users").await, before);
    assert_eq!(usage(&mut tenant.undoer().await).await.unwrap().ai_operations, 3);
    // People go on, and what the agent did can still be taken back.
    tenant.by_app("INSERT INTO users VALUES ('two')").await;
    tenant.undo(third).await;
    // Yesterday's are not today's.
    tenant.value("UPDATE loomworks.ai_usage SET day = day - 1 RETURNING 'x'").await;
    tenant.by_agent("INSERT INTO users VALUES ('three')").await;
}

#[tokio::test]
async fn agents_who_commit_together_do_not_do_more_than_one_may() {
    let tenant = Tenant::with(USERS).await;
    limit(&tenant, 1000, 5).await;
    let mut agents = vec![];
    for number in 0..4 {
        let mut agent = tenant.agent().await;
        let insert = format!("INSERT INTO notes VALUES ({number})");
        for statement in ["BEGIN", &insert, "UPDATE notes SET id = id", "UPDATE notes SET id = id"] {
            run(&mut agent, statement).await.unwrap();
        }
        agents.push(agent);
    }
    let mut refusals = 0;
    for mut agent in agents {
        if let Err(error) = run(&mut agent, "COMMIT").await {
            assert!(error.to_string().contains("5 operations a day"), "{error}");
            refusals += 1;
        }
    }
    assert_eq!(refusals, 3);
    assert_eq!(usage(&mut tenant.undoer().await).await.unwrap().ai_operations, 3);
    // Whoever has his constraints checked at once gets no further.
    let mut agent = tenant.agent().await;
    for statement in ["BEGIN", "SET CONSTRAINTS ALL IMMEDIATE", "DELETE FROM notes", "DELETE FROM notes"] {
        run(&mut agent, statement).await.unwrap();
    }
    run(&mut agent, "DELETE FROM notes").await.unwrap_err();
}

#[tokio::test]
async fn ddl_makes_no_users_past_the_limit() {
    let tenant = Tenant::with(USERS).await;
    tenant
        .by_app(
            "INSERT INTO users SELECT 'u' || n, n <= 2 FROM generate_series(1, 5) n;
             CREATE TABLE heir (LIKE users INCLUDING ALL); INSERT INTO heir SELECT 'h' || n FROM generate_series(1, 5) n;
             CREATE SCHEMA old; CREATE TABLE old.users (LIKE users); INSERT INTO old.users SELECT 'o' || n, true FROM generate_series(1, 5) n",
        )
        .await;
    limit(&tenant, 3, 100).await;
    for more in [
        "ALTER TABLE users ALTER active TYPE boolean USING true",
        "ALTER TABLE users DROP COLUMN active; ALTER TABLE users ADD COLUMN active boolean DEFAULT true",
        "ALTER TABLE heir INHERIT users",
        "ALTER TABLE users RENAME TO people; ALTER TABLE heir RENAME TO users",
        "DROP TABLE users CASCADE; ALTER TABLE old.users SET SCHEMA public",
        "DROP TABLE users CASCADE; CREATE TABLE users AS SELECT * FROM heir",
    ] {
        let said = refused(&tenant, more).await;
        assert!(said.contains("may have 3 users; with this there would be"), "{more}: {said}");
    }
    tenant
        .by_app("ALTER TABLE users ADD COLUMN more text; ALTER TABLE users RENAME COLUMN more TO less")
        .await;
    // Those who were there when the limit was lowered stay, and so does what is done to their table.
    limit(&tenant, 1, 100).await;
    tenant.by_app("ALTER TABLE users DROP COLUMN less").await;
    refused(&tenant, "ALTER TABLE users ALTER active TYPE boolean USING true").await;
}

#[tokio::test]
async fn another_table_of_users_takes_the_place_of_the_former_one() {
    let tenant = Tenant::with(USERS).await;
    limit(&tenant, 1, 100).await;
    tenant.by_app("CREATE TABLE people (login text, gone boolean NOT NULL DEFAULT false)").await;
    let limits = Limits {
        users: Some(Users { table: "public.people", active: "NOT gone" }),
        max_users: Some(1),
        max_ai_operations_daily: None,
    };
    set_limits(&mut tenant.admin().await, &limits).await.unwrap();
    tenant.by_app("INSERT INTO users VALUES ('a'), ('b'); INSERT INTO people VALUES ('a')").await;
    refused(&tenant, "INSERT INTO people VALUES ('b')").await;
    tenant.by_app("ALTER TABLE users ADD COLUMN more text").await;
    let nobody = Limits { users: None, ..limits };
    set_limits(&mut tenant.admin().await, &nobody).await.unwrap();
    tenant.by_app("INSERT INTO people VALUES ('b')").await;
    assert_eq!(usage(&mut tenant.undoer().await).await.unwrap().users, None);
    let left = "SELECT count(*)::text FROM pg_trigger WHERE starts_with(tgname, '!loomworks_users')";
    assert_eq!(tenant.value(left).await, "0");
}

#[tokio::test]
async fn there_is_no_way_round_a_full_storage() {
    let tenant = Tenant::with(
        "CREATE TABLE items (id int, value text);
         CREATE VIEW shown AS SELECT * FROM items;
         CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO items VALUES (NEW.id, NEW.value); RETURN NEW; END $$;
         CREATE TRIGGER instead INSTEAD OF INSERT ON shown FOR EACH ROW EXECUTE FUNCTION instead();
         CREATE MATERIALIZED VIEW kept AS SELECT id FROM items;
         CREATE TABLE parts (id int) PARTITION BY RANGE (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
         CREATE TABLE apart (id int); CREATE INDEX ON parts (id);",
    )
    .await;
    // It is made before, and seen only afterwards.
    let mut open = tenant.app().await;
    run(&mut open, "BEGIN").await.unwrap();
    run(&mut open, "CREATE TABLE early (id int)").await.unwrap();
    let mut admin = tenant.admin().await;
    block(&mut admin, "full").await.unwrap();
    run(&mut open, "COMMIT").await.unwrap();
    block(&mut admin, "full").await.unwrap();
    for more in [
        "INSERT INTO early VALUES (1)",
        "INSERT INTO shown VALUES (1, 'x')",
        "CREATE SCHEMA s CREATE TABLE t (id int)",
        "CREATE TABLE t AS SELECT 1",
        "SELECT 1 INTO t",
        "CREATE MATERIALIZED VIEW m AS SELECT 1",
        "REFRESH MATERIALIZED VIEW kept",
        "CREATE INDEX ON items (id)",
        "ALTER TABLE items ADD UNIQUE (id)",
        "ALTER TABLE parts ATTACH PARTITION apart FOR VALUES FROM (10) TO (20)",
        "ALTER TABLE apart ALTER id TYPE bigint",
        "ALTER TABLE items ADD COLUMN at timestamptz DEFAULT clock_timestamp()",
    ] {
        let said = refused(&tenant, more).await;
        assert!(said.contains("storage is full"), "{more}: {said}");
    }
    // What makes room, and what is the session's alone.
    tenant
        .by_app(
            "CREATE TEMP TABLE mine AS SELECT * FROM items; CREATE INDEX ON mine (id); INSERT INTO mine VALUES (1);
             ALTER TABLE mine ALTER id TYPE bigint; ALTER TABLE mine ADD UNIQUE (id);
             ALTER TABLE items DROP COLUMN value CASCADE; ALTER TABLE parts DETACH PARTITION parts_1; DROP TABLE parts_1;
             DELETE FROM items; TRUNCATE items",
        )
        .await;
    for more in ["INSERT INTO items VALUES (1)", "INSERT INTO parts VALUES (1)"] {
        assert!(refused(&tenant, more).await.contains("storage is full"), "{more}");
    }
    unblock(&mut admin).await.unwrap();
    tenant
        .by_app(
            "INSERT INTO items VALUES (1); INSERT INTO early VALUES (1); CREATE TABLE t (id int PRIMARY KEY)",
        )
        .await;
    let left = "SELECT count(*)::text FROM pg_trigger WHERE tgname = '!loomworks_full'";
    assert_eq!(tenant.value(left).await, "0");
}

#[tokio::test]
async fn a_full_tenant_can_be_read_and_deleted_from_and_undone_in() {
    let tenant = Tenant::with(USERS).await;
    tenant.by_app("INSERT INTO users VALUES ('a'), ('b'); INSERT INTO notes VALUES (1, 'a'), (2, 'b')").await;
    let deleted = tenant.by_agent("DELETE FROM notes WHERE id = 2").await;
    let mut admin = tenant.admin().await;
    block(&mut admin, "5.1 GB of 5 GB").await.unwrap();
    block(&mut admin, "5.1 GB of 5 GB").await.unwrap();
    for more in [
        "INSERT INTO users VALUES ('c')",
        "UPDATE users SET active = false",
        "CREATE TABLE other ()",
        "CREATE TABLE other AS SELECT 1",
        "SELECT 1 INTO other",
        "CREATE INDEX ON users (active)",
        "ALTER TABLE users ADD UNIQUE (login)",
        "SET session_replication_role = replica",
    ] {
        let said = refused(&tenant, more).await;
        assert!(said.contains("storage is full") || said.contains("permission denied"), "{more}: {said}");
    }
    tenant.by_app("SELECT * FROM users; DELETE FROM users WHERE login = 'a'").await;
    assert_eq!(tenant.rows("notes").await, "(1,)", "what follows from a deletion is done");
    assert_eq!(tenant.undo(deleted).await.tables.len(), 1);
    let mut app = tenant.app().await;
    run(&mut app, "VACUUM FULL users").await.unwrap();
    tenant.by_agent("TRUNCATE notes").await;
    unblock(&mut admin).await.unwrap();
    tenant
        .by_app("INSERT INTO users VALUES ('c'); CREATE TABLE other (id int); INSERT INTO other VALUES (1)")
        .await;
}

#[tokio::test]
async fn neither_agents_nor_owners_can_lift_a_limit() {
    let tenant = Tenant::with(USERS).await;
    limit(&tenant, 1, 100).await;
    block(&mut tenant.admin().await, "full").await.unwrap();
    for attempt in [
        r#"DROP TRIGGER "!loomworks_users_added" ON users"#,
        r#"DROP TRIGGER "!loomworks_full" ON users"#,
        r#"ALTER TABLE users DISABLE TRIGGER "!loomworks_users_added""#,
        "ALTER TABLE users DISABLE TRIGGER USER",
        "ALTER TABLE users DISABLE TRIGGER ALL",
        r#"ALTER TRIGGER "!loomworks_full" ON users RENAME TO harmless"#,
        "DROP EVENT TRIGGER loomworks_full",
        "ALTER EVENT TRIGGER loomworks_full DISABLE",
        "DROP FUNCTION loomworks.check_users() CASCADE",
        "ALTER FUNCTION loomworks.check_users() RENAME TO other",
        "CREATE OR REPLACE FUNCTION loomworks.check_users() RETURNS trigger LANGUAGE sql AS ''",
        "UPDATE loomworks.quota SET max_users = NULL",
        "DELETE FROM loomworks.ai_usage",
        "SELECT loomworks.unblock_table('users'::regclass)",
        "SELECT loomworks.count_users('users'::regclass)",
        "DROP SCHEMA loomworks CASCADE",
        "SET ROLE loomworks_quota",
    ] {
        refused(&tenant, attempt).await;
        tenant.refused(attempt).await;
    }
    // Neither does taking the table away and making another one of its name.
    unblock(&mut tenant.admin().await).await.unwrap();
    for attempt in [
        r#"ALTER TABLE users DISABLE TRIGGER "!loomworks_users_added""#,
        r#"ALTER TABLE users ENABLE ALWAYS TRIGGER "!loomworks_users_added""#,
        "ALTER TABLE users DISABLE TRIGGER USER",
        r#"DROP TRIGGER "!loomworks_users_changed" ON users"#,
    ] {
        assert!(refused(&tenant, attempt).await.contains("cannot be changed"), "{attempt}");
    }
    tenant
        .by_app("DROP TABLE users CASCADE; CREATE TABLE users (login text, active boolean DEFAULT true)")
        .await;
    tenant.by_app("INSERT INTO users VALUES ('a')").await;
    assert!(refused(&tenant, "INSERT INTO users VALUES ('b')").await.contains("may have 1 users"));
}
