//! Taking a base backup of the cluster.

use loomworks_archive::backup::Backup;
use loomworks_core::ids::{JobId, TenantId};
use loomworks_core::time;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::snapshot::ARCHIVE_POLL;
use crate::World;
use crate::error::{Error, chain};
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TakeBackup {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Name,
    Copy { label: String },
    AwaitWal { backup: Backup },
    Commit { backup: Backup },
}

impl Work for TakeBackup {
    const KIND: &'static str = "backup";
    const QUEUE: Queue = Queue::LowPriority;
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        "backup".into()
    }

    fn first(&self) -> Step {
        Step::Name
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::Name => (0, "beginning"),
            Step::Copy { .. } => (5, "copying the cluster's files"),
            Step::AwaitWal { .. } => (90, "waiting for the archive"),
            Step::Commit { .. } => (95, "writing the manifest"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        match step {
            // Chosen once and saved: a second choice would leave the first one's files behind.
            Step::Name => Ok(Then::Next(Step::Copy { label: label(context.job) })),
            Step::Copy { label } => {
                let copied = world.repository.copy_backup(&world.cluster, label, time::now).await;
                let backup = copied.map_err(|error| Error::Internal(chain(&error)))?;
                Ok(Then::Next(Step::AwaitWal { backup }))
            }
            Step::AwaitWal { backup } => Ok(match world.repository.has_wal_of(backup).await? {
                true => Then::Next(Step::Commit { backup: backup.clone() }),
                false => Then::Later(ARCHIVE_POLL),
            }),
            Step::Commit { backup } => {
                let committed = world.repository.commit_backup(backup).await;
                committed.map_err(|error| Error::Internal(chain(&error)))?;
                Ok(Then::Done(json!({ "label": backup.label, "size_bytes": backup.size_bytes })))
            }
        }
    }
}

/// The moment, so that names sort, and the job, so that two of one second differ.
fn label(job: JobId) -> String {
    format!("{}-{}", time::now().strftime("%Y%m%dT%H%M%SZ"), job.short())
}
