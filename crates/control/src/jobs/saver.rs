//! Writing down what workers have done, many at a time.
//!
//! A commit costs a wait for the disk, whether it is of one job or of a hundred. So one task writes: while it waits,
//! what other workers have done collects and goes into the next statement. Nobody waits for others to come.
//!
//! It has a connection of its own: a lease must be renewed also while steps have all others in use.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::db::jobs::Claim;
use crate::db::jobs::claims::{self, Applied, BATCH_MAX, Change, Outcome};
use crate::error::Error;

/// How long a connection may take. The leases of those who wait meanwhile run.
const PATIENCE: Duration = Duration::from_secs(5);

type Answer = sqlx::Result<Option<Applied>>;

/// Takes what is to be written down. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Saver(mpsc::Sender<(Change, oneshot::Sender<Answer>)>);

impl Saver {
    /// Starts the task that writes; it ends when nobody can ask it any more.
    pub(crate) fn start(pool: &PgPool) -> (Self, JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(BATCH_MAX);
        let options = (*pool.connect_options()).clone();
        let own =
            PgPoolOptions::new().max_connections(1).acquire_timeout(PATIENCE).connect_lazy_with(options);
        (Self(sender), tokio::spawn(write(own, receiver)))
    }

    /// Writes an outcome down. `None`: the claim is lost, and nothing was written.
    pub(crate) async fn save(&self, claim: &Claim, outcome: Outcome) -> Result<Option<Applied>, Error> {
        let (answer, answered) = oneshot::channel();
        let gone = || Error::Internal("the task that saves jobs has ended".into());
        self.0.send((Change::new(claim, outcome), answer)).await.map_err(|_| gone())?;
        Ok(answered.await.map_err(|_| gone())??)
    }
}

async fn write(pool: PgPool, mut receiver: mpsc::Receiver<(Change, oneshot::Sender<Answer>)>) {
    let mut asked = Vec::with_capacity(BATCH_MAX);
    while receiver.recv_many(&mut asked, BATCH_MAX).await > 0 {
        // A step that ended while its lease was being renewed is saved as well, and one statement must not change a
        // row twice. Who asked for the renewal has gone then.
        asked.retain(|(change, answer)| {
            !(matches!(change.outcome, Outcome::Keep { .. }) && answer.is_closed())
        });
        if asked.is_empty() {
            continue;
        }
        let (changes, answers): (Vec<_>, Vec<_>) = asked.drain(..).unzip();
        match apply(&pool, &changes).await {
            Ok(applied) => {
                for (change, answer) in changes.iter().zip(answers) {
                    // Who asked may be gone: nobody needs the answer then.
                    let _ = answer.send(Ok(applied.iter().find(|one| one.is_of(change)).copied()));
                }
            }
            // What one of them has wrong must not be the others' harm.
            Err(_) if changes.len() > 1 => {
                for (change, answer) in changes.iter().zip(answers) {
                    let applied = apply(&pool, std::slice::from_ref(change)).await;
                    let _ = answer.send(applied.map(|applied| applied.first().copied()));
                }
            }
            Err(error) => {
                if let Some(answer) = answers.into_iter().next() {
                    let _ = answer.send(Err(error));
                }
            }
        }
    }
}

async fn apply(pool: &PgPool, changes: &[Change]) -> sqlx::Result<Vec<Applied>> {
    let mut connection = pool.acquire().await?;
    claims::apply(&mut connection, changes).await
}
