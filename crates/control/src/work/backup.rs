//! Taking a base backup of the cluster.

use loomworks_archive::backup::{Backup, CopyOptions, Progress as Copied};
use loomworks_core::ids::{JobId, TenantId};
use loomworks_core::time;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::snapshot::ARCHIVE_POLL;
use crate::World;
use crate::db::notifications::Severity;
use crate::error::Error;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};
use crate::notifications::{self, Notice};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TakeBackup {
    /// Everything is stored again, whatever former backups have.
    #[serde(default)]
    pub full: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Name,
    Copy { label: String },
    AwaitWal { label: String },
    Commit { label: String },
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
                let options = CopyOptions { full: self.full, workers: None };
                let report = |progress: Copied| {
                    context.report(5..90, progress.bytes_done, progress.bytes_total);
                };
                let backup = world.repository.copy_backup(&world.cluster, label, options, &report).await?;
                Ok(Then::Next(Step::AwaitWal { label: backup.label }))
            }
            Step::AwaitWal { label } => match world.repository.copied_backup(label).await? {
                None => Ok(Then::Next(Step::Name)),
                Some(backup) => Ok(match world.repository.has_wal_of(&backup).await? {
                    true => Then::Next(Step::Commit { label: label.clone() }),
                    false => Then::Later(ARCHIVE_POLL),
                }),
            },
            Step::Commit { label } => {
                // It has waited for so long that it was removed: it is taken anew.
                let Some(backup) = world.repository.copied_backup(label).await? else {
                    return Ok(Then::Next(Step::Name));
                };
                let backup = &backup;
                world.repository.commit_backup(backup).await?;
                let Backup { label, size_bytes, new_bytes, damaged_pages, .. } = backup;
                if *damaged_pages > 0 {
                    tell_of_damage(world, backup).await?;
                }
                Ok(Then::Done(json!({
                    "label": label, "size_bytes": size_bytes, "new_bytes": new_bytes, "damaged_pages": damaged_pages,
                })))
            }
        }
    }
}

/// A page that is damaged in the cluster is in the backup as it is: somebody must know while an older backup has it whole.
async fn tell_of_damage(world: &World, backup: &Backup) -> Result<(), Error> {
    let damaged = backup.groups.iter().filter(|group| group.damaged_pages > 0);
    let databases: Vec<&str> = damaged.filter_map(|group| group.database.as_deref()).collect();
    let notice = Notice {
        event: "backup.damaged_pages",
        severity: Severity::Critical,
        message: format!(
            "Backup {} holds {} damaged pages of the cluster, in {}",
            backup.label,
            backup.damaged_pages,
            if databases.is_empty() { "what all databases share".to_owned() } else { databases.join(", ") }
        ),
        detail: json!({ "backup": backup.label, "pages": backup.damaged_pages, "databases": databases }),
    };
    let mut mgmt = world.db.platform.acquire().await?;
    Ok(notifications::raise_and_record(&mut mgmt, None, &notice).await?)
}

/// The moment, so that names sort, and the job, so that two of one second differ.
fn label(job: JobId) -> String {
    format!("{}-{}", time::now().strftime("%Y%m%dT%H%M%SZ"), job.short())
}
