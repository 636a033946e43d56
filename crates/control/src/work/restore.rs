//! Bringing one tenant back to a moment: recover the cluster on the side, copy the one database over, exchange.
//!
//! Until the exchange the tenant works on untouched data, and afterwards its former database is kept: a restore can be
//! undone like everything else. Neighbours are never touched.

use std::path::PathBuf;

use loomworks_archive::backup::Progress as LaidOut;
use loomworks_archive::restore::RestorePlan;
use loomworks_core::durable;
use loomworks_core::ids::{JobId, SnapshotId, TenantId};
use loomworks_core::lsn::Lsn;
use loomworks_postgres::cluster::remove_directory;
use loomworks_postgres::{Cluster, closing, config, copy, databases, roles};
use loomworks_undo::AI_ROLE_PREFIX;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;
use tracing::info;

use super::exchange::{self, Exchange, Turn};
use super::provision::names;
use super::snapshot::{ARCHIVE_POLL, become_ready, mark};
use crate::World;
use crate::access::Permission;
use crate::credentials::app_roles;
use crate::db::snapshots::{self, SnapshotType};
use crate::db::tenants::{self, TenantDatabase};
use crate::error::Error;
use crate::jobs::runner::nothing;
use crate::jobs::{self, Context, Progress, Queue, StepError, Then, Work};

/// How often a side cluster that did not recover is made anew.
const RECOVERIES_MAX: u8 = 5;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restore {
    pub tenant: TenantId,
    pub plan: RestorePlan,
    /// Whose database is brought back, if it is not the tenant's own: it then becomes a copy of another one.
    #[serde(default)]
    pub source: Option<TenantId>,
    /// Nothing is exchanged: what was brought back lies beside, for a day, to be looked at.
    #[serde(default)]
    pub look: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Before anything is exchanged, the present is made a snapshot too.
    Protect,
    AwaitArchive {
        snapshot: SnapshotId,
        position: Lsn,
    },
    LayOut {
        snapshot: SnapshotId,
        times: u8,
    },
    Recover {
        snapshot: SnapshotId,
        times: u8,
    },
    Check {
        snapshot: SnapshotId,
        times: u8,
    },
    Dump {
        snapshot: SnapshotId,
        times: u8,
    },
    Load {
        snapshot: SnapshotId,
    },
    Exchange {
        snapshot: SnapshotId,
        exchange: Exchange,
    },
    /// What was brought back is opened for reading only.
    Show {
        snapshot: SnapshotId,
        database: TenantDatabase,
    },
    CleanUp {
        snapshot: SnapshotId,
        former_database: String,
        #[serde(default)]
        shown: bool,
    },
}

