//! The nightly round: telling of API keys that end soon, and removing what nobody will look at any more: jobs and
//! deliveries that ended long ago, old notifications.

use loomworks_core::ids::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::World;
use crate::db::{jobs, notifications, webhooks};
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};
use crate::keys::expiry;

/// How long a job that has ended can be looked at.
pub const JOBS_KEPT_DAYS: i32 = 30;

/// How long a notification can be read.
pub const NOTIFICATIONS_KEPT_DAYS: i32 = 90;

/// How long a delivery to a webhook that has ended can be looked at.
pub const DELIVERIES_KEPT_DAYS: i32 = 30;

/// Rows that go at once: a statement that removes a million would hold up others.
const ROWS: i64 = 1000;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sweep {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Keys,
    Jobs { removed: u64 },
    Notifications { jobs: u64, removed: u64 },
    Deliveries { jobs: u64, notifications: u64, removed: u64 },
}

impl Work for Sweep {
    const KIND: &'static str = "sweep";
    const QUEUE: Queue = Queue::LowPriority;
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        "sweep".into()
    }

    fn first(&self) -> Step {
        Step::Keys
    }

    fn progress(step: &Step) -> Progress {
        match step {
            Step::Keys => Progress { percent: 0, words: "telling of keys that end soon" },
            Step::Jobs { .. } => Progress { percent: 20, words: "removing old jobs" },
            Step::Notifications { .. } => Progress { percent: 50, words: "removing old notifications" },
            Step::Deliveries { .. } => Progress { percent: 75, words: "removing old deliveries to webhooks" },
        }
    }

    async fn run(&self, step: &Step, world: &World, _: &Context) -> Result<Then<Step>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        // What it counts is for people: a thousand that are removed before a crash are counted by nobody.
        Ok(match *step {
            Step::Keys => match expiry::tell(&mut mgmt, ROWS).await? {
                0 => Then::Next(Step::Jobs { removed: 0 }),
                _ => Then::Next(Step::Keys),
            },
            Step::Jobs { removed } => match jobs::remove_finished(&mut mgmt, JOBS_KEPT_DAYS, ROWS).await? {
                0 => Then::Next(Step::Notifications { jobs: removed, removed: 0 }),
                more => Then::Next(Step::Jobs { removed: removed + more }),
            },
            Step::Notifications { jobs, removed } => {
                match notifications::remove_old(&mut mgmt, NOTIFICATIONS_KEPT_DAYS, ROWS).await? {
                    0 => Then::Next(Step::Deliveries { jobs, notifications: removed, removed: 0 }),
                    more => Then::Next(Step::Notifications { jobs, removed: removed + more }),
                }
            }
            Step::Deliveries { jobs, notifications, removed } => {
                match webhooks::remove_old(&mut mgmt, DELIVERIES_KEPT_DAYS, ROWS).await? {
                    0 => Then::Done(
                        json!({ "jobs": jobs, "notifications": notifications, "deliveries": removed }),
                    ),
                    more => Then::Next(Step::Deliveries { jobs, notifications, removed: removed + more }),
                }
            }
        })
    }
}
