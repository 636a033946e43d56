//! What each kind of job is given to do. A case leaves everything as it needs it, so that it can begin again and again.

use std::pin::Pin;

use loomworks_control::access::Granted;
use loomworks_control::credentials;
use loomworks_control::db::lifecycle;
use loomworks_control::db::notifications::Severity;
use loomworks_control::db::tenants::TenantDatabase;
use loomworks_control::fleet::{self, Selection};
use loomworks_control::jobs::cron;
use loomworks_control::master_key::rotation;
use loomworks_control::notifications::{Notice, raise};
use loomworks_control::restores::{self, Asked, Mode, Wanted};
use loomworks_control::webhooks::{self, Owner};
use loomworks_control::work::daily_snapshots::DailySnapshots;
use loomworks_control::work::deliver_webhook::DeliverWebhook;
use loomworks_control::work::drop_former::DropFormer;
use loomworks_control::work::expire::Expire;
use loomworks_control::work::export::{RemoveExport, digest};
use loomworks_control::work::fan_out::FanOut;
use loomworks_control::work::fleet_snapshots::AwaitFleetSnapshots;
use loomworks_control::work::limits::{ApplyLimits, MeasureUsage};
use loomworks_control::work::pool::{FillPool, TidyTemplates};
use loomworks_control::work::restore::RemoveRemains;
use loomworks_control::work::subscription::ApplySubscription;
use loomworks_control::work::sweep::Sweep;
use loomworks_control::{backups, exports, retirement, sessions, snapshots};
use loomworks_core::durable;
use loomworks_core::ids::{ExportId, JobId, SnapshotId};
use serde_json::{Value, json};

use crate::end::keys;
use crate::stage::{OWN_SCHEDULES, Stage, ask_for_template, operator};

type Soon<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Looks at what only this case knows of.
type Look = for<'a> fn(&'a Stage, &'a Begun) -> Soon<'a, Value>;

/// What a kind is given to do.
pub(crate) struct Case {
    pub(crate) kind: &'static str,
    pub(crate) start: for<'a> fn(&'a Stage) -> Soon<'a, Begun>,
    /// The first step that is cut; another case of the kind has those before.
    pub(crate) from: i32,
}

/// A job that waits for its worker.
pub(crate) struct Begun {
    pub(crate) job: JobId,
    /// The tenant whose database is looked at in the end.
    pub(crate) tenant: Option<Granted>,
    /// What else is looked at.
    pub(crate) look: Look,
    note: String,
}

impl Begun {
    fn new(job: JobId) -> Self {
        Self { job, tenant: None, look: |_, _| Box::pin(async { Value::Null }), note: String::new() }
    }

    fn about(job: JobId, tenant: Granted) -> Self {
        Self { tenant: Some(tenant), ..Self::new(job) }
    }
}

macro_rules! cases {
    ($($kind:literal: $start:ident $(from $from:literal)?,)*) => {
        &[$(Case { kind: $kind, start: |stage| Box::pin($start(stage)), from: 0 $(+ $from)? },)*]
    };
}

/// Restores come while there is little to restore.
pub(crate) const CASES: &[Case] = cases! {
    "restore": restore,
    "restore": restore_to_look from 6,
    "swap_back": swap_back,
    "remove_remains": remove_remains,
    "drop_former": drop_former,
    "provision": provision,
    "build_template": build_template,
    "fill_pool": fill_pool,
    "tidy_templates": tidy_templates,
    "apply_limits": apply_limits,
    "measure_usage": measure_usage,
    "snapshot": snapshot,
    "backup": backup,
    "verify_backup": verify_backup,
    "expire": expire,
    "restore_drill": restore_drill,
    "daily_snapshots": daily_snapshots,
    "open_session": open_session,
    "close_session": close_session,
    "rotate_credentials": rotate_credentials,
    "rotate_master_key": rotate_master_key,
    // Forgetting waits some seconds first, so only what follows is cut.
    "rotate_master_key": rotate_master_key_and_forget from 2,
    "fleet_migration": fleet_migration,
    "fleet_snapshots": fleet_snapshots,
    "fan_out": fan_out,
    "deliver_webhook": deliver_webhook,
    "subscription": subscription,
    "archive": archive,
    "unarchive": unarchive,
    "destroy": destroy,
    "export": export,
    "remove_export": remove_export,
    "sweep": sweep,
};

