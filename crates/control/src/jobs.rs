//! Jobs: long operations as saved steps.
//!
//! A job is a value, its place is an enum that is saved before the next step begins. Each step may be cut anywhere
//! and run again: it looks first and then acts. See [`Work`]; the kinds are in [`crate::work`].
//!
//! ```text
//! enqueue ─► waiting ─► running ─► succeeded
//!               ▲ ▲       │ │ └──► failed      nobody tries again, but who asks for it (retry)
//!               │ └───────┘ └────► cancelled   the same
//!               └── put back, another try, or its worker fell silent
//! ```

mod asked;
mod crash;
pub mod cron;
mod drive;
mod kinds;
pub mod runner;
mod saver;
mod signals;

use std::fmt::Debug;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use loomworks_archive::RepositoryError;
use loomworks_core::ids::{JobId, TenantId};
use loomworks_postgres::cluster::ClusterError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::PgConnection;

use crate::World;
use crate::access::Permission;
use crate::db;
use crate::error::{Error, chain};

pub use crate::db::jobs::Queue;
pub use asked::{Follow, cancel, follow, get, list, retry};
pub use crash::{CrashPoint, CrashWhen, Cut};
pub use kinds::Kinds;
pub use runner::Slots;
pub use signals::Signals;

/// What follows a step.
#[derive(Debug)]
pub enum Then<S> {
    /// Save this step and go on with it.
    Next(S),
    /// What the step waits for is not there yet: look again after this long.
    Later(Duration),
    /// The same, but somebody is kept waiting meanwhile: the worker stays with it.
    Shortly(Duration),
    /// The job is done; this is its result.
    Done(Value),
}

/// A step that did not work.
#[derive(Debug)]
pub struct StepError {
    pub message: String,
    pub hint: Option<String>,
    /// Whether trying again can help.
    pub retry: bool,
}

impl StepError {
    /// Trying again cannot help.
    pub fn permanent(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()), retry: false }
    }
}

impl<E: Into<Error>> From<E> for StepError {
    fn from(error: E) -> Self {
        let error: Error = error.into();
        let retry = !matches!(
            error,
            Error::CannotRestore(_)
                | Error::Invalid { .. }
                | Error::NotFound(_)
                | Error::Repository(RepositoryError::Damaged { .. })
                | Error::Cluster(ClusterError::Damaged { .. })
        );
        Self { message: chain(&error), hint: error.hint(), retry }
    }
}

/// How far a step is, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub percent: u8,
    pub words: &'static str,
}

/// What a step may know of the job it belongs to.
#[derive(Clone, Debug)]
pub struct Context {
    pub job: JobId,
    pub requested_by: String,
    /// How far the present step says that it has come. Above 100: it has said nothing.
    percent: Arc<AtomicU8>,
}

impl Context {
    #[must_use]
    pub fn new(job: JobId, requested_by: &str) -> Self {
        Self { job, requested_by: requested_by.to_owned(), percent: Arc::new(AtomicU8::new(u8::MAX)) }
    }

    /// What a long step says of itself while it runs: which part of the percents that are its own is behind it. It is
    /// written down when the lease is renewed.
    pub fn report(&self, own: Range<u8>, done: u64, total: u64) {
        let width = u64::from(own.end.saturating_sub(own.start));
        let part = done.min(total) * width / total.max(1);
        self.percent.store(own.start + u8::try_from(part).unwrap_or(0), Ordering::Relaxed);
    }

    /// Another step has begun.
    fn forget_report(&self) {
        self.percent.store(u8::MAX, Ordering::Relaxed);
    }

    fn percent(&self) -> Option<u8> {
        Some(self.percent.load(Ordering::Relaxed)).filter(|percent| *percent <= 100)
    }
}

