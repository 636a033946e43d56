//! The warm pool: copies of templates that wait for tenants, and the removal of what is of no use any more.

use std::collections::BTreeSet;
use std::time::Duration;

use loomworks_core::ids::{JobId, TenantId};
use loomworks_postgres::{databases, handover, roles};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::drops::{POLL, drop_in_turn};
use super::template::{self, BUILDER_PREFIX};
use crate::World;
use crate::db::jobs::Queue;
use crate::db::templates::{self, TemplateState};
use crate::error::Error;
use crate::jobs::runner::nothing;
use crate::jobs::{Context, Progress, StepError, Then, Work};
use crate::profile::TEMPLATE_PREFIX;

/// What the names of waiting databases, and of the roles that own what is in them, begin with.
pub(crate) const POOL_PREFIX: &str = "lw_pool_";

/// How long a tenant that is being made is given before it is looked again.
const OUT_OF_THE_WAY: Duration = Duration::from_millis(300);

/// Makes copies until there are enough, one after the other: who wants a tenant meanwhile goes first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FillPool {
    pub profile: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Look,
    Copy { name: String, template: String },
}

pub(crate) fn dedup_key(profile: &str) -> String {
    format!("fill_pool {profile}")
}

impl Work for FillPool {
    const KIND: &'static str = "fill_pool";
    const QUEUE: Queue = Queue::LowPriority;
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        dedup_key(&self.profile)
    }

    fn first(&self) -> Step {
        Step::Look
    }

    fn progress(step: &Step) -> Progress {
        match step {
            Step::Look => Progress { percent: 0, words: "counting waiting databases" },
            Step::Copy { .. } => Progress { percent: 20, words: "copying the template" },
        }
    }

    async fn run(&self, step: &Step, world: &World, _: &Context) -> Result<Then<Step>, StepError> {
        let Some(profile) = world.profiles.get(&self.profile) else { return Ok(Then::Done(nothing())) };
        let current = world.template(profile);
        let mut mgmt = world.db.platform.acquire().await?;
        match step {
            Step::Look => {
                let waiting = templates::waiting(&mut mgmt, &current).await?;
                let ready = templates::state(&mut mgmt, &current).await? == TemplateState::Ready;
                if !ready || waiting >= i64::from(world.pool_of(profile)) {
                    return Ok(Then::Done(json!({ "waiting": waiting })));
                }
                // A copy is written through the WAL, and whoever commits meanwhile waits for all of it.
                if templates::is_somebody_waiting(&mut mgmt).await? {
                    return Ok(Then::Later(OUT_OF_THE_WAY));
                }
                let name = format!("{POOL_PREFIX}{}", JobId::random().short());
                Ok(Then::Next(Step::Copy { name, template: current }))
            }
            // An old one is not gone on with; what there is of it is dropped like every other.
            Step::Copy { template, .. } if *template != current => Ok(Then::Next(Step::Look)),
            Step::Copy { name, template } => {
                templates::begin_copy(&mut mgmt, name, template).await?;
                drop(mgmt);
                let mut admin = world.cluster.connect("postgres").await?;
                roles::ensure_group(&mut admin, name).await?;
                databases::ensure_clone(&mut admin, name, template).await?;
                let mut inside = world.cluster.connect(name).await?;
                handover::hand_over(&mut inside, template, name).await.map_err(Error::TenantDatabase)?;
                loomworks_undo::admit(&mut inside, name).await.map_err(Error::from)?;
                sqlx::Connection::close(inside).await.map_err(Error::TenantDatabase)?;
                databases::end_connections(&mut admin, name).await?;
                let oid = databases::oid(&mut admin, name).await?;
                let oid = oid.ok_or_else(|| Error::Internal(format!("database `{name}` is gone")))?;
                let mut mgmt = world.db.platform.acquire().await?;
                templates::copy_is_ready(&mut mgmt, name, oid).await?;
                Ok(Then::Next(Step::Look))
            }
        }
    }
}

/// Drops templates of profiles as they were, copies of them, and what a job that failed has left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TidyTemplates {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TidyStep {
    Drop,
}

impl Work for TidyTemplates {
    const KIND: &'static str = "tidy_templates";
    const QUEUE: Queue = Queue::LowPriority;
    type Step = TidyStep;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        "tidy_templates".into()
    }

    fn first(&self) -> TidyStep {
        TidyStep::Drop
    }

    fn progress(_: &TidyStep) -> Progress {
        Progress { percent: 0, words: "dropping databases that nobody waits for" }
    }

    async fn run(&self, _: &TidyStep, world: &World, _: &Context) -> Result<Then<TidyStep>, StepError> {
        let Some(name) = left_over(world).await?.into_iter().next() else { return Ok(Then::Done(nothing())) };
        let mut mgmt = world.db.platform.acquire().await?;
        // First nobody can get it any more, then it goes.
        templates::forget_copy(&mut mgmt, &name).await?;
        templates::forget(&mut mgmt, &name).await?;
        if is_claimed(&mut mgmt, &name).await? {
            return Ok(Then::Later(POLL));
        }
        drop(mgmt);
        let mut admin = world.cluster.connect("postgres").await?;
        if let Some(oid) = databases::oid(&mut admin, &name).await?
            && !drop_in_turn(world, i64::from(oid)).await?
        {
            return Ok(Then::Later(POLL));
        }
        roles::drop_role(&mut admin, &name).await?;
        Ok(Then::Later(POLL))
    }
}

async fn is_claimed(mgmt: &mut sqlx::PgConnection, name: &str) -> Result<bool, Error> {
    Ok(templates::all_copies(mgmt).await?.iter().any(|copy| copy.name == name))
}

/// Names of databases, or of roles whose database is gone, that nobody will ever ask for.
///
/// What is noted is read after what is there: a database has its row before it exists.
pub(crate) async fn left_over(world: &World) -> Result<BTreeSet<String>, Error> {
    let current: BTreeSet<String> = world.profiles.values().map(|profile| world.template(profile)).collect();
    let mut admin = world.cluster.connect("postgres").await?;
    let mut left = BTreeSet::new();
    for prefix in [POOL_PREFIX, TEMPLATE_PREFIX] {
        left.extend(databases::beginning_with(&mut admin, prefix).await?);
        left.extend(roles::beginning_with(&mut admin, prefix).await?);
    }
    left.extend(roles::beginning_with(&mut admin, BUILDER_PREFIX).await?);
    let mut mgmt = world.db.platform.acquire().await?;
    let mut filling = false;
    for profile in world.profiles.keys() {
        filling |= templates::is_busy(&mut mgmt, &dedup_key(profile)).await?;
    }
    for copy in templates::all_copies(&mut mgmt).await? {
        let wanted = match copy.state.as_str() {
            "claimed" => true,
            "ready" => current.contains(&copy.template),
            // Whoever makes it is at work, or has failed.
            _ => current.contains(&copy.template) && filling,
        };
        if wanted {
            left.remove(&copy.name);
        } else {
            left.insert(copy.name);
        }
    }
    left.extend(templates::all(&mut mgmt).await?);
    left.retain(|name| !current.contains(name));
    let mut building = Vec::new();
    for template in &current {
        if templates::is_busy(&mut mgmt, &template::dedup_key(template)).await? {
            building
                .extend(template.rsplit_once('_').map(|(_, checksum)| format!("{BUILDER_PREFIX}{checksum}")));
        }
    }
    left.retain(|name| !building.contains(name));
    Ok(left)
}
