//! Removing what nobody can ask for any more: snapshots, backups and WAL out of the recovery window.

use loomworks_core::ids::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::World;
use crate::db::snapshots;
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

    async fn run(&self, step: &Step, world: &World, _: &Context) -> Result<Then<Step>, StepError> {
        match *step {
            Step::Snapshots => {
                let mut mgmt = world.db.platform.acquire().await?;
                let snapshots = snapshots::expire(&mut mgmt).await.map_err(Error::from)?;
                Ok(Then::Next(Step::Archive { snapshots }))
            }
            Step::Archive { snapshots } => {
                Ok(Then::Done(json!({ "snapshots": snapshots })))
            }
        }
    }
}
