//! Reading a backup back, and proving that it can be restored.

use loomworks_archive::backup::Progress as Read;
use loomworks_core::ids::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::World;
use crate::db::notifications::Severity;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};
use crate::notifications::{self, Notice};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerifyBackup {
    pub label: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Verify,
}

impl Work for VerifyBackup {
    const KIND: &'static str = "verify_backup";
    const QUEUE: Queue = Queue::LowPriority;
    const MAX_ATTEMPTS: i32 = 3;
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        format!("verify_backup {}", self.label)
    }

    fn first(&self) -> Step {
        Step::Verify
    }

    fn progress(_: &Step) -> Progress {
        Progress { percent: 0, words: "reading the backup back" }
    }

    async fn run(
        &self,
        Step::Verify: &Step,
        world: &World,
        context: &Context,
    ) -> Result<Then<Step>, StepError> {
        let report = |read: Read| context.report(0..99, read.bytes_done, read.bytes_total);
        let found = world.repository.verify_backup(&self.label, &report).await?;
        let damaged = found.problems.len() + found.wrong_pages.len();
        if damaged > 0 {
            let first =
                found.problems.first().map(|problem| format!("`{}`: {}", problem.object, problem.why));
            let notice = Notice {
                event: "backup.damaged",
                severity: Severity::Critical,
                message: format!(
                    "Backup {} cannot be restored whole: {}",
                    self.label,
                    first.unwrap_or_else(|| "pages are not what they were".to_owned())
                ),
                detail: json!({ "backup": self.label, "problems": damaged }),
            };
            let mut mgmt = world.db.platform.acquire().await?;
            notifications::raise_and_record(&mut mgmt, None, &notice).await?;
        }
        Ok(Then::Done(json!(found)))
    }
}
