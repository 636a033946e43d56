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
use crate::error::Error;
use crate::{World, notifications};

/// How long a step may wait for something while it keeps its worker. Then the job is put back: those that wait for an
/// archive which does not work must not keep the others from running.
const WAIT_IN_HAND: Duration = Duration::from_secs(3);

/// How often a lease is renewed: a third of its time.
const RENEW_EVERY: Duration = Duration::from_secs(5);

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
    let context = Context { job: claim.id, requested_by: claim.requested_by.clone() };
    let (work, mut step) = match kinds::parse::<W>(&claim.work, claim.step.as_ref()) {
        Ok(parsed) => parsed,
        Err(error) => {
            let error = format!("its row cannot be read: {error}");
            return refuse(saver, claim, error, "another version of loomworks may have written it").await;
        }
    };
    let hand = Hand { world, saver, claim, work, context };
    let (mut attempts, mut place) = (claim.attempts, claim.steps_done);
    let mut cancel = claim.cancel_requested;
    if attempts > claim.max_attempts && !cancel {
        let error = StepError::permanent(
            format!("it was cut off {} times at the same step", claim.max_attempts),
            "the log of those moments may say what ended the process",
        );
        return hand.settle(&error, attempts).await;
    }
    let (mut waiting_since, mut renewed) = (None, Instant::now());
    loop {
        if cancel && W::can_cancel(&step) {
            return hand.cancel().await;
        }
        match hand.run(&step, &mut cancel).await {
            Ran::LeaseLost => return Ok(()),
            Ran::Error(error) => return hand.settle(&error, attempts).await,
            Ran::Then(Then::Next(next)) => {
                hand.crash(place, CrashWhen::BeforeSave);
                let progress = W::progress(&next);
                let value =
                    serde_json::to_value(&next).map_err(|error| Error::Internal(error.to_string()))?;
                let outcome = Outcome::Next { value, percent: progress.percent, words: progress.words };
                let Some(saved) = hand.save(outcome).await? else { return Ok(()) };
                hand.crash(place, CrashWhen::AfterSave);
                (step, cancel, attempts) = (next, saved.cancel_requested, 1);
                place += 1;
                (waiting_since, renewed) = (None, Instant::now());
            }
            Ran::Then(waiting @ (Then::Later(wait) | Then::Shortly(wait))) => {
                let since = *waiting_since.get_or_insert_with(Instant::now);
                if matches!(waiting, Then::Later(_)) && since.elapsed() > WAIT_IN_HAND {
                    return hand.save(Outcome::Back { seconds: 1.0 }).await.map(drop);
                }
                tokio::time::sleep(wait).await;
                if renewed.elapsed() > RENEW_EVERY {
                    let Some(kept) = hand.save(Outcome::Keep).await? else { return Ok(()) };
                    cancel = kept.cancel_requested;
                    renewed = Instant::now();
                }
            }
            Ran::Then(Then::Done(value)) => {
                hand.crash(place, CrashWhen::BeforeSave);
                if hand.save(Outcome::Succeeded { value }).await?.is_some() {
                    info!(job = %claim.id, kind = W::KIND, "job {} ({}) is done", claim.id, W::KIND);
                }
                return Ok(());
            }
        }
    }
}

/// Ends a job that this program cannot carry out.
pub(crate) async fn refuse(saver: &Saver, claim: &Claim, error: String, hint: &str) -> Result<(), Error> {
    tracing::error!(job = %claim.id, kind = claim.kind, error, "job {} failed", claim.id);
    saver.save(claim, Outcome::Failed { error, hint: Some(hint.to_owned()) }).await.map(drop)
}

impl<W: Work> Hand<'_, W> {
    async fn save(&self, outcome: Outcome) -> Result<Option<Applied>, Error> {
        self.saver.save(self.claim, outcome).await
    }

    /// Runs one step while the lease is renewed. One that panics has failed like one that says so.
    async fn run(&self, step: &W::Step, cancel: &mut bool) -> Ran<W::Step> {
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
            tokio::select! {
                biased;
                ran = &mut caught => return ran,
                () = tokio::time::sleep(RENEW_EVERY) => match self.save(Outcome::Keep).await {
                    Ok(Some(kept)) => *cancel = kept.cancel_requested,
                    Ok(None) => return Ran::LeaseLost,
                    // The database does not answer. The step goes on; whether it counts is seen when it is saved.
                    Err(error) => warn!(error = crate::error::chain(&error), "a lease could not be renewed"),
                },
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
        let outcome = Outcome::Failed { error: message.clone(), hint };
        if self.end(outcome).await? {
            tracing::error!(job = %claim.id, kind = W::KIND, attempts, error = message, "job {} failed", claim.id);
        }
        Ok(())
    }

    async fn cancel(&self) -> Result<(), Error> {
        if self.end(Outcome::Cancelled).await? {
            info!(job = %self.claim.id, kind = W::KIND, "job {} was cancelled", self.claim.id);
        }
        Ok(())
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

    fn crash(&self, place: i32, when: CrashWhen) {
        if let Some(point) = &self.world.crash_at {
            point.die_at(W::KIND, place, when);
        }
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it does not say why")
}

/// Doubles from a tenth of a second to half a minute, with noise so that jobs which failed together do not come back
/// together.
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
