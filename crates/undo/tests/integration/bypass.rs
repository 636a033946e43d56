//! What an agent may try in order to change rows unseen, or to get at the log.

use loomworks_undo::Mode;

use crate::tenant::{Tenant, ident, run};

const VAULT: &str = "
    CREATE TABLE vault (id int PRIMARY KEY, v int); INSERT INTO vault VALUES (1, 1), (2, 2);
    CREATE FUNCTION harmless() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
    CREATE FUNCTION plain(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
    CREATE TRIGGER app_trigger AFTER UPDATE ON vault EXECUTE FUNCTION harmless();";

#[tokio::test]
async fn an_agent_does_not_get_at_the_log() {
    let tenant = Tenant::with(VAULT).await;
    tenant.by_agent("UPDATE vault SET v = 0").await;
    for statement in [
        "SELECT * FROM loomworks.operation",
        "SELECT * FROM loomworks.row_1",
        "SELECT * FROM loomworks.relation",
        "SELECT * FROM loomworks.fingerprint",
        "INSERT INTO loomworks.row_1 (xid, at, kind) VALUES (pg_current_xact_id(), now(), 'I')",
        "DELETE FROM loomworks.operation",
        "UPDATE loomworks.operation SET undone_by = 1",
        "TRUNCATE loomworks.row_1",
        "DROP TABLE loomworks.row_1",
        "DROP SCHEMA loomworks CASCADE",
        "ALTER SCHEMA loomworks RENAME TO other",
        "CREATE TABLE loomworks.mine (id int)",
        "ALTER TABLE vault SET SCHEMA loomworks",
        "SELECT nextval('loomworks.row_seq')",
        "SELECT setval('loomworks.row_seq', 1)",
        "SELECT loomworks.enrol(1)",
        "SELECT loomworks.enrol_all()",
        "SELECT loomworks.after_ddl('x')",
        "SELECT loomworks.after_drop('x')",
        "SELECT loomworks.ensure_trigger(1, 'a', 'b', 'c', 'd', 'e')",
        "SELECT loomworks.capture_1()",
        "SELECT loomworks.begin_operation()",
        "SELECT loomworks.on_ddl()",
        "DROP FUNCTION loomworks.capture_1() CASCADE",
        "DROP EVENT TRIGGER loomworks_on_ddl",
        "ALTER EVENT TRIGGER loomworks_on_ddl DISABLE",
        "SET ROLE loomworks_log",
        "SET ROLE loomworks_undo",
        "SET SESSION AUTHORIZATION postgres",
        "GRANT loomworks_log TO CURRENT_USER",
        "BEGIN; LOCK loomworks.operation",
        "COMMENT ON TABLE loomworks.operation IS 'x'",
        "CREATE INDEX ON loomworks.operation (id)",
        "CREATE TABLE c (id bigint REFERENCES loomworks.operation)",
        "CREATE STATISTICS s ON id, xid FROM loomworks.operation",
    ] {
        let message = tenant.refused(statement).await;
        let expected = [
            "permission denied",
            "must be owner",
            "can only be called",
            "must have admin option",
            "no schema has been selected",
            "trigger functions can only be called",
            "must be member",
            "must be superuser",
            "cannot display a value",
            "cannot accept",
        ];
        assert!(expected.iter().any(|known| message.contains(known)), "{statement}: {message}");
    }
    assert_eq!(tenant.operations().await.len(), 1);
}

#[tokio::test]
async fn an_agent_does_not_get_rid_of_the_recording() {
    let tenant = Tenant::with(VAULT).await;
    for statement in [
        "ALTER TABLE vault DISABLE TRIGGER ALL",
        "ALTER TABLE vault DISABLE TRIGGER USER",
        "ALTER TABLE vault DISABLE TRIGGER \"!loomworks_row\"",
        "ALTER TABLE vault ENABLE TRIGGER \"!loomworks_row\"",
        "ALTER TABLE vault ENABLE REPLICA TRIGGER \"!loomworks_operation\"",
        "DROP TRIGGER \"!loomworks_row\" ON vault",
        "DROP TRIGGER \"!loomworks_truncate\" ON vault",
        "ALTER TRIGGER \"!loomworks_row\" ON vault RENAME TO other",
        "ALTER TRIGGER \"!loomworks_row\" ON vault DEPENDS ON EXTENSION plpgsql",
        "DO $$ BEGIN ALTER TABLE vault DISABLE TRIGGER ALL; UPDATE vault SET v = 0; ALTER TABLE vault ENABLE ALWAYS TRIGGER \"!loomworks_row\"; END $$",
        "BEGIN; ALTER TABLE vault DISABLE TRIGGER ALL; UPDATE vault SET v = 0; COMMIT",
        "SET quote_all_identifiers = on; ALTER TABLE vault DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "SELECT set_config('session_replication_role', 'replica', false)",
        "ALTER ROLE CURRENT_USER SET session_replication_role = replica",
    ] {
        tenant.refused(statement).await;
    }
    let operation = tenant.by_agent("UPDATE vault SET v = 9").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.rows("vault").await, "(1,1) (2,2)");
}

