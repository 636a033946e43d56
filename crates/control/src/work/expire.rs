//! Removing what nobody can ask for any more: snapshots, backups and WAL out of the recovery window.

use loomworks_archive::retention::{self, ExpiryPlan, Need, Needed, Policy};
use loomworks_core::ids::TenantId;
use loomworks_core::time;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;
use tracing::info;

use super::backup::{self, TakeBackup};
use super::restore::Restore;
use super::restore_drill::{self, RestoreDrill};
use crate::World;
use crate::audit;
use crate::db::{jobs as job_rows, snapshots};
use crate::error::Error;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Expire {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Snapshots,
    Archive { snapshots: u64 },
}

impl Work for Expire {
    const KIND: &'static str = "expire";
    const QUEUE: Queue = Queue::LowPriority;
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        Self::KIND.into()
    }

    fn first(&self) -> Step {
        Step::Snapshots
    }

    fn progress(step: &Step) -> Progress {
        match step {
            Step::Snapshots => Progress { percent: 0, words: "letting old snapshots expire" },
            Step::Archive { .. } => Progress { percent: 10, words: "removing old backups and WAL" },
        }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        match *step {
            // Before the plan is made: what they needed may go with them.
            Step::Snapshots => {
                let mut mgmt = world.db.platform.acquire().await?;
                let snapshots = snapshots::expire(&mut mgmt).await?;
                Ok(Then::Next(Step::Archive { snapshots }))
            }
            Step::Archive { snapshots } => {
                let plan = plan(world).await?;
                for reason in &plan.held_back {
                    info!(reason, "the repository keeps more than it must");
                }
                let expired = world.repository.expire(&plan).await?;
                if expired.objects > 0 {
                    let mut mgmt = world.db.platform.acquire().await?;
                    let detail =
                        json!({ "job": context.job, "objects": expired.objects, "bytes": expired.bytes });
                    let by = &context.requested_by;
                    audit::record(&mut mgmt, by, "archive.expired", None, detail).await?;
                }
                Ok(Then::Done(json!({ "snapshots": snapshots, "archive": expired })))
            }
        }
    }
}

/// What would be removed now. Changes nothing.
pub(crate) async fn plan(world: &World) -> Result<ExpiryPlan, Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    let needs = needs(&mut mgmt).await?;
    drop(mgmt);
    let inventory = world.repository.inventory(needs).await?;
    let window = world.policy.recovery_window();
    Ok(retention::plan(&inventory, Policy { window, ..Policy::default() }, time::now()))
}

/// What must stay restorable beside the window: kept snapshots, and what jobs are at work with.
async fn needs(mgmt: &mut PgConnection) -> Result<Vec<Need>, Error> {
    let positions = snapshots::kept_positions(mgmt).await?.into_iter();
    let mut needs: Vec<Need> = positions
        .map(|lsn| Need {
            what: format!("a snapshot at {lsn}"),
            needed: Needed::Moment { timeline: None, lsn },
        })
        .collect();
    let unreadable = |error: serde_json::Error| Error::Internal(format!("a job cannot be read: {error}"));
    let mut labels = Vec::new();
    for (work, _) in job_rows::unfinished_of_kind(mgmt, Restore::KIND).await? {
        let work: Restore = serde_json::from_value(work).map_err(unreadable)?;
        labels.push((format!("a restore of tenant {}", work.tenant), work.plan.backup.label));
    }
    for (_, step) in job_rows::unfinished_of_kind(mgmt, RestoreDrill::KIND).await? {
        let Some(step) = step else { continue };
        if let restore_drill::Step::Drill { left, .. } = serde_json::from_value(step).map_err(unreadable)? {
            labels
                .extend(left.into_iter().map(|(_, plan)| ("a restore drill".to_owned(), plan.backup.label)));
        }
    }
    for (_, step) in job_rows::unfinished_of_kind(mgmt, TakeBackup::KIND).await? {
        use backup::Step::{AwaitWal, Commit, Copy};
        let Some(step) = step else { continue };
        if let Copy { label } | AwaitWal { label } | Commit { label } =
            serde_json::from_value(step).map_err(unreadable)?
        {
            labels.push(("a backup that is being taken".to_owned(), label));
        }
    }
    needs.extend(
        labels.into_iter().map(|(what, label)| Need { what, needed: Needed::Backup { label, up_to: None } }),
    );
    Ok(needs)
}
