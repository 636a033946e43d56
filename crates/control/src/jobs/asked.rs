//! What people ask of jobs: see them, follow one, try one again, cancel one.

use std::time::Duration;

use loomworks_core::ids::JobId;
use serde_json::json;
use sqlx::PgConnection;
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::kinds::Kind;
use crate::World;
use crate::access::{self, Caller, Permission, Scope};
use crate::audit;
use crate::db::jobs::{self, Filter, Job, Key, Locked};
use crate::db::on_constraint;
use crate::error::Error;
use crate::idempotency;
use crate::page::{Asked, Page};

/// How long somebody can follow a job without asking again.
const FOLLOW_MAX: Duration = Duration::from_secs(300);

/// How often a job is looked at that nothing was heard of.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The jobs a caller may see, newest first.
pub async fn list(
    world: &World,
    caller: &Caller,
    filter: &Filter,
    asked: &Asked<Key>,
) -> Result<Page<Job>, Error> {
    let mut scoped = access::listing(&world.db, caller).await?;
    let jobs = jobs::list(&mut scoped, filter, asked.after, asked.rows()).await?;
    Ok(asked.page(jobs, Job::key))
}

/// A job that the caller may see.
pub async fn get(world: &World, caller: &Caller, id: JobId) -> Result<Job, Error> {
    let mut scoped = access::listing(&world.db, caller).await?;
    jobs::get(&mut scoped, id).await?.ok_or(Error::NotFound("such job"))
}

/// Tries a job again that has failed or was cancelled, at the step that its kind says, with all its tries.
pub async fn retry(world: &World, caller: &Caller, id: JobId) -> Result<Job, Error> {
    let actor = may_change(world, caller, id).await?;
    let mut transaction = world.db.platform.begin().await?;
    let job = jobs::lock(&mut transaction, id).await?.ok_or(Error::NotFound("such job"))?;
    if !matches!(job.state.as_str(), "failed" | "cancelled") {
        return Err(Error::conflict(format!("the job is {}", job.state))
            .with_hint("only a job that has failed or was cancelled can be tried again"));
    }
    if jobs::unfinished(&mut transaction, &job.dedup_key).await?.is_some() {
        return Err(already_asked_for());
    }
    let kind = kind(world, &job)?;
    let step = kind.take_up(&mut transaction, &job).await?.ok_or_else(|| {
        Error::conflict(format!("a job of kind `{}` cannot go on from where it failed", job.kind))
            .with_hint(kind.instead().unwrap_or("ask for the same thing anew"))
    })?;
    let retried = jobs::retry(&mut transaction, id, &step).await;
    on_constraint(retried, "jobs_one_unfinished", already_asked_for)?;
    record(&mut transaction, &actor, "job.retried", &job).await?;
    let job = jobs::get(&mut transaction, id).await?.ok_or(Error::NotFound("such job"))?;
    idempotency::note_effect(&mut transaction).await?;
    transaction.commit().await?;
    Ok(job)
}

fn already_asked_for() -> Error {
    Error::conflict("an unfinished job wants the same")
        .with_hint("see `loomworks job list`, and wait for that one")
}

/// Cancels a job: at once if it waits, else before its next step. One that has ended stays as it is.
pub async fn cancel(world: &World, caller: &Caller, id: JobId) -> Result<Job, Error> {
    let actor = may_change(world, caller, id).await?;
    let mut transaction = world.db.platform.begin().await?;
    let job = jobs::lock(&mut transaction, id).await?.ok_or(Error::NotFound("such job"))?;
    if !matches!(job.state.as_str(), "waiting" | "running") {
        return Err(Error::conflict(format!("the job has already {}", ended(&job.state))));
    }
    let kind = kind(world, &job)?;
    if !kind.can_cancel(&job)? {
        let wait = "wait until it has ended; what it did can then be taken back as usual";
        return Err(Error::conflict("the job is past the point at which it could be cancelled")
            .with_hint(kind.instead().unwrap_or(wait)));
    }
    if job.state == "waiting" {
        // First it has ended: what is enqueued to put things right may have its key.
        jobs::cancel_waiting(&mut transaction, id).await?;
        kind.give_up(&mut transaction, &job).await?;
    } else {
        jobs::request_cancel(&mut transaction, id).await?;
    }
    record(&mut transaction, &actor, "job.cancel_requested", &job).await?;
    let job = jobs::get(&mut transaction, id).await?.ok_or(Error::NotFound("such job"))?;
    idempotency::note_effect(&mut transaction).await?;
    transaction.commit().await?;
    Ok(job)
}

