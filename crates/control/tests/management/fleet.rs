//! Fleet migrations: who is selected, in which wave, who is taken next, and who may say how it ended.

use loomworks_control::db::Db;
use loomworks_control::db::fleet::{self, Definition, Ended, Selected, Target};
use loomworks_core::ids::{FleetMigrationId, TenantId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{database, tenant};

fn definition() -> Definition {
    Definition {
        id: FleetMigrationId::random(),
        name: "test".into(),
        sql: "SELECT 1".into(),
        selection: serde_json::json!({}),
        canaries: 1,
        wave_size: 2,
        concurrency: 8,
        snapshot_before: false,
        statement_timeout_seconds: 1,
        lock_timeout_seconds: 1,
        busy_timeout_seconds: 1,
        stop_after_failures: 1,
        pause_after_canary: false,
        requested_by: "test".into(),
    }
}

/// Tenants with these states, in this order.
async fn tenants(db: &Db, states: &[&str]) -> Vec<Uuid> {
    let mut ids = Vec::new();
    for state in states {
        let id = tenant(db).await;
        sqlx::query("UPDATE tenants SET state = $2 WHERE id = $1")
            .bind(id.0)
            .bind(state)
            .execute(&db.platform)
            .await
            .expect("set the state");
        ids.push(id.0);
    }
    ids
}

async fn migration(db: &Db, ids: &[Uuid], change: impl FnOnce(&mut Definition)) -> Definition {
    let mut new = definition();
    change(&mut new);
    let selected = Selected { tenants: Some(ids.to_vec()), ..Selected::default() };
    let mut connection = db.platform.acquire().await.expect("connect");
    let count = fleet::insert(&mut connection, &new, &selected).await.expect("insert");
    assert_eq!(count, ids.len() as u64);
    new
}

async fn claim(connection: &mut PgConnection, migration: &Definition, wave: i32) -> Option<Target> {
    fleet::claim(connection, migration.id, wave).await.expect("claim")
}

fn ended(state: &str) -> Ended<'_> {
    Ended { state, error: None, hint: None, sqlstate: None, milliseconds: 1 }
}

#[tokio::test]
async fn those_who_take_part_are_in_waves_and_the_others_are_skipped_with_a_reason() {
    let db = database().await;
    let ids = tenants(&db, &["active", "provisioning", "suspended", "active", "active", "active"]).await;
    let selected = Selected { tenants: Some(ids.clone()), ..Selected::default() };
    let mut connection = db.platform.acquire().await.expect("connect");
    let plan = fleet::plan(&mut connection, &selected, 1, 2).await.expect("plan");
    assert_eq!(plan.iter().map(|tenant| tenant.tenant_id).collect::<Vec<_>>(), ids, "as they were given");
    let waves: Vec<_> = plan.iter().map(|tenant| tenant.wave).collect();
    assert_eq!(waves, [Some(0), None, Some(1), Some(1), Some(2), Some(2)]);
    assert_eq!(plan[1].skipped.as_deref(), Some("the tenant is provisioning"));

    let new = migration(&db, &ids, |_| ()).await;
    let counts = fleet::counts(&mut connection, new.id).await.expect("count");
    assert_eq!((counts.waiting, counts.skipped), (5, 1));
}

#[tokio::test]
async fn a_tier_and_a_profile_select_those_that_have_both() {
    let db = database().await;
    let ids = tenants(&db, &["active", "active", "active"]).await;
    let profile = format!("p{}", Uuid::new_v4().simple());
    for (id, tier, profile) in
        [(ids[0], "pro", profile.as_str()), (ids[1], "basic", &profile), (ids[2], "pro", "erp")]
    {
        sqlx::query("UPDATE tenants SET tier = $2, profile = $3 WHERE id = $1")
            .bind(id)
            .bind(tier)
            .bind(profile)
            .execute(&db.platform)
            .await
            .expect("set tier and profile");
    }
    let mut connection = db.platform.acquire().await.expect("connect");
    let both = Selected { tier: Some("pro".into()), profile: Some(profile.clone()), tenants: None };
    let plan = fleet::plan(&mut connection, &both, 0, 10).await.expect("plan");
    assert_eq!(plan.iter().map(|tenant| tenant.tenant_id).collect::<Vec<_>>(), [ids[0]]);
    assert_eq!(plan[0].wave, Some(1), "no canary was asked for");
    let profile = Selected { profile: Some(profile), ..Selected::default() };
    assert_eq!(fleet::plan(&mut connection, &profile, 0, 10).await.expect("plan").len(), 2);
}

