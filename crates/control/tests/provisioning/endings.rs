//! Tenants that end, and jobs that end halfway or come too late: nothing is left, nothing is opened, nothing is lost.

use loomworks_control::World;
use loomworks_control::db::snapshots::{self, SnapshotType};
use loomworks_control::db::tenants::{self as rows, TenantDatabase};
use loomworks_control::db::{credentials, lifecycle, templates};
use loomworks_control::jobs::{self, Context, Then, Work};
use loomworks_control::work::archive::{self, Archive, Unarchive, UnarchiveStep};
use loomworks_control::work::destroy::{self, Destroy};
use loomworks_control::work::drop_former::{self, DropFormer};
use loomworks_control::work::provision::{Provision, Step};
use loomworks_control::work::rotate_credentials::{self, RotateCredentials};
use loomworks_control::{Error, erasure, retirement};
use loomworks_core::ids::{ExportId, JobId, SnapshotId, TenantId};
use loomworks_core::tenant::TenantState;
use loomworks_postgres::{closing, databases, roles};
use sqlx::PgConnection;

use crate::world::{Tenant, ended, granted, operator, operator_as_caller, until, waiting, with_world};

/// Destroys a tenant and looks that nothing is left of it.
pub(crate) async fn destroy(world: &World, id: TenantId, name: &str) {
    let granted = granted(world, id).await;
    let job = retirement::destroy(world, &operator(), &granted, name, false).await.expect("destroy");
    let job = ended(world, job).await;
    assert_eq!(job.state, "succeeded", "{job:?}");
    let report = erasure::report(world, &operator(), &id.to_string()).await.expect("a report");
    assert!(report.complete, "{report:#?}");
    let mut admin = world.cluster.connect("postgres").await.expect("connect");
    assert_eq!(databases::oid(&mut admin, name).await.expect("look"), None);
    let roles = roles::beginning_with(&mut admin, &format!("lwt_{}_", id.short())).await.expect("look");
    assert!(roles.is_empty(), "{roles:?}");
}

/// A tenant's row without a job, as one whose job failed.
async fn half_made(world: &World, profile: &str) -> (TenantId, String) {
    let tenant = Tenant::draft(world, profile).await;
    let mut mgmt = world.db.platform.acquire().await.expect("connect");
    // Its job failed a moment ago, so that nobody makes another one.
    sqlx::query(
        "INSERT INTO jobs (id, tenant_id, kind, queue, dedup_key, work, state, max_attempts, requested_by, finished_at)
         VALUES ($1, $2, 'provision', 'default', $1::text, '{}', 'failed', 1, 'test', now() + interval '1 hour')",
    )
    .bind(JobId::random().0)
    .bind(tenant.0.0)
    .execute(&mut *mgmt)
    .await
    .expect("a job");
    rows::set_state(&mut mgmt, tenant.0, TenantState::Provisioning, None).await.expect("let it be made");
    tenant
}

#[test]
fn a_tenant_that_was_cut_off_while_it_was_made_can_be_destroyed_wherever_that_was() {
    with_world(async |world| {
        let mut mgmt = world.db.platform.acquire().await.expect("connect");
        let mut admin = world.cluster.connect("postgres").await.expect("connect");
        // Nothing is there yet.
        let (id, name) = half_made(&world, "shop").await;
        destroy(&world, id, &name).await;
        // It has claimed a copy that still has its own name.
        until("the pool to be full", async || waiting(&world).await == 2).await;
        let (id, name) = half_made(&world, "shop").await;
        let template = world.template(&world.profiles["shop"]);
        let copy = templates::claim(&mut mgmt, id, &template).await.expect("claim").expect("a copy");
        destroy(&world, id, &name).await;
        assert_eq!(databases::oid(&mut admin, &copy.name).await.expect("look"), None);
        assert!(!roles::exists(&mut admin, &copy.name).await.expect("look"));
        // The copy has the tenant's names, and its app can log in.
        until("the pool to be full", async || waiting(&world).await == 2).await;
        let (id, name) = half_made(&world, "shop").await;
        let first = Provision { tenant: id }.run(&Step::Database, &world, &context()).await.expect("a step");
        assert!(matches!(first, Then::Next(Step::Admin)), "{first:?}");
        assert!(databases::oid(&mut admin, &name).await.expect("look").is_some());
        destroy(&world, id, &name).await;
        assert_eq!(rows::find_id(&mut mgmt, &name).await.expect("look"), None, "its name is free");
    });
}

