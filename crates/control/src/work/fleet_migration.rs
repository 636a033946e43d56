//! Carrying a fleet migration out: wave after wave, several tenants at a time.
//!
//! The rows of the tenants are the work list. A worker takes one, applies the migration, and notes how it ended; the
//! mark in the tenant's database makes a second try harmless, so that all may be cut anywhere.

use loomworks_core::ids::{FleetMigrationId, SnapshotId};
use loomworks_postgres::PgConnection;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fleet_snapshots::AwaitFleetSnapshots;
use super::snapshot;
use crate::World;
use crate::audit;
use crate::db::fleet::{self, Definition, Ended, Target};
use crate::db::notifications::Severity;
use crate::db::snapshots::{self, SnapshotType};
use crate::error::Error;
use crate::fleet::inside::{self, Outcome};
use crate::jobs::{self, Context, Progress, StepError, Then, Work};
use crate::notifications::{self, Notice};

/// How soon a tenant that was busy is looked at again, in seconds.
const BUSY_RETRY_SECONDS: f64 = 1.0;

/// How soon a wave is looked at again in which everybody left is busy.
const BUSY_POLL: Duration = Duration::from_millis(250);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MigrateFleet {
    pub migration: FleetMigrationId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Plan,
    /// 0 are the canaries; `of` is the last one.
    Wave {
        wave: i32,
        of: i32,
    },
    Finish,
}

impl Work for MigrateFleet {
    const KIND: &'static str = "fleet_migration";
    type Step = Step;

    fn tenant(&self) -> Option<loomworks_core::ids::TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        format!("fleet_migration {}", self.migration)
    }

    fn first(&self) -> Step {
        Step::Plan
    }

    fn progress(step: &Step) -> Progress {
        match step {
            Step::Plan => Progress { percent: 0, words: "finding out where to begin" },
            Step::Wave { wave: 0, .. } => Progress { percent: 1, words: "migrating the canaries" },
            Step::Wave { wave, of } => {
                let percent = u8::try_from(wave * 98 / (of + 1).max(1)).unwrap_or(98);
                Progress { percent: percent.max(1), words: "migrating a wave of tenants" }
            }
            Step::Finish => Progress { percent: 99, words: "writing down how it ended" },
        }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        let Some(definition) = fleet::definition(&mut mgmt, self.migration).await? else {
            return Err(Error::NotFound("such fleet migration").into());
        };
        drop(mgmt);
        match step {
            // A position before the first base backup could never be restored.
            Step::Plan if definition.snapshot_before && world.repository.backups().await?.is_empty() => {
                Ok(Then::Later(snapshot::ARCHIVE_POLL))
            }
            Step::Plan => Ok(Then::Next(self.next(world).await?)),
            Step::Wave { wave, .. } => {
                self.wave(world, &definition, *wave, context).await?;
                if definition.snapshot_before {
                    archive_snapshots(world, self.migration, context).await?;
                }
                Ok(Then::Next(self.after(world, &definition, *wave).await?))
            }
            Step::Finish => self.finish(world, &definition, context).await,
        }
    }

    async fn give_up(&self, connection: &mut PgConnection, _: &Context) -> Result<(), Error> {
        let standing = fleet::lock(connection, self.migration).await?;
        if standing.is_some_and(|standing| standing.state == "running") {
            let reason = Some("its job failed");
            fleet::set_state(connection, self.migration, "stopped", reason).await?;
        }
        Ok(())
    }
}

impl MigrateFleet {
    /// The wave to begin with or to go on with.
    async fn next(&self, world: &World) -> Result<Step, Error> {
        let mut mgmt = world.db.platform.acquire().await?;
        let (next, last) = fleet::waves(&mut mgmt, self.migration).await?;
        Ok(next.map_or(Step::Finish, |wave| Step::Wave { wave, of: last.unwrap_or(wave) }))
    }

    /// Migrates the tenants of a wave until none waits, or none may be begun any more.
    async fn wave(
        &self,
        world: &World,
        definition: &Definition,
        wave: i32,
        context: &Context,
    ) -> Result<(), StepError> {
        let session = session_name(context);
        loop {
            self.take_back(world, &session).await?;
            let mut workers = JoinSet::new();
            for _ in 0..definition.concurrency {
                let worker = Worker {
                    world: world.clone(),
                    definition: definition.clone(),
                    wave,
                    session: session.clone(),
                    actor: context.requested_by.clone(),
                };
                workers.spawn(worker.work());
            }
            // If this is dropped, because the claim on the job is lost, its workers end with it.
            while let Some(ended) = workers.join_next().await {
                ended.map_err(|error| Error::Internal(format!("a worker ended: {error}")))??;
            }
            let mut mgmt = world.db.platform.acquire().await?;
            let (waiting, running) = fleet::left(&mut mgmt, self.migration, wave).await?;
            if running == 0 && (waiting == 0 || self.must_rest(&mut mgmt, definition).await?.is_some()) {
                return Ok(());
            }
            drop(mgmt);
            tokio::time::sleep(BUSY_POLL).await;
        }
    }

