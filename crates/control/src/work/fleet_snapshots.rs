//! The snapshots of a fleet migration, which become ready together when the archive has what they need.
//!
//! Between two waves the migration itself waits for them. What is left when it rests is one job's, for all of them.

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

/// How often the job looks. Nobody is kept waiting by it.
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

    async fn run(&self, _: &Step, world: &World, _: &Context) -> Result<Then<Step>, StepError> {
        Ok(match make_ready(world, self.migration).await? {
            true => Then::Done(json!({ "migration": self.migration })),
            false => Then::Later(POLL),
        })
    }
}

/// Makes those snapshots ready that can be restored now. Says whether that is all of them.
pub(super) async fn make_ready(world: &World, migration: FleetMigrationId) -> Result<bool, Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    let open = fleet::open_snapshots(&mut mgmt, migration).await?;
    drop(mgmt);
    // The oldest first: if that one is not in the archive the others are not either.
    for (snapshot, position) in &open {
        let position: Lsn = position.parse().map_err(|error| Error::Internal(format!("{error}")))?;
        if become_ready(world, SnapshotId(*snapshot), position).await?.is_none() {
            break;
        }
    }
    let Some((_, newest)) = open.last() else { return Ok(true) };
    end_segment(world, newest).await?;
    Ok(false)
}

/// Has the WAL archived up to a position: ends its segment, if that is the one that is being written. Looked at each
/// time: more tenants may have got theirs since the last one was ended.
async fn end_segment(world: &World, position: &str) -> Result<(), Error> {
    let mut admin = world.cluster.connect("postgres").await?;
    sqlx::query(
        "SELECT pg_switch_wal() WHERE pg_walfile_name($1::pg_lsn) = pg_walfile_name(pg_current_wal_insert_lsn())",
    )
    .bind(position)
    .execute(&mut admin)
    .await?;
    Ok(())
}
