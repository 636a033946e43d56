//! The snapshots that are taken of every tenant once a day without being asked for.

use std::time::Duration;

use loomworks_core::ids::{SnapshotId, TenantId};
use loomworks_core::lsn::Lsn;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::provision::names;
use super::snapshot::{become_ready, note_position};
use crate::World;
use crate::db::snapshots::{self, SnapshotType};
use crate::error::Error;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};

/// What they are called, and how the job tells its own.
pub(crate) const NAME: &str = "daily";

/// Tenants between two saves.
const BATCH: i64 = 50;

/// How often the archive is asked. Nobody is kept waiting by it.
const POLL: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DailySnapshots {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Note { noted: u64 },
    Switch { noted: u64 },
    AwaitArchive { noted: u64 },
}

impl Work for DailySnapshots {
    const KIND: &'static str = "daily_snapshots";
    const QUEUE: Queue = Queue::LowPriority;
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        Self::KIND.into()
    }

    fn first(&self) -> Step {
        Step::Note { noted: 0 }
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::Note { .. } => (0, "noting positions"),
            Step::Switch { .. } => (60, "ending the segment"),
            Step::AwaitArchive { .. } => (70, "waiting for the archive"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        Ok(match *step {
            Step::Note { noted } => match note(world, context).await? {
                0 => Then::Next(Step::Switch { noted }),
                more => Then::Next(Step::Note { noted: noted + more }),
            },
            Step::Switch { noted } => {
                let mut admin = world.cluster.connect("postgres").await?;
                sqlx::query("SELECT pg_switch_wal()").execute(&mut admin).await.map_err(Error::from)?;
                Then::Next(Step::AwaitArchive { noted })
            }
            Step::AwaitArchive { noted } => match make_ready(world).await? {
                true => Then::Done(json!({ "snapshots": noted })),
                false => Then::Later(POLL),
            },
        })
    }
}

/// Notes positions for some tenants that have no snapshot of today. Those that were written down before a crash, without
/// their position, come first.
async fn note(world: &World, context: &Context) -> Result<u64, Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    let mut wanted = snapshots::without_position(&mut mgmt, NAME, BATCH).await?;
    if wanted.is_empty() {
        for tenant in snapshots::tenants_without(&mut mgmt, NAME, BATCH).await? {
            let id = SnapshotId::random();
            let by = &context.requested_by;
            snapshots::insert(
                &mut mgmt,
                id,
                tenant,
                NAME,
                SnapshotType::Auto,
                by,
                world.policy.recovery_days,
            )
            .await?;
            wanted.push((tenant, id));
        }
    }
    drop(mgmt);
    let mut admin = world.cluster.connect("postgres").await?;
    for (tenant, snapshot) in &wanted {
        let names = names(world, *tenant).await?;
        note_position(world, &mut admin, &names.database_name, *snapshot).await?;
    }
    Ok(wanted.len() as u64)
}

/// Makes those ready that can be restored now. Says whether that is all of them.
async fn make_ready(world: &World) -> Result<bool, Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    let open = snapshots::creating(&mut mgmt, NAME).await?;
    drop(mgmt);
    for (snapshot, position) in open {
        let position: Lsn = position.parse().map_err(|error| Error::Internal(format!("{error}")))?;
        // The oldest first: if that one is not in the archive the others are not either.
        if become_ready(world, snapshot, position).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}
