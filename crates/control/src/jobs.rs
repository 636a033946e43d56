//! Jobs: long operations as saved steps.
//!
//! A job is a value, its place is an enum that is saved before the next step begins. Each step may be cut anywhere
//! and run again: it looks first and then acts. See [`Work`]; the kinds are in [`crate::work`].

pub mod runner;

use std::fmt::Debug;
use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use loomworks_archive::RepositoryError;
use loomworks_core::ids::{JobId, TenantId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::PgConnection;

use crate::World;
use crate::db;
use crate::error::{Error, chain};

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
}

/// A kind of job.
pub trait Work: Serialize + DeserializeOwned + Send + Sync + 'static {
    const KIND: &'static str;
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

    /// What is put right in the management database when the job fails for good, in the transaction that says so.
    fn give_up(
        &self,
        _connection: &mut PgConnection,
        _context: &Context,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        async { Ok(()) }
    }
}

/// Enqueues a job in the caller's transaction, or finds the unfinished one that wants the same.
pub async fn enqueue<W: Work>(
    connection: &mut PgConnection,
    work: &W,
    requested_by: &str,
) -> Result<JobId, Error> {
    let dedup_key = work.dedup_key();
    let value = serde_json::to_value(work).map_err(|error| Error::Internal(error.to_string()))?;
    let new = || db::jobs::New {
        kind: W::KIND,
        tenant: work.tenant(),
        dedup_key: &dedup_key,
        work: value.clone(),
        requested_by,
    };
    // Twice: the unfinished one may end between the insert and the look.
    for _ in 0..2 {
        if let Some(id) = db::jobs::insert(connection, new()).await? {
            return Ok(id);
        }
        if let Some(id) = db::jobs::unfinished(connection, &dedup_key).await? {
            return Ok(id);
        }
    }
    Err(Error::conflict("the same job has just ended").with_hint("ask again"))
}

/// The jobs a caller may see, newest first.
pub async fn list(
    world: &World,
    caller: &crate::access::Caller,
    limit: i64,
) -> Result<Vec<db::jobs::Job>, Error> {
    let mut scoped = crate::access::listing(&world.db, caller).await?;
    Ok(db::jobs::list(&mut scoped, limit).await?)
}

/// A job that the caller may see.
pub async fn get(world: &World, caller: &crate::access::Caller, id: JobId) -> Result<db::jobs::Job, Error> {
    let mut scoped = crate::access::listing(&world.db, caller).await?;
    db::jobs::get(&mut scoped, id).await?.ok_or(Error::NotFound("such job"))
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

/// Where the program is to die, for tests: once it has carried out its `place`-th step (from 0) of a kind, before or
/// after the next one was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashPoint {
    pub kind: String,
    pub place: i32,
    pub when: CrashWhen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashWhen {
    BeforeSave,
    AfterSave,
}

impl FromStr for CrashPoint {
    type Err = String;

    /// Reads `restore/3/before-save`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("`{text}` is not KIND/PLACE/before-save or KIND/PLACE/after-save");
        let mut parts = text.split('/');
        let (Some(kind), Some(place), Some(when), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(refused());
        };
        let when = match when {
            "before-save" => CrashWhen::BeforeSave,
            "after-save" => CrashWhen::AfterSave,
            _ => return Err(refused()),
        };
        Ok(Self { kind: kind.to_owned(), place: place.parse().map_err(|_| refused())?, when })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_point_reads_back() {
        let point: CrashPoint = "restore/3/before-save".parse().unwrap();
        assert_eq!(point, CrashPoint { kind: "restore".into(), place: 3, when: CrashWhen::BeforeSave });
        for text in ["", "restore", "restore/x/before-save", "restore/1/later", "restore/1/after-save/x"] {
            assert!(text.parse::<CrashPoint>().is_err(), "{text}");
        }
    }
}
