//! Taking a snapshot: a position in the WAL, and the wait until the archive has all of it.
//!
//! A snapshot that is not in the archive is a promise nobody can keep, so it is `creating` until then.

use std::time::Duration;

use loomworks_archive::restore::{self, CannotRestore, Target};
use loomworks_core::ids::{SnapshotId, TenantId};
use loomworks_core::lsn::{Lsn, Segment};
use loomworks_core::time;
use loomworks_postgres::databases;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use super::provision::names;
use crate::access::Permission;
use crate::db::snapshots;
use crate::error::Error;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};
use crate::{World, archive};

/// How often the archive is asked.
pub(crate) const ARCHIVE_POLL: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TakeSnapshot {
    pub tenant: TenantId,
    pub snapshot: SnapshotId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Mark,
    AwaitArchive { position: Lsn },
}

impl Work for TakeSnapshot {
    const KIND: &'static str = "snapshot";
    const QUEUE: Queue = Queue::HighPriority;
    const TENANTS_NEED: Option<Permission> = Some(Permission::Work);
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("snapshot {}", self.snapshot)
    }

    fn first(&self) -> Step {
        Step::Mark
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::Mark => (0, "marking the position"),
            Step::AwaitArchive { .. } => (50, "waiting for the archive"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, _: &Context) -> Result<Then<Step>, StepError> {
        match step {
            // A position before the first base backup could never be restored.
            Step::Mark if world.repository.backups().await?.is_empty() => Ok(Then::Later(ARCHIVE_POLL)),
            Step::Mark => {
                let position = mark(world, self.tenant, self.snapshot).await?;
                Ok(Then::Next(Step::AwaitArchive { position }))
            }
            Step::AwaitArchive { position } => {
                Ok(match become_ready(world, self.snapshot, *position).await? {
                    Some(backup) => Then::Done(json!({ "snapshot": self.snapshot, "base_backup": backup })),
                    None => Then::Later(ARCHIVE_POLL),
                })
            }
        }
    }

    async fn give_up(&self, connection: &mut PgConnection, _: &Context) -> Result<(), Error> {
        Ok(snapshots::record_failed(connection, self.snapshot).await?)
    }

    /// Without its position it would be of another moment than the one at which somebody wanted it.
    async fn take_up(
        &self,
        step: &Step,
        connection: &mut PgConnection,
        _: &Context,
    ) -> Result<Option<Step>, Error> {
        match step {
            Step::Mark => Ok(None),
            Step::AwaitArchive { .. } => {
                snapshots::record_creating_again(connection, self.snapshot).await?;
                Ok(Some(step.clone()))
            }
        }
    }
}

/// Notes the present position as the snapshot's and has the segment with it archived now.
pub(crate) async fn mark(world: &World, tenant: TenantId, snapshot: SnapshotId) -> Result<Lsn, Error> {
    let names = names(world, tenant).await?;
    let mut admin = world.cluster.connect("postgres").await?;
    let position = note_position(world, &mut admin, &names.database_name, snapshot).await?;
    // After the row: its commit belongs to the segment that is ended now, and restoring to a moment needs a commit
    // after that moment.
    sqlx::query("SELECT pg_switch_wal()").execute(&mut admin).await?;
    Ok(position)
}

/// Notes the present position as the snapshot's. Who notes many ends the segment once, after all of them.
pub(crate) async fn note_position(
    world: &World,
    admin: &mut PgConnection,
    database: &str,
    snapshot: SnapshotId,
) -> Result<Lsn, Error> {
    let (position, timeline): (String, i32) = sqlx::query_as(
        "SELECT pg_create_restore_point($1)::text, (SELECT timeline_id FROM pg_control_checkpoint())",
    )
    .bind(format!("loomworks {snapshot}"))
    .fetch_one(&mut *admin)
    .await?;
    let position: Lsn = position.parse().map_err(|error| Error::Internal(format!("{error}")))?;
    let size_bytes = databases::size_bytes(admin, database).await?;
    let segment = Segment::before(timeline.cast_unsigned(), position, world.repository.cluster.segment_bytes);
    let file = segment.file_name(world.repository.cluster.segment_bytes);
    let mut mgmt = world.db.platform.acquire().await?;
    Ok(snapshots::record_position(&mut mgmt, snapshot, position, &file, size_bytes).await?)
}

/// Makes the snapshot ready if it can be restored now. Gives the base backup that it would be restored from.
pub(crate) async fn become_ready(
    world: &World,
    snapshot: SnapshotId,
    position: Lsn,
) -> Result<Option<String>, Error> {
    // Asked many times while the archive is a moment behind: first what costs a listing.
    let timeline = archive::current_timeline(world).await?;
    if world.repository.archived_up_to(timeline).await? < Some(position) {
        return Ok(None);
    }
    let catalog = world.repository.catalog(timeline).await?;
    let backup = match restore::base(&catalog, Target::Lsn(position), time::now()) {
        Ok(backup) => backup,
        Err(CannotRestore::NoBackup | CannotRestore::NotArchived(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !world.repository.has(timeline, backup.start, position).await? {
        return Ok(None);
    }
    let mut mgmt = world.db.platform.acquire().await?;
    snapshots::record_ready(&mut mgmt, snapshot, &backup.label).await?;
    Ok(Some(backup.label.clone()))
}
