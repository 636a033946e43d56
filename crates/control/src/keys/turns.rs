//! One at a time for each of many things.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// From so many on, what was left by those who went away while they waited is thrown out.
const LEFT_MAX: usize = 4096;

/// Who has his turn, and who waits.
#[derive(Clone)]
pub(super) struct Turns<K>(Arc<Mutex<HashMap<K, Arc<AsyncMutex<()>>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// Waits until nobody else has the turn for this. It lasts until the result is dropped.
    pub(super) async fn take(&self, of: K) -> Turn<K> {
        let alone = {
            let mut all = self.lock();
            if all.len() >= LEFT_MAX {
                all.retain(|_, alone| Arc::strong_count(alone) > 1);
            }
            all.entry(of.clone()).or_default().clone()
        };
        Turn { guard: Some(alone.lock_owned().await), turns: self.clone(), of }
    }
}

impl<K> Turns<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<AsyncMutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn for one thing.
pub(super) struct Turn<K: Eq + Hash> {
    turns: Turns<K>,
    of: K,
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K: Eq + Hash> Drop for Turn<K> {
    fn drop(&mut self) {
        self.guard.take();
        let mut all = self.turns.lock();
        // Nobody waits: two holders would be the map and whoever does.
        if all.get(&self.of).is_some_and(|alone| Arc::strong_count(alone) == 1) {
            all.remove(&self.of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_left_of_those_who_had_their_turn() {
        let turns = Turns::default();
        let first = turns.take(1).await;
        let second = tokio::spawn({
            let turns = turns.clone();
            async move { drop(turns.take(1).await) }
        });
        tokio::task::yield_now().await;
        drop(first);
        second.await.unwrap();
        assert!(turns.lock().is_empty());
    }
}
