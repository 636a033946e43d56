//! Fleet migrations: who is selected, in which wave, who is taken next, and who may say how it ended.

use loomworks_control::access::Scope;
use loomworks_control::db::Db;
use loomworks_control::db::fleet::{self, Definition, Ended, FleetMigration, Selected, Target};
use loomworks_control::db::snapshots::{self, SnapshotType};
use loomworks_control::jobs::{self, Context, Work as _};
use loomworks_control::work::fleet_migration::MigrateFleet;
use loomworks_control::{World, error::Error, fleet as migrations};
use loomworks_core::ids::{FleetMigrationId, JobId, SnapshotId, TenantId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::world::{Installation, caller, operator};
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
    Ended { state, error: None, hint: None, sqlstate: None, milliseconds: Some(1) }
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

/// A migration whose job is written down and run by nobody.
struct Asked {
    world: World,
    migration: Definition,
    job: JobId,
    _installation: Installation,
}

impl Asked {
    async fn new(tenants_of_it: usize) -> Self {
        let installation = Installation::new();
        let world = installation.process().await;
        let ids = tenants(&world.db, &vec!["active"; tenants_of_it]).await;
        let migration = migration(&world.db, &ids, |new| new.canaries = 10).await;
        let work = MigrateFleet { migration: migration.id };
        let mut connection = world.db.platform.acquire().await.expect("connect");
        let job = jobs::enqueue(&mut connection, &work, "test").await.expect("a job");
        drop(connection);
        Self { world, migration, job, _installation: installation }
    }

    /// What happens when the job has failed as often as it may.
    async fn job_fails_for_good(&self) {
        let mut transaction = self.world.db.platform.begin().await.expect("begin");
        sqlx::query("UPDATE jobs SET state = 'failed', finished_at = now() WHERE id = $1")
            .bind(self.job.0)
            .execute(&mut *transaction)
            .await
            .expect("fail");
        let context = Context::new(self.job, "test");
        let work = MigrateFleet { migration: self.migration.id };
        work.give_up(&mut transaction, &context).await.expect("give up");
        transaction.commit().await.expect("commit");
    }

    async fn shown(&self) -> FleetMigration {
        let mut connection = self.world.db.platform.acquire().await.expect("connect");
        fleet::get(&mut connection, self.migration.id).await.expect("look").expect("there")
    }

    /// The job that is there and has not ended.
    async fn job(&self) -> Option<JobId> {
        let mut connection = self.world.db.platform.acquire().await.expect("connect");
        let key = MigrateFleet { migration: self.migration.id }.dedup_key();
        loomworks_control::db::jobs::unfinished(&mut connection, &key).await.expect("look")
    }
}

fn conflict<T: std::fmt::Debug>(refused: Result<T, Error>) -> String {
    let error = refused.expect_err("refused");
    assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
    error.hint().unwrap_or_default()
}

#[tokio::test]
async fn its_job_is_neither_cancelled_nor_tried_again_by_itself() {
    let asked = Asked::new(2).await;
    let caller = caller(Scope::Operator);
    let hint = conflict(jobs::cancel(&asked.world, &caller, asked.job).await);
    assert!(hint.contains("loomworks fleet cancel"), "{hint}");
    asked.job_fails_for_good().await;
    let hint = conflict(jobs::retry(&asked.world, &caller, asked.job).await);
    assert!(hint.contains("loomworks fleet resume"), "{hint}");
}

#[tokio::test]
async fn one_whose_job_failed_at_its_very_end_is_resumed_to_it() {
    let asked = Asked::new(1).await;
    let mut connection = asked.world.db.platform.acquire().await.expect("connect");
    let target = claim(&mut connection, &asked.migration, 0).await.expect("a tenant");
    assert!(
        fleet::record(&mut connection, asked.migration.id, &target, ended("applied")).await.expect("record")
    );
    drop(connection);
    asked.job_fails_for_good().await;
    let shown = asked.shown().await;
    assert_eq!((shown.state.as_str(), shown.reason.as_deref()), ("stopped", Some("its job failed")));
    let resumed = migrations::resume(&asked.world, &operator(), asked.migration.id, false).await;
    let (shown, job) = resumed.expect("there is nobody to migrate, but an end to write down");
    assert_eq!((shown.state.as_str(), asked.job().await), ("running", Some(job)));
}

#[tokio::test]
async fn tenants_that_a_failed_job_left_under_way_are_seen_to_by_whoever_resumes_or_cancels() {
    for cancelled in [false, true] {
        let asked = Asked::new(1).await;
        let mut connection = asked.world.db.platform.acquire().await.expect("connect");
        claim(&mut connection, &asked.migration, 0).await.expect("a tenant");
        drop(connection);
        assert!(!asked.shown().await.rests());
        asked.job_fails_for_good().await;
        let shown = asked.shown().await;
        assert!(shown.rests() && shown.running == 1, "{shown:?}");
        let (world, id) = (&asked.world, asked.migration.id);
        match cancelled {
            false => drop(migrations::resume(world, &operator(), id, false).await.expect("resume")),
            true => drop(migrations::cancel(world, &operator(), id).await.expect("cancel")),
        }
        assert!(asked.job().await.is_some(), "a job asks the database what came of it");
        assert!(!asked.shown().await.rests(), "until then nobody knows");
    }
}

#[tokio::test]
async fn one_that_was_cancelled_rests_even_when_its_job_fails_after_that() {
    let asked = Asked::new(3).await;
    let mut connection = asked.world.db.platform.acquire().await.expect("connect");
    let target = claim(&mut connection, &asked.migration, 0).await.expect("a tenant");
    claim(&mut connection, &asked.migration, 0).await.expect("another");
    migrations::cancel(&asked.world, &operator(), asked.migration.id).await.expect("cancel");
    assert_eq!(asked.job().await, Some(asked.job), "the job that is there does it");
    fleet::put_back(&mut connection, asked.migration.id, &target, "busy", 0.0).await.expect("put back");
    assert!(!asked.shown().await.rests());
    asked.job_fails_for_good().await;
    let shown = asked.shown().await;
    assert_eq!((shown.state.as_str(), shown.skipped, shown.failed), ("cancelled", 2, 1));
    assert!(shown.rests());
}

#[tokio::test]
async fn snapshots_that_are_not_ready_when_its_job_fails_or_tenants_are_tried_again_are_seen_to() {
    let asked = Asked::new(3).await;
    let id = asked.migration.id;
    let mut connection = asked.world.db.platform.acquire().await.expect("connect");
    let mut noted = Vec::new();
    for (state, marked) in [("failed", true), ("failed", false), ("applied", true)] {
        let target = claim(&mut connection, &asked.migration, 0).await.expect("a tenant");
        let snapshot = SnapshotId::random();
        let tenant = target.tenant_id;
        snapshots::insert(&mut connection, snapshot, tenant, "before", SnapshotType::Auto, "test", 30)
            .await
            .expect("a snapshot");
        fleet::record_snapshot(&mut connection, id, tenant, snapshot).await.expect("note it");
        if marked {
            let position = "0/100".parse().expect("a position");
            snapshots::record_position(&mut connection, snapshot, position, "file", 1)
                .await
                .expect("mark it");
        }
        sqlx::query("UPDATE fleet_migrations SET stop_after_failures = 0 WHERE id = $1")
            .bind(id.0)
            .execute(&mut *connection)
            .await
            .expect("never stop");
        assert!(fleet::record(&mut connection, id, &target, ended(state)).await.expect("record"));
        noted.push(snapshot);
    }
    drop(connection);
    let jobs = async |key: String| {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM jobs WHERE dedup_key = $1")
            .bind(key)
            .fetch_one(&asked.world.db.platform)
            .await
            .expect("count")
    };
    asked.job_fails_for_good().await;
    assert_eq!(jobs(format!("fleet_snapshots {id}")).await, 1, "one job for those with a position");
    assert_eq!(jobs(format!("snapshot {}", noted[0])).await, 0);
    assert_eq!(jobs(format!("snapshot {}", noted[1])).await, 1, "its own for the one without");
    migrations::resume(&asked.world, &operator(), id, true).await.expect("resume");
    assert_eq!(jobs(format!("snapshot {}", noted[0])).await, 1, "nobody else would know of it");
    assert_eq!(jobs(format!("snapshot {}", noted[2])).await, 0);
}