#[tokio::test]
async fn an_agent_does_not_leave_code_that_others_run() {
    let tenant = Tenant::with(VAULT).await;
    for statement in [
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION plain(int) RETURNS int LANGUAGE sql AS 'SELECT 2'",
        "CREATE PROCEDURE p() LANGUAGE sql AS 'SELECT 1'",
        "ALTER FUNCTION plain SECURITY DEFINER",
        "DROP FUNCTION plain",
        "CREATE TRIGGER t AFTER INSERT ON vault EXECUTE FUNCTION harmless()",
        "CREATE TRIGGER \"!loomworks_row\" AFTER INSERT ON vault EXECUTE FUNCTION harmless()",
        "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON vault FOR EACH ROW EXECUTE FUNCTION harmless()",
        "DROP TRIGGER app_trigger ON vault",
        "CREATE RULE r AS ON UPDATE TO vault DO INSTEAD NOTHING",
        "CREATE CAST (int AS bool) WITH FUNCTION plain(int)",
        "CREATE OPERATOR === (LEFTARG = int, FUNCTION = plain)",
        "CREATE AGGREGATE agg (int) (SFUNC = int4pl, STYPE = int)",
        "CREATE POLICY p ON vault USING (false)",
        "CREATE EXTENSION hstore",
        "CREATE SCHEMA s CREATE TABLE t (id int) CREATE TRIGGER x AFTER INSERT ON t EXECUTE FUNCTION public.harmless()",
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION harmless()",
        "DO $$ BEGIN EXECUTE 'CREATE FUNCTION f() RETURNS int LANGUAGE sql AS ''SELECT 1'''; END $$",
    ] {
        tenant.refused(statement).await;
    }
    assert!(tenant.operations().await.is_empty());
}