impl Work for Restore {
    const KIND: &'static str = "restore";
    const TENANTS_NEED: Option<Permission> = Some(Permission::Manage);
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        exchange::dedup_key(self.tenant)
    }

    fn first(&self) -> Step {
        Step::Protect
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::Protect => (0, "taking a snapshot of the present"),
            Step::AwaitArchive { .. } => (3, "waiting for the archive"),
            Step::LayOut { .. } => (5, "laying out the base backup"),
            Step::Recover { .. } => (20, "replaying WAL"),
            Step::Check { .. } => (60, "checking what was recovered"),
            Step::Dump { .. } => (70, "reading the recovered database"),
            Step::Load { .. } => (78, "writing the recovered database"),
            Step::Exchange { exchange, .. } => return exchange.progress(),
            Step::Show { .. } => (96, "opening it for reading"),
            Step::CleanUp { .. } => (98, "removing the side cluster"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        let side = Side::of(world, context.job);
        match step {
            Step::Protect => self.protect(world, context).await,
            &Step::AwaitArchive { snapshot, position } => {
                Ok(match become_ready(world, snapshot, position).await? {
                    Some(_) => Then::Next(Step::LayOut { snapshot, times: 1 }),
                    None => Then::Later(ARCHIVE_POLL),
                })
            }
            &Step::LayOut { times, .. } if times > RECOVERIES_MAX => Err(StepError::permanent(
                format!(
                    "the side cluster did not recover in {RECOVERIES_MAX} tries; its log ends with: {}",
                    side.log_end()
                ),
                "look at the archive with `loomworks doctor`, or restore to another moment",
            )),
            &Step::LayOut { snapshot, times } => {
                side.remove().await?;
                side.lay_out(world, &self.plan, context).await?;
                Ok(Then::Next(Step::Recover { snapshot, times }))
            }
            &Step::Recover { snapshot, times } => match side.recover().await? {
                Recovered::Yes => Ok(Then::Next(Step::Check { snapshot, times })),
                // It runs without fsync: one that was cut off is not trusted, but made anew.
                Recovered::CutOff => Ok(Then::Next(Step::LayOut { snapshot, times: times + 1 })),
            },
            &Step::Check { snapshot, times } => match side.cluster.is_running().await? {
                true => self.check(world, &side).await.map(|()| Then::Next(Step::Dump { snapshot, times })),
                false => Ok(Then::Next(Step::LayOut { snapshot, times: times + 1 })),
            },
            &Step::Dump { snapshot, times } => match side.cluster.is_running().await? {
                true => {
                    let name = self.recovered_name(&side).await?.ok_or_else(|| self.not_there())?;
                    copy::dump(&side.cluster, &name, &side.dump).await?;
                    Ok(Then::Next(Step::Load { snapshot }))
                }
                false => Ok(Then::Next(Step::LayOut { snapshot, times: times + 1 })),
            },
            &Step::Load { snapshot } => {
                let candidate = self.load(world, context.job, &side).await?;
                if self.look {
                    return Ok(Then::Next(Step::Show { snapshot, database: candidate }));
                }
                Ok(Then::Next(Step::Exchange { snapshot, exchange: Exchange::Hold { candidate } }))
            }
            Step::Exchange { snapshot, exchange } => {
                let snapshot = *snapshot;
                Ok(match exchange.run(self.tenant, world, context).await? {
                    Turn::Next(exchange) => Then::Next(Step::Exchange { snapshot, exchange }),
                    Turn::Shortly(wait) => Then::Shortly(wait),
                    Turn::Done(result) => {
                        let former_database =
                            result["former_database"].as_str().unwrap_or_default().to_owned();
                        Then::Next(Step::CleanUp { snapshot, former_database, shown: false })
                    }
                })
            }
            Step::Show { snapshot, database } => {
                let mut admin = world.cluster.connect("postgres").await?;
                databases::read_only_by_default(&mut admin, &database.name).await?;
                let mut mgmt = world.db.platform.acquire().await?;
                tenants::record_beside(&mut mgmt, self.tenant, database).await?;
                let (snapshot, former_database) = (*snapshot, database.name.clone());
                Ok(Then::Next(Step::CleanUp { snapshot, former_database, shown: true }))
            }
            Step::CleanUp { snapshot, former_database, shown } => {
                side.remove().await?;
                Ok(Then::Done(match shown {
                    true => json!({ "database": former_database, "kept_for_hours": 24 }),
                    false => json!({ "former_database": former_database, "snapshot_before": snapshot }),
                }))
            }
        }
    }

    async fn give_up(&self, connection: &mut PgConnection, context: &Context) -> Result<(), Error> {
        exchange::give_up(connection, context).await?;
        // The one that it was waiting for; one that is ready stays.
        snapshots::record_failed(connection, SnapshotId(context.job.0)).await?;
        let work = RemoveRemains { tenant: self.tenant, restore: context.job };
        jobs::enqueue(connection, &work, &context.requested_by).await.map(drop)
    }

    fn can_cancel(step: &Step) -> bool {
        match step {
            Step::Exchange { exchange, .. } => exchange.can_cancel(),
            Step::Show { .. } | Step::CleanUp { .. } => false,
            _ => true,
        }
    }

    /// What it had made on the side is being removed.
    async fn take_up(&self, _: &Step, _: &mut PgConnection, _: &Context) -> Result<Option<Step>, Error> {
        Ok(None)
    }
}

