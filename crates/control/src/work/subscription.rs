//! Doing what the end of a subscription asks for: a notice, a suspension, or taking one back.

use loomworks_core::ids::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::jobs::{Context, Progress, StepError, Then, Work};
use crate::{World, subscriptions};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApplySubscription {
    pub tenant: TenantId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Apply,
}

impl Work for ApplySubscription {
    const KIND: &'static str = "subscription";
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("subscription {}", self.tenant)
    }

    fn first(&self) -> Step {
        Step::Apply
    }

    fn progress(_: &Step) -> Progress {
        Progress { percent: 0, words: "applying the subscription" }
    }

    async fn run(&self, Step::Apply: &Step, world: &World, _: &Context) -> Result<Then<Step>, StepError> {
        let due = subscriptions::apply(world, self.tenant).await?;
        Ok(Then::Done(json!({ "notice": due.notice, "suspended": due.suspend, "resumed": due.resume })))
    }
}