/// Writes a value into all items of a tenant's database.
async fn write_items(stage: &Stage, database: &str, value: &str) {
    let mut inside = stage.connect(database).await;
    stage.run(&mut inside, &format!("UPDATE public.items SET value = '{value}'")).await;
}

/// Restores from one base backup. Each has more WAL to go through than the one before.
const RESTORES_OF_A_BACKUP: u32 = 4;

async fn restore(stage: &Stage) -> Begun {
    let acme = stage.tenant("acme").await;
    if stage.next_number().is_multiple_of(RESTORES_OF_A_BACKUP) {
        let job = backups::run(&stage.world("nobody"), &operator(), false).await.expect("ask for a backup");
        stage.carry_out(job).await;
    }
    write_items(stage, "acme", "at the snapshot").await;
    let snapshot = ready_snapshot(stage, &acme).await;
    write_items(stage, "acme", "spoilt").await;
    let world = stage.world("nobody");
    let asked = Asked { wanted: Wanted::Snapshot(snapshot), mode: Mode::InPlace, source: None };
    let asked = restores::request(&world, &acme, &asked, "acme").await;
    Begun::about(asked.expect("ask for a restore").2, acme)
}

/// Nothing is exchanged: what differs from the other comes after the copy.
async fn restore_to_look(stage: &Stage) -> Begun {
    let acme = stage.tenant("acme").await;
    write_items(stage, "acme", "at the snapshot").await;
    let snapshot = ready_snapshot(stage, &acme).await;
    let asked = Asked { wanted: Wanted::Snapshot(snapshot), mode: Mode::Look, source: None };
    let asked = restores::request(&stage.world("nobody"), &acme, &asked, "").await;
    Begun::about(asked.expect("ask for a look").2, acme)
}

async fn verify_backup(stage: &Stage) -> Begun {
    let world = stage.world("nobody");
    let newest = world.repository.backups().await.expect("the backups").pop().expect("one");
    Begun::new(backups::verify(&world, &operator(), &newest.label).await.expect("ask for it"))
}

async fn expire(stage: &Stage) -> Begun {
    let acme = stage.tenant("acme").await;
    let snapshot = ready_snapshot(stage, &acme).await;
    stage
        .set_rows(&format!(
            "UPDATE snapshots SET expires_at = now() - interval '1 day' WHERE id = '{snapshot}'"
        ))
        .await;
    Begun::about(stage.enqueue(&Expire {}).await, acme)
}

async fn restore_drill(stage: &Stage) -> Begun {
    Begun::new(backups::drill(&stage.world("nobody"), &operator()).await.expect("ask for it"))
}

async fn daily_snapshots(stage: &Stage) -> Begun {
    stage.set_rows("DELETE FROM snapshots WHERE name = 'daily'").await;
    Begun::new(stage.enqueue(&DailySnapshots {}).await)
}

async fn ready_snapshot(stage: &Stage, granted: &Granted) -> SnapshotId {
    let world = stage.world("nobody");
    let asked = snapshots::create(&world, granted, &"test".parse().expect("a name")).await;
    let (snapshot, job) = asked.expect("ask for a snapshot");
    stage.carry_out(job).await;
    snapshot.id
}

async fn swap_back(stage: &Stage) -> Begun {
    let acme = stage.tenant("acme").await;
    let sql = format!(
        "SELECT name FROM public.tenant_databases WHERE tenant_id = '{}' AND role = 'former' ORDER BY former_since DESC",
        acme.tenant()
    );
    let mut mgmt = stage.management().await;
    let former = async |mgmt: &mut _| -> Option<String> {
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql.clone())).fetch_optional(mgmt).await.expect("look")
    };
    if former(&mut mgmt).await.is_none() {
        let restored = restore(stage).await;
        stage.carry_out(restored.job).await;
    }
    write_items(stage, "acme", "live").await;
    let mut admin = stage.connect("postgres").await;
    let former = former(&mut mgmt).await.expect("a former database");
    // A former one is closed.
    stage.run(&mut admin, &format!("ALTER DATABASE \"{former}\" ALLOW_CONNECTIONS true")).await;
    write_items(stage, &former, "former").await;
    let job = restores::swap_back(&stage.world("nobody"), &acme, "acme").await.expect("ask for it back");
    Begun::about(job, acme)
}

