//! Tables that changed since, and DDL of agents in the log.

use loomworks_undo::{Mode, OperationKind, UndoError};

use crate::tenant::Tenant;

const GOODS: &str = "CREATE TABLE good (id int PRIMARY KEY, name text, price numeric);
    INSERT INTO good VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3);";

#[tokio::test]
async fn a_column_added_since_keeps_its_values_and_gets_its_default() {
    let tenant = Tenant::with(GOODS).await;
    let update = tenant.by_agent("UPDATE good SET price = 9").await;
    let delete = tenant.by_agent("DELETE FROM good WHERE id = 3").await;
    let insert = tenant.by_agent("INSERT INTO good VALUES (4, 'd', 4)").await;
    tenant
        .by_app("ALTER TABLE good ADD COLUMN stock int DEFAULT 7; UPDATE good SET stock = 1 WHERE id = 1")
        .await;
    let young = tenant.by_agent("DELETE FROM good WHERE id = 1").await;
    tenant.try_undo(&[delete, young], Mode::Strict).await.unwrap();
    tenant.undo(insert).await;
    tenant.undo(update).await;
    assert_eq!(tenant.rows("good").await, "(1,a,1,1) (2,b,2,7) (3,c,3,7)");
}

#[tokio::test]
async fn names_changed_since_do_not_matter() {
    let tenant = Tenant::with(GOODS).await;
    let update = tenant.by_agent("UPDATE good SET price = 9").await;
    let delete = tenant.by_agent("DELETE FROM good WHERE id = 3").await;
    tenant.by_app("ALTER TABLE good RENAME COLUMN price TO cost; ALTER TABLE good RENAME TO article").await;
    tenant
        .by_app("CREATE SCHEMA shop; ALTER TABLE article SET SCHEMA shop; CREATE TABLE good (id int)")
        .await;
    tenant.undo(delete).await;
    let outcome = tenant.undo(update).await;
    assert_eq!(outcome.tables[0].table, "shop.article");
    assert_eq!(tenant.rows("shop.article").await, "(1,a,1) (2,b,2) (3,c,3)");
}

#[tokio::test]
async fn a_column_dropped_since_is_left_out() {
    let tenant = Tenant::with(GOODS).await;
    let update = tenant.by_agent("UPDATE good SET price = 9, name = 'z'").await;
    let delete = tenant.by_agent("DELETE FROM good WHERE id = 3").await;
    tenant.by_app("ALTER TABLE good DROP COLUMN name").await;
    tenant.undo(delete).await;
    tenant.undo(update).await;
    assert_eq!(tenant.rows("good").await, "(1,1) (2,2) (3,3)");
}

#[tokio::test]
async fn a_column_retyped_since_is_a_reason() {
    let tenant = Tenant::with(GOODS).await;
    let update = tenant.by_agent("UPDATE good SET price = 9").await;
    tenant.by_app("ALTER TABLE good ALTER COLUMN price TYPE int").await;
    let error = tenant.try_undo(&[update], Mode::Force).await.unwrap_err();
    let UndoError::ColumnChanged { table, column } = error else { panic!("{error:?}") };
    assert_eq!((table.as_str(), column.as_str()), ("public.good", "price"));
    let after = tenant.by_agent("UPDATE good SET price = 10").await;
    tenant.undo(after).await;
    assert_eq!(tenant.rows("good").await, "(1,a,9) (2,b,9) (3,c,9)");
}

#[tokio::test]
async fn a_table_dropped_since_is_a_reason() {
    let tenant = Tenant::with(GOODS).await;
    let update = tenant.by_agent("UPDATE good SET price = 9").await;
    tenant.by_app("DROP TABLE good; CREATE TABLE good (id int PRIMARY KEY)").await;
    let error = tenant.try_undo(&[update], Mode::Force).await.unwrap_err();
    let UndoError::NotRowByRow { what, .. } = error else { panic!("{error:?}") };
    assert_eq!(what, "table public.good is no more");
}

#[tokio::test]
async fn ddl_of_an_agent_is_in_the_log_and_is_for_a_restore() {
    let tenant = Tenant::with(&format!("{GOODS} CREATE TABLE piece (id int REFERENCES good)")).await;
    for (statement, tag, dropped) in [
        ("ALTER TABLE good ADD COLUMN x int DEFAULT 1", "ALTER TABLE", None),
        ("CREATE INDEX good_name ON good (name)", "CREATE INDEX", None),
        ("ALTER TABLE good DROP COLUMN x", "ALTER TABLE", Some("public.good.x")),
        ("DROP INDEX good_name", "DROP INDEX", Some("public.good_name")),
        ("DROP TABLE good CASCADE", "DROP TABLE", Some("public.good")),
        ("CREATE SCHEMA other", "CREATE SCHEMA", None),
    ] {
        let operation = tenant.by_agent(statement).await;
        let logged = tenant.operations().await.remove(0);
        assert_eq!(
            (logged.kind, logged.note["tag"].as_str()),
            (OperationKind::Ddl, Some(tag)),
            "{statement}"
        );
        let names = logged.note["dropped"]
            .as_array()
            .map(|names| names.iter().any(|name| Some(name.as_str().unwrap()) == dropped));
        assert_eq!(names, dropped.map(|_| true), "{statement}: {}", logged.note);
        let error = tenant.try_undo(&[operation], Mode::Strict).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("operation {} cannot be undone row by row: it ran {tag}", operation.0)
        );
    }
}

#[tokio::test]
async fn temporary_tables_are_not_in_the_log() {
    let tenant = Tenant::with(GOODS).await;
    let mut agent = tenant.agent().await;
    crate::tenant::run(
        &mut agent,
        "CREATE TEMP TABLE mine AS SELECT * FROM good; CREATE INDEX ON mine (id); UPDATE mine SET price = 0; DROP TABLE mine",
    )
    .await
    .unwrap();
    assert!(tenant.operations().await.is_empty());
}

#[tokio::test]
async fn a_statement_with_rows_and_ddl_is_for_a_restore() {
    let tenant = Tenant::with(GOODS).await;
    let operation = tenant.by_agent("ALTER TABLE good ADD y int; TRUNCATE good").await;
    assert!(matches!(tenant.try_undo(&[operation], Mode::Strict).await, Err(UndoError::NotRowByRow { .. })));
}