#[test]
fn nothing_more_is_made_of_a_tenant_that_is_being_destroyed() {
    with_world(async |world| {
        let (id, _) = half_made(&world, "shop").await;
        let mut mgmt = world.db.platform.acquire().await.expect("connect");
        // So that no job destroys it here.
        sqlx::query("UPDATE jobs SET kind = 'destroy' WHERE tenant_id = $1")
            .bind(id.0)
            .execute(&mut *mgmt)
            .await
            .expect("a job that failed");
        lifecycle::begin_destroying(&mut mgmt, id).await.expect("begin");
        let template = world.template(&world.profiles["shop"]);
        let claimed = templates::claim(&mut mgmt, id, &template).await.expect("claim");
        assert!(claimed.is_none(), "{claimed:?}");
        for step in [Step::Database, Step::Copy { template }, Step::Publish] {
            let refused = Provision { tenant: id }.run(&step, &world, &context()).await;
            let refused = refused.expect_err("it is refused");
            assert!(!refused.retry && refused.message.contains("being destroyed"), "{refused:?}");
        }
        sqlx::query("DELETE FROM jobs WHERE tenant_id = $1")
            .bind(id.0)
            .execute(&mut *mgmt)
            .await
            .expect("let it be destroyed");
        drop(mgmt);
        until("it to be destroyed", async || {
            let mut mgmt = world.db.platform.acquire().await.expect("connect");
            rows::find(&mut mgmt, id).await.expect("look").expect("its row").state == TenantState::Destroyed
        })
        .await;
    });
}

fn context() -> Context {
    Context::new(JobId::random(), "test")
}

async fn may_log_in(admin: &mut PgConnection, role: &str) -> bool {
    sqlx::query_scalar("SELECT rolcanlogin FROM pg_roles WHERE rolname = $1")
        .bind(role)
        .fetch_one(admin)
        .await
        .expect("look")
}

async fn execute(world: &World, sql: &'static str, id: TenantId) {
    sqlx::query(sql).bind(id.0).execute(&world.db.platform).await.expect(sql);
}

const ARCHIVED: &str =
    "UPDATE tenants SET state = 'archived', archived_at = now(), archived_until = now() WHERE id = $1";
const COMPLETE: &str = "UPDATE tenants SET archive_complete_since = now() WHERE id = $1";

#[test]
fn a_job_that_made_a_tenant_does_not_open_it_when_it_is_tried_again() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "cold").await;
        let names = rows::names(&mut world.db.platform.acquire().await.expect("connect"), tenant.id).await;
        let names = names.expect("its names");
        let mut admin = world.cluster.connect("postgres").await.expect("connect");
        let door = closing::Door {
            database: &names.database_name,
            owner: &names.owner_role,
            login: &names.app_role,
        };
        // It was archived since its first job failed.
        closing::close(&mut admin, door).await.expect("close");
        execute(&world, ARCHIVED, tenant.id).await;
        execute(&world, COMPLETE, tenant.id).await;
        let template = world.template(&world.profiles["cold"]);
        let job: uuid::Uuid = sqlx::query_scalar(
            "UPDATE jobs SET state = 'failed', step = jsonb_build_object('copy', jsonb_build_object('template', $2))
             WHERE tenant_id = $1 AND kind = 'provision' RETURNING id",
        )
        .bind(tenant.id.0)
        .bind(template)
        .fetch_one(&world.db.platform)
        .await
        .expect("its job");
        jobs::retry(&world, &operator_as_caller(), JobId(job)).await.expect("retry");
        assert_eq!(ended(&world, JobId(job)).await.state, "succeeded");
        assert!(!may_log_in(&mut admin, &names.app_role).await);
    });
}

#[test]
fn a_tenant_whose_archiving_ended_halfway_is_closed_all_the_same() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "cold").await;
        let app = format!("lwt_{}_app", tenant.id.short());
        let mut admin = world.cluster.connect("postgres").await.expect("connect");
        assert!(may_log_in(&mut admin, &app).await);
        execute(&world, ARCHIVED, tenant.id).await;
        until("its app to be locked out", async || !may_log_in(&mut admin, &app).await).await;
        // There is no archive here: its snapshot waits for the first base backup, and is not marked before.
        let snapshots = "SELECT count(*) FROM snapshots WHERE tenant_id = $1";
        let count: i64 = sqlx::query_scalar(snapshots)
            .bind(tenant.id.0)
            .fetch_one(&world.db.platform)
            .await
            .expect("look");
        assert_eq!(count, 0);
        execute(&world, COMPLETE, tenant.id).await;
        execute(
            &world,
            "UPDATE jobs SET state = 'cancelled', finished_at = now(), fence = fence + 1
             WHERE tenant_id = $1 AND state IN ('waiting', 'running')",
            tenant.id,
        )
        .await;
    });
}

