//! Carrying jobs out: claim, run a step, save the next, until the job has ended.
//!
//! A claim is a lease that is renewed while the step runs, and a fence: a worker that was paused and lost its lease
//! can still finish its step, but it can save nothing.

use std::time::Duration;

use rand::RngExt as _;
use serde_json::Value;
use sqlx::postgres::PgListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Context, CrashPoint, CrashWhen, StepError, Then, Work};
use crate::World;
use crate::db::jobs::{self, CHANNEL, Claim, Failure, Saved};
use crate::error::{Error, chain};
use crate::work;

/// Jobs that run at the same time in one process. Short ones (a snapshot) must not wait for long ones (a restore).
const CONCURRENCY: usize = 6;

/// How long a step may wait for something while it keeps its worker. Then the job is put back: those that wait for an
/// archive which does not work must not keep the others from running.
const WAIT_IN_HAND: Duration = Duration::from_secs(3);

/// How often a lease is renewed: a third of its time.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// How often the queue is looked at without having been called. Notifications can be lost with their connection.
const POLL: Duration = Duration::from_millis(500);

/// Works until `stop` becomes true. Running steps are left as they are: their job goes on with the next process.
pub async fn run(world: World, mut stop: watch::Receiver<bool>) {
    loop {
        match jobs::abandon_former(&world.db.platform, &world.node).await {
            Ok(0) => break,
            Ok(count) => {
                info!(count, "going on with {count} jobs of this node's former process");
                break;
            }
            Err(error) => {
                warn!(error = chain(&error), "the queue cannot be read; trying again");
                tokio::time::sleep(POLL).await;
            }
        }
    }
    let mut workers = JoinSet::new();
    for _ in 0..CONCURRENCY {
        workers.spawn(work_until(world.clone(), stop.clone()));
    }
    let _ = stop.wait_for(|stop| *stop).await;
    workers.abort_all();
    while workers.join_next().await.is_some() {}
    // Told to stop is not cut off: it does not count as a try, and the next process need not wait for the lease.
    if let Err(error) = jobs::give_back(&world.db.platform, &world.node).await {
        warn!(error = chain(&error), "jobs could not be given back; their leases will run out");
    }
}

