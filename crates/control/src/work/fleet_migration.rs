//! Carrying a fleet migration out: wave after wave, several tenants at a time.
//!
//! The rows of the tenants are the work list. A worker takes one, applies the migration, and notes how it ended; the
//! mark in the tenant's database makes a second try harmless, so that all may be cut anywhere.
//!
//! Whether tenants may be begun is the migration's state, not the job's: it is paused, cancelled and resumed as a
//! migration (`control::fleet`), and the job only carries out what it finds.

mod ending;
mod worker;

use loomworks_core::ids::FleetMigrationId;
use loomworks_postgres::PgConnection;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinSet;

use super::fleet_snapshots::{self, AwaitFleetSnapshots};
use super::snapshot::{self, TakeSnapshot};
use crate::World;
use crate::audit;
use crate::db::audit::is_recorded;
use crate::db::fleet::{self, Definition, Ended, Target};
use crate::error::{Error, chain};
use crate::fleet::inside::{self};
use crate::jobs::{self, Context, Progress, StepError, Then, Work};
use crate::notifications;
use ending::{End, end, notice, too_many_failed};
use worker::Worker;

/// How soon a wave is looked at again in which everybody left is busy.
const BUSY_POLL: Duration = Duration::from_millis(250);

/// Why tenants of a cancelled migration are skipped.
pub(crate) const CANCELLED: &str = "the migration was cancelled";

/// Why a tenant has failed that was cut off, when its database does not tell what came of it.
const NOT_KNOWN: &str = "it was cut off, and whether its database has the migration is not known";
const NOT_KNOWN_HINT: &str = "where it is tried again, what has it is not migrated twice";

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
    /// The same wave once the snapshots of those before it are in the archive.
    AwaitSnapshots {
        wave: i32,
        of: i32,
    },
    Finish,
}

impl Work for MigrateFleet {
    const KIND: &'static str = "fleet_migration";
    const INSTEAD: Option<&'static str> = Some(
        "a fleet migration is ended with `loomworks fleet cancel` and gone on with by `loomworks fleet resume`",
    );
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
                Progress { percent: percent_before(*wave, *of), words: "migrating a wave of tenants" }
            }
            Step::AwaitSnapshots { wave, of } => {
                let percent = percent_before(*wave, *of);
                Progress { percent, words: "waiting for the archive to have the snapshots so far" }
            }
            Step::Finish => Progress { percent: 99, words: "writing down how it ended" },
        }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        let Some(definition) = fleet::definition(&mut mgmt, self.migration).await? else {
            return Err(Error::NotFound("such fleet migration").into());
        };
        match step {
            Step::Plan => {
                drop(mgmt);
                // What a job has left that failed for good.
                self.take_back(world, &definition, context).await?;
                let mut mgmt = world.db.platform.acquire().await?;
                if self.must_rest(&mut mgmt, &definition).await?.is_some() {
                    return Ok(Then::Next(Step::Finish));
                }
                drop(mgmt);
                // A position before the first base backup could never be restored.
                if definition.snapshot_before && world.repository.backups().await?.is_empty() {
                    return Ok(Then::Later(snapshot::ARCHIVE_POLL));
                }
                let next = self.next(world).await?;
                Ok(Then::Next(self.after_snapshots(world, next).await?))
            }
            Step::Wave { wave, .. } => {
                drop(mgmt);
                self.wave(world, &definition, *wave, context).await?;
                let next = self.after(world, &definition, *wave).await?;
                Ok(Then::Next(self.after_snapshots(world, next).await?))
            }
            Step::AwaitSnapshots { wave, of } => {
                if self.must_rest(&mut mgmt, &definition).await?.is_some() {
                    return Ok(Then::Next(Step::Finish));
                }
                drop(mgmt);
                Ok(match fleet_snapshots::make_ready(world, self.migration).await? {
                    true => Then::Next(Step::Wave { wave: *wave, of: *of }),
                    false => Then::Later(snapshot::ARCHIVE_POLL),
                })
            }
            Step::Finish => {
                drop(mgmt);
                self.finish(world, &definition, context).await
            }
        }
    }

    /// Never: the migration is cancelled, and the job ends because of that.
    fn can_cancel(_: &Step) -> bool {
        false
    }

    /// The tenants that were under way stay `running`. What came of them only their databases can tell, so whoever
    /// resumes or cancels the migration gets a job that asks them; one that is cancelled already gets none.
    async fn give_up(&self, connection: &mut PgConnection, context: &Context) -> Result<(), Error> {
        let standing = fleet::lock(connection, self.migration).await?;
        match standing.as_ref().map(|standing| standing.state.as_str()) {
            Some("running" | "paused") => {
                fleet::set_state(connection, self.migration, "stopped", Some("its job failed")).await?;
            }
            Some("cancelled") => {
                fleet::skip_waiting(connection, self.migration, CANCELLED).await?;
                fleet::fail_running(connection, self.migration, NOT_KNOWN).await?;
            }
            _ => {}
        }
        self.leave_snapshots(connection, &context.requested_by).await
    }

    /// None: a migration is resumed, with a job of its own.
    async fn take_up(&self, _: &Step, _: &mut PgConnection, _: &Context) -> Result<Option<Step>, Error> {
        Ok(None)
    }
}

