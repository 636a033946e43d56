//! One claimed job: run a step, save the next, until the job has ended, must wait, or is somebody else's.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;
use tracing::{info, warn};

use super::crash::CrashWhen;
use super::saver::Saver;
use super::{Context, StepError, Then, Work, kinds};
use crate::db::jobs::Claim;
use crate::db::jobs::claims::{self, Applied, Change, Outcome};
use crate::error::{Error, chain};
use crate::{World, notifications};

/// How long a step may wait for something while it keeps its worker. Then the job is put back: those that wait for an
/// archive which does not work must not keep the others from running.
const WAIT_IN_HAND: Duration = Duration::from_secs(3);

/// How often a lease is renewed: less than a third of its time, so that two renewals may be lost.
const RENEW_EVERY: Duration = Duration::from_secs(3);

/// How long a job waits that this program cannot read. Another process may know it while a newer version is brought
/// in.
const LEFT_TO_OTHERS_SECONDS: f64 = 60.0;

/// How often it is tried to put right what a failed job has left, after its last try.
const GIVE_UP_TRIES: i32 = 5;

/// A job in the hands of this process.
struct Hand<'a, W> {
    world: &'a World,
    saver: &'a Saver,
    claim: &'a Claim,
    work: W,
    context: Context,
}

/// How a step that was run under its lease ended.
enum Ran<S> {
    Then(Then<S>),
    Error(StepError),
    /// Somebody else has the job. The step was dropped where it was; work that it had handed to a thread or to
    /// another program goes on, which is why steps look before they act.
    LeaseLost,
}

/// Runs the steps of one job as far as it goes.
pub(crate) async fn drive<W: Work>(world: &World, saver: &Saver, claim: &Claim) -> Result<(), Error> {
    let context = Context::new(claim.id, &claim.requested_by);
    let (work, mut step) = match kinds::parse::<W>(&claim.work, claim.step.as_ref()) {
        Ok(parsed) => parsed,
        Err(error) => {
            return refuse(world, saver, claim, format!("its row cannot be read: {error}")).await;
        }
    };
    let hand = Hand { world, saver, claim, work, context };
    let (mut attempts, mut place) = (claim.attempts, claim.steps_done);
    let mut cancel = claim.cancel_requested;
    if attempts > claim.max_attempts + GIVE_UP_TRIES {
        return hand.abandon().await;
    }
    if attempts > claim.max_attempts && !(cancel && W::can_cancel(&step)) {
        return hand.settle(&used_up(claim), attempts).await;
    }
    let mut waiting_since = None;
    let mut renew_at = Instant::now() + RENEW_EVERY;
    loop {
        if cancel && W::can_cancel(&step) {
            return hand.cancel(attempts).await;
        }
        match hand.run(&step, &mut renew_at, &mut cancel).await {
            Ran::LeaseLost => return Ok(()),
            Ran::Error(error) => return hand.settle(&error, attempts).await,
            Ran::Then(Then::Next(next)) => {
                hand.crash(place, CrashWhen::BeforeSave).await;
                let progress = W::progress(&next);
                let value =
                    serde_json::to_value(&next).map_err(|error| Error::Internal(error.to_string()))?;
                let outcome = Outcome::Next { value, percent: progress.percent, words: progress.words };
                let Some(saved) = hand.save(outcome).await? else { return Ok(()) };
                hand.crash(place, CrashWhen::AfterSave).await;
                hand.context.forget_report();
                (step, cancel, attempts) = (next, saved.cancel_requested, 1);
                place += 1;
                (waiting_since, renew_at) = (None, Instant::now() + RENEW_EVERY);
            }
            Ran::Then(waiting @ (Then::Later(wait) | Then::Shortly(wait))) => {
                let since = *waiting_since.get_or_insert_with(Instant::now);
                if matches!(waiting, Then::Later(_)) && since.elapsed() > WAIT_IN_HAND {
                    return hand.save(Outcome::Back { seconds: 1.0 }).await.map(drop);
                }
                tokio::time::sleep(wait.min(RENEW_EVERY)).await;
                // Here and not only beside the next look, which may be too short for it.
                if Instant::now() >= renew_at {
                    let Some(kept) = hand.save(hand.keep()).await? else { return Ok(()) };
                    (cancel, renew_at) = (kept.cancel_requested, Instant::now() + RENEW_EVERY);
                }
            }
            Ran::Then(Then::Done(value)) => {
                hand.crash(place, CrashWhen::BeforeSave).await;
                if hand.save(Outcome::Succeeded { value }).await?.is_some() {
                    info!(job = %claim.id, kind = W::KIND, "job {} ({}) is done", claim.id, W::KIND);
                }
                return Ok(());
            }
        }
    }
}