#[test]
fn what_may_have_changed_since_the_last_snapshot_is_closed_and_gets_another_before_it_is_destroyed() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "cold").await;
        let app = format!("lwt_{}_app", tenant.id.short());
        let mut admin = world.cluster.connect("postgres").await.expect("connect");
        execute(&world, ARCHIVED, tenant.id).await;
        execute(&world, COMPLETE, tenant.id).await;
        let mut mgmt = world.db.platform.acquire().await.expect("connect");
        let snapshot = SnapshotId::random();
        snapshots::insert(&mut mgmt, snapshot, tenant.id, "as archived", SnapshotType::Auto, "test", 30)
            .await
            .expect("a snapshot");
        snapshots::record_ready(&mut mgmt, snapshot, "a backup").await.expect("ready");
        let destroy = Destroy { tenant: tenant.id, before_retention_ends: true };
        let protect =
            async || destroy.run(&destroy::Step::Protect, &world, &context()).await.expect("a step");
        let next = protect().await;
        assert!(matches!(next, Then::Next(destroy::Step::Forget)), "{next:?}");
        // Taking it back has opened it, and went no further.
        execute(&world, "UPDATE tenants SET destroying_since = now() WHERE id = $1", tenant.id).await;
        let refused = Unarchive { tenant: tenant.id }.run(&UnarchiveStep::Open, &world, &context()).await;
        assert!(!refused.expect_err("it is being destroyed").retry);
        execute(&world, "UPDATE tenants SET archive_complete_since = NULL WHERE id = $1", tenant.id).await;
        assert!(may_log_in(&mut admin, &app).await);
        let next = protect().await;
        assert!(matches!(next, Then::Later(_)), "there is no base backup yet: {next:?}");
        assert!(!may_log_in(&mut admin, &app).await);
        execute(
            &world,
            "UPDATE tenants SET archive_complete_since = now(), destroying_since = NULL WHERE id = $1",
            tenant.id,
        )
        .await;
    });
}

#[test]
fn what_was_not_confirmed_for_now_is_not_destroyed() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "cold").await;
        let mut mgmt = world.db.platform.acquire().await.expect("connect");
        lifecycle::archive(&mut mgmt, tenant.id, None, "test", 30).await.expect("archive");
        execute(&world, COMPLETE, tenant.id).await;
        let begin = async |before_retention_ends| {
            let work = Destroy { tenant: tenant.id, before_retention_ends };
            work.run(&destroy::Step::Begin, &world, &context()).await
        };
        let refused = begin(false).await.expect_err("it is retained");
        assert!(!refused.retry && refused.message.contains("is kept until"), "{refused:?}");
        let standing = lifecycle::look(&mut mgmt, tenant.id).await.expect("look");
        assert!(standing.destroying_since.is_none());
    });
}

#[test]
fn archiving_does_not_close_a_tenant_that_was_taken_back() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "cold").await;
        let archive = Archive { tenant: tenant.id, reason: None };
        for step in [archive::Step::Close, archive::Step::Mark] {
            let refused = archive.run(&step, &world, &context()).await.expect_err("it is active");
            assert!(!refused.retry, "{refused:?}");
        }
        let mut admin = world.cluster.connect("postgres").await.expect("connect");
        assert!(may_log_in(&mut admin, &format!("lwt_{}_app", tenant.id.short())).await);
    });
}