fn percent_before(wave: i32, of: i32) -> u8 {
    u8::try_from(wave * 98 / (of + 1).max(1)).unwrap_or(98).max(1)
}

impl MigrateFleet {
    /// The wave to begin with or to go on with.
    async fn next(&self, world: &World) -> Result<Step, Error> {
        let mut mgmt = world.db.platform.acquire().await?;
        let (next, last) = fleet::waves(&mut mgmt, self.migration).await?;
        Ok(next.map_or(Step::Finish, |wave| Step::Wave { wave, of: last.unwrap_or(wave) }))
    }

    /// Before a wave the snapshots of those before it must be in the archive. A migration that went on without would,
    /// with an archive that does not work, come to the last tenant with no way back for anybody.
    async fn after_snapshots(&self, world: &World, next: Step) -> Result<Step, Error> {
        let Step::Wave { wave, of } = next else { return Ok(next) };
        let mut mgmt = world.db.platform.acquire().await?;
        if fleet::open_snapshots(&mut mgmt, self.migration).await?.is_empty() {
            return Ok(next);
        }
        Ok(Step::AwaitSnapshots { wave, of })
    }

    /// Leaves the snapshots that are not ready to jobs that see to them: those with a position to one for all, those
    /// without, whose tenant was not begun after all, to one each.
    async fn leave_snapshots(&self, connection: &mut PgConnection, requested_by: &str) -> Result<(), Error> {
        for (tenant, snapshot) in fleet::unmarked_snapshots(connection, self.migration).await? {
            jobs::enqueue(connection, &TakeSnapshot { tenant, snapshot }, requested_by).await?;
        }
        if !fleet::open_snapshots(connection, self.migration).await?.is_empty() {
            let work = AwaitFleetSnapshots { migration: self.migration };
            jobs::enqueue(connection, &work, requested_by).await?;
        }
        Ok(())
    }

    /// Migrates the tenants of a wave until none waits, or none may be begun any more.
    async fn wave(
        &self,
        world: &World,
        definition: &Definition,
        wave: i32,
        context: &Context,
    ) -> Result<(), StepError> {
        loop {
            self.take_back(world, definition, context).await?;
            let mut workers = JoinSet::new();
            for _ in 0..definition.concurrency {
                let worker = Worker {
                    world: world.clone(),
                    definition: definition.clone(),
                    wave,
                    session: session_name(self.migration),
                    actor: context.requested_by.clone(),
                };
                workers.spawn(worker.work());
            }
            // If this is dropped, because the claim on the job is lost, its workers end with it. If one of them
            // cannot go on, the others end what they have in hand and take all they can.
            let mut worked = Ok(());
            while let Some(ended) = workers.join_next().await {
                let ended = ended.map_err(|error| Error::Internal(format!("a worker ended: {error}")));
                worked = worked.and(ended.flatten());
            }
            worked?;
            let mut mgmt = world.db.platform.acquire().await?;
            let (waiting, running) = fleet::left(&mut mgmt, self.migration, wave).await?;
            if running == 0 && (waiting == 0 || self.must_rest(&mut mgmt, definition).await?.is_some()) {
                return Ok(());
            }
            drop(mgmt);
            tokio::time::sleep(BUSY_POLL).await;
        }
    }

