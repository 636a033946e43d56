//! What the database calls out about jobs, heard once a process and told to everybody in it.
//!
//! A notification can be lost with its connection, so nobody depends on one: whoever listens looks by himself too,
//! only less often.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use loomworks_core::ids::JobId;
use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::{Notify, OnceCell, broadcast};
use tracing::debug;

use crate::db::jobs::{CHANGES, CHANNEL};

/// Changes that somebody who is slow may miss; he looks at his job again then.
const BACKLOG: usize = 1024;

/// Where the calls of one process are heard. Cheap to clone; the connection is made when somebody first listens.
#[derive(Clone)]
pub struct Signals(Arc<Parts>);

struct Parts {
    waiting: Notify,
    /// The database has called that a job waits, for whoever passes it on.
    called: Notify,
    /// Whether it would be heard if it did.
    hearing: AtomicBool,
    changed: broadcast::Sender<JobId>,
    listening: OnceCell<()>,
}

impl Default for Signals {
    fn default() -> Self {
        let changed = broadcast::Sender::new(BACKLOG);
        Self(Arc::new(Parts {
            waiting: Notify::new(),
            called: Notify::new(),
            hearing: AtomicBool::new(false),
            changed,
            listening: OnceCell::new(),
        }))
    }
}

impl Signals {
    /// Waits until it is called out that a job waits. One who waits is woken by what was called since the last time.
    pub async fn job_waits(&self, pool: &PgPool) {
        self.listen(pool).await;
        self.woken().await;
    }

    pub(crate) async fn woken(&self) {
        self.0.waiting.notified().await;
    }

    /// Waits until the database has called that a job waits.
    pub(crate) async fn called(&self) {
        self.0.called.notified().await;
    }

    /// It has called.
    pub(crate) fn call(&self) {
        self.wake();
        self.0.called.notify_one();
    }

    /// Somebody else says that the database has called. Whoever has heard it himself need not look twice.
    pub(crate) fn wake_unless_hearing(&self) {
        if !self.0.hearing.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    /// Says to this process that a job waits.
    pub fn wake(&self) {
        self.0.waiting.notify_one();
    }

    /// The jobs that change from now on.
    pub async fn changes(&self, pool: &PgPool) -> broadcast::Receiver<JobId> {
        let receiver = self.0.changed.subscribe();
        self.listen(pool).await;
        receiver
    }

    async fn listen(&self, pool: &PgPool) {
        let start = async || {
            tokio::spawn(hear(self.clone(), pool.clone()));
        };
        self.0.listening.get_or_init(start).await;
    }
}

/// Listens for ever, with a new connection where one was lost.
async fn hear(signals: Signals, pool: PgPool) {
    loop {
        if let Err(error) = hear_until_lost(&signals, &pool).await {
            debug!(%error, "the connection that hears of jobs was lost; making another");
        }
        signals.0.hearing.store(false, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn hear_until_lost(signals: &Signals, pool: &PgPool) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all([CHANNEL, CHANGES]).await?;
    signals.0.hearing.store(true, Ordering::Relaxed);
    // Something may have been called while nobody listened.
    signals.wake();
    loop {
        let call = listener.recv().await?;
        if call.channel() == CHANNEL {
            signals.call();
            continue;
        }
        for id in call.payload().split(' ').filter_map(|id| id.parse().ok()) {
            // Nobody follows a job at the moment: that is no error.
            let _ = signals.0.changed.send(id);
        }
    }
}
