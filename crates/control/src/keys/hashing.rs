//! Where bcrypt runs: not on the threads that serve, a few at a time, and for each owner one at a time.
//!
//! Owners stand in one line, each with one piece of work: whoever asks for a thousand waits behind himself, and
//! everybody else behind one of his.

use std::sync::Arc;
use std::time::Duration;

use loomworks_core::ids::TenantId;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::turns::Turns;
use crate::error::Error;

/// How long somebody waits for his turn before he is told to come back.
pub(super) const TURN_MAX: Duration = Duration::from_secs(5);

pub(super) struct Hashing {
    /// One for each tenant, and one for the platform's own keys.
    owners: Turns<Option<TenantId>>,
    places: Arc<Semaphore>,
    turn_max: Duration,
}

impl Hashing {
    pub(super) fn new(at_once: usize, turn_max: Duration) -> Self {
        Self { owners: Turns::default(), places: Arc::new(Semaphore::new(at_once)), turn_max }
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        owner: Option<TenantId>,
        work: impl FnOnce() -> Result<T, bcrypt::BcryptError> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = async {
            let turn = self.owners.take(owner).await;
            (turn, Arc::clone(&self.places).acquire_owned().await)
        };
        let (turn, place) =
            timeout(self.turn_max, turn).await.map_err(|_| Error::Throttled { seconds: 1 })?;
        let place = place.map_err(|error| Error::Internal(error.to_string()))?;
        let joined = tokio::task::spawn_blocking(move || {
            let done = work();
            // Held until the work is over, also when nobody waits for its end any more.
            drop((turn, place));
            done
        });
        let done = joined.await.map_err(|error| Error::Internal(error.to_string()))?;
        done.map_err(|error| Error::Internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use tokio::task::JoinSet;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn owner() -> Option<TenantId> {
        Some(TenantId::random())
    }

    /// Work that has begun and goes on until the sender is dropped.
    async fn begun(hashing: &Arc<Hashing>, owner: Option<TenantId>) -> (mpsc::Sender<()>, JoinSet<()>) {
        let (go_on, stopped) = mpsc::channel::<()>();
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let (hashing, mut tasks) = (hashing.clone(), JoinSet::new());
        tasks.spawn(async move {
            let work = move || {
                began.send(()).unwrap();
                let _ = stopped.recv();
                Ok(())
            };
            hashing.run(owner, work).await.unwrap();
        });
        has_begun.await.unwrap();
        (go_on, tasks)
    }

    #[tokio::test]
    async fn whoever_asks_for_much_waits_behind_himself() {
        let hashing = Arc::new(Hashing::new(1, LONG));
        let (much, little) = (owner(), owner());
        let (go_on, mut tasks) = begun(&hashing, much).await;
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..20 {
            let (hashing, done) = (hashing.clone(), done.clone());
            tasks.spawn(async move {
                hashing.run(much, move || Ok(done.fetch_add(1, Ordering::SeqCst))).await.unwrap();
            });
        }
        let other = tokio::spawn({
            let (hashing, done) = (hashing.clone(), done.clone());
            async move { hashing.run(little, move || Ok(done.load(Ordering::SeqCst))).await.unwrap() }
        });
        // All of them stand where they wait: this runtime has one thread.
        tokio::task::yield_now().await;
        drop(go_on);
        assert_eq!(other.await.unwrap(), 0, "he was next, after the one that had begun");
        tasks.join_all().await;
    }

    #[tokio::test]
    async fn a_place_is_taken_until_the_work_is_over_though_nobody_waits_for_it() {
        let hashing = Arc::new(Hashing::new(1, Duration::ZERO));
        let (go_on, tasks) = begun(&hashing, owner()).await;
        drop(tasks);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let refused = hashing.run(owner(), || Ok(())).await;
        assert!(matches!(refused, Err(Error::Throttled { .. })), "{refused:?}");
        drop(go_on);
        while hashing.run(owner(), || Ok(())).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}
