//! Telling Redis which jobs this process has in hand and how many wait.
//!
//! Said once when it changes, and all of it again every few seconds: what was flushed or lost comes back by itself,
//! and what a process that died has said ends by itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use loomworks_core::ids::{JobId, TenantId};
use redis::Pipeline;
use sqlx::PgPool;
use tokio::sync::mpsc;

use super::{Accelerator, key, lock};
use crate::db::jobs::{self, Queue};

const EVERY: Duration = Duration::from_secs(5);

/// How long what was said holds unless it is said again.
const HOLDS_SECONDS: i64 = 30;

/// Where it is noted what this process does. Never waits; without Redis it goes nowhere.
#[derive(Clone)]
pub(crate) struct Notes(Option<Arc<Noted>>);

struct Noted {
    jobs: Mutex<Jobs>,
    /// That something is to be said. It may get lost: what it is about is in `jobs`.
    hint: mpsc::Sender<()>,
}

#[derive(Default)]
struct Jobs {
    running: HashMap<JobId, Option<TenantId>>,
    /// Begun or ended since it was said last.
    changed: HashMap<JobId, Option<TenantId>>,
}

impl Notes {
    /// Starts what says it to Redis; ends when nobody can note any more.
    pub(crate) fn start(accelerator: &Accelerator, node: &str, pool: &PgPool) -> Self {
        if !accelerator.is_there() {
            return Self(None);
        }
        let (hint, hints) = mpsc::channel(1);
        let noted = Arc::new(Noted { jobs: Mutex::default(), hint });
        tokio::spawn(publish(
            accelerator.clone(),
            node.to_owned(),
            pool.clone(),
            Arc::downgrade(&noted),
            hints,
        ));
        Self(Some(noted))
    }

    pub(crate) fn running(&self, job: JobId, tenant: Option<TenantId>) {
        self.change(|jobs| {
            jobs.running.insert(job, tenant);
            jobs.changed.insert(job, tenant);
        });
    }

    pub(crate) fn ended(&self, job: JobId) {
        self.change(|jobs| {
            if let Some(tenant) = jobs.running.remove(&job) {
                jobs.changed.insert(job, tenant);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Jobs)) {
        let Some(noted) = &self.0 else { return };
        change(&mut lock(&noted.jobs));
        // Full: it will be looked anyway.
        let _ = noted.hint.try_send(());
    }
}

async fn publish(
    accelerator: Accelerator,
    node: String,
    pool: PgPool,
    noted: Weak<Noted>,
    mut hints: mpsc::Receiver<()>,
) {
    let mut all_again = tokio::time::interval(EVERY);
    all_again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let everything = tokio::select! {
            hint = hints.recv() => {
                if hint.is_none() {
                    return;
                }
                false
            }
            _ = all_again.tick() => true,
        };
        let Some(noted) = noted.upgrade() else { return };
        let mut said = say_jobs(&mut lock(&noted.jobs), &node, everything);
        drop(noted);
        if everything {
            say_waiting(&mut said, &pool).await;
        }
        accelerator.run_all(&said).await;
    }
}

/// What has changed since it was said last, and if it is time all that runs.
fn say_jobs(jobs: &mut Jobs, node: &str, everything: bool) -> Pipeline {
    let mut said = redis::pipe();
    for (job, tenant) in std::mem::take(&mut jobs.changed) {
        if jobs.running.contains_key(&job) {
            say_running(&mut said, node, job, tenant);
        } else {
            said.srem(key(tenant, "jobs", "active"), job.to_string()).ignore();
            said.del(key(tenant, "locks", &job.to_string())).ignore();
        }
    }
    if everything {
        for (job, tenant) in &jobs.running {
            say_running(&mut said, node, *job, *tenant);
        }
    }
    said
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn however_much_happens_at_once_what_ended_is_not_said_to_run() {
        let (hint, _hints) = mpsc::channel(1);
        let notes = Notes(Some(Arc::new(Noted { jobs: Mutex::default(), hint })));
        let jobs: Vec<_> = (0..5000).map(|_| JobId::random()).collect();
        jobs.iter().for_each(|job| notes.running(*job, None));
        jobs[1..].iter().for_each(|job| notes.ended(*job));
        let noted = notes.0.as_ref().expect("there is one");
        assert_eq!(lock(&noted.jobs).running.keys().copied().collect::<Vec<_>>(), jobs[..1]);
        let said = say_jobs(&mut lock(&noted.jobs), "a node", false);
        // Three commands for the one that runs, two for each that has ended.
        assert_eq!(said.cmd_iter().count(), 3 + 2 * (jobs.len() - 1));
        assert_eq!(say_jobs(&mut lock(&noted.jobs), "a node", false).cmd_iter().count(), 0);
        assert_eq!(say_jobs(&mut lock(&noted.jobs), "a node", true).cmd_iter().count(), 3);
    }
}