    /// Puts back what a process was working on that is no more.
    async fn take_back(&self, world: &World, session: &str) -> Result<(), Error> {
        let mut mgmt = world.db.platform.acquire().await?;
        if fleet::anybody_works(&mut mgmt, self.migration).await? {
            // First: what is committed after this is committed by us.
            inside::end_sessions(world, session).await?;
            fleet::take_back(&mut mgmt, self.migration).await?;
        }
        Ok(())
    }

    /// Why no more tenants may be begun, if so.
    async fn must_rest(
        &self,
        mgmt: &mut PgConnection,
        definition: &Definition,
    ) -> Result<Option<Rest>, Error> {
        let mut transaction = sqlx::Connection::begin(mgmt).await?;
        let Some(standing) = fleet::lock(&mut transaction, self.migration).await? else {
            return Ok(Some(Rest::Asked));
        };
        let counts = fleet::counts(&mut transaction, self.migration).await?;
        transaction.commit().await?;
        if standing.state != "running" {
            return Ok(Some(Rest::Asked));
        }
        let new = counts.failed - i64::from(standing.failures_accepted);
        let limit = i64::from(definition.stop_after_failures);
        Ok((limit > 0 && new >= limit).then_some(Rest::Failures))
    }

    /// What follows a wave.
    async fn after(&self, world: &World, definition: &Definition, wave: i32) -> Result<Step, Error> {
        let next = self.next(world).await?;
        let mut transaction = world.db.platform.begin().await?;
        let standing = fleet::lock(&mut transaction, self.migration).await?;
        let running = standing.as_ref().is_some_and(|standing| standing.state == "running");
        let accepted = standing.map_or(0, |standing| i64::from(standing.failures_accepted));
        let counts = fleet::counts(&mut transaction, self.migration).await?;
        if running && wave == 0 && counts.waiting > 0 {
            let reason = match counts.failed_canaries > accepted {
                true => Some(("stopped", "a canary failed")),
                false => definition
                    .pause_after_canary
                    .then_some(("paused", "to let somebody look at the canaries")),
            };
            if let Some((state, reason)) = reason {
                fleet::set_state(&mut transaction, self.migration, state, Some(reason)).await?;
                transaction.commit().await?;
                return Ok(Step::Finish);
            }
        }
        match self.must_rest(&mut transaction, definition).await? {
            Some(_) => Ok(Step::Finish),
            None => Ok(next),
        }
    }

    /// Writes down how it ended, and tells people.
    async fn finish(
        &self,
        world: &World,
        definition: &Definition,
        context: &Context,
    ) -> Result<Then<Step>, StepError> {
        let mut transaction = world.db.platform.begin().await?;
        let Some(standing) = fleet::lock(&mut transaction, self.migration).await? else {
            return Err(Error::NotFound("such fleet migration").into());
        };
        let counts = fleet::counts(&mut transaction, self.migration).await?;
        if standing.state == "running" {
            let new = counts.failed - i64::from(standing.failures_accepted);
            let limit = i64::from(definition.stop_after_failures);
            let (state, reason) = match (counts.waiting + counts.running, counts.failed) {
                (0, 0) => ("succeeded", None),
                (0, failed) => ("failed", Some(format!("{failed} tenants failed"))),
                (_, _) if limit > 0 && new >= limit => ("stopped", Some(format!("{new} tenants failed"))),
                // It was resumed a moment ago.
                _ => return Ok(Then::Next(Step::Plan)),
            };
            fleet::set_state(&mut transaction, self.migration, state, reason.as_deref()).await?;
        }
        let shown =
            fleet::get(&mut transaction, self.migration).await?.ok_or(Error::NotFound("such thing"))?;
        let detail = json!({
            "migration": self.migration, "state": shown.state, "applied": shown.applied, "failed": shown.failed,
            "waiting": shown.waiting, "skipped": shown.skipped,
        });
        let by = &context.requested_by;
        audit::record(&mut transaction, by, "fleet_migration.ended", None, detail.clone()).await?;
        notifications::raise(&mut transaction, None, &notice(&shown, detail.clone())).await?;
        transaction.commit().await?;
        Ok(Then::Done(detail))
    }
}

/// Why no more tenants may be begun.
enum Rest {
    Asked,
    Failures,
}

fn notice(shown: &fleet::FleetMigration, detail: serde_json::Value) -> Notice {
    let severity = match shown.state.as_str() {
        "stopped" | "failed" => Severity::Warning,
        _ => Severity::Info,
    };
    let reason = shown.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let message = format!("fleet migration `{}` is {}{reason}: {}", shown.name, shown.state, shown.progress);
    Notice { event: "fleet_migration.ended", severity, message, detail }
}

/// How the sessions of a job call themselves in tenants' databases.
fn session_name(context: &Context) -> String {
    format!("loomworks fleet {}", context.job.short())
}

