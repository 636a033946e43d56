//! The kinds of jobs that a program knows, found by their names.
//!
//! The queue knows jobs as rows; [`Work`] knows them as types. This is where one becomes the other.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::Value;
use sqlx::PgConnection;

use super::saver::Saver;
use super::{Context, Work, drive};
use crate::World;
use crate::access::Permission;
use crate::db::jobs::{Claim, Locked};
use crate::error::Error;

type Future<'a, T> = Pin<Box<dyn std::future::Future<Output = Result<T, Error>> + Send + 'a>>;

/// A kind, whatever its type.
pub(crate) trait Kind: Send + Sync {
    fn max_attempts(&self) -> i32;

    /// What people ask for instead of cancelling or retrying a job.
    fn instead(&self) -> Option<&'static str>;

    /// What a tenant's own people need to change it. `None`: they may not.
    fn tenants_need(&self) -> Option<Permission>;

    /// Runs a claimed job as far as it goes.
    fn drive<'a>(&'a self, world: &'a World, saver: &'a Saver, claim: &'a Claim) -> Future<'a, ()>;

    /// Whether a job may be stopped where it is.
    fn can_cancel(&self, job: &Locked) -> Result<bool, Error>;

    /// Puts right what a job that is stopped has left in the management database.
    fn give_up<'a>(&'a self, connection: &'a mut PgConnection, job: &'a Locked) -> Future<'a, ()>;

    /// Takes back what giving up did, and says at which step the job goes on. `None`: it cannot.
    fn take_up<'a>(&'a self, connection: &'a mut PgConnection, job: &'a Locked) -> Future<'a, Option<Value>>;
}

/// All kinds of a program. Cheap to clone.
#[derive(Clone, Default)]
pub struct Kinds(BTreeMap<&'static str, Arc<dyn Kind>>);

impl Kinds {
    /// One more kind.
    #[must_use]
    pub fn with<W: Work>(mut self) -> Self {
        self.0.insert(W::KIND, Arc::new(Of::<W>(PhantomData)));
        self
    }

    /// Their names, in the order of the alphabet.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    pub(crate) fn find(&self, kind: &str) -> Option<&dyn Kind> {
        self.0.get(kind).map(Arc::as_ref)
    }
}

struct Of<W>(PhantomData<fn() -> W>);

impl<W: Work> Kind for Of<W> {
    fn max_attempts(&self) -> i32 {
        W::MAX_ATTEMPTS
    }

    fn instead(&self) -> Option<&'static str> {
        W::INSTEAD
    }

    fn tenants_need(&self) -> Option<Permission> {
        W::TENANTS_NEED
    }

    fn drive<'a>(&'a self, world: &'a World, saver: &'a Saver, claim: &'a Claim) -> Future<'a, ()> {
        Box::pin(drive::drive::<W>(world, saver, claim))
    }

    fn can_cancel(&self, job: &Locked) -> Result<bool, Error> {
        let (_, step) = read::<W>(job)?;
        Ok(W::can_cancel(&step))
    }

    fn give_up<'a>(&'a self, connection: &'a mut PgConnection, job: &'a Locked) -> Future<'a, ()> {
        Box::pin(async move {
            let (work, _) = read::<W>(job)?;
            work.give_up(connection, &context(job)).await
        })
    }

    fn take_up<'a>(&'a self, connection: &'a mut PgConnection, job: &'a Locked) -> Future<'a, Option<Value>> {
        Box::pin(async move {
            let (work, step) = read::<W>(job)?;
            let step = work.take_up(&step, connection, &context(job)).await?;
            step.map(|step| serde_json::to_value(step).map_err(|error| Error::Internal(error.to_string())))
                .transpose()
        })
    }
}

fn context(job: &Locked) -> Context {
    Context::new(job.id, &job.requested_by)
}

fn read<W: Work>(job: &Locked) -> Result<(W, W::Step), Error> {
    parse(&job.work, job.step.as_ref())
        .map_err(|error| Error::Internal(format!("read job {}: {error}", job.id)))
}

/// A job and its place, from what was saved of them.
pub(crate) fn parse<W: Work>(work: &Value, step: Option<&Value>) -> serde_json::Result<(W, W::Step)> {
    let work: W = serde_json::from_value(work.clone())?;
    let step = match step {
        Some(step) => serde_json::from_value(step.clone())?,
        None => work.first(),
    };
    Ok((work, step))
}