async fn remove_remains(stage: &Stage) -> Begun {
    let acme = stage.tenant("acme").await;
    let restore = JobId::random();
    let mut admin = stage.connect("postgres").await;
    for what in ["new", "landing", "landed"] {
        let name = format!("lwt_{}_{what}_{}", acme.tenant().short(), restore.short());
        stage.run(&mut admin, &format!("CREATE DATABASE \"{name}\"")).await;
    }
    let side = stage.server.directory.join("side").join(restore.short());
    std::fs::create_dir_all(side.join("dump")).expect("make a directory");
    durable::write(&side.join("dump/part"), b"x").expect("write a file");
    Begun::about(stage.enqueue(&RemoveRemains { tenant: acme.tenant(), restore }).await, acme)
}

async fn drop_former(stage: &Stage) -> Begun {
    let acme = stage.tenant("acme").await;
    let name = format!("lwt_{}_old_{}", acme.tenant().short(), stage.next_number());
    let mut admin = stage.connect("postgres").await;
    stage.run(&mut admin, &format!("CREATE DATABASE \"{name}\"")).await;
    let oid = "SELECT oid::bigint FROM pg_database WHERE datname = $1";
    let oid: i64 = sqlx::query_scalar(oid).bind(&name).fetch_one(&mut admin).await.expect("its number");
    stage
        .set_rows(&format!(
            "INSERT INTO tenant_databases (tenant_id, oid, name, role, former_since, drop_after)
             VALUES ('{}', {oid}, '{name}', 'former', now() - interval '8 days', now() - interval '1 day')",
            acme.tenant()
        ))
        .await;
    let database = TenantDatabase { oid, name };
    Begun::about(stage.enqueue(&DropFormer { tenant: acme.tenant(), database }).await, acme)
}

async fn provision(stage: &Stage) -> Begun {
    let name = format!("new-{}", stage.next_number());
    let job = stage.ask_for_tenant(&name, "shop").await;
    Begun::about(job, stage.tenant(&name).await)
}

async fn build_template(stage: &Stage) -> Begun {
    // Another content is another template.
    stage.content.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let world = stage.world("nobody");
    Begun::new(ask_for_template(stage, &world.profiles["changing"]).await)
}

async fn fill_pool(stage: &Stage) -> Begun {
    stage.pool.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Begun::new(stage.enqueue(&FillPool { profile: "pooled".into() }).await)
}

async fn tidy_templates(stage: &Stage) -> Begun {
    let before = stage.enqueue(&TidyTemplates {}).await;
    stage.carry_out(before).await;
    let name = format!("lw_template_old_{}", stage.next_number());
    let mut admin = stage.connect("postgres").await;
    for what in ["DATABASE", "ROLE"] {
        stage.run(&mut admin, &format!("CREATE {what} {name}")).await;
    }
    stage
        .set_rows(&format!("INSERT INTO templates (name, profile, state) VALUES ('{name}', 'old', 'ready')"))
        .await;
    Begun::new(stage.enqueue(&TidyTemplates {}).await)
}

async fn apply_limits(stage: &Stage) -> Begun {
    let hooli = stage.tenant("hooli").await;
    let mut inside = stage.connect("hooli").await;
    stage
        .run(&mut inside, "UPDATE loomworks.quota SET max_users = NULL, max_ai_operations_daily = NULL")
        .await;
    let id = hooli.tenant();
    stage
        .set_rows(&format!(
            "UPDATE tenants SET max_users = 77 WHERE id = '{id}';
             INSERT INTO tenant_usage (tenant_id) VALUES ('{id}') ON CONFLICT DO NOTHING;
             UPDATE tenant_usage SET applied = NULL WHERE tenant_id = '{id}'"
        ))
        .await;
    Begun::about(stage.enqueue(&ApplyLimits { tenant: id }).await, hooli)
}

async fn measure_usage(stage: &Stage) -> Begun {
    let initech = stage.tenant("initech").await;
    let before = stage.enqueue(&MeasureUsage {}).await;
    stage.carry_out(before).await;
    let id = initech.tenant();
    // Much was changed since, and there is no snapshot of the last minutes.
    stage
        .set_rows(&format!(
            "UPDATE snapshots SET created_at = created_at - interval '1 hour' WHERE tenant_id = '{id}';
             UPDATE tenant_usage SET changes_rows = changes_rows - 1000000 WHERE tenant_id = '{id}'"
        ))
        .await;
    stage
        .set_rows(&format!(
            "UPDATE tenants SET max_storage_gb = 0.001 WHERE id = '{id}';
             UPDATE tenant_usage SET storage_level = 'ok', applied = applied || '{{\"full\": false}}', writes = NULL,
                 measured_at = now() - interval '1 hour' WHERE tenant_id = '{id}'"
        ))
        .await;
    Begun {
        look: |stage, begun| {
            Box::pin(async {
                let taken =
                    "SELECT count(*) FROM snapshots WHERE tenant_id = $1 AND name LIKE 'after % changed rows'
                     AND created_at > now() - interval '30 minutes'";
                let tenant = begun.tenant.as_ref().expect("it is about one").tenant();
                let taken: i64 = sqlx::query_scalar(taken)
                    .bind(tenant.0)
                    .fetch_one(&stage.db.platform)
                    .await
                    .expect("look");
                assert_eq!(taken, 1, "not none and not two");
                json!({ "snapshots": taken })
            })
        },
        ..Begun::about(stage.enqueue(&MeasureUsage {}).await, initech)
    }
}

