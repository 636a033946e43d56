//! Others at the same time.

use std::sync::Arc;
use std::time::Duration;

use loomworks_undo::{Mode, UndoError};
use sqlx::Connection;

use crate::tenant::{Tenant, run};

const ROWS: &str = "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT g, g FROM generate_series(1, 100) g;
    CREATE TABLE c (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE); INSERT INTO c SELECT g, g FROM generate_series(1, 100) g";

/// Waits until as many undos wait for a lock.
async fn until_waiting(tenant: &Tenant, count: i64) {
    let waiting = "SELECT count(*)::text FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND usename = 'loomworks_undo'";
    while tenant.value(waiting).await != count.to_string() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn of_four_undos_at_the_same_time_one_wins() {
    let tenant = Arc::new(Tenant::with(ROWS).await);
    let operation = tenant.by_agent("UPDATE t SET v = -v").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let tenant = Arc::clone(&tenant);
        tasks.spawn(async move { tenant.try_undo(&[operation], Mode::Strict).await });
    }
    let results = tasks.join_all().await;
    let undo = results.iter().find_map(|result| result.as_ref().ok()).expect("one wins").operation;
    let lost = |result: &&Result<_, UndoError>| matches!(result, Err(UndoError::AlreadyUndone { by, .. }) if *by == undo);
    assert_eq!(results.iter().filter(lost).count(), 3, "{results:?}");
    assert_eq!(tenant.value("SELECT sum(v)::text FROM t").await, "5050");
}

#[tokio::test]
async fn an_open_transaction_on_the_row_is_waited_for() {
    let tenant = Arc::new(Tenant::with(ROWS).await);
    let operation = tenant.by_agent("UPDATE t SET v = -v").await;
    for end in ["ROLLBACK", "COMMIT"] {
        let mut app = tenant.app().await;
        run(&mut app, "BEGIN; UPDATE t SET v = 777 WHERE id = 5").await.unwrap();
        let background = Arc::clone(&tenant);
        let undo = tokio::spawn(async move { background.try_undo(&[operation], Mode::Strict).await });
        until_waiting(&tenant, 1).await;
        run(&mut app, end).await.unwrap();
        let result = undo.await.unwrap();
        if end == "ROLLBACK" {
            let undone = result.unwrap().operation;
            tenant.undo(undone).await;
        } else {
            let Err(UndoError::Conflicts(conflicts)) = result else { panic!("{result:?}") };
            assert_eq!(conflicts[0].columns[0].now.as_deref(), Some("777"));
        }
        app.close().await.unwrap();
        if end == "ROLLBACK" {
            // Undone and redone: to be undone again.
            assert!(
                tenant
                    .operations()
                    .await
                    .iter()
                    .any(|logged| logged.id == operation && logged.undone_by.is_none())
            );
        }
    }
}

#[tokio::test]
async fn a_key_that_is_being_taken_is_waited_for() {
    let tenant = Arc::new(Tenant::with(ROWS).await);
    let operation = tenant.by_agent("DELETE FROM t WHERE id = 5").await;
    let mut app = tenant.app().await;
    run(&mut app, "BEGIN; INSERT INTO t VALUES (5, 0)").await.unwrap();
    let background = Arc::clone(&tenant);
    let undo = tokio::spawn(async move { background.try_undo(&[operation], Mode::Strict).await });
    until_waiting(&tenant, 1).await;
    run(&mut app, "COMMIT").await.unwrap();
    let result = undo.await.unwrap();
    let Err(UndoError::Conflicts(conflicts)) = result else { panic!("{result:?}") };
    assert!(conflicts[0].reason.starts_with("a unique value it would get back is in use"), "{conflicts:?}");
}

#[tokio::test]
async fn a_child_that_is_being_inserted_is_waited_for() {
    let tenant = Arc::new(Tenant::with(ROWS).await);
    let operation = tenant.by_agent("INSERT INTO t VALUES (200, 0)").await;
    let mut app = tenant.app().await;
    run(&mut app, "BEGIN; INSERT INTO c VALUES (200, 200)").await.unwrap();
    let background = Arc::clone(&tenant);
    let undo = tokio::spawn(async move { background.try_undo(&[operation], Mode::Strict).await });
    until_waiting(&tenant, 1).await;
    run(&mut app, "COMMIT").await.unwrap();
    assert!(matches!(undo.await.unwrap(), Err(UndoError::Conflicts(_))));
}

#[tokio::test]
async fn a_parent_that_is_being_deleted_is_waited_for() {
    let tenant = Arc::new(Tenant::with(ROWS).await);
    let operation = tenant.by_agent("DELETE FROM c WHERE id = 5").await;
    let mut app = tenant.app().await;
    run(&mut app, "BEGIN; DELETE FROM t WHERE id = 5").await.unwrap();
    let background = Arc::clone(&tenant);
    let undo = tokio::spawn(async move { background.try_undo(&[operation], Mode::Strict).await });
    until_waiting(&tenant, 1).await;
    run(&mut app, "COMMIT").await.unwrap();
    let result = undo.await.unwrap();
    let Err(UndoError::Conflicts(conflicts)) = result else { panic!("{result:?}") };
    assert_eq!(conflicts[0].reason, "its parent (5) in public.t is missing");
}

#[tokio::test]
async fn agents_may_work_at_the_same_time() {
    let tenant = Arc::new(Tenant::with(ROWS).await);
    let before = tenant.bytes("t").await;
    let mut tasks = tokio::task::JoinSet::new();
    for id in 1..=8 {
        let tenant = Arc::clone(&tenant);
        tasks.spawn(async move {
            let mut agent = tenant.agent().await;
            for n in 0..5 {
                run(&mut agent, &format!("UPDATE t SET v = {n} WHERE id = {id}")).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let ids: Vec<_> = tenant.operations().await.iter().map(|operation| operation.id).collect();
    assert_eq!(ids.len(), 40);
    tenant.try_undo(&ids, Mode::Strict).await.unwrap();
    assert_eq!(tenant.bytes("t").await, before);
}