impl Restore {
    /// Takes the snapshot of the present. Its id is the job's, so that twice is once.
    async fn protect(&self, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        let snapshot = SnapshotId(context.job.0);
        let name = format!("before restore {}", context.job.short());
        let mut mgmt = world.db.platform.acquire().await?;
        let by = &context.requested_by;
        snapshots::insert(&mut mgmt, snapshot, self.tenant, &name, SnapshotType::Auto, by).await?;
        drop(mgmt);
        let position = mark(world, self.tenant, snapshot).await?;
        Ok(Then::Next(Step::AwaitArchive { snapshot, position }))
    }

    /// The tenant existed then, and its tables and indexes are whole.
    pub(super) async fn check(&self, world: &World, side: &Side) -> Result<(), StepError> {
        let source = names(world, self.source.unwrap_or(self.tenant)).await?;
        let name = self.recovered_name(side).await?.ok_or_else(|| self.not_there())?;
        let mut recovered = side.cluster.connect("postgres").await?;
        databases::allow_connections(&mut recovered, vec![name.clone()]).await?;
        // Roles of AI sessions that are over exist on the side only. What they own or were granted goes to the owner,
        // or the copy would not load.
        let mut inside = side.cluster.connect(&name).await?;
        for role in roles::beginning_with(&mut inside, AI_ROLE_PREFIX).await? {
            roles::disown(&mut inside, &role, &source.owner_role).await?;
        }
        // The copy's rows are written as the owner, so all tables must be the owner's.
        // Which of the app's two roles there were at that moment is not told by the one that is in use now.
        for role in app_roles(&source.app_role) {
            if roles::exists(&mut inside, &role).await? {
                roles::reassign_owned(&mut inside, &role, &source.owner_role).await?;
            }
        }
        drop(inside);
        copy::check(&side.cluster, &name).await?;
        Ok(())
    }

    /// What the database was called then. Its name may have been given to another one since, its number not.
    async fn recovered_name(&self, side: &Side) -> Result<Option<String>, StepError> {
        let mut recovered = side.cluster.connect("postgres").await?;
        let name = closing::name_of(&mut recovered, i64::from(self.plan.database)).await;
        Ok(name.map_err(Error::TenantDatabase)?)
    }

    fn not_there(&self) -> StepError {
        let message = format!("database {} did not exist at that moment", self.plan.database);
        StepError::permanent(message, "choose a later moment")
    }

    /// Copies the recovered database into the live cluster under a name of its own. Begun anew each time: a copy
    /// that was cut off cannot be gone on with.
    async fn load(&self, world: &World, job: JobId, side: &Side) -> Result<TenantDatabase, StepError> {
        let names = names(world, self.tenant).await?;
        let name = candidate_name(self.tenant, job);
        let mut admin = world.cluster.connect("postgres").await?;
        databases::drop_database(&mut admin, &name).await?;
        // Closed until all that guards a tenant's database is in place in it.
        databases::ensure_closed(&mut admin, &name).await?;
        let oid = databases::oid(&mut admin, &name).await?;
        let oid = oid.ok_or_else(|| Error::Internal(format!("database `{name}` is gone")))?;
        let candidate = TenantDatabase { oid: i64::from(oid), name: name.clone() };
        // Noted before it has any of the tenant's data: what is archived of it goes when the tenant does.
        let mut mgmt = world.db.platform.acquire().await?;
        tenants::record_found(&mut mgmt, self.tenant, &candidate).await?;
        drop(mgmt);
        copy::load(&world.cluster, &name, &side.dump, &names.owner_role, loomworks_undo::SCHEMA).await?;
        let mut inside = world.cluster.connect(&name).await?;
        databases::close_public_schema(&mut inside, &names.owner_role).await?;
        loomworks_undo::rehome(&mut inside, &names.owner_role).await.map_err(Error::from)?;
        sqlx::query("ANALYZE").execute(&mut inside).await.map_err(Error::TenantDatabase)?;
        databases::open_to(&mut admin, &name, &names.owner_role).await?;
        Ok(candidate)
    }
}

