//! Every way to change rows is recorded.

use loomworks_undo::{Mode, UndoError};
use sqlx::Connection;

use crate::tenant::{Tenant, run};

const STOCK: &str = "
    CREATE TABLE stock (id int PRIMARY KEY, n int);
    INSERT INTO stock VALUES (1, 10), (2, 20), (3, 30);
    CREATE VIEW cheap AS SELECT * FROM stock WHERE n < 25;
    CREATE FUNCTION sell(int) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'UPDATE public.stock SET n = n - 1 WHERE id = $1';";

#[tokio::test]
async fn every_statement_is_one_operation_and_is_taken_back() {
    let tenant = Tenant::with(STOCK).await;
    let before = tenant.bytes("stock").await;
    for statement in [
        "INSERT INTO stock VALUES (1, 1), (4, 4) ON CONFLICT (id) DO UPDATE SET n = excluded.n",
        "MERGE INTO stock s USING (VALUES (1, 5), (2, 0), (9, 9)) v (id, n) ON s.id = v.id
             WHEN MATCHED AND v.n = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET n = v.n
             WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.n)",
        "DO $$ BEGIN FOR i IN 1..3 LOOP UPDATE stock SET n = n + i; INSERT INTO stock VALUES (i * 100, i); END LOOP; END $$",
        "WITH gone AS (DELETE FROM stock WHERE id = 1 RETURNING *) INSERT INTO stock SELECT id + 50, n FROM gone",
        "UPDATE cheap SET n = n + 1",
        "DELETE FROM cheap",
        "SELECT sell(1), sell(1), sell(2)",
        "TRUNCATE stock",
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM stock FOR UPDATE; FETCH 2 FROM c; UPDATE stock SET n = 0 WHERE CURRENT OF c; COMMIT",
        "DO $$ BEGIN CREATE TEMP TABLE mine AS SELECT * FROM stock; UPDATE stock SET n = 0; DROP TABLE mine; END $$",
        "PREPARE p AS UPDATE stock SET n = $1; EXECUTE p (4)",
    ] {
        let count = tenant.operations().await.len();
        let operation = tenant.by_agent(statement).await;
        assert_eq!(tenant.operations().await.len(), count + 1, "{statement}");
        assert_ne!(tenant.bytes("stock").await, before, "{statement}");
        tenant.undo(operation).await;
        assert_eq!(tenant.bytes("stock").await, before, "{statement}");
    }
}

#[tokio::test]
async fn statements_of_one_transaction_are_operations_of_their_own() {
    let tenant = Tenant::with(STOCK).await;
    let mut agent = tenant.agent().await;
    let mut transaction = agent.begin().await.unwrap();
    run(&mut transaction, "UPDATE stock SET n = 11 WHERE id = 1").await.unwrap();
    sqlx::query("UPDATE stock SET n = $1 WHERE id = 2").bind(22).execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    let operations = tenant.operations().await;
    assert_eq!(operations.len(), 2);
    assert_eq!(operations[0].statement, "UPDATE stock SET n = $1 WHERE id = 2");
    tenant.undo(operations[1].id).await;
    assert_eq!(tenant.rows("stock").await, "(1,10) (2,22) (3,30)");
}

#[tokio::test]
async fn copied_rows_are_recorded() {
    let tenant = Tenant::with(STOCK).await;
    let before = tenant.bytes("stock").await;
    let mut agent = tenant.agent().await;
    let mut copy = agent.copy_in_raw("COPY stock FROM STDIN").await.unwrap();
    copy.send("7\t70\n8\t80\n".as_bytes()).await.unwrap();
    copy.finish().await.unwrap();
    let operation = tenant.last_operation().await;
    let outcome = tenant.undo(operation).await;
    assert_eq!(outcome.tables[0].delete, 2);
    assert_eq!(tenant.bytes("stock").await, before);
}

#[tokio::test]
async fn what_is_rolled_back_is_not_in_the_log() {
    let tenant = Tenant::with(STOCK).await;
    tenant.by_agent("BEGIN; UPDATE stock SET n = 1; COMMIT").await;
    let mut agent = tenant.agent().await;
    run(&mut agent, "BEGIN; UPDATE stock SET n = 2; ROLLBACK").await.unwrap();
    assert_eq!(tenant.operations().await.len(), 1);
    for statement in [
        "BEGIN",
        "UPDATE stock SET n = 3 WHERE id = 1",
        "SAVEPOINT a",
        "UPDATE stock SET n = 4",
        "ROLLBACK TO a",
        "UPDATE stock SET n = 5 WHERE id = 2",
        "COMMIT",
    ] {
        run(&mut agent, statement).await.unwrap();
    }
    let operations = tenant.operations().await;
    assert_eq!(operations.len(), 3);
    tenant.try_undo(&[operations[0].id, operations[1].id], Mode::Strict).await.unwrap();
    assert_eq!(tenant.rows("stock").await, "(1,1) (2,1) (3,1)");
}

#[tokio::test]
async fn a_prepared_transaction_is_recorded() {
    let tenant = Tenant::with(STOCK).await;
    let before = tenant.bytes("stock").await;
    let mut agent = tenant.agent().await;
    let name = format!("two_{}", tenant.agent_role);
    run(&mut agent, &format!("BEGIN; UPDATE stock SET n = 0; PREPARE TRANSACTION '{name}'")).await.unwrap();
    assert!(tenant.operations().await.is_empty());
    run(&mut agent, &format!("COMMIT PREPARED '{name}'")).await.unwrap();
    tenant.undo(tenant.last_operation().await).await;
    assert_eq!(tenant.bytes("stock").await, before);
}

#[tokio::test]
async fn a_large_table_that_was_truncated_is_for_a_restore() {
    let tenant = Tenant::with(
        "CREATE TABLE large (id int PRIMARY KEY); INSERT INTO large SELECT generate_series(1, 100001);
         CREATE TABLE small (id int PRIMARY KEY); INSERT INTO small VALUES (1)",
    )
    .await;
    let operation = tenant.by_agent("TRUNCATE large, small").await;
    let error = tenant.try_undo(&[operation], Mode::Force).await.unwrap_err();
    assert!(error.hint().unwrap().contains("restore the tenant to a moment before it"));
    let UndoError::NotRowByRow { what, lsn, .. } = error else { panic!("{error:?}") };
    assert_eq!(what, "it truncated public.large");
    assert_eq!(lsn, tenant.operations().await[0].lsn);
}

#[tokio::test]
async fn a_statement_without_rows_is_not_shown() {
    let tenant = Tenant::with(STOCK).await;
    let mut agent = tenant.agent().await;
    for statement in
        ["UPDATE stock SET n = 1 WHERE id = 77", "DELETE FROM stock WHERE false", "SELECT * FROM stock"]
    {
        run(&mut agent, statement).await.unwrap();
    }
    assert!(tenant.operations().await.is_empty());
}

#[tokio::test]
async fn people_are_not_recorded() {
    let tenant = Tenant::with(STOCK).await;
    tenant.by_app("UPDATE stock SET n = 0; TRUNCATE stock; CREATE TABLE other (id int)").await;
    assert!(tenant.operations().await.is_empty());
    assert_eq!(tenant.value("SELECT count(*)::text FROM loomworks.row_1").await, "0");
}