async fn work_until(world: World, stop: watch::Receiver<bool>) {
    let mut listener = None;
    while !*stop.borrow() {
        // Armed before the look, so that a job which comes between the look and the wait is heard.
        if listener.is_none() {
            listener = listen(&world).await.ok();
        }
        match jobs::claim(&world.db.platform, &world.node).await {
            Ok(Some(claim)) => carry_out(&world, claim).await,
            Ok(None) => wait(&mut listener).await,
            Err(error) => {
                warn!(error = chain(&error), "no job can be claimed; trying again");
                listener = None;
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

async fn listen(world: &World) -> sqlx::Result<PgListener> {
    let mut listener = PgListener::connect_with(&world.db.platform).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

async fn wait(listener: &mut Option<PgListener>) {
    // A little noise keeps the workers from all looking at the same moment.
    let poll = POLL.mul_f64(rand::rng().random_range(0.8..1.2));
    match listener {
        Some(notifications) => {
            if let Ok(Err(_)) = tokio::time::timeout(poll, notifications.recv()).await {
                *listener = None;
            }
        }
        None => tokio::time::sleep(poll).await,
    }
}

/// Runs a claimed job as far as it goes.
async fn carry_out(world: &World, claim: Claim) {
    let (id, kind) = (claim.id, claim.kind.clone());
    if let Err(error) = work::dispatch(world, &claim).await {
        // The database did not answer. The lease will run out and somebody goes on.
        warn!(job = %id, kind, error = chain(&error), "job {id} was left: its state could not be saved");
    }
}

/// Runs the steps of one job until it has ended, must wait, or is somebody else's.
pub(crate) async fn drive<W: Work>(world: &World, claim: &Claim) -> Result<(), Error> {
    let context = Context { job: claim.id, requested_by: claim.requested_by.clone() };
    let parse = |error: serde_json::Error| Error::Internal(format!("read job {}: {error}", claim.id));
    let work: W = serde_json::from_value(claim.work.clone()).map_err(parse)?;
    let mut step = match &claim.step {
        Some(step) => serde_json::from_value(step.clone()).map_err(parse)?,
        None => work.first(),
    };
    let mut attempts = claim.attempts;
    if attempts > claim.max_attempts {
        let error = StepError::permanent(
            format!("it was cut off {} times at the same step", claim.max_attempts),
            "the log of those moments may say what ended the process",
        );
        return settle(world, claim, &work, &context, &error, attempts).await;
    }
    let mut place = claim.steps_done;
    let (mut waiting_since, mut renewed) = (None, Instant::now());
    loop {
        match run_leased(world, claim, &work, &step, &context).await {
            Ok(Then::Next(next)) => {
                crash(world, W::KIND, place, CrashWhen::BeforeSave);
                if !save(world, claim, &next, W::progress(&next)).await? {
                    return Ok(());
                }
                crash(world, W::KIND, place, CrashWhen::AfterSave);
                step = next;
                attempts = 1;
                place += 1;
                waiting_since = None;
                renewed = Instant::now();
            }
            Ok(waiting @ (Then::Later(wait) | Then::Shortly(wait))) => {
                let since = *waiting_since.get_or_insert_with(Instant::now);
                if matches!(waiting, Then::Later(_)) && since.elapsed() > WAIT_IN_HAND {
                    jobs::put_back(&world.db.platform, claim, 1.0).await?;
                    return Ok(());
                }
                tokio::time::sleep(wait).await;
                if renewed.elapsed() > RENEW_EVERY {
                    if !jobs::renew(&world.db.platform, claim).await? {
                        return Ok(());
                    }
                    renewed = Instant::now();
                }
            }
            Ok(Then::Done(result)) => {
                crash(world, W::KIND, place, CrashWhen::BeforeSave);
                if jobs::succeed(&world.db.platform, claim, &result).await? {
                    info!(job = %claim.id, kind = W::KIND, "job {} ({}) is done", claim.id, W::KIND);
                }
                return Ok(());
            }
            Err(error) => return settle(world, claim, &work, &context, &error, attempts).await,
        }
    }
}

/// Runs one step while the lease is renewed. If the lease is lost the step is dropped where it is.
async fn run_leased<W: Work>(
    world: &World,
    claim: &Claim,
    work: &W,
    step: &W::Step,
    context: &Context,
) -> Result<Then<W::Step>, StepError> {
    let running = work.run(step, world, context);
    tokio::pin!(running);
    loop {
        let renewal = tokio::time::sleep(RENEW_EVERY);
        tokio::select! {
            result = &mut running => return result,
            () = renewal => {
                if matches!(jobs::renew(&world.db.platform, claim).await, Ok(false)) {
                    return Err(StepError { message: "the lease was lost".into(), hint: None, retry: true });
                }
            }
        }
    }
}

async fn save<S: serde::Serialize>(
    world: &World,
    claim: &Claim,
    step: &S,
    progress: super::Progress,
) -> Result<bool, Error> {
    let value = serde_json::to_value(step).map_err(|error| Error::Internal(error.to_string()))?;
    let saved = Saved { step: &value, percent: progress.percent, progress: progress.words };
    Ok(jobs::save_step(&world.db.platform, claim, &saved).await?)
}

/// After an error: another try, or the end.
async fn settle<W: Work>(
    world: &World,
    claim: &Claim,
    work: &W,
    context: &Context,
    error: &StepError,
    attempts: i32,
) -> Result<(), Error> {
    let failure = Failure { error: &error.message, hint: error.hint.as_deref() };
    if error.retry && attempts < claim.max_attempts {
        let seconds = backoff_seconds(attempts);
        warn!(job = %claim.id, kind = W::KIND, attempts, error = error.message, "job {} will be tried again", claim.id);
        jobs::retry_later(&world.db.platform, claim, &failure, seconds).await?;
        return Ok(());
    }
    let mut transaction = world.db.platform.begin().await?;
    if jobs::fail(&mut transaction, claim, &failure).await? {
        work.give_up(&mut transaction, context).await?;
        transaction.commit().await?;
        tracing::error!(job = %claim.id, kind = W::KIND, attempts, error = error.message, "job {} failed", claim.id);
    }
    Ok(())
}

/// Doubles from a tenth of a second to half a minute, with noise so that jobs which failed together do not come back
/// together.
fn backoff_seconds(attempts: i32) -> f64 {
    let base = 0.1 * f64::from(2_i32.pow(attempts.clamp(0, 9).cast_unsigned()));
    base.min(30.0) * rand::rng().random_range(0.7..1.3)
}

/// Ends the job of a kind that this program does not know (a newer one wrote it).
pub(crate) async fn refuse(world: &World, claim: &Claim) -> Result<(), Error> {
    let error = format!("this program knows no jobs of kind `{}`", claim.kind);
    let failure = Failure { error: &error, hint: Some("a newer version of loomworks may have made it") };
    let mut connection = world.db.platform.acquire().await?;
    jobs::fail(&mut connection, claim, &failure).await?;
    Ok(())
}

/// Dies here if a test asked for it: no destructor runs, nothing is flushed, as at `kill -9`.
fn crash(world: &World, kind: &str, place: i32, when: CrashWhen) {
    let here = |point: &CrashPoint| point.kind == kind && point.place == place && point.when == when;
    if world.crash_at.as_ref().is_some_and(here) {
        warn!(kind, place, "dying as asked");
        std::process::abort();
    }
}

/// A result with nothing in it.
#[must_use]
pub fn nothing() -> Value {
    Value::Object(serde_json::Map::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_between_tries_grows_and_has_a_limit() {
        assert!(backoff_seconds(1) < 0.3);
        assert!((20.0..40.0).contains(&backoff_seconds(50)));
        assert!(backoff_seconds(i32::MIN) > 0.0);
    }
}