fn ended(state: &str) -> &str {
    match state {
        "cancelled" => "been cancelled",
        other => other,
    }
}

fn kind<'a>(world: &'a World, job: &Locked) -> Result<&'a dyn Kind, Error> {
    world.kinds.find(&job.kind).ok_or_else(|| {
        Error::conflict(format!("this program knows no jobs of kind `{}`", job.kind))
            .with_hint("a newer version of loomworks may have made it")
    })
}

/// Whether the caller may change that job; gives the name under which he does. Tenants' own transactions cannot change
/// jobs, so whoever gets it does so with the platform's.
///
/// A tenant's own people may change what they could have asked for, also where an operator did. What is done with
/// the tenant, whoever has it done, is not theirs to stop or to repeat.
async fn may_change(world: &World, caller: &Caller, id: JobId) -> Result<String, Error> {
    // First whether he may see it: somebody else's job is none.
    let job = get(world, caller, id).await?;
    match (caller.scope, job.tenant_id) {
        (Scope::Operator, _) => access::operator(caller, Permission::Manage).map(|operator| operator.actor),
        (_, Some(tenant)) => {
            let kind = world.kinds.find(&job.kind);
            let needed = kind.and_then(|kind| kind.tenants_need()).ok_or(Error::Forbidden)?;
            let granted = access::tenant(&world.db, caller, &tenant.to_string(), needed).await?;
            Ok(granted.actor)
        }
        (_, None) => Err(Error::NotFound("such job")),
    }
}

async fn record(connection: &mut PgConnection, actor: &str, action: &str, job: &Locked) -> Result<(), Error> {
    let detail = json!({ "job": job.id, "kind": job.kind, "was": job.state });
    Ok(audit::record(connection, actor, action, job.tenant_id.map(Into::into), detail).await?)
}

/// A job as it changes.
pub struct Follow {
    world: World,
    caller: Caller,
    id: JobId,
    changes: broadcast::Receiver<JobId>,
    last: Option<Job>,
    until: Instant,
}

/// Follows a job that the caller may see.
pub async fn follow(world: &World, caller: &Caller, id: JobId) -> Result<Follow, Error> {
    // Listening first: what changes after the look is heard.
    let changes = world.signals.changes(&world.db.platform).await;
    get(world, caller, id).await?;
    let until = Instant::now() + FOLLOW_MAX;
    Ok(Follow { world: world.clone(), caller: caller.clone(), id, changes, last: None, until })
}

impl Follow {
    /// The job as it is now, and after that whenever it is another. `None`: it has ended and was shown so, or it was
    /// followed for long enough.
    pub async fn next(&mut self) -> Result<Option<Job>, Error> {
        if self.last.as_ref().is_some_and(Job::is_finished) {
            return Ok(None);
        }
        loop {
            // Looked at with the caller's own right each time: it may have been taken away meanwhile.
            let job = get(&self.world, &self.caller, self.id).await?;
            if self.last.as_ref() != Some(&job) {
                self.last = Some(job.clone());
                return Ok(Some(job));
            }
            if Instant::now() >= self.until {
                return Ok(None);
            }
            let look = (Instant::now() + LOOK_EVERY).min(self.until);
            let _ = tokio::time::timeout_at(look, self.heard()).await;
        }
    }

    async fn heard(&mut self) {
        loop {
            match self.changes.recv().await {
                Ok(id) if id != self.id => {}
                // It, or too many to know.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