#[tokio::test]
async fn a_tenant_is_taken_once_and_none_after_the_last_failure_allowed() {
    let db = database().await;
    let ids = tenants(&db, &["active"; 4]).await;
    let new = migration(&db, &ids, |new| (new.canaries, new.wave_size) = (0, 10)).await;
    let mut connection = db.platform.acquire().await.expect("connect");
    let mut other = db.platform.acquire().await.expect("connect");
    let (first, second) = tokio::join!(claim(&mut connection, &new, 1), claim(&mut other, &new, 1));
    let (first, second) = (first.expect("one"), second.expect("another"));
    assert_ne!(first.tenant_id, second.tenant_id);
    assert!(claim(&mut connection, &new, 0).await.is_none(), "not of this wave");

    assert!(fleet::record(&mut connection, new.id, &first, ended("failed")).await.expect("record"));
    assert!(claim(&mut connection, &new, 1).await.is_none(), "one failure is the limit");
    assert!(fleet::record(&mut connection, new.id, &second, ended("applied")).await.expect("record"));

    assert_eq!(fleet::go_on(&mut connection, new.id, false).await.expect("go on"), 0);
    let third = claim(&mut connection, &new, 1).await.expect("the first failure was seen");
    assert!(fleet::record(&mut connection, new.id, &third, ended("failed")).await.expect("record"));
    assert!(claim(&mut connection, &new, 1).await.is_none(), "a new failure");
    assert_eq!(fleet::go_on(&mut connection, new.id, true).await.expect("go on"), 2);
    let counts = fleet::counts(&mut connection, new.id).await.expect("count");
    assert_eq!((counts.waiting, counts.applied, counts.failed), (3, 1, 0));
}

#[tokio::test]
async fn who_was_given_up_records_nothing() {
    let db = database().await;
    let ids = tenants(&db, &["active"]).await;
    let new = migration(&db, &ids, |_| ()).await;
    let mut connection = db.platform.acquire().await.expect("connect");
    let slow = claim(&mut connection, &new, 0).await.expect("a tenant");
    assert_eq!(fleet::take_back(&mut connection, new.id).await.expect("take back"), 1);
    let other = claim(&mut connection, &new, 0).await.expect("the same tenant");
    assert_eq!(other.tenant_id, slow.tenant_id);
    assert!(!fleet::record(&mut connection, new.id, &slow, ended("failed")).await.expect("record"));
    assert!(fleet::record(&mut connection, new.id, &other, ended("applied")).await.expect("record"));
}

#[tokio::test]
async fn nobody_is_taken_from_one_that_rests() {
    let db = database().await;
    let ids = tenants(&db, &["active", "active"]).await;
    let new = migration(&db, &ids, |_| ()).await;
    let mut connection = db.platform.acquire().await.expect("connect");
    for state in ["paused", "stopped", "cancelled"] {
        fleet::set_state(&mut connection, new.id, state, None).await.expect("set");
        assert!(claim(&mut connection, &new, 0).await.is_none(), "{state}");
    }
    fleet::go_on(&mut connection, new.id, false).await.expect("go on");
    let target = claim(&mut connection, &new, 0).await.expect("a tenant");
    assert!(!target.busy);
    fleet::put_back(&mut connection, new.id, &target, "busy", 3600.0).await.expect("put back");
    assert!(claim(&mut connection, &new, 0).await.is_none(), "not before its time");
}

#[tokio::test]
async fn one_that_is_held_or_restored_is_busy() {
    let db = database().await;
    let ids = tenants(&db, &["active", "active", "active"]).await;
    let new = migration(&db, &ids, |new| new.canaries = 3).await;
    let mut connection = db.platform.acquire().await.expect("connect");
    sqlx::query("UPDATE tenants SET held_by = gen_random_uuid() WHERE id = $1")
        .bind(ids[0])
        .execute(&mut *connection)
        .await
        .expect("hold");
    sqlx::query(
        "INSERT INTO jobs (id, tenant_id, kind, dedup_key, work, requested_by, run_at)
         VALUES (gen_random_uuid(), $1, 'restore', gen_random_uuid()::text, '{}', 'test', now() + interval '1 day')",
    )
    .bind(ids[1])
    .execute(&mut *connection)
    .await
    .expect("a restore");
    let mut busy = Vec::new();
    while let Some(target) = claim(&mut connection, &new, 0).await {
        busy.push((target.tenant_id, target.busy));
    }
    assert_eq!(busy, [(TenantId(ids[0]), true), (TenantId(ids[1]), true), (TenantId(ids[2]), false)]);
}
