//! Changing the master key: a new one wraps from now on, what is stored is wrapped anew, and only then may the former
//! one be forgotten.

use std::time::Duration;

use loomworks_archive::RepositoryError;
use loomworks_core::ids::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::World;
use crate::audit;
use crate::db::audit::is_recorded;
use crate::error::Error;
use crate::jobs::{Context, Progress, StepError, Then, Work};
use crate::master_key::rotation::{forget_former, rewrap_all};

const POLL: Duration = Duration::from_millis(250);

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
    Rewrap,
    Forget,
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
            Step::Rewrap => (20, "wrapping secrets anew"),
            Step::Forget => (80, "forgetting the former key"),
            Step::Record => (95, "writing it down"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        let key = &world.master_key;
        match step {
            Step::MakeKey => {
                key.renew(&self.from).await.map_err(Error::from)?;
                Ok(Then::Next(Step::Rewrap))
            }
            Step::Rewrap => {
                rewrap(world).await?;
                let next = if self.forget_former { Step::Forget } else { Step::Record };
                Ok(Then::Next(next))
            }
            Step::Forget => {
                // What was wrapped with the former key a moment before there was another is found now, or next time.
                rewrap(world).await?;
                Ok(match forget_former(&world.db, world.repository.keys(), key).await? {
                    true => Then::Next(Step::Record),
                    false => Then::Later(POLL),
                })
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

/// What nothing opens stops the job, when all the rest is wrapped anew: somebody must look before a key is forgotten.
async fn rewrap(world: &World) -> Result<(), StepError> {
    // Until nothing is found: rows that somebody else changes meanwhile move to other places.
    let secrets = loop {
        let rewrapped = rewrap_all(&world.db, &world.master_key).await?;
        if rewrapped.count == 0 {
            break rewrapped;
        }
    };
    let keys = world.repository.keys().rewrap().await.map_err(RepositoryError::from)?;
    let unopened: Vec<String> = secrets.unopened.into_iter().chain(keys.unopened).collect();
    let Some(first) = unopened.first() else { return Ok(()) };
    Err(StepError::permanent(
        format!("{} secrets open with none of the keys, the first is for {first}", unopened.len()),
        "put the key that wrapped them behind the others where the master key is kept, and start again",
    ))
}
