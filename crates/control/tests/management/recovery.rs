//! How far back tenants can go, as it is read from tiers and tenants.

use loomworks_control::db::lifecycle::{self, Update};
use loomworks_control::db::snapshots::{self, SnapshotType};
use loomworks_control::db::tenants;
use loomworks_control::db::tiers::{self, Reach};
use loomworks_core::ids::{SnapshotId, TenantId};
use loomworks_core::tenant::{Limits, TenantState, Tier};
use sqlx::PgConnection;

use super::{database, tenant};

/// More than any other test asks for, so that these come first.
const LONGEST: i32 = 3650;

async fn give(connection: &mut PgConnection, id: TenantId, tier: Tier, own: Option<i32>) {
    let update = Update { tier: Some(tier), recovery_days: Some(own), ..Update::default() };
    lifecycle::update(connection, id, &update).await.expect("update");
}

#[tokio::test]
async fn the_longest_window_is_that_of_a_tenant_that_can_be_brought_back() {
    let db = database().await;
    let (own, by_tier, draft) = (tenant(&db).await, tenant(&db).await, tenant(&db).await);
    let mut transaction = db.platform.begin().await.expect("begin");
    let enterprise = Limits { recovery_days: Some(LONGEST - 1), ..Limits::default() };
    tiers::set(&mut transaction, Tier::Enterprise, enterprise).await.expect("change the tier");
    give(&mut transaction, own, Tier::Enterprise, Some(LONGEST)).await;
    give(&mut transaction, by_tier, Tier::Enterprise, None).await;
    give(&mut transaction, draft, Tier::Basic, Some(LONGEST)).await;
    for (id, state) in [(own, TenantState::Archived), (draft, TenantState::Draft)] {
        tenants::set_state(&mut transaction, id, state, None).await.expect("set the state");
    }
    let reaches = tiers::reaches(&mut transaction, 30).await.expect("look");
    let name = tenants::get(&mut transaction, own).await.expect("get").subdomain.to_string();
    let first =
        Reach { days: LONGEST, tenants: 1, own: 1, example: Some(name), tiers: Vec::new(), platform: false };
    assert_eq!(reaches[0], first, "and not the draft");
    let tiers = vec!["enterprise".to_owned()];
    let second = Reach { days: LONGEST - 1, own: 0, example: None, tiers, ..first };
    assert_eq!(reaches[1], second);

    // What neither says is the platform's.
    give(&mut transaction, own, Tier::Basic, None).await;
    let reaches = tiers::reaches(&mut transaction, 29).await.expect("look");
    assert!(reaches.iter().any(|reach| reach.days == 29 && reach.platform), "{reaches:?}");
    transaction.rollback().await.expect("roll back");
}

#[tokio::test]
async fn a_snapshot_is_kept_as_long_as_the_tenant_can_go_back_and_one_that_was_asked_for_a_month() {
    let db = database().await;
    let (short, long, usual) = (tenant(&db).await, tenant(&db).await, tenant(&db).await);
    let mut transaction = db.platform.begin().await.expect("begin");
    give(&mut transaction, short, Tier::Basic, Some(7)).await;
    give(&mut transaction, long, Tier::Basic, Some(60)).await;
    give(&mut transaction, usual, Tier::Basic, None).await;
    for (id, snapshot_type, days) in [
        (short, SnapshotType::Auto, 7),
        (short, SnapshotType::Manual, 30),
        (short, SnapshotType::PreAi, 30),
        (long, SnapshotType::Auto, 60),
        (long, SnapshotType::Manual, 60),
        (usual, SnapshotType::Auto, 14),
        (usual, SnapshotType::Manual, 30),
    ] {
        let snapshot = SnapshotId::random();
        snapshots::insert(&mut transaction, snapshot, id, "a", snapshot_type, "test", 14)
            .await
            .expect("insert");
        let row = snapshots::get(&mut transaction, id, snapshot).await.expect("get").expect("it is there");
        let kept = row.expires_at.to_jiff().duration_since(row.created_at.to_jiff());
        assert_eq!(kept.as_hours(), 24 * days, "{snapshot_type:?}");
    }
    transaction.rollback().await.expect("roll back");
}

#[tokio::test]
async fn days_that_make_no_sense_are_refused_by_the_database_too() {
    let db = database().await;
    let id = tenant(&db).await;
    for days in [0, 3651] {
        let mut transaction = db.platform.begin().await.expect("begin");
        let update = Update { recovery_days: Some(Some(days)), ..Update::default() };
        assert!(lifecycle::update(&mut transaction, id, &update).await.is_err(), "{days}");
    }
}