/// The name of a restored database until it is exchanged.
fn candidate_name(tenant: TenantId, job: JobId) -> String {
    format!("lwt_{}_new_{}", tenant.short(), job.short())
}

/// Removes what a restore that failed has left: its side cluster, and its database if it was not exchanged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveRemains {
    pub tenant: TenantId,
    pub restore: JobId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoveStep {
    Remove,
}

impl Work for RemoveRemains {
    const KIND: &'static str = "remove_remains";
    const QUEUE: Queue = Queue::LowPriority;
    type Step = RemoveStep;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("remove_remains {}", self.restore)
    }

    fn first(&self) -> RemoveStep {
        RemoveStep::Remove
    }

    fn progress(_: &RemoveStep) -> Progress {
        Progress { percent: 0, words: "removing what a failed restore has left" }
    }

    fn can_cancel(_: &RemoveStep) -> bool {
        false
    }

    async fn run(&self, _: &RemoveStep, world: &World, _: &Context) -> Result<Then<RemoveStep>, StepError> {
        Side::of(world, self.restore).remove().await?;
        let mut admin = world.cluster.connect("postgres").await?;
        databases::drop_database(&mut admin, &candidate_name(self.tenant, self.restore)).await?;
        Ok(Then::Done(nothing()))
    }
}

/// The side cluster of a restore and what belongs to it.
pub(super) struct Side {
    cluster: Cluster,
    root: PathBuf,
    dump: PathBuf,
    /// Written before the cluster is started for the first time.
    begun: PathBuf,
}

pub(super) enum Recovered {
    Yes,
    CutOff,
}

impl Side {
    pub(super) fn of(world: &World, job: JobId) -> Self {
        let cluster = world.side_cluster(job);
        let root = cluster.socket_directory.clone();
        Self { dump: root.join("dump"), begun: root.join("begun"), cluster, root }
    }

    /// Brings the files and the WAL that it needs, of this database and of what all share.
    pub(super) async fn lay_out(
        &self,
        world: &World,
        plan: &RestorePlan,
        context: &Context,
    ) -> Result<(), StepError> {
        let directory = &self.cluster.directory;
        let report = |laid: LaidOut| context.report(5..20, laid.bytes_done, laid.bytes_total);
        let laid = world.repository.lay_out_database(plan, directory, &report).await?;
        info!(
            stream_bytes = laid.stream_bytes,
            segments = laid.segments,
            ended_at = %laid.outcome.end,
            "laid out what is to be replayed"
        );
        Ok(())
    }

    pub(super) async fn recover(&self) -> Result<Recovered, StepError> {
        if self.cluster.is_running().await? {
            self.cluster.start().await?;
            return Ok(Recovered::Yes);
        }
        if self.begun.exists() {
            return Ok(Recovered::CutOff);
        }
        let settings = config::Recovering { socket_directory: &self.cluster.socket_directory };
        self.cluster.configure(&settings.render())?;
        // What `ALTER SYSTEM` set at the source comes with the backup and would win.
        let overrides = self.cluster.directory.join("postgresql.auto.conf");
        for file in [overrides, self.begun.clone()] {
            durable::write(&file, b"")
                .map_err(|error| Error::Internal(format!("write `{}`: {error}", file.display())))?;
        }
        self.cluster.start().await?;
        Ok(Recovered::Yes)
    }

    /// What its server said last.
    fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.cluster.directory.join("start.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(4)..].join("; ")
    }

    /// Stops it and removes everything.
    pub(super) async fn remove(&self) -> Result<(), StepError> {
        if self.cluster.directory.join("PG_VERSION").exists() {
            self.cluster.stop().await?;
        }
        Ok(remove_directory(&self.root).await?)
    }
}