#[test]
fn a_step_of_a_rotation_that_is_over_changes_no_role() {
    with_world(async |world| {
        use rotate_credentials::Step;
        let tenant = Tenant::new(&world, "cold").await;
        let (first, second) =
            (format!("lwt_{}_app", tenant.id.short()), format!("lwt_{}_app_b", tenant.id.short()));
        let mut mgmt = world.db.platform.acquire().await.expect("connect");
        let rotate = RotateCredentials { tenant: tenant.id };
        let job = jobs::enqueue(&mut mgmt, &rotate, "test").await.expect("enqueue");
        until("the overlap", async || {
            let mut mgmt = world.db.platform.acquire().await.expect("connect");
            let job = loomworks_control::db::jobs::get(&mut mgmt, job).await.expect("look").expect("the job");
            job.progress == "both roles can log in"
        })
        .await;
        let over = "UPDATE tenant_credentials SET retire_after = now() WHERE tenant_id = $1";
        execute(&world, over, tenant.id).await;
        assert_eq!(ended(&world, job).await.state, "succeeded");

        let password = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
        let mut admin = world.cluster.connect("postgres").await.expect("connect");
        let in_use: String =
            sqlx::query_scalar(password).bind(&second).fetch_one(&mut admin).await.expect("look");
        // What a job of the next rotation would have been at, had the roles not changed again.
        let from = second.clone();
        for step in [
            Step::HandOver { from: from.clone() },
            Step::LockOut { from: from.clone() },
            Step::EndSessions { from },
        ] {
            let done = rotate.run(&step, &world, &context()).await.expect("a step");
            assert!(matches!(done, Then::Done(_)), "{done:?}");
        }
        let make = Step::MakeRole { from: first, to: second.clone() };
        assert!(!rotate.run(&make, &world, &context()).await.expect_err("it is in use").retry);
        let now: String =
            sqlx::query_scalar(password).bind(&second).fetch_one(&mut admin).await.expect("look");
        assert_eq!(now, in_use);
        assert!(may_log_in(&mut admin, &second).await);
        let rotation = credentials::rotation(&mut mgmt, tenant.id).await.expect("look").expect("a row");
        assert_eq!((rotation.app_role, rotation.retiring_role), (second, None));

        // And it is not tried again where it stopped.
        let failed = "UPDATE jobs SET state = 'failed' WHERE tenant_id = $1 AND kind = 'rotate_credentials'";
        execute(&world, failed, tenant.id).await;
        let refused = jobs::retry(&world, &operator_as_caller(), job).await;
        assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    });
}

#[test]
fn databases_are_dropped_in_turn_and_that_a_former_one_was_is_audited() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "cold").await;
        let name = format!("lwt_{}_former_1", tenant.id.short());
        let mut admin = world.cluster.connect("postgres").await.expect("connect");
        databases::ensure_closed(&mut admin, &name).await.expect("a database");
        let oid = databases::oid(&mut admin, &name).await.expect("look").expect("its number");
        let work = DropFormer { tenant: tenant.id, database: TenantDatabase { oid: i64::from(oid), name } };
        let step = async || work.run(&drop_former::Step::Drop, &world, &context()).await.expect("a step");
        until("the turn", async || closing::take_turn(&mut admin, "drop a database").await.expect("look"))
            .await;
        // Only now is it one to drop: a reconciler looks as well.
        sqlx::query(
            "INSERT INTO tenant_databases (tenant_id, oid, name, role, drop_after) VALUES ($1, $2, $3, 'former', now())",
        )
        .bind(tenant.id.0)
        .bind(work.database.oid)
        .bind(&work.database.name)
        .execute(&world.db.platform)
        .await
        .expect("note it");
        let later = step().await;
        assert!(matches!(later, Then::Later(_)), "another one is being dropped: {later:?}");
        drop(admin);
        until("it to be dropped", async || matches!(step().await, Then::Done(_))).await;
        let mut admin = world.cluster.connect("postgres").await.expect("connect");
        assert!(databases::oid(&mut admin, &work.database.name).await.expect("look").is_none());
        let rows = audited(&world, tenant.id, "tenant.former_database_dropped").await;
        assert_eq!(rows, 1, "once, whoever did it");
    });
}

async fn audited(world: &World, tenant: TenantId, action: &str) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM audit WHERE tenant_id = $1 AND action = $2")
        .bind(tenant.0)
        .bind(action)
        .fetch_one(&world.db.platform)
        .await
        .expect("look")
}

#[test]
fn what_an_export_that_failed_has_left_on_the_disk_is_removed() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "cold").await;
        let (failed, export) = (ExportId::random(), ExportId::random());
        let directory = world.exports_directory.join(tenant.id.to_string());
        let collected = directory.join(format!("{failed}.collected"));
        std::fs::create_dir_all(&collected).expect("make it");
        loomworks_core::durable::write(&collected.join("database.dump"), b"everything").expect("write it");
        let sealed = directory.join(format!("{export}.sealed"));
        loomworks_core::durable::write(&sealed, b"sealed").expect("write it");
        until("them to be gone", async || !collected.exists() && !sealed.exists()).await;
        until("the audit log to tell", async || audited(&world, tenant.id, "export.removed").await == 2)
            .await;
    });
}
