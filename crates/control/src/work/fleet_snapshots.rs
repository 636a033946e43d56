//! Waiting for the archive to have what the snapshots of a fleet migration need: one job for all of them.

use std::time::Duration;

use loomworks_core::ids::{FleetMigrationId, SnapshotId, TenantId};
use loomworks_core::lsn::Lsn;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::snapshot::become_ready;
use crate::World;
use crate::db::fleet;
use crate::error::Error;
use crate::jobs::{Context, Progress, StepError, Then, Work};

const POLL: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AwaitFleetSnapshots {
    pub migration: FleetMigrationId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    AwaitArchive,
}

impl Work for AwaitFleetSnapshots {
    const KIND: &'static str = "fleet_snapshots";
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        format!("fleet_snapshots {}", self.migration)
    }

    fn first(&self) -> Step {
        Step::AwaitArchive
    }

    fn progress(_: &Step) -> Progress {
        Progress { percent: 0, words: "waiting for the archive" }
    }

    /// The oldest first: if that one is not in the archive the others are not either.
    async fn run(&self, _: &Step, world: &World, _: &Context) -> Result<Then<Step>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        let open = fleet::open_snapshots(&mut mgmt, self.migration).await?;
        let at_rest = fleet::get(&mut mgmt, self.migration).await?.is_none_or(|migration| migration.rests());
        drop(mgmt);
        if open.is_empty() && at_rest {
            return Ok(Then::Done(json!({ "migration": self.migration })));
        }
        for (snapshot, position) in open {
            let position: Lsn = position.parse().map_err(|error| Error::Internal(format!("{error}")))?;
            if become_ready(world, SnapshotId(snapshot), position).await?.is_none() {
                break;
            }
        }
        Ok(Then::Later(POLL))
    }
}
