//! Carrying jobs out: as many at a time as there are slots, claimed as slots become free.
//!
//! A claim is a lease that is renewed while the step runs, and a fence: a worker that was paused and lost its lease
//! can still finish its step, but it can save nothing.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::saver::Saver;
use super::{cron, drive};
use crate::accelerator::Notes;
use crate::db::jobs::Claim;
use crate::db::jobs::claims::{self, BATCH_MAX, Wanted};
use crate::error::chain;
use crate::{World, audit};

/// How often the queue is looked at without having been called. Notifications can be lost with their connection.
const POLL: Duration = Duration::from_millis(500);

/// How often each queue is drawn: of ten slots six are for `high_priority`, three for `default`, one for
/// `low_priority`. What a queue cannot use it gives to the others, so nothing idles and nothing starves.
const WEIGHTS: [u32; 3] = [6, 3, 1];

/// How many jobs run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// In one process. Short ones (a snapshot) must not wait for long ones (a restore).
    pub in_process: usize,
    /// Of one tenant, in all processes.
    pub per_tenant: i32,
}

impl Slots {
    /// How many jobs of no tenant this process runs at once: they are long (a backup, a fleet migration), and two
    /// slots stay for tenants as far as there are so many.
    fn of_no_tenant(self) -> i32 {
        i32::try_from(self.in_process.saturating_sub(2).max(1)).unwrap_or(i32::MAX)
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self { in_process: 6, per_tenant: 3 }
    }
}

/// Works until `stop` becomes true. Running steps are left as they are: their job goes on with the next process.
pub async fn run(world: World, mut stop: watch::Receiver<bool>) {
    loop {
        match claims::abandon_former(&world.db.platform, &world.node).await {
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
    let (saver, saving) = Saver::start(&world.db.platform);
    let notes = Notes::start(&world.accelerator, &world.node, &world.db.platform);
    let mut beside = JoinSet::new();
    beside.spawn(cron::run(world.clone()));
    let (accelerator, signals) = (world.accelerator.clone(), world.signals.clone());
    beside.spawn(async move { accelerator.hear(&signals).await });
    let mut working = JoinSet::new();
    claim_and_run(&world, &saver, &notes, &mut working, &mut stop).await;
    beside.abort_all();
    working.shutdown().await;
    drop(saver);
    // What was done is written down before the rest is given back.
    let _ = saving.await;
    // Told to stop is not cut off: it does not count as a try, and the next process need not wait for the lease.
    if let Err(error) = claims::give_back(&world.db.platform, &world.node).await {
        warn!(error = chain(&error), "jobs could not be given back; their leases will run out");
    }
}

/// Claims jobs whenever there is a free slot, until it is to stop.
async fn claim_and_run(
    world: &World,
    saver: &Saver,
    notes: &Notes,
    working: &mut JoinSet<()>,
    stop: &mut watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(world.slots.in_process));
    loop {
        while working.try_join_next().is_some() {}
        let slot = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            slot = slots.clone().acquire_owned() => slot,
        };
        let Ok(first) = slot else { return };
        let mut free = vec![first];
        while free.len() < BATCH_MAX
            && let Ok(slot) = slots.clone().try_acquire_owned()
        {
            free.push(slot);
        }
        let wanted = Wanted {
            shares: draw(free.len()),
            per_tenant: world.slots.per_tenant,
            of_no_tenant: world.slots.of_no_tenant(),
        };
        // Not dropped halfway: what it takes would be nobody's until the lease has run out.
        let idle = match claims::claim(&world.db.platform, &world.node, wanted).await {
            Ok(claimed) => {
                let nothing = claimed.is_empty();
                for (claim, slot) in claimed.into_iter().zip(free) {
                    working.spawn(carry_out(world.clone(), saver.clone(), notes.clone(), claim, slot));
                }
                nothing
            }
            Err(error) => {
                warn!(error = chain(&error), "no job can be claimed; trying again");
                true
            }
        };
        if idle {
            // A little noise keeps processes from all looking at the same moment.
            let poll = POLL.mul_f64(rand::rng().random_range(0.8..1.2));
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                _ = tokio::time::timeout(poll, world.signals.job_waits(&world.db.platform)) => {}
            }
        }
    }
}

/// Draws a queue for each of some slots.
fn draw(slots: usize) -> [i32; 3] {
    let mut shares = [0; 3];
    let all = WEIGHTS.iter().sum();
    for _ in 0..slots {
        let mut drawn = rand::rng().random_range(0..all);
        for (share, weight) in shares.iter_mut().zip(WEIGHTS) {
            if drawn < weight {
                *share += 1;
                break;
            }
            drawn -= weight;
        }
    }
    shares
}

/// Runs a claimed job as far as it goes, in its slot.
async fn carry_out(world: World, saver: Saver, notes: Notes, claim: Claim, slot: OwnedSemaphorePermit) {
    notes.running(claim.id, claim.tenant());
    let driven = match world.kinds.find(&claim.kind) {
        Some(kind) => {
            audit::with_origin(format!("job {}", claim.id), kind.drive(&world, &saver, &claim)).await
        }
        None => {
            let error = format!("this program knows no jobs of kind `{}`", claim.kind);
            drive::refuse(&world, &saver, &claim, error).await
        }
    };
    if let Err(error) = driven {
        // The database did not answer. The lease will run out and somebody goes on.
        let (id, kind) = (claim.id, claim.kind);
        warn!(job = %id, kind, error = chain(&error), "job {id} was left: its state could not be saved");
    }
    notes.ended(claim.id);
    // The tenant has a turn again, which nobody calls out.
    drop(slot);
    world.signals.wake();
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
    fn jobs_of_no_tenant_leave_slots_to_tenants_and_always_have_one() {
        let of = |in_process| Slots { in_process, per_tenant: 3 }.of_no_tenant();
        assert_eq!([1, 2, 3, 6, 200].map(of), [1, 1, 1, 4, 198]);
    }

    #[test]
    fn each_slot_is_drawn_for_one_queue_and_no_queue_is_left_out() {
        let drawn = draw(1000);
        assert_eq!(drawn.iter().sum::<i32>(), 1000);
        assert!(drawn[0] > drawn[1] && drawn[1] > drawn[2] && drawn[2] > 0, "{drawn:?}");
    }
}
