//! Partitions, heirs, unlogged tables, tables of the agent, row security.

use loomworks_undo::{Mode, OperationKind, UndoError};

use crate::tenant::Tenant;

const PARTS: &str = "
    CREATE TABLE part (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');
    CREATE TABLE part_b PARTITION OF part FOR VALUES IN ('b');
    INSERT INTO part VALUES (1, 'a', 1), (2, 'a', 2), (3, 'b', 3);";

#[tokio::test]
async fn a_row_that_moved_to_another_partition_moves_back() {
    let tenant = Tenant::with(PARTS).await;
    let before = tenant.bytes("part").await;
    let operation = tenant.by_agent("UPDATE part SET region = 'b', v = 10 WHERE id = 1").await;
    let outcome = tenant.undo(operation).await;
    assert_eq!(outcome.tables.len(), 2);
    assert_eq!(tenant.bytes("part").await, before);
    for statement in ["DELETE FROM part", "INSERT INTO part_b VALUES (7, 'b', 7)", "TRUNCATE part"] {
        let operation = tenant.by_agent(statement).await;
        tenant.undo(operation).await;
        assert_eq!(tenant.bytes("part").await, before, "{statement}");
    }
}

#[tokio::test]
async fn partitions_may_come_and_go() {
    let tenant = Tenant::with(PARTS).await;
    tenant
        .by_app(
            "CREATE TABLE part_c PARTITION OF part FOR VALUES IN ('c'); INSERT INTO part VALUES (5, 'c', 5)",
        )
        .await;
    let before = tenant.bytes("part").await;
    let operation = tenant.by_agent("UPDATE part SET v = 0 WHERE region = 'c'").await;
    tenant.by_app("ALTER TABLE part DETACH PARTITION part_c").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.rows("part_c").await, "(5,c,5)");
    let operation = tenant.by_agent("DELETE FROM part_c").await;
    tenant.by_app("ALTER TABLE part ATTACH PARTITION part_c FOR VALUES IN ('c')").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.bytes("part").await, before);
    let operation = tenant.by_agent("DELETE FROM part WHERE region = 'c'").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.bytes("part").await, before);
}

#[tokio::test]
async fn heirs_and_unlogged_tables_are_recorded() {
    let tenant = Tenant::with(
        "CREATE TABLE base (id int PRIMARY KEY, v int); CREATE TABLE heir (extra text, PRIMARY KEY (id)) INHERITS (base);
         CREATE UNLOGGED TABLE quick (id int PRIMARY KEY, v int);
         INSERT INTO base VALUES (1, 1); INSERT INTO heir VALUES (2, 2, 'x'); INSERT INTO quick VALUES (1, 1)",
    )
    .await;
    for statement in ["UPDATE base SET v = 9", "DELETE FROM base", "DELETE FROM quick"] {
        let operation = tenant.by_agent(statement).await;
        tenant.undo(operation).await;
        let now = (tenant.rows("base").await, tenant.rows("heir").await, tenant.rows("quick").await);
        assert_eq!(now, ("(1,1) (2,2)".into(), "(2,2,x)".into(), "(1,1)".into()), "{statement}");
    }
}

#[tokio::test]
async fn a_table_the_agent_makes_is_recorded() {
    let tenant = Tenant::new().await;
    let made = tenant.by_agent("CREATE TABLE mine (id int PRIMARY KEY, v text)").await;
    assert_eq!(tenant.operations().await[0].kind, OperationKind::Ddl);
    let filled = tenant.by_agent("INSERT INTO mine VALUES (1, 'a'), (2, 'b')").await;
    tenant.undo(filled).await;
    assert_eq!(tenant.rows("mine").await, "");
    let error = tenant.try_undo(&[made], Mode::Strict).await.unwrap_err();
    let UndoError::NotRowByRow { what, .. } = error else { panic!("{error:?}") };
    assert_eq!(what, "it ran CREATE TABLE");
}

#[tokio::test]
async fn a_table_the_agent_makes_as_itself_is_recorded_and_taken_back() {
    let tenant = Tenant::new().await;
    tenant
        .by_agent("SET ROLE NONE; CREATE TABLE public.own (id int PRIMARY KEY); INSERT INTO own VALUES (1)")
        .await;
    let owner = tenant.value("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'own'").await;
    assert_eq!(owner, tenant.agent_role);
    let operation = tenant.by_agent("SET ROLE NONE; DELETE FROM own; INSERT INTO own VALUES (2)").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.rows("own").await, "(1)");
    let operation =
        tenant.by_agent("SET ROLE NONE; REVOKE ALL ON own FROM loomworks_writer; DELETE FROM own").await;
    assert_eq!(
        tenant.value("SELECT has_table_privilege('loomworks_writer', 'own', 'DELETE')::text").await,
        "true"
    );
    assert!(matches!(tenant.try_undo(&[operation], Mode::Strict).await, Err(UndoError::NotRowByRow { .. })));
}

#[tokio::test]
async fn forced_row_security_hides_nothing_from_log_and_undo() {
    let tenant = Tenant::with(
        "CREATE TABLE secret (id int PRIMARY KEY, who text, v int); INSERT INTO secret VALUES (1, 'a', 1), (2, 'b', 2);
         ALTER TABLE secret ENABLE ROW LEVEL SECURITY; ALTER TABLE secret FORCE ROW LEVEL SECURITY;
         CREATE POLICY mine ON secret USING (who = current_setting('app.who', true));",
    )
    .await;
    for statement in ["DELETE FROM secret", "UPDATE secret SET v = 9", "TRUNCATE secret"] {
        let operation = tenant.by_agent(&format!("SET app.who = 'a'; {statement}")).await;
        tenant.undo(operation).await;
        assert_eq!(tenant.rows("secret").await, "(1,a,1) (2,b,2)", "{statement}");
    }
}

#[tokio::test]
async fn functions_of_the_tenant_run_without_rights_in_an_undo() {
    let tenant = Tenant::with(
        "CREATE FUNCTION check_it(int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
             PERFORM set_config('app.user', current_user, false); RETURN true; END $$;
         REVOKE ALL ON FUNCTION check_it FROM PUBLIC;
         CREATE TABLE t (id int PRIMARY KEY CHECK (public.check_it(id)));
         INSERT INTO t VALUES (1)",
    )
    .await;
    let operation = tenant.by_agent("DELETE FROM t").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.rows("t").await, "(1)");
    for role in ["loomworks_undo", "loomworks_writer"] {
        let member = format!("SELECT pg_has_role('{role}', '{}', 'MEMBER')::text", tenant.owner);
        assert_eq!(tenant.value(&member).await, "false", "{role}");
    }
}