/// Has the WAL archived up to here, and the snapshots watched until they are ready.
async fn archive_snapshots(
    world: &World,
    migration: FleetMigrationId,
    context: &Context,
) -> Result<(), StepError> {
    let mut admin = world.cluster.connect("postgres").await?;
    sqlx::query("SELECT pg_switch_wal()").execute(&mut admin).await?;
    let mut mgmt = world.db.platform.acquire().await?;
    jobs::enqueue(&mut mgmt, &AwaitFleetSnapshots { migration }, &context.requested_by).await?;
    Ok(())
}

/// Takes tenants of a wave until there is none to take.
struct Worker {
    world: World,
    definition: Definition,
    wave: i32,
    session: String,
    actor: String,
}

impl Worker {
    async fn work(self) -> Result<(), Error> {
        let mut admin = None;
        while let Some(target) = self.claim().await? {
            if !matches!(target.tenant_state.as_str(), "active" | "suspended") {
                let error = format!("the tenant is {}", target.tenant_state);
                let ended = Ended {
                    state: "skipped",
                    error: Some(&error),
                    hint: None,
                    sqlstate: None,
                    milliseconds: 0,
                };
                self.record(&target, ended).await?;
                continue;
            }
            if target.busy {
                self.put_back(&target, "the tenant is being restored").await?;
                continue;
            }
            if self.definition.snapshot_before {
                if admin.is_none() {
                    admin = Some(self.world.cluster.connect("postgres").await?);
                }
                if let Some(admin) = &mut admin {
                    self.snapshot(admin, &target).await?;
                }
            }
            let started = Instant::now();
            let outcome = inside::apply(&self.world, &self.definition, &target, &self.session).await?;
            let milliseconds = i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX);
            let applied = Ended { state: "applied", error: None, hint: None, sqlstate: None, milliseconds };
            match outcome {
                Outcome::Applied => self.record(&target, applied).await?,
                Outcome::Busy(why) => self.put_back(&target, &why).await?,
                Outcome::Failed(failure) => {
                    let error = Some(failure.error.as_str());
                    let (hint, sqlstate) = (failure.hint.as_deref(), failure.sqlstate.as_deref());
                    self.record(&target, Ended { state: "failed", error, hint, sqlstate, ..applied }).await?;
                }
            }
        }
        Ok(())
    }

    async fn claim(&self) -> Result<Option<Target>, Error> {
        let mut transaction = self.world.db.platform.begin().await?;
        fleet::without_waiting_for_the_disk(&mut transaction).await?;
        let target = fleet::claim(&mut transaction, self.definition.id, self.wave).await?;
        transaction.commit().await?;
        Ok(target)
    }

    async fn record(&self, target: &Target, ended: Ended<'_>) -> Result<(), Error> {
        let mut transaction = self.world.db.platform.begin().await?;
        fleet::without_waiting_for_the_disk(&mut transaction).await?;
        let ours = fleet::record(&mut transaction, self.definition.id, target, ended).await?;
        if ours && ended.state == "applied" {
            let detail = json!({ "migration": self.definition.id, "name": self.definition.name });
            let tenant = Some(target.tenant_id);
            audit::record(&mut transaction, &self.actor, "tenant.migrated", tenant, detail).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Lets a tenant wait that cannot be worked with, until its patience is over.
    async fn put_back(&self, target: &Target, why: &str) -> Result<(), Error> {
        if target.busy_seconds < f64::from(self.definition.busy_timeout_seconds) {
            let mut mgmt = self.world.db.platform.acquire().await?;
            let id = self.definition.id;
            return Ok(fleet::put_back(&mut mgmt, id, target, why, BUSY_RETRY_SECONDS).await?);
        }
        let hint = Some("resume it with --retry-failed when the tenant is back");
        let ended = Ended { state: "failed", error: Some(why), hint, sqlstate: None, milliseconds: 0 };
        self.record(target, ended).await
    }

    /// Notes the position to which the tenant can be brought back. All that the position needs is archived once, at
    /// the end of the wave.
    async fn snapshot(&self, admin: &mut PgConnection, target: &Target) -> Result<(), Error> {
        let id = target.snapshot_id.map_or_else(SnapshotId::random, SnapshotId);
        let (tenant, by) = (target.tenant_id, &self.definition.requested_by);
        if target.snapshot_id.is_none() {
            let name: String =
                format!("before fleet migration {}", self.definition.name).chars().take(255).collect();
            let mut transaction = self.world.db.platform.begin().await?;
            fleet::without_waiting_for_the_disk(&mut transaction).await?;
            snapshots::insert(&mut transaction, id, tenant, &name, SnapshotType::Auto, by).await?;
            fleet::record_snapshot(&mut transaction, self.definition.id, tenant, id).await?;
            transaction.commit().await?;
        }
        snapshot::note_position(&self.world, admin, &target.database_name, id).await.map(drop)
    }
}
