//! Changing the master key: a new one wraps from now on, what is stored is wrapped anew, and only then may the former
//! one be forgotten.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use loomworks_core::ids::TenantId;
use loomworks_core::time;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::World;
use crate::audit;
use crate::db::audit::is_recorded;
use crate::error::Error;
use crate::jobs::{Context, Progress, StepError, Then, Work};
use crate::master_key::rotation::{count_former, rewrap_all};

const POLL: Duration = Duration::from_millis(250);

/// How long a secret may take from being wrapped to being committed. The former key is not forgotten before.
const SETTLE: SignedDuration = SignedDuration::from_secs(5);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RotateMasterKey {
    /// The id of the key that wrapped when this was asked for.
    pub from: String,
    pub forget_former: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    MakeKey,
    Rewrap { since: Timestamp },
    Forget { since: Timestamp },
    Record,
}

impl Work for RotateMasterKey {
    const KIND: &'static str = "rotate_master_key";
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        "rotate_master_key".into()
    }

    fn first(&self) -> Step {
        Step::MakeKey
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::MakeKey => (0, "making a key"),
            Step::Rewrap { .. } => (20, "wrapping secrets anew"),
            Step::Forget { .. } => (80, "forgetting the former key"),
            Step::Record => (95, "writing it down"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        let key = &world.master_key;
        match step {
            Step::MakeKey => {
                key.renew(&self.from).map_err(cannot_write)?;
                Ok(Then::Next(Step::Rewrap { since: time::now() }))
            }
            Step::Rewrap { since } => {
                rewrap(world).await?;
                let next = if self.forget_former { Step::Forget { since: *since } } else { Step::Record };
                Ok(Then::Next(next))
            }
            Step::Forget { since } if time::now().duration_since(*since) < SETTLE => Ok(Then::Later(POLL)),
            Step::Forget { .. } => {
                // Whoever wrapped with the former key a moment before there was another has written it by now.
                rewrap(world).await?;
                // Each column as it is at one moment.
                if count_former(&world.db, key).await? > 0 {
                    return Ok(Then::Later(POLL));
                }
                key.forget_former().map_err(cannot_write)?;
                Ok(Then::Next(Step::Record))
            }
            Step::Record => {
                let detail =
                    json!({ "before": self.from, "after": key.current().to_string(), "job": context.job });
                let mut mgmt = world.db.platform.acquire().await?;
                if is_recorded(&mut mgmt, "master_key.rotated", &json!({ "job": context.job })).await? {
                    return Ok(Then::Done(detail));
                }
                audit::record(&mut mgmt, &context.requested_by, "master_key.rotated", None, detail.clone())
                    .await?;
                Ok(Then::Done(detail))
            }
        }
    }
}

/// A secret that nothing opens stops the job, when all the others are wrapped anew: somebody must look before a key is
/// forgotten.
async fn rewrap(world: &World) -> Result<(), StepError> {
    // Until nothing is found: rows that somebody else changes meanwhile move to other places.
    let rewrapped = loop {
        let rewrapped = rewrap_all(&world.db, &world.master_key).await?;
        if rewrapped.count == 0 {
            break rewrapped;
        }
    };
    let Some(first) = rewrapped.unopened.first() else { return Ok(()) };
    Err(StepError::permanent(
        format!("{} secrets open with none of the keys, the first is for {first}", rewrapped.unopened.len()),
        "put the key that wrapped them behind the others in the master key's file, and start again",
    ))
}

fn cannot_write(error: std::io::Error) -> Error {
    Error::Internal(format!("write the master key's file: {error}"))
}