    /// Finds out what came of the tenants that somebody worked on who is no more. Those that have not got it wait.
    async fn take_back(
        &self,
        world: &World,
        definition: &Definition,
        context: &Context,
    ) -> Result<(), Error> {
        let mut mgmt = world.db.platform.acquire().await?;
        if fleet::counts(&mut mgmt, self.migration).await?.running == 0 {
            return Ok(());
        }
        // First: what is committed after this is committed by us.
        inside::end_sessions(world, &session_name(self.migration)).await?;
        for target in fleet::under_way(&mut mgmt, self.migration).await? {
            let unknown;
            let ended = match inside::is_applied(&world.cluster, &target.database_name, self.migration).await
            {
                Ok(true) => Ended::of("applied"),
                Ok(false) => continue,
                Err(error) => {
                    unknown = format!("{NOT_KNOWN}: {}", chain(&error));
                    Ended { error: Some(&unknown), hint: Some(NOT_KNOWN_HINT), ..Ended::of("failed") }
                }
            };
            let mut transaction = fleet::begin(&world.db.platform).await?;
            record(&mut transaction, definition, &context.requested_by, &target, ended).await?;
            transaction.commit().await?;
        }
        fleet::take_back(&mut mgmt, self.migration).await?;
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
        Ok(too_many_failed(definition, &standing, &counts).map(|_| Rest::Failures))
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
        if standing.state == "cancelled" {
            // Those that were put back after somebody had cancelled it.
            fleet::skip_waiting(&mut transaction, self.migration, CANCELLED).await?;
        }
        let counts = fleet::counts(&mut transaction, self.migration).await?;
        match end(definition, &standing, &counts) {
            End::State(state, reason) => {
                fleet::set_state(&mut transaction, self.migration, state, reason.as_deref()).await?;
            }
            End::AsItIs => {}
            End::NotYet => return Ok(Then::Next(Step::Plan)),
        }
        self.leave_snapshots(&mut transaction, &context.requested_by).await?;
        let shown =
            fleet::get(&mut transaction, self.migration).await?.ok_or(Error::NotFound("such thing"))?;
        let detail = json!({
            "migration": self.migration, "job": context.job, "state": shown.state, "applied": shown.applied, "failed": shown.failed,
            "waiting": shown.waiting, "skipped": shown.skipped,
        });
        let by = &context.requested_by;
        // A try that was cut off before its save may have told it already.
        let told = json!({ "job": context.job });
        if !is_recorded(&mut transaction, "fleet_migration.ended", &told).await? {
            audit::record(&mut transaction, by, "fleet_migration.ended", None, detail.clone()).await?;
            notifications::raise(&mut transaction, None, &notice(&shown, detail.clone())).await?;
        }
        transaction.commit().await?;
        Ok(Then::Done(detail))
    }
}

/// How a migration's sessions call themselves in tenants' databases. By the migration and not by its job: what one job
/// has left running the next one ends.
fn session_name(migration: FleetMigrationId) -> String {
    format!("loomworks fleet {}", migration.short())
}

/// Notes how a tenant's try ended.
async fn record(
    connection: &mut PgConnection,
    definition: &Definition,
    actor: &str,
    target: &Target,
    ended: Ended<'_>,
) -> Result<(), Error> {
    let ours = fleet::record(connection, definition.id, target, ended).await?;
    if ours && ended.state == "applied" {
        let detail = json!({ "migration": definition.id, "name": definition.name });
        let tenant = Some(target.tenant_id);
        audit::record(connection, actor, "tenant.migrated", tenant, detail).await?;
    }
    Ok(())
}

/// Why no more tenants may be begun.
enum Rest {
    Asked,
    Failures,
}
