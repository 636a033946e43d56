//! What the log shows.

use loomworks_undo::{Filter, OperationId, OperationKind};

use crate::tenant::Tenant;

const PLANETS: &str = "CREATE TABLE planet (id int PRIMARY KEY, name text, mass float8);
    INSERT INTO planet VALUES (1, 'Earth', 1), (2, 'Mars', 0.1)";

#[tokio::test]
async fn an_operation_shows_its_rows_before_and_after() {
    let tenant = Tenant::with(PLANETS).await;
    let id = tenant.by_agent("UPDATE planet SET name = 'Terra' WHERE id = 1; DELETE FROM planet WHERE id = 2; INSERT INTO planet VALUES (3, NULL, 3)").await;
    let mut undoer = tenant.undoer().await;
    let detail = loomworks_undo::show(&mut undoer, id, 100).await.unwrap().unwrap();
    assert_eq!(detail.operation.session, tenant.agent_role);
    assert_eq!(detail.operation.kind, OperationKind::Change);
    assert!(detail.operation.statement.starts_with("UPDATE planet"));
    assert_eq!(
        serde_json::to_value(&detail.rows).unwrap(),
        serde_json::json!([
            {"table": "public.planet", "before": {"id": "1", "name": "Earth", "mass": "1"}, "after": {"id": "1", "name": "Terra", "mass": "1"}},
            {"table": "public.planet", "before": {"id": "2", "name": "Mars", "mass": "0.1"}, "after": null},
            {"table": "public.planet", "before": null, "after": {"id": "3", "name": null, "mass": "3"}},
        ])
    );
    assert_eq!(
        serde_json::to_value(&detail.operation.tables).unwrap(),
        serde_json::json!([{"table": "public.planet", "inserted": 1, "updated": 1, "deleted": 1}])
    );
    assert_eq!(loomworks_undo::show(&mut undoer, id, 2).await.unwrap().unwrap().rows.len(), 2);
    assert!(loomworks_undo::show(&mut undoer, OperationId(99), 1).await.unwrap().is_none());
}

#[tokio::test]
async fn operations_are_listed_newest_first_in_pages() {
    let tenant = Tenant::with(PLANETS).await;
    for n in 0..5 {
        tenant.by_agent(&format!("UPDATE planet SET mass = {n}")).await;
        tenant.by_agent("UPDATE planet SET mass = 0 WHERE false").await;
    }
    let mut undoer = tenant.undoer().await;
    let mut filter = Filter { session: Some(tenant.agent_role.clone()), before: None, limit: 2 };
    let mut seen = vec![];
    loop {
        let page = loomworks_undo::list(&mut undoer, &filter).await.unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 2);
        filter.before = Some(last.id);
        seen.extend(page.into_iter().map(|operation| operation.statement));
    }
    let expected: Vec<_> = (0..5).rev().map(|n| format!("UPDATE planet SET mass = {n}")).collect();
    assert_eq!(seen, expected);
    filter = Filter { session: Some("lwai_nobody".into()), before: None, limit: 2 };
    assert!(loomworks_undo::list(&mut undoer, &filter).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_wide_table_is_shown() {
    let columns: Vec<String> = (1..=300).map(|n| format!("c{n} int DEFAULT {n}")).collect();
    let tenant =
        Tenant::with(&format!("CREATE TABLE wide (id int PRIMARY KEY, {})", columns.join(", "))).await;
    let id = tenant.by_agent("INSERT INTO wide VALUES (1)").await;
    let detail = loomworks_undo::show(&mut tenant.undoer().await, id, 10).await.unwrap().unwrap();
    assert_eq!(detail.rows[0].after.as_ref().unwrap().len(), 301);
    let delete = tenant.by_agent("DELETE FROM wide").await;
    tenant.undo(delete).await;
    tenant.undo(id).await;
    assert_eq!(tenant.rows("wide").await, "");
}

#[tokio::test]
async fn an_undo_is_in_the_log_with_its_rows() {
    let tenant = Tenant::with(PLANETS).await;
    let id = tenant.by_agent("DELETE FROM planet").await;
    let undo = tenant.undo(id).await.operation;
    let operation = tenant.operations().await.remove(0);
    assert_eq!((operation.id, operation.kind, operation.undo_of), (undo, OperationKind::Undo, vec![id]));
    assert_eq!(operation.tables[0].inserted, 2);
    assert_eq!(operation.session, "loomworks_undo");
}

#[tokio::test]
async fn the_logs_own_rows_are_counted_from_a_moment_on() {
    let tenant = Tenant::with(PLANETS).await;
    tenant.by_agent("UPDATE planet SET mass = 7").await;
    let mut undoer = tenant.undoer().await;
    let moment = |text: String| text.replace(' ', "T").parse::<jiff::Timestamp>().unwrap();
    let now = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let since = moment(tenant.value(now).await);
    let logged = async |undoer: &mut _, since| loomworks_undo::logged_since(undoer, since).await.unwrap();
    assert_eq!(logged(&mut undoer, jiff::Timestamp::UNIX_EPOCH).await, 3, "two rows and an operation");
    assert_eq!(logged(&mut undoer, since).await, 0);
    tenant.by_app("UPDATE planet SET mass = 8").await;
    assert_eq!(logged(&mut undoer, since).await, 0, "people are not recorded");
    tenant.by_agent("DELETE FROM planet").await;
    assert_eq!(logged(&mut undoer, since).await, 3);
}
