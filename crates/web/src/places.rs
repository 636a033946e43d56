//! What is open for long, so many at a time: downloads, event streams.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use loomworks_core::ids::TenantId;

use crate::error::Problem;
use crate::limits::Asker;

/// When somebody for whom there is no place may ask again, in seconds.
const ASK_AGAIN: u64 = 10;

/// What this process has open.
pub(crate) struct Open {
    pub(crate) downloads: Places<TenantId>,
    pub(crate) streams: Places<Asker>,
}

impl Default for Open {
    fn default() -> Self {
        Self { downloads: Places::new("downloads", 2, 16), streams: Places::new("event streams", 32, 256) }
    }
}

/// So many places for each, and so many in all.
pub(crate) struct Places<K> {
    what: &'static str,
    each: usize,
    all: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Clone + Eq + Hash> Places<K> {
    fn new(what: &'static str, each: usize, all: usize) -> Self {
        Self { what, each, all, taken: Arc::default() }
    }

    /// Takes one until it is dropped.
    pub(crate) fn take(&self, whose: K) -> Result<Place<K>, Problem> {
        let mut taken = lock(&self.taken);
        let own = taken.get(&whose).copied().unwrap_or(0);
        if own >= self.each {
            return Err(Problem::too_many_open(self.what, self.each, ASK_AGAIN));
        }
        if taken.values().sum::<usize>() >= self.all {
            return Err(Problem::all_taken(self.what, ASK_AGAIN));
        }
        taken.insert(whose.clone(), own + 1);
        Ok(Place { taken: Arc::clone(&self.taken), whose })
    }
}

/// One that is taken.
pub(crate) struct Place<K: Clone + Eq + Hash> {
    taken: Arc<Mutex<HashMap<K, usize>>>,
    whose: K,
}

impl<K: Clone + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        match taken.get_mut(&self.whose) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.whose)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::response::IntoResponse;

    use super::*;

    #[test]
    fn one_does_not_take_all_places_and_all_are_given_back() {
        let places = Places::new("things", 2, 3);
        let status = |taken: Result<Place<char>, Problem>| taken.err().unwrap().into_response();
        let (first, _second) = (places.take('a').unwrap(), places.take('a').unwrap());
        let third = status(places.take('a'));
        assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(third.headers().contains_key("retry-after"));
        let other = places.take('b').unwrap();
        let full = status(places.take('c'));
        assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(full.headers().contains_key("retry-after"));
        drop((first, other));
        let _again = (places.take('a').unwrap(), places.take('c').unwrap());
        assert_eq!(lock(&places.taken).len(), 2);
    }
}