/// Leaves a job that this program cannot read to others that may. If nobody takes it in all its tries it has failed,
/// and nobody knows how to put right what it has left.
pub(crate) async fn refuse(world: &World, saver: &Saver, claim: &Claim, error: String) -> Result<(), Error> {
    let (id, kind) = (claim.id, claim.kind.as_str());
    let hint = Some("another version of loomworks may have made it".to_owned());
    if claim.attempts < claim.max_attempts {
        warn!(job = %id, kind, error, "job {id} is left to others");
        let outcome = Outcome::Again { error, hint, seconds: LEFT_TO_OTHERS_SECONDS };
        return saver.save(claim, outcome).await.map(drop);
    }
    fail_as_it_is(world, claim, error, hint).await
}

/// Ends a job without putting right what it has left, and calls for somebody who does.
async fn fail_as_it_is(
    world: &World,
    claim: &Claim,
    error: String,
    hint: Option<String>,
) -> Result<(), Error> {
    let (id, kind) = (claim.id, claim.kind.as_str());
    let mut transaction = world.db.platform.begin().await?;
    let changes = [Change::new(claim, Outcome::Failed { error: error.clone(), hint })];
    if claims::apply(&mut transaction, &changes).await?.is_empty() {
        return Ok(());
    }
    notifications::raise_abandoned_job(&mut transaction, claim.tenant(), (id, kind), &error).await?;
    transaction.commit().await?;
    tracing::error!(job = %id, kind, error, "job {id} failed, and what it has left stays as it is");
    Ok(())
}

/// Why a job has failed that is found with no tries left: the last one did not live to say it.
fn used_up(claim: &Claim) -> StepError {
    let max = claim.max_attempts;
    match &claim.error {
        Some(error) => StepError { message: error.clone(), hint: claim.hint.clone(), retry: false },
        None => StepError::permanent(
            format!("it was cut off {max} times at the same step"),
            "the log of those moments may say what ended the process",
        ),
    }
}

