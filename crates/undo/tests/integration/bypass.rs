//! What an agent may try in order to change rows unseen, or to get at the log.

use loomworks_undo::{Limits, Mode, Users, set_limits, usage};

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
        "SELECT * FROM loomworks.own_trigger",
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
        "SELECT loomworks.follow_columns(1, 1, true)",
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

/// Everything that code of the tenant's may try when it finds itself run by us; it goes on after each.
const ATTEMPTS: &str = r#"
    CREATE TABLE managed (what text, who text);
    CREATE TABLE users (login text PRIMARY KEY, active boolean NOT NULL DEFAULT true);
    CREATE FUNCTION attempt() RETURNS void LANGUAGE plpgsql AS $f$
    DECLARE
        this text;
    BEGIN
        FOREACH this IN ARRAY ARRAY[
            'UPDATE loomworks.quota SET max_users = NULL, max_ai_operations_daily = NULL',
            'DELETE FROM loomworks.ai_usage',
            'UPDATE loomworks.operation SET undone_by = 1, statement = ''forged''',
            'INSERT INTO loomworks.operation (xid, at, until, session, lsn) VALUES (pg_current_xact_id(), now(), now(), ''forged'', ''0/0'')',
            'UPDATE loomworks.relation SET fingerprint = ''forged''',
            'ALTER FUNCTION loomworks.check_users() SET search_path = evil, pg_catalog',
            'ALTER FUNCTION loomworks.count_users(oid) SET search_path = evil, pg_catalog',
            'ALTER FUNCTION loomworks.write(text) SET search_path = evil, pg_catalog',
            'ALTER FUNCTION loomworks.count_users(oid) RENAME TO other',
            'DROP FUNCTION loomworks.check_users() CASCADE',
            'DROP FUNCTION loomworks.count_users(oid)',
            'DROP FUNCTION loomworks.write(text)',
            'DROP OWNED BY CURRENT_USER',
            'SET ROLE loomworks_undo',
            'GRANT loomworks_undo TO lw_attempt',
            'GRANT loomworks_writer TO lw_attempt',
            'GRANT loomworks_quota TO lw_attempt',
            'ALTER ROLE loomworks_undo SET statement_timeout = 1',
            'SELECT rolpassword FROM pg_authid',
            'SELECT as_owner()'
        ] LOOP
            BEGIN
                EXECUTE this;
                PERFORM note(this);
            EXCEPTION WHEN OTHERS THEN
                NULL;
            END;
        END LOOP;
    END $f$;
    CREATE FUNCTION note(what text) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO managed VALUES (what, session_user)';
    CREATE FUNCTION as_owner() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'ALTER TABLE users DISABLE TRIGGER ALL';
    ALTER FUNCTION attempt() SET search_path = public; ALTER FUNCTION note(text) SET search_path = public;
    ALTER FUNCTION as_owner() SET search_path = public;
    GRANT USAGE ON SCHEMA public TO PUBLIC;"#;

/// A tenant with the attempts at hand, who may have one user.
async fn with_attempts() -> Tenant {
    let tenant = Tenant::with(ATTEMPTS).await;
    let mut admin = tenant.admin().await;
    let role = "DO $$ BEGIN CREATE ROLE lw_attempt; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$";
    run(&mut admin, role).await.unwrap();
    let limits = Limits {
        users: Some(Users { table: "public.users", active: "active" }),
        max_users: Some(1),
        max_ai_operations_daily: Some(50),
    };
    set_limits(&mut admin, &limits).await.unwrap();
    tenant
}

/// After code of the tenant's was run by us, all is as it was, and the limit holds for `two_users`.
async fn assert_nothing_managed(tenant: &Tenant, two_users: &str) {
    assert_eq!(tenant.rows("managed").await, "");
    let counts = "SELECT format('%s forged, %s limits, %s settings, %s members',
        (SELECT count(*) FROM loomworks.operation WHERE statement = 'forged' OR session = 'forged'),
        (SELECT count(*) FROM loomworks.quota WHERE max_users = 1 AND max_ai_operations_daily = 50),
        (SELECT count(*) FROM pg_db_role_setting JOIN pg_roles r ON r.oid = setrole WHERE starts_with(rolname, 'loomworks_')),
        (SELECT count(*) FROM pg_auth_members JOIN pg_roles r ON r.oid = roleid WHERE starts_with(rolname, 'loomworks_')))";
    assert_eq!(tenant.value(counts).await, "0 forged, 1 limits, 0 settings, 0 members");
    let error = run(&mut tenant.app().await, two_users).await.unwrap_err();
    assert!(error.to_string().contains("may have 1 users"), "{error}");
}

const FLAG: &str = "CREATE TYPE flag AS (is_on boolean);
    CREATE CAST (flag AS boolean) WITH FUNCTION flag_on(flag) AS IMPLICIT;
    ALTER TABLE users ALTER active DROP DEFAULT, ALTER active TYPE flag USING ROW(active)::flag;";

