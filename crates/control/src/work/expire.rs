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
use crate::db::{jobs as job_rows, snapshots, tiers};
use crate::error::Error;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};
use crate::recovery::{self, InForce};

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
                let (plan, in_force) = plan(world).await?;
                for reason in &plan.held_back {
                    info!(reason, "the repository keeps more than it must");
                }
                let expired = world.repository.expire(&plan).await?;
                if expired.objects > 0 {
                    let mut mgmt = world.db.platform.acquire().await?;
                    let detail = json!({ "job": context.job, "objects": expired.objects, "bytes": expired.bytes,
                            "recovery_days": in_force.days });
                    let by = &context.requested_by;
                    audit::record(&mut mgmt, by, "archive.expired", None, detail).await?;
                }
                Ok(Then::Done(json!({ "snapshots": snapshots, "archive": expired })))
            }
        }
    }
}

/// What would be removed now, and the window that it is made for. Changes nothing.
pub(crate) async fn plan(world: &World) -> Result<(ExpiryPlan, InForce), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    let needs = needs(&mut mgmt).await?;
    drop(mgmt);
    let inventory = world.repository.inventory(needs).await?;
    // After what takes its time: whoever was given more days meanwhile has them.
    let in_force = window(world).await?;
    Ok((retention::plan(&inventory, policy(&in_force), time::now()), in_force))
}

fn policy(in_force: &InForce) -> Policy {
    Policy { window: recovery::span(in_force.days), ..Policy::default() }
}

/// For how long the repository is kept, and why.
async fn window(world: &World) -> Result<InForce, Error> {
    let platform_days = world.policy.recovery_days;
    let mut mgmt = world.db.platform.acquire().await?;
    Ok(recovery::in_force(&tiers::reaches(&mut mgmt, platform_days).await?, platform_days))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::Timestamp;
    use loomworks_archive::lineage::Lineage;
    use loomworks_archive::retention::{BackupFacts, BackupSays, Inventory};
    use loomworks_archive::store::Entry;
    use loomworks_core::lsn::Lsn;

    use super::*;
    use crate::db::tiers::Reach;

    /// A repository with backups of so many days ago, the oldest first.
    fn inventory(ages: &[i64], now: Timestamp, needs: Vec<Need>) -> Inventory {
        let (mut backups, mut objects) = (Vec::new(), Vec::new());
        for (number, age) in (1_u64..).zip(ages) {
            let (label, finished_at) =
                (format!("{age}-days"), now - jiff::SignedDuration::from_hours(24 * age));
            let (start, end) = (Lsn(number * 100), Lsn(number * 100 + 10));
            for name in ["manifest", "copied"] {
                let name = format!("backups/{label}/{name}");
                objects.push(Entry { name, bytes: 1, modified_at: finished_at });
            }
            let says = BackupSays { attempt: "1".into(), timeline: 1, start, end, finished_at };
            backups.push(BackupFacts { label, says: Some(says), packs: Some(BTreeSet::new()) });
        }
        let lineages = vec![Lineage::first(1)];
        Inventory { segment_bytes: 100, lineages, backups, copies: Vec::new(), objects, needs }
    }

    fn kept(inventory: &Inventory, longest: Option<i32>, now: Timestamp) -> Vec<String> {
        let reach = longest.map(|days| Reach {
            days,
            tenants: 1,
            own: 0,
            example: None,
            tiers: vec!["pro".into()],
            platform: false,
        });
        let in_force = recovery::in_force(reach.as_slice(), 30);
        let plan = retention::plan(inventory, policy(&in_force), now);
        plan.kept.into_iter().map(|kept| kept.label).collect()
    }

    #[test]
    fn a_longer_window_of_one_tier_keeps_older_backups_and_a_shorter_one_keeps_fewer() {
        let now: Timestamp = "2026-03-20T00:00:00Z".parse().expect("a moment");
        let repository = inventory(&[70, 45, 35, 20, 5], now, Vec::new());
        let with = |longest| kept(&repository, longest, now);
        assert_eq!(with(None), ["35-days", "20-days", "5-days"], "the platform's 30 days");
        assert_eq!(with(Some(60)), ["70-days", "45-days", "35-days", "20-days", "5-days"]);
        assert_eq!(with(Some(7)), ["20-days", "5-days"]);
    }

    #[test]
    fn a_kept_snapshot_stays_restorable_however_short_the_window_is() {
        let now: Timestamp = "2026-03-20T00:00:00Z".parse().expect("a moment");
        let snapshot =
            Need { what: "a snapshot".into(), needed: Needed::Moment { timeline: None, lsn: Lsn(250) } };
        let repository = inventory(&[70, 45, 35, 20, 5], now, vec![snapshot]);
        assert_eq!(kept(&repository, Some(7), now), ["45-days", "20-days", "5-days"]);
    }
}