impl<W: Work> Hand<'_, W> {
    /// The claim is kept, and people see how far a long step has come.
    fn keep(&self) -> Outcome {
        Outcome::Keep { percent: self.context.percent() }
    }

    async fn save(&self, outcome: Outcome) -> Result<Option<Applied>, Error> {
        self.saver.save(self.claim, outcome).await
    }

    /// Runs one step while the lease is renewed. One that panics has failed like one that says so.
    async fn run(&self, step: &W::Step, renew_at: &mut Instant, cancel: &mut bool) -> Ran<W::Step> {
        let mut running = pin!(self.work.run(step, self.world, &self.context));
        let mut caught = pin!(poll_fn(|context| {
            match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context))) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(Ok(then))) => Poll::Ready(Ran::Then(then)),
                Ok(Poll::Ready(Err(error))) => Poll::Ready(Ran::Error(error)),
                Err(panic) => Poll::Ready(Ran::Error(StepError {
                    message: format!("it panicked: {}", words_of(panic.as_ref())),
                    hint: Some("this is a mistake in loomworks; the log has the place".into()),
                    retry: true,
                })),
            }
        }));
        loop {
            // The step goes on while the renewal is written down.
            let renewal = async {
                tokio::time::sleep_until(*renew_at).await;
                self.save(self.keep()).await
            };
            let kept = tokio::select! {
                biased;
                ran = &mut caught => return ran,
                kept = renewal => kept,
            };
            *renew_at = Instant::now() + RENEW_EVERY;
            match kept {
                Ok(Some(kept)) => *cancel = kept.cancel_requested,
                Ok(None) => return Ran::LeaseLost,
                // The database does not answer. The step goes on; whether it counts is seen when it is saved.
                Err(error) => warn!(error = chain(&error), "a lease could not be renewed"),
            }
        }
    }

    /// After an error: another try, or the end.
    async fn settle(&self, error: &StepError, attempts: i32) -> Result<(), Error> {
        let claim = self.claim;
        // PostgreSQL's texts hold no zero byte.
        let message = error.message.replace('\0', "");
        let hint = error.hint.as_ref().map(|hint| hint.replace('\0', ""));
        if error.retry && attempts < claim.max_attempts {
            let seconds = backoff_seconds(attempts);
            warn!(job = %claim.id, kind = W::KIND, attempts, error = message, "job {} will be tried again", claim.id);
            return self.save(Outcome::Again { error: message, hint, seconds }).await.map(drop);
        }
        match self.end(Outcome::Failed { error: message.clone(), hint: hint.clone() }).await {
            Ok(true) => {
                tracing::error!(job = %claim.id, kind = W::KIND, attempts, error = message, "job {} failed", claim.id);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => self.end_later(message, hint, &error, attempts).await,
        }
    }

    async fn cancel(&self, attempts: i32) -> Result<(), Error> {
        match self.end(Outcome::Cancelled).await {
            Ok(true) => info!(job = %self.claim.id, kind = W::KIND, "job {} was cancelled", self.claim.id),
            Ok(false) => {}
            Err(error) => self.end_later("it is to be cancelled".into(), None, &error, attempts).await?,
        }
        Ok(())
    }

    /// What the job has left could not be put right. The next try comes here again, and after a few it is left.
    async fn end_later(
        &self,
        error: String,
        hint: Option<String>,
        reason: &Error,
        attempts: i32,
    ) -> Result<(), Error> {
        let id = self.claim.id;
        warn!(job = %id, kind = W::KIND, error = chain(reason), "what job {id} has left could not be put right");
        let seconds = backoff_seconds(attempts);
        self.save(Outcome::Again { error, hint, seconds }).await.map(drop)
    }

    /// Ends a job whose end did not work either.
    async fn abandon(&self) -> Result<(), Error> {
        let StepError { message, hint, .. } = used_up(self.claim);
        let error = format!("{message}; and what it has left could not be put right");
        fail_as_it_is(self.world, self.claim, error, hint).await
    }

    /// Ends a job without its result, in the transaction that puts right what it has left.
    async fn end(&self, outcome: Outcome) -> Result<bool, Error> {
        let mut transaction = self.world.db.platform.begin().await?;
        let failure = match &outcome {
            Outcome::Failed { error, .. } => Some(error.clone()),
            _ => None,
        };
        let changes = [Change::new(self.claim, outcome)];
        if claims::apply(&mut transaction, &changes).await?.is_empty() {
            return Ok(false);
        }
        self.work.give_up(&mut transaction, &self.context).await?;
        if let Some(error) = failure {
            let job = (self.claim.id, W::KIND);
            notifications::raise_failed_job(&mut transaction, self.work.tenant(), job, &error).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Where a test wants it, the program dies, or this worker does no more.
    async fn crash(&self, place: i32, when: CrashWhen) {
        if let Some(point) = &self.world.crash_at {
            point.die_at(W::KIND, place, when);
        }
        self.world.cut.stop_at(self.claim.id, place, when).await;
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it does not say why")
}

/// Doubles from a tenth of a second to half a minute, with noise so that jobs which failed together do not come back
/// together. `claim_jobs` has a shorter one for those whose worker fell silent.
fn backoff_seconds(attempts: i32) -> f64 {
    let base = 0.1 * f64::from(2_i32.pow(attempts.clamp(0, 9).cast_unsigned()));
    base.min(30.0) * rand::rng().random_range(0.7..1.3)
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
