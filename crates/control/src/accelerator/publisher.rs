//! Telling Redis which jobs this process has in hand and how many wait.
//!
//! Said once when it changes, and all of it again every few seconds: what was flushed or lost comes back by itself,
//! and what a process that died has said ends by itself.

use std::collections::HashMap;
use std::time::Duration;

use loomworks_core::ids::{JobId, TenantId};
use redis::Pipeline;
use sqlx::PgPool;
use tokio::sync::mpsc;

use super::{Accelerator, key};
use crate::db::jobs::{self, Queue};

const EVERY: Duration = Duration::from_secs(5);

/// How long what was said holds unless it is said again.
const HOLDS_SECONDS: i64 = 30;

/// What waits to be said at most. More than that is not said until all is said again.
const BACKLOG: usize = 1000;

/// Something that this process does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Note {
    Running { job: JobId, tenant: Option<TenantId> },
    Ended { job: JobId },
}

/// Where it is noted. Never waits; without Redis it goes nowhere.
#[derive(Clone)]
pub(crate) struct Notes(mpsc::Sender<Note>);

impl Notes {
    /// Starts what says it to Redis; ends when nobody can note any more.
    pub(crate) fn start(accelerator: &Accelerator, node: &str, pool: &PgPool) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        if accelerator.is_there() {
            tokio::spawn(publish(accelerator.clone(), node.to_owned(), pool.clone(), receiver));
        }
        Self(sender)
    }

    pub(crate) fn note(&self, note: Note) {
        // Full: Redis is slow. Closed: there is none.
        let _ = self.0.try_send(note);
    }
}

async fn publish(accelerator: Accelerator, node: String, pool: PgPool, mut notes: mpsc::Receiver<Note>) {
    let mut running: HashMap<JobId, Option<TenantId>> = HashMap::new();
    let mut all_again = tokio::time::interval(EVERY);
    all_again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = Vec::new();
    loop {
        let mut said = redis::pipe();
        tokio::select! {
            count = notes.recv_many(&mut heard, BACKLOG) => {
                if count == 0 {
                    return;
                }
                for note in heard.drain(..) {
                    match note {
                        Note::Running { job, tenant } => {
                            running.insert(job, tenant);
                            say_running(&mut said, &node, job, tenant);
                        }
                        Note::Ended { job } => {
                            let tenant = running.remove(&job).flatten();
                            said.srem(key(tenant, "jobs", "active"), job.to_string()).ignore();
                            said.del(key(tenant, "locks", &job.to_string())).ignore();
                        }
                    }
                }
            }
            _ = all_again.tick() => {
                for (job, tenant) in &running {
                    say_running(&mut said, &node, *job, *tenant);
                }
                say_waiting(&mut said, &pool).await;
            }
        }
        accelerator.run_all(&said).await;
    }
}

fn say_running(said: &mut Pipeline, node: &str, job: JobId, tenant: Option<TenantId>) {
    let active = key(tenant, "jobs", "active");
    said.sadd(&active, job.to_string()).ignore();
    said.expire(&active, HOLDS_SECONDS).ignore();
    let seconds = HOLDS_SECONDS.cast_unsigned();
    said.set_ex(key(tenant, "locks", &job.to_string()), node, seconds).ignore();
}

async fn say_waiting(said: &mut Pipeline, pool: &PgPool) {
    let Ok(waiting) = jobs::waiting(pool).await else { return };
    for (tenant, queue, count) in waiting {
        let word = match queue {
            Queue::HighPriority => "high",
            Queue::Default => "default",
            Queue::LowPriority => "low",
        };
        said.set_ex(key(tenant, "queue", word), count, EVERY.as_secs() * 2).ignore();
    }
}
