//! What a restore that failed has left.

use loomworks_core::ids::{JobId, TenantId};
use serde::{Deserialize, Serialize};

use super::candidate;
use super::side::Side;
use crate::World;
use crate::jobs::runner::nothing;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};

/// Removes what a restore that failed has left: its side cluster, and its database if it was not exchanged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveRemains {
    pub tenant: TenantId,
    pub restore: JobId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoveStep {
    Remove,
}

impl Work for RemoveRemains {
    const KIND: &'static str = "remove_remains";
    const QUEUE: Queue = Queue::LowPriority;
    type Step = RemoveStep;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("remove_remains {}", self.restore)
    }

    fn first(&self) -> RemoveStep {
        RemoveStep::Remove
    }

    fn progress(_: &RemoveStep) -> Progress {
        Progress { percent: 0, words: "removing what a failed restore has left" }
    }

    fn can_cancel(_: &RemoveStep) -> bool {
        false
    }

    async fn run(&self, _: &RemoveStep, world: &World, _: &Context) -> Result<Then<RemoveStep>, StepError> {
        Side::of(world, self.restore).remove().await?;
        let mut admin = world.cluster.connect("postgres").await?;
        candidate::drop_all(&mut admin, self.tenant, self.restore).await?;
        Ok(Then::Done(nothing()))
    }
}
