//! Bringing one tenant back to a moment: recover the cluster on the side, copy the one database over, exchange.
//!
//! Until the exchange the tenant works on untouched data, and afterwards its former database is kept: a restore can be
//! undone like everything else. Neighbours are never touched.

mod candidate;
mod remains;
mod side;

use loomworks_archive::restore::{RestorePlan, Target};
use loomworks_core::ids::{SnapshotId, TenantId};
use loomworks_core::lsn::Lsn;
use loomworks_postgres::{closing, copy, databases, moving, roles};
use loomworks_undo::AI_ROLE_PREFIX;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

pub use self::remains::RemoveRemains;
pub(super) use self::side::{Recovered, Side};
use super::exchange::{self, Exchange, Turn};
use super::provision::names;
use super::snapshot::{ARCHIVE_POLL, become_ready, mark};
use crate::World;
use crate::access::Permission;
use crate::credentials::app_roles;
use crate::db::snapshots::{self, SnapshotType};
use crate::db::tenants::{self, TenantDatabase};
use crate::error::Error;
use crate::jobs::{self, Context, Progress, StepError, Then, Work};

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

/// The snapshot of the present that every restore takes first, and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    snapshot: SnapshotId,
    position: Lsn,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Before anything is exchanged, the present is made a snapshot too.
    Protect,
    /// The moment may lie after all that was archived so far.
    AwaitArchive {
        before: Before,
    },
    LayOut {
        before: Before,
        times: u8,
    },
    Recover {
        before: Before,
        times: u8,
        /// Where the WAL ends that was laid out.
        #[serde(default)]
        end: Lsn,
    },
    Check {
        before: Before,
        times: u8,
    },
    /// Its files are brought into the live cluster.
    Move {
        before: Before,
        times: u8,
    },
    /// Where they cannot be: it is read…
    Dump {
        before: Before,
        times: u8,
    },
    /// … and written.
    Load {
        before: Before,
    },
    /// Nothing is exchanged before the present can be brought back.
    AwaitSnapshot {
        before: Before,
        candidate: TenantDatabase,
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
            Step::LayOut { .. } => (5, "laying out the base backup and its WAL"),
            Step::Recover { .. } => (50, "replaying WAL"),
            Step::Check { .. } => (60, "checking what was recovered"),
            Step::Move { .. } => (70, "moving the recovered database"),
            Step::Dump { .. } => (70, "reading the recovered database"),
            Step::Load { .. } => (78, "writing the recovered database"),
            Step::AwaitSnapshot { .. } => (88, "waiting for the snapshot of the present"),
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
            &Step::AwaitArchive { before } => {
                Ok(match become_ready(world, before.snapshot, before.position).await? {
                    Some(_) => Then::Next(Step::LayOut { before, times: 1 }),
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
            &Step::LayOut { before, times } => self.lay_out(world, context, &side, before, times).await,
            &Step::Recover { before, times, end } => match side.recover(end).await? {
                Recovered::Yes => Ok(Then::Next(Step::Check { before, times })),
                Recovered::CutOff => Ok(Then::Next(Step::LayOut { before, times: times + 1 })),
            },
            &(Step::Check { before, times }
            | Step::Move { before, times }
            | Step::Dump { before, times })
                if !side.cluster.is_running().await? =>
            {
                Ok(Then::Next(Step::LayOut { before, times: times + 1 }))
            }
            &Step::Check { before, times } => {
                let name = self.check(world, &side).await?;
                // Another tenant's rows are written by this one's owner.
                let moves =
                    self.source.is_none() && candidate::can_move(world, self.tenant, &side, &name).await?;
                Ok(Then::Next(match moves {
                    true => Step::Move { before, times },
                    false => Step::Dump { before, times },
                }))
            }
            &Step::Move { before, times } => {
                let name = self.recovered_name(&side).await?.ok_or_else(|| self.not_there())?;
                let Some(frozen) = candidate::freeze(&side, &name).await? else {
                    return Ok(Then::Next(Step::Dump { before, times }));
                };
                context.report(70..88, 1, 2);
                let candidate =
                    candidate::bring_files(world, self.tenant, context.job, &side, &frozen).await?;
                Ok(Then::Next(Step::AwaitSnapshot { before, candidate }))
            }
            &Step::Dump { before, .. } => {
                let name = self.recovered_name(&side).await?.ok_or_else(|| self.not_there())?;
                copy::dump(&side.cluster, &name, &side.dump).await?;
                Ok(Then::Next(Step::Load { before }))
            }
            &Step::Load { before } => {
                let candidate = candidate::load(world, self.tenant, context.job, &side).await?;
                Ok(Then::Next(Step::AwaitSnapshot { before, candidate }))
            }
            Step::AwaitSnapshot { before, candidate } => {
                let Before { snapshot, position } = *before;
                if become_ready(world, snapshot, position).await?.is_none() {
                    return Ok(Then::Later(ARCHIVE_POLL));
                }
                let candidate = candidate.clone();
                Ok(Then::Next(match self.look {
                    true => Step::Show { snapshot, database: candidate },
                    false => Step::Exchange { snapshot, exchange: Exchange::Hold { candidate } },
                }))
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
                let mut admin = world.cluster.connect("postgres").await?;
                candidate::drop_landing(&mut admin, self.tenant, context.job).await?;
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
        snapshots::insert(
            &mut mgmt,
            snapshot,
            self.tenant,
            &name,
            SnapshotType::Auto,
            by,
            world.policy.recovery_days,
        )
        .await?;
        drop(mgmt);
        let position = mark(world, self.tenant, snapshot).await?;
        Ok(Then::Next(Step::LayOut { before: Before { snapshot, position }, times: 1 }))
    }

    /// Brings what is to be replayed, and makes the landing meanwhile.
    async fn lay_out(
        &self,
        world: &World,
        context: &Context,
        side: &Side,
        before: Before,
        times: u8,
    ) -> Result<Then<Step>, StepError> {
        side.remove().await?;
        let landing = async {
            if self.source.is_none() {
                candidate::prepare(world, self.tenant, context.job).await?;
            }
            Ok(())
        };
        let (laid, ()) = tokio::try_join!(side.lay_out(world, &self.plan, context), landing)?;
        // A moment is reached when a commit after it is seen, and the snapshot's own is one.
        if matches!(self.plan.target, Target::Time(_))
            && !laid.outcome.reached
            && become_ready(world, before.snapshot, before.position).await?.is_none()
        {
            return Ok(Then::Next(Step::AwaitArchive { before }));
        }
        Ok(Then::Next(Step::Recover { before, times, end: laid.outcome.end }))
    }

    /// The tenant existed then, and its tables and indexes are whole. Gives what its database was called.
    pub(super) async fn check(&self, world: &World, side: &Side) -> Result<String, StepError> {
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
        // Nor would there be anybody for what belongs to a role that the live cluster has no more.
        let mut admin = world.cluster.connect("postgres").await?;
        for role in moving::strangers(&mut inside, &mut admin).await? {
            if role != source.owner_role {
                roles::disown(&mut inside, &role, &source.owner_role).await?;
            }
        }
        drop(inside);
        copy::check(&side.cluster, &name).await?;
        Ok(name)
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
}