async fn snapshot(stage: &Stage) -> Begun {
    let acme = stage.tenant("acme").await;
    let world = stage.world("nobody");
    let asked = snapshots::create(&world, &acme, &"test".parse().expect("a name")).await;
    Begun::about(asked.expect("ask for a snapshot").1, acme)
}

async fn backup(stage: &Stage) -> Begun {
    let world = stage.world("nobody");
    let job = backups::run(&world, &operator(), false).await.expect("ask for a backup");
    Begun {
        look: |stage, _| {
            Box::pin(async {
                let all = stage.world("nobody").repository.backups().await.expect("the backups");
                let newest = all.last().expect("one");
                json!({ "has_its_wal": stage.world("nobody").repository.has_wal_of(newest).await.expect("look") })
            })
        },
        ..Begun::new(job)
    }
}

/// Waits until a job of a kind waits.
async fn waiting_job(stage: &Stage, kind: &str) -> JobId {
    let sql = "SELECT id FROM jobs WHERE kind = $1 AND state = 'waiting'";
    loop {
        let job: Option<uuid::Uuid> =
            sqlx::query_scalar(sql).bind(kind).fetch_optional(&stage.db.platform).await.expect("look");
        if let Some(job) = job {
            return job.into();
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

async fn open_session(stage: &Stage) -> Begun {
    let acme = stage.tenant("acme").await;
    let world = stage.world("nobody");
    let wanted =
        sessions::Wanted { agent: "test".parse().expect("a name"), purpose: String::new(), minutes: 60 };
    // Whoever asks waits until it is open; here nobody works yet.
    let job = tokio::select! {
        opened = sessions::open(&world, &acme, &wanted) => panic!("{opened:?}"),
        job = waiting_job(stage, "open_session") => job,
    };
    Begun::about(job, acme)
}

async fn close_session(stage: &Stage) -> Begun {
    let opened = open_session(stage).await;
    stage.carry_out(opened.job).await;
    let acme = opened.tenant.expect("acme");
    let newest = "SELECT id FROM ai_sessions ORDER BY created_at DESC LIMIT 1";
    let session: uuid::Uuid = sqlx::query_scalar(newest).fetch_one(&stage.db.platform).await.expect("it");
    // It owns something when it ends.
    let mut inside = stage.connect("acme").await;
    let role = format!("lwai_{}", loomworks_core::ids::SessionId(session).short());
    stage.run(&mut inside, &format!("GRANT SELECT ON public.items TO \"{role}\"")).await;
    let world = stage.world("nobody");
    let job = tokio::select! {
        closed = sessions::close(&world, &acme, session.into()) => panic!("{closed:?}"),
        job = waiting_job(stage, "close_session") => job,
    };
    Begun::about(job, acme)
}

async fn rotate_credentials(stage: &Stage) -> Begun {
    let hooli = stage.tenant("hooli").await;
    // The two roles take turns: from the second to the first, and from the first to the second, look alike after two.
    let job = credentials::rotate(&stage.world("nobody"), &hooli).await.expect("ask for another password");
    stage.carry_out(job).await;
    let job = credentials::rotate(&stage.world("nobody"), &hooli).await.expect("ask for another password");
    Begun::about(job, hooli)
}

async fn rotate_key(stage: &Stage, forget_former: bool) -> Begun {
    let acme = stage.tenant("acme").await;
    let job =
        rotation::rotate(&stage.world("nobody"), &operator(), forget_former).await.expect("ask for a key");
    Begun::about(job, acme)
}

async fn rotate_master_key(stage: &Stage) -> Begun {
    rotate_key(stage, false).await
}

async fn rotate_master_key_and_forget(stage: &Stage) -> Begun {
    let begun = rotate_key(stage, true).await;
    Begun { look: |stage, _| Box::pin(keys(stage)), ..begun }
}

async fn migrate(stage: &Stage) -> Begun {
    let (acme, _) = (stage.tenant("acme").await, stage.tenant("hooli").await);
    let table = format!("made_{}", stage.next_number());
    let wanted = fleet::Wanted {
        name: "test".parse().expect("a name"),
        sql: format!("CREATE TABLE {table} (id int)"),
        selection: Selection { tenants: Some(vec!["acme".into(), "hooli".into()]), ..Selection::default() },
        canaries: 1,
        wave_size: 1,
        concurrency: 1,
        snapshot_before: true,
        statement_timeout_seconds: 60,
        lock_timeout_seconds: 10,
        busy_timeout_seconds: 60,
        stop_after_failures: 1,
        pause_after_canary: false,
    };
    let (migration, job) =
        fleet::create(&stage.world("nobody"), &operator(), &wanted).await.expect("ask for a migration");
    let look: Look = |stage, begun| {
        Box::pin(async {
            let mut made = Vec::new();
            for tenant in ["acme", "hooli"] {
                let mut inside = stage.connect(tenant).await;
                let sql = "SELECT to_regclass('public.' || $1) IS NOT NULL";
                let table = begun.note.split(' ').next();
                let there: bool =
                    sqlx::query_scalar(sql).bind(table).fetch_one(&mut inside).await.expect("look");
                made.push(there);
            }
            json!(made)
        })
    };
    Begun { look, note: format!("{table} {}", migration.id), ..Begun::about(job, acme) }
}

async fn fleet_migration(stage: &Stage) -> Begun {
    migrate(stage).await
}

async fn fleet_snapshots(stage: &Stage) -> Begun {
    let migrated = migrate(stage).await;
    stage.carry_out(migrated.job).await;
    // As they were before somebody had waited for the archive.
    let id = migrated.note.split(' ').nth(1).expect("the migration");
    stage
        .set_rows(&format!(
            "UPDATE snapshots SET state = 'creating', ready_at = NULL, base_backup_id = NULL
             WHERE id IN (SELECT snapshot_id FROM fleet_migration_tenants WHERE migration_id = '{id}')"
        ))
        .await;
    let migration = id.parse().expect("an id");
    Begun::new(stage.enqueue(&AwaitFleetSnapshots { migration }).await)
}

/// The one webhook there is.
async fn webhook(stage: &Stage) -> loomworks_core::ids::WebhookId {
    let (world, operator) = (stage.world("nobody"), operator());
    let owner = Owner::Platform(&operator);
    if let Some(there) = webhooks::list(&world, owner).await.expect("the webhooks").first() {
        return there.id;
    }
    let wanted = webhooks::Wanted {
        url: stage.receiver.parse().expect("an address"),
        events: vec!["*".parse().expect("a pattern")],
        description: String::new(),
    };
    webhooks::register(&world, owner, &wanted).await.expect("register").0.id
}

async fn fan_out(stage: &Stage) -> Begun {
    webhook(stage).await;
    stage.set_rows("UPDATE notifications SET fanned_out_at = now() WHERE fanned_out_at IS NULL").await;
    let mut connection = stage.db.platform.acquire().await.expect("connect");
    let notice = Notice {
        event: "job.failed",
        severity: Severity::Warning,
        message: "for a test".into(),
        detail: json!({}),
    };
    raise(&mut connection, None, &notice).await.expect("raise");
    drop(connection);
    Begun::new(stage.enqueue(&FanOut {}).await)
}

async fn deliver_webhook(stage: &Stage) -> Begun {
    let id = webhook(stage).await;
    let operator = operator();
    let tested = webhooks::test(&stage.world("nobody"), Owner::Platform(&operator), id).await;
    let (delivery, job) = tested.expect("ask for a test");
    // Whoever asks again finds the same one.
    assert_eq!(stage.enqueue(&DeliverWebhook { delivery, tenant: None }).await, job);
    Begun::new(job)
}

async fn subscription(stage: &Stage) -> Begun {
    let initech = stage.tenant("initech").await;
    let id = initech.tenant();
    let mut connection = stage.db.platform.acquire().await.expect("connect");
    lifecycle::resume(&mut connection, id).await.expect("resume");
    drop(connection);
    stage
        .set_rows(&format!(
            "DELETE FROM subscription_notices WHERE tenant_id = '{id}';
             UPDATE tenants SET subscription_expires = current_date - 30 WHERE id = '{id}'"
        ))
        .await;
    Begun::about(stage.enqueue(&ApplySubscription { tenant: id }).await, initech)
}

async fn is_archived(stage: &Stage, tenant: &Granted) -> bool {
    let sql = "SELECT state = 'archived' FROM tenants WHERE id = $1";
    sqlx::query_scalar(sql).bind(tenant.tenant().0).fetch_one(&stage.db.platform).await.expect("look")
}

async fn ask_to_archive(stage: &Stage, tenant: &Granted) -> JobId {
    let world = stage.world("nobody");
    retirement::archive(&world, &operator(), tenant, "globex", "for a test")
        .await
        .expect("ask for the archive")
}

async fn ask_to_unarchive(stage: &Stage, tenant: &Granted) -> JobId {
    let world = stage.world("nobody");
    retirement::unarchive(&world, &operator(), tenant).await.expect("ask for it back")
}

async fn archive(stage: &Stage) -> Begun {
    let globex = stage.tenant("globex").await;
    if is_archived(stage, &globex).await {
        let job = ask_to_unarchive(stage, &globex).await;
        stage.carry_out(job).await;
    }
    Begun::about(ask_to_archive(stage, &globex).await, globex)
}

async fn unarchive(stage: &Stage) -> Begun {
    let globex = stage.tenant("globex").await;
    if !is_archived(stage, &globex).await {
        let job = ask_to_archive(stage, &globex).await;
        stage.carry_out(job).await;
    }
    Begun::about(ask_to_unarchive(stage, &globex).await, globex)
}

async fn destroy(stage: &Stage) -> Begun {
    let name = format!("end-{}", stage.next_number());
    let tenant = stage.tenant(&name).await;
    // Without its last snapshot, which is then taken.
    let mut connection = stage.db.platform.acquire().await.expect("connect");
    lifecycle::archive(&mut connection, tenant.tenant(), None, "test", 30).await.expect("archive");
    drop(connection);
    let asked = retirement::destroy(&stage.world("nobody"), &operator(), &tenant, &name, true).await;
    Begun {
        look: |stage, begun| {
            Box::pin(async {
                let world = stage.world("nobody");
                let report = loomworks_control::erasure::report(&world, &operator(), &begun.note).await;
                json!(report.expect("a report").complete)
            })
        },
        note: tenant.tenant().to_string(),
        ..Begun::new(asked.expect("ask for the end"))
    }
}

async fn export(stage: &Stage) -> Begun {
    let acme = stage.tenant("acme").await;
    // A tenant's first export makes its key and its directory.
    if exports::list(&stage.world("nobody"), &acme).await.expect("the exports").is_empty() {
        let (_, job) = exports::request(&stage.world("nobody"), &acme).await.expect("ask for an export");
        stage.carry_out(job).await;
    }
    let (export, job) = exports::request(&stage.world("nobody"), &acme).await.expect("ask for an export");
    Begun {
        look: |stage, begun| {
            Box::pin(async {
                let granted = begun.tenant.as_ref().expect("acme");
                let id: ExportId = begun.note.parse().expect("an id");
                let opened = exports::open(&stage.world("nobody"), granted, id).await.expect("open it");
                let (bytes, _) = digest(opened.archive).expect("read it");
                json!({ "can_be_read": bytes > 0 })
            })
        },
        note: export.id.to_string(),
        ..Begun::about(job, acme)
    }
}

async fn remove_export(stage: &Stage) -> Begun {
    let made = export(stage).await;
    stage.carry_out(made.job).await;
    let tenant = made.tenant.expect("acme");
    let work = RemoveExport { tenant: tenant.tenant(), export: made.note.parse().expect("an id") };
    Begun::about(stage.enqueue(&work).await, tenant)
}

async fn sweep(stage: &Stage) -> Begun {
    stage
        .set_rows(
            "INSERT INTO jobs (id, kind, dedup_key, work, state, requested_by, finished_at)
             VALUES (gen_random_uuid(), 'sweep', 'old', '{}', 'succeeded', 'test', now() - interval '40 days');
             INSERT INTO notifications (event, severity, message, at)
             VALUES ('job.failed', 'info', 'old', now() - interval '100 days')",
        )
        .await;
    let mut mgmt = stage.management().await;
    for name in OWN_SCHEDULES {
        cron::enable(&mut mgmt, name, false).await.expect("it rests");
    }
    Begun::new(stage.enqueue(&Sweep {}).await)
}