#[tokio::test]
async fn a_cast_that_the_limit_calls_cannot_lift_it() {
    let tenant = with_attempts().await;
    let flag_on = "CREATE FUNCTION flag_on(flag) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        IF current_user = 'loomworks_quota' THEN PERFORM public.attempt(); END IF; RETURN $1.is_on; END $$;";
    tenant.by_app(&FLAG.replace("CREATE CAST", &format!("{flag_on} CREATE CAST"))).await;
    tenant.by_app("INSERT INTO users VALUES ('a', ROW(true)); UPDATE users SET active = ROW(true)").await;
    assert_eq!(usage(&mut tenant.undoer().await).await.unwrap().users, Some(1));
    assert_nothing_managed(&tenant, "INSERT INTO users VALUES ('b', ROW(true))").await;
}

#[tokio::test]
async fn a_cast_that_changes_the_search_path_is_refused() {
    let tenant = with_attempts().await;
    let flag_on = "CREATE SCHEMA evil;
        CREATE FUNCTION evil.never(bigint, integer) RETURNS boolean LANGUAGE sql AS 'SELECT false';
        CREATE OPERATOR evil.> (LEFTARG = bigint, RIGHTARG = integer, FUNCTION = evil.never);
        CREATE FUNCTION flag_on(flag) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
            PERFORM set_config('search_path', 'evil, pg_catalog', false); RETURN $1.is_on; END $$;";
    tenant.by_app(&FLAG.replace("CREATE CAST", &format!("{flag_on} CREATE CAST"))).await;
    let mut app = tenant.app().await;
    let error =
        run(&mut app, "INSERT INTO users VALUES ('a', ROW(true)), ('b', ROW(true))").await.unwrap_err();
    assert!(error.to_string().contains("search path"), "{error}");
}

#[tokio::test]
async fn a_view_in_the_place_of_the_users_is_not_read() {
    let tenant = with_attempts().await;
    tenant
        .by_app(
            "ALTER TABLE users RENAME TO people;
             CREATE FUNCTION peep() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.attempt(); RETURN true; END $$;
             CREATE VIEW users AS SELECT 'x' AS login, peep() AS active; GRANT SELECT ON users TO PUBLIC;",
        )
        .await;
    assert_eq!(usage(&mut tenant.undoer().await).await.unwrap().users, None);
    assert_nothing_managed(&tenant, "INSERT INTO people VALUES ('a'), ('b')").await;
}

#[tokio::test]
async fn what_an_undo_calls_of_the_tenants_reaches_nothing_of_ours() {
    let tenant = with_attempts().await;
    tenant
        .by_app(
            "CREATE FUNCTION fine(int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
                 IF session_user = 'loomworks_undo' THEN PERFORM public.attempt(); END IF; RETURN true; END $$;
             CREATE TABLE vault (id int PRIMARY KEY, v int CHECK (fine(v)));
             INSERT INTO vault VALUES (1, 1), (2, 2);",
        )
        .await;
    let update = tenant.by_agent("UPDATE vault SET v = 9").await;
    let delete = tenant.by_agent("DELETE FROM vault WHERE id = 2").await;
    tenant.undo(delete).await;
    tenant.undo(update).await;
    assert_eq!(tenant.rows("vault").await, "(1,1) (2,2)");
    assert_nothing_managed(&tenant, "INSERT INTO users VALUES ('a'), ('b')").await;
}

#[tokio::test]
async fn a_trigger_that_waits_for_the_commit_does_not_run_in_an_undo() {
    let tenant = Tenant::with(&format!(
        "{VAULT}
         CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON vault DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
             EXECUTE FUNCTION harmless();
         ALTER TABLE vault ENABLE ALWAYS TRIGGER late;"
    ))
    .await;
    let operation = tenant.by_agent("UPDATE vault SET v = 9").await;
    let error = tenant.try_undo(&[operation], Mode::Force).await.unwrap_err();
    assert!(error.to_string().contains("trigger late of public.vault"), "{error}");
    tenant.by_app("ALTER TABLE vault ENABLE TRIGGER late").await;
    tenant.undo(operation).await;
}

#[tokio::test]
async fn rights_that_an_undo_needs_are_given_again() {
    let tenant = Tenant::with(VAULT).await;
    tenant
        .by_app(
            "REVOKE ALL ON vault FROM loomworks_writer; CREATE SCHEMA attic; ALTER TABLE vault SET SCHEMA attic;
             ALTER TABLE attic.vault ADD COLUMN n serial; REVOKE ALL ON SCHEMA attic FROM loomworks_writer",
        )
        .await;
    let operation = tenant.by_agent("DELETE FROM attic.vault").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.rows("attic.vault").await, "(1,1,1) (2,2,2)");
}
