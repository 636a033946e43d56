//! A drill: some tenants are brought back to now on the side, looked over, and thrown away. What was never restored is no
//! backup.

use jiff::Timestamp;
use loomworks_archive::restore::{self, RestorePlan, Target};
use loomworks_core::ids::TenantId;
use loomworks_core::time;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::restore::{Recovered, Restore, Side};
use crate::World;
use crate::db::notifications::Severity;
use crate::db::{incarnations, tenants};
use crate::error::Error;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};
use crate::notifications::{self, Notice};

/// How many tenants a drill takes.
const TENANTS: i64 = 3;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RestoreDrill {}

/// How it went with one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drilled {
    pub tenant: TenantId,
    pub plan: RestorePlan,
    pub milliseconds: u64,
    /// Why it did not succeed.
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Choose,
    /// The last of those that are left comes first.
    Drill {
        left: Vec<(TenantId, RestorePlan)>,
        done: Vec<Drilled>,
    },
    Report {
        done: Vec<Drilled>,
    },
}

impl Work for RestoreDrill {
    const KIND: &'static str = "restore_drill";
    const QUEUE: Queue = Queue::LowPriority;
    const MAX_ATTEMPTS: i32 = 3;
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        Self::KIND.into()
    }

    fn first(&self) -> Step {
        Step::Choose
    }

    fn progress(step: &Step) -> Progress {
        match step {
            Step::Choose => Progress { percent: 0, words: "choosing tenants" },
            Step::Drill { done, .. } => {
                let percent = 10 + u8::try_from(done.len()).unwrap_or(3).min(3) * 28;
                Progress { percent, words: "restoring a tenant on the side" }
            }
            Step::Report { .. } => Progress { percent: 95, words: "telling how it went" },
        }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        match step {
            Step::Choose => Ok(Then::Next(Step::Drill { left: choose(world).await?, done: Vec::new() })),
            Step::Drill { left, done } => {
                let (mut left, mut done) = (left.clone(), done.clone());
                let Some((tenant, plan)) = left.pop() else { return Ok(Then::Next(Step::Report { done })) };
                done.push(drill(world, context, tenant, plan).await?);
                Ok(Then::Next(Step::Drill { left, done }))
            }
            Step::Report { done } => {
                Side::of(world, context.job).remove().await?;
                report(world, done).await?;
                Ok(Then::Done(json!({ "restored": done })))
            }
        }
    }
}

/// Tenants by chance, and how each would be brought back to now.
async fn choose(world: &World) -> Result<Vec<(TenantId, RestorePlan)>, Error> {
    let catalog = crate::archive::catalog(world).await?;
    let mut mgmt = world.db.platform.acquire().await?;
    let now = time::now();
    let mut chosen = Vec::new();
    for tenant in tenants::some_active(&mut mgmt, TENANTS).await? {
        let oid = incarnations::at_time(&mut mgmt, tenant, now.into()).await?;
        let Some(oid) = oid.and_then(|oid| u32::try_from(oid).ok()) else { continue };
        let archived = catalog.archived_up_to.map(Target::Lsn);
        if let Some(Ok(plan)) = archived.map(|target| restore::plan(&catalog, oid, target, now)) {
            chosen.push((tenant, plan));
        }
    }
    Ok(chosen)
}

async fn drill(
    world: &World,
    context: &Context,
    tenant: TenantId,
    plan: RestorePlan,
) -> Result<Drilled, StepError> {
    let began: Timestamp = time::now();
    let side = Side::of(world, context.job);
    let restore = Restore { tenant, plan: plan.clone(), source: None, look: true };
    let tried = async {
        side.remove().await?;
        let laid = side.lay_out(world, &plan, context).await?;
        match side.recover(laid.outcome.end).await? {
            Recovered::Yes => restore.check(world, &side).await.map(drop),
            Recovered::CutOff => {
                Err(StepError::permanent("its server was cut off", "it is tried the next time"))
            }
        }
    };
    let error = tried.await.err().map(|error| error.message);
    side.remove().await?;
    let taken = time::now().duration_since(began).as_millis();
    Ok(Drilled { tenant, plan, milliseconds: u64::try_from(taken).unwrap_or(0), error })
}

async fn report(world: &World, done: &[Drilled]) -> Result<(), Error> {
    let failed: Vec<&Drilled> = done.iter().filter(|drilled| drilled.error.is_some()).collect();
    let Some(first) = failed.first() else { return Ok(()) };
    let notice = Notice {
        event: "restore_drill.failed",
        severity: Severity::Critical,
        message: format!(
            "A restore drill failed for {} of {} tenants: tenant {}: {}",
            failed.len(),
            done.len(),
            first.tenant,
            first.error.as_deref().unwrap_or_default()
        ),
        detail: json!({ "failed": failed.iter().map(|drilled| drilled.tenant).collect::<Vec<_>>() }),
    };
    let mut mgmt = world.db.platform.acquire().await?;
    Ok(notifications::raise_and_record(&mut mgmt, None, &notice).await?)
}