/// A kind of job.
pub trait Work: Serialize + DeserializeOwned + Send + Sync + 'static {
    const KIND: &'static str;
    /// Which jobs go first.
    const QUEUE: Queue = Queue::Default;
    /// How often one step is tried before the job has failed.
    const MAX_ATTEMPTS: i32 = 20;
    /// What people ask for instead, where a job of the kind can be neither cancelled nor tried again by itself.
    const INSTEAD: Option<&'static str> = None;
    /// What one of the tenant's own people needs to cancel it or to try it again: what asking for it takes. `None`:
    /// tenants do not ask for it, and only operators may change it.
    const TENANTS_NEED: Option<Permission> = None;
    type Step: Serialize + DeserializeOwned + Clone + PartialEq + Debug + Send + Sync;

    /// The tenant it is for.
    fn tenant(&self) -> Option<TenantId>;

    /// Of the unfinished jobs one has this key.
    fn dedup_key(&self) -> String;

    fn first(&self) -> Self::Step;

    fn progress(step: &Self::Step) -> Progress;

    /// Carries a step out, or finds that it was.
    fn run(
        &self,
        step: &Self::Step,
        world: &World,
        context: &Context,
    ) -> impl Future<Output = Result<Then<Self::Step>, StepError>> + Send;

    /// Whether the job may be stopped instead of carrying this step out. Not where stopping would leave more than
    /// `give_up` puts right.
    fn can_cancel(_step: &Self::Step) -> bool {
        true
    }

    /// What is put right in the management database when the job fails for good or is cancelled, in the transaction
    /// that says so.
    fn give_up(
        &self,
        _connection: &mut PgConnection,
        _context: &Context,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        async { Ok(()) }
    }

    /// Takes back what `give_up` did, in the transaction that lets the job be tried again, and says with which step
    /// it goes on: the one that failed, as a rule. `None`: it cannot be tried again and must be asked for anew.
    fn take_up(
        &self,
        step: &Self::Step,
        _connection: &mut PgConnection,
        _context: &Context,
    ) -> impl Future<Output = Result<Option<Self::Step>, Error>> + Send {
        let step = step.clone();
        async { Ok(Some(step)) }
    }
}

/// Enqueues a job in the caller's transaction, or finds the unfinished one that wants the same.
pub async fn enqueue<W: Work>(
    connection: &mut PgConnection,
    work: &W,
    requested_by: &str,
) -> Result<JobId, Error> {
    enqueue_in(connection, W::QUEUE, work, requested_by).await
}

/// The same, in another queue than the kind's own.
pub async fn enqueue_in<W: Work>(
    connection: &mut PgConnection,
    queue: Queue,
    work: &W,
    requested_by: &str,
) -> Result<JobId, Error> {
    match insert_or_find(connection, queue, work, requested_by).await? {
        Enqueued::New(id) | Enqueued::Found(id) => Ok(id),
    }
}

/// Enqueues a job whose key others have as well. One of them that is unfinished is another thing than was asked for:
/// that is a conflict, told in these words.
pub async fn enqueue_alone<W: Work>(
    connection: &mut PgConnection,
    work: &W,
    requested_by: &str,
    conflict: &str,
) -> Result<JobId, Error> {
    match insert_or_find(connection, W::QUEUE, work, requested_by).await? {
        Enqueued::New(id) => Ok(id),
        Enqueued::Found(id) => Err(Error::conflict(conflict).with_hint(format!("follow job {id}"))),
    }
}

enum Enqueued {
    New(JobId),
    /// An unfinished one has the key.
    Found(JobId),
}

async fn insert_or_find<W: Work>(
    connection: &mut PgConnection,
    queue: Queue,
    work: &W,
    requested_by: &str,
) -> Result<Enqueued, Error> {
    let dedup_key = work.dedup_key();
    let value = serde_json::to_value(work).map_err(|error| Error::Internal(error.to_string()))?;
    let new = || db::jobs::New {
        kind: W::KIND,
        tenant: work.tenant(),
        queue,
        dedup_key: &dedup_key,
        work: value.clone(),
        max_attempts: W::MAX_ATTEMPTS,
        requested_by,
    };
    // Twice: the unfinished one may end between the insert and the look.
    for _ in 0..2 {
        if let Some(id) = db::jobs::insert(connection, new()).await? {
            return Ok(Enqueued::New(id));
        }
        if let Some(id) = db::jobs::unfinished(connection, &dedup_key).await? {
            return Ok(Enqueued::Found(id));
        }
    }
    Err(Error::conflict("the same job has just ended").with_hint("ask again"))
}

/// What a job was asked to do.
pub(crate) async fn work<W: Work>(connection: &mut PgConnection, id: JobId) -> Result<W, Error> {
    let value = db::jobs::work(connection, id).await?.ok_or(Error::NotFound("such job"))?;
    serde_json::from_value(value).map_err(|error| Error::Internal(error.to_string()))
}

/// Waits until a job has ended or the time is over, and tells how it stands.
pub async fn wait(world: &World, id: JobId, at_most: Duration) -> Result<db::jobs::Job, Error> {
    let deadline = tokio::time::Instant::now() + at_most;
    loop {
        let mut connection = world.db.platform.acquire().await?;
        let job = db::jobs::get(&mut connection, id).await?.ok_or(Error::NotFound("such job"))?;
        drop(connection);
        if job.is_finished() || tokio::time::Instant::now() >= deadline {
            return Ok(job);
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}