#[tokio::test]
async fn an_agent_stays_recorded_whoever_it_pretends_to_be() {
    let tenant = Tenant::with(VAULT).await;
    let owner = ident(&tenant.owner);
    for prelude in [
        "SET ROLE NONE".to_owned(),
        "RESET ROLE".to_owned(),
        "RESET ALL".to_owned(),
        "DISCARD ALL".to_owned(),
        "SET SESSION AUTHORIZATION DEFAULT".to_owned(),
        format!("SET ROLE {owner}"),
        "SET search_path = pg_temp, public".to_owned(),
        "SET loomworks.session = 'off'; SET jit = off; SET plpgsql.check_asserts = off".to_owned(),
        "SET transform_null_equals = on; SET quote_all_identifiers = on".to_owned(),
        "CREATE TEMP TABLE operation (id int); CREATE TEMP TABLE row_1 (id int); CREATE TEMP TABLE pg_class (oid oid); \
         CREATE TEMP TABLE pg_trigger (tgrelid oid); CREATE TEMP TABLE pg_roles (rolname name, rolsuper bool); \
         INSERT INTO pg_temp.pg_roles SELECT r, true FROM (VALUES (current_user), (session_user)) v (r); \
         SET search_path = pg_temp, pg_catalog, public"
            .to_owned(),
    ] {
        let mut agent = tenant.agent().await;
        for statement in prelude.split("; ").chain(["UPDATE public.vault SET v = v + 100"]) {
            run(&mut agent, statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
        let error = run(&mut agent, "ALTER TABLE public.vault DISABLE TRIGGER ALL").await.unwrap_err();
        assert!(error.to_string().contains("the recording of public.vault cannot be changed"), "{prelude}: {error}");
        let operation = tenant.last_operation().await;
        tenant.undo(operation).await;
        assert_eq!(tenant.rows("vault").await, "(1,1) (2,2)", "{prelude}");
    }
}

#[tokio::test]
async fn a_table_that_is_renamed_moved_or_copied_stays_recorded() {
    let tenant = Tenant::with(VAULT).await;
    tenant
        .by_agent(
            "ALTER TABLE vault RENAME TO hidden; CREATE SCHEMA attic; ALTER TABLE hidden SET SCHEMA attic",
        )
        .await;
    let operation = tenant.by_agent("DELETE FROM attic.hidden").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.rows("attic.hidden").await, "(1,1) (2,2)");
    tenant.by_agent("CREATE TABLE twin (LIKE attic.hidden INCLUDING ALL)").await;
    tenant.by_agent("CREATE TABLE third AS SELECT * FROM attic.hidden").await;
    tenant.by_agent("SELECT * INTO fourth FROM attic.hidden").await;
    for table in ["twin", "third", "fourth"] {
        let before = tenant.rows(table).await;
        let operation = tenant.by_agent(&format!("INSERT INTO {table} VALUES (9, 9)")).await;
        tenant.undo(operation).await;
        assert_eq!(tenant.rows(table).await, before, "{table}");
    }
}

#[tokio::test]
async fn large_objects_are_closed_to_everybody() {
    let tenant = Tenant::with(VAULT).await;
    for statement in [
        "SELECT lo_create(0)",
        "SELECT lo_from_bytea(0, 'x')",
        "SELECT lo_unlink(1)",
        "SELECT lo_creat(-1)",
        "SELECT lo_put(1, 0, 'x')",
    ] {
        assert!(tenant.refused(statement).await.contains("permission denied"), "{statement}");
    }
}

#[tokio::test]
async fn the_undo_engine_is_no_superuser_and_belongs_to_nobody() {
    let tenant = Tenant::with(VAULT).await;
    let mut undoer = tenant.undoer().await;
    for statement in [
        "DROP TABLE vault",
        "ALTER TABLE vault ADD x int",
        "CREATE TABLE public.t (id int)",
        "TRUNCATE loomworks.row_1",
        "CREATE ROLE x",
        "SELECT rolpassword FROM pg_authid",
        "COPY vault TO '/tmp/x'",
    ] {
        run(&mut undoer, statement).await.unwrap_err();
    }
    let operation = tenant.by_agent("DELETE FROM vault").await;
    tenant.try_undo(&[operation], Mode::Strict).await.unwrap();
}

#[tokio::test]
async fn settings_of_the_database_do_not_reach_the_undo_engine() {
    let tenant = Tenant::with(VAULT).await;
    let name = ident(&tenant.database.name);
    let mut admin = tenant.admin().await;
    for setting in [
        "search_path = public",
        "default_transaction_isolation = serializable",
        "default_transaction_read_only = on",
        "statement_timeout = 1",
        "quote_all_identifiers = on",
        "\"DateStyle\" = 'SQL, DMY'",
    ] {
        tenant.by_agent("UPDATE vault SET v = 5").await;
        run(&mut admin, &format!("ALTER DATABASE {name} SET {setting}")).await.unwrap();
        let operations = tenant.operations().await;
        assert_eq!(operations[0].tables[0].table, "public.vault", "{setting}");
        tenant.undo(operations[0].id).await;
        run(&mut admin, &format!("ALTER DATABASE {name} RESET ALL")).await.unwrap();
        assert_eq!(tenant.rows("vault").await, "(1,1) (2,2)", "{setting}");
    }
}
