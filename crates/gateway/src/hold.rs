//! Which table is in force, who is in flight under it, and who waits for the next one.
//!
//! A hold is exact: once [`Tables::drained`] has returned generation G, no request that was admitted before G is in
//! flight for a tenant that G holds, and none is admitted until a later table releases it. That rests on an order
//! that both sides keep:
//!
//! ```text
//! a request                         a new table
//! 1. counts itself in               1. is put in force
//! 2. looks at the table in force    2. looks at the counts
//! ```
//!
//! Whichever comes first, at least one sees the other: either the request sees the hold and counts itself out, or
//! the table sees the request and waits for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use loomworks_core::ids::TenantId;
use loomworks_core::name::Subdomain;
use loomworks_core::route::{Route, RouteMap, RouteState, RouteTable};
use tokio::sync::{Notify, watch};

/// What a gateway is doing, for whoever watches it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    pub generation: i64,
    pub routes: usize,
    /// Tenants whose requests wait at this moment, sorted.
    pub held: Vec<Subdomain>,
}

/// The table in force and the counts that outlive every table.
pub(crate) struct Tables {
    current: ArcSwap<Table>,
    /// One count for each tenant ever routed to. It is never taken out, because a tenant that leaves and comes back
    /// while a request is in flight must find that request counted.
    counts: Mutex<HashMap<TenantId, Arc<Count>>>,
    generation: watch::Sender<i64>,
}

#[derive(Default)]
struct Table {
    map: RouteMap,
    counts: HashMap<TenantId, Arc<Count>>,
}

/// How many requests of one tenant are in flight, and how often that has become none.
///
/// Both live in one number, the first in the lower half, so that they change in one step. A notification alone would
/// not do: it may be about a moment before the one who hears it began to listen.
#[derive(Default)]
struct Count {
    both: AtomicU64,
    emptied: Notify,
}

const ONE_REQUEST: u64 = 1;
const ONE_EMPTYING: u64 = 1 << 32;

/// One request in flight. It is counted out when this is dropped.
pub(crate) struct InFlight(Arc<Count>);

/// Why a request was not let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    Unknown,
    Suspended,
    HeldTooLong,
}

enum Look {
    Admitted(Route, InFlight),
    Refused(NotAdmitted),
    Held,
}

impl Tables {
    pub(crate) fn new(first: RouteTable) -> Self {
        let tables = Self {
            current: ArcSwap::default(),
            counts: Mutex::default(),
            generation: watch::Sender::new(first.generation),
        };
        tables.install(first);
        tables
    }

    /// Puts a table in force and wakes everyone who waits for one.
    pub(crate) fn install(&self, table: RouteTable) {
        let generation = table.generation;
        let counts = {
            let mut known = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let tenants = table.routes.iter().map(|route| route.tenant);
            tenants.map(|tenant| (tenant, Arc::clone(known.entry(tenant).or_default()))).collect()
        };
        self.current.store(Arc::new(Table { map: table.into(), counts }));
        fence(Ordering::SeqCst); // the table is in force before anybody reads a count: see the module's picture
        self.generation.send_replace(generation);
    }

    pub(crate) fn generation(&self) -> i64 {
        self.current.load().map.generation
    }

    pub(crate) fn status(&self) -> Status {
        let table = self.current.load();
        let held = table.map.routes().filter(|route| route.state == RouteState::Held);
        let mut held: Vec<_> = held.map(|route| route.subdomain.clone()).collect();
        held.sort();
        Status { generation: table.map.generation, routes: table.map.routes().count(), held }
    }

    /// Sees every table that is put in force from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<i64> {
        self.generation.subscribe()
    }

    /// Lets a request in, waiting at most `hold_max` while its tenant is held.
    pub(crate) async fn admit(
        &self,
        subdomain: &Subdomain,
        hold_max: Duration,
    ) -> Result<(Route, InFlight), NotAdmitted> {
        match self.look(subdomain) {
            Look::Admitted(route, in_flight) => Ok((route, in_flight)),
            Look::Refused(why) => Err(why),
            Look::Held => {
                let released = tokio::time::timeout(hold_max, self.admit_when_released(subdomain));
                released.await.unwrap_or(Err(NotAdmitted::HeldTooLong))
            }
        }
    }

    async fn admit_when_released(&self, subdomain: &Subdomain) -> Result<(Route, InFlight), NotAdmitted> {
        let mut changes = self.changes();
        loop {
            // Watching began before this look, so a table that comes between the look and the wait is not missed.
            match self.look(subdomain) {
                Look::Admitted(route, in_flight) => return Ok((route, in_flight)),
                Look::Refused(why) => return Err(why),
                Look::Held => {}
            }
            if changes.changed().await.is_err() {
                return Err(NotAdmitted::HeldTooLong);
            }
        }
    }

    fn look(&self, subdomain: &Subdomain) -> Look {
        loop {
            let table = self.current.load();
            let Some(count) = table.map.get(subdomain).and_then(|route| table.counts.get(&route.tenant))
            else {
                return Look::Refused(NotAdmitted::Unknown);
            };
            let in_flight = InFlight::enter(count);
            // Only what the table says after the count was raised decides.
            let table = self.current.load();
            let Some(route) = table.map.get(subdomain) else {
                return Look::Refused(NotAdmitted::Unknown);
            };
            let counted =
                table.counts.get(&route.tenant).is_some_and(|count| Arc::ptr_eq(count, &in_flight.0));
            if !counted {
                continue; // the name went to another tenant between the two looks
            }
            return match route.state {
                RouteState::Serving => Look::Admitted(route.clone(), in_flight),
                RouteState::Suspended => Look::Refused(NotAdmitted::Suspended),
                RouteState::Held => Look::Held,
            };
        }
    }

    /// Waits until nobody admitted earlier is in flight for a tenant that the table in force holds, and returns that
    /// table's generation.
    pub(crate) async fn drained(&self) -> i64 {
        let table = self.current.load_full();
        for route in table.map.routes().filter(|route| route.state == RouteState::Held) {
            if let Some(count) = table.counts.get(&route.tenant) {
                count.was_empty().await;
            }
        }
        table.map.generation
    }

    /// Waits until the table in force no longer says exactly this about the tenant.
    pub(crate) async fn changed(&self, route: &Route) {
        let mut changes = self.changes();
        while self.current.load().map.get(&route.subdomain) == Some(route) && changes.changed().await.is_ok()
        {
        }
    }
}

impl InFlight {
    fn enter(count: &Arc<Count>) -> Self {
        count.both.fetch_add(ONE_REQUEST, Ordering::SeqCst);
        fence(Ordering::SeqCst); // counted in before the table is looked at: see the module's picture
        Self(Arc::clone(count))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let leave = |both: u64| {
            let left = both - ONE_REQUEST;
            Some(if requests(left) == 0 { left.wrapping_add(ONE_EMPTYING) } else { left })
        };
        let before = self.0.both.fetch_update(Ordering::SeqCst, Ordering::SeqCst, leave);
        if before.is_ok_and(|before| requests(before) == 1) {
            self.0.emptied.notify_waiters();
        }
    }
}

fn requests(both: u64) -> u64 {
    both % ONE_EMPTYING
}

fn emptyings(both: u64) -> u64 {
    both / ONE_EMPTYING
}

impl Count {
    /// Returns once there has been a moment after the call with nobody in flight.
    ///
    /// One such moment is enough, even if the count has risen again: whoever came later has seen the hold. Waiting
    /// requests raise it for an instant with each look they take.
    async fn was_empty(&self) {
        let at_first = self.both.load(Ordering::SeqCst);
        if requests(at_first) == 0 {
            return;
        }
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if emptyings(self.both.load(Ordering::SeqCst)) != emptyings(at_first) {
                return;
            }
            emptied.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use super::*;

    fn table(generation: i64, state: RouteState) -> RouteTable {
        let route = Route {
            tenant: TenantId(uuid::Uuid::from_u128(1)),
            subdomain: "acme".parse().unwrap(),
            database: "acme".into(),
            state,
            upstream: ([127, 0, 0, 1], 8069).into(),
        };
        RouteTable { generation, routes: vec![route] }
    }

    fn acme() -> Subdomain {
        "acme".parse().unwrap()
    }

    #[tokio::test]
    async fn a_hold_is_drained_when_the_last_request_has_left() {
        let tables = Tables::new(table(1, RouteState::Serving));
        let (_, first) = tables.admit(&acme(), Duration::ZERO).await.unwrap();
        let (_, second) = tables.admit(&acme(), Duration::ZERO).await.unwrap();
        tables.install(table(2, RouteState::Held));
        let drained = tables.drained();
        tokio::pin!(drained);
        assert!(poll_once(drained.as_mut()).await.is_none());
        drop(first);
        assert!(poll_once(drained.as_mut()).await.is_none());
        drop(second);
        assert_eq!(poll_once(drained.as_mut()).await, Some(2));
    }

    #[tokio::test]
    async fn a_tenant_that_leaves_and_returns_finds_its_requests_counted() {
        let tables = Tables::new(table(1, RouteState::Serving));
        let (_, request) = tables.admit(&acme(), Duration::ZERO).await.unwrap();
        tables.install(RouteTable { generation: 2, routes: vec![] });
        assert_eq!(tables.admit(&acme(), Duration::ZERO).await.err(), Some(NotAdmitted::Unknown));
        tables.install(table(3, RouteState::Held));
        let drained = tables.drained();
        tokio::pin!(drained);
        assert!(poll_once(drained.as_mut()).await.is_none());
        drop(request);
        assert_eq!(poll_once(drained.as_mut()).await, Some(3));
    }

    #[tokio::test]
    async fn a_held_request_is_let_in_by_the_table_that_releases_it() {
        let tables = Tables::new(table(1, RouteState::Held));
        let acme = acme();
        let admitted = tables.admit(&acme, Duration::from_secs(3600));
        tokio::pin!(admitted);
        assert!(poll_once(admitted.as_mut()).await.is_none());
        assert_eq!(tables.drained().await, 1, "who waits is not in flight");
        tables.install(table(2, RouteState::Held));
        assert!(poll_once(admitted.as_mut()).await.is_none());
        tables.install(table(3, RouteState::Serving));
        assert!(admitted.await.is_ok());
    }

    #[tokio::test]
    async fn a_held_request_does_not_wait_for_ever() {
        let tables = Tables::new(table(1, RouteState::Held));
        assert_eq!(tables.admit(&acme(), Duration::ZERO).await.err(), Some(NotAdmitted::HeldTooLong));
    }

    #[tokio::test]
    async fn late_word_of_an_earlier_moment_does_not_end_a_drain() {
        let tables = Tables::new(table(1, RouteState::Serving));
        let (_, request) = tables.admit(&acme(), Duration::ZERO).await.unwrap();
        tables.install(table(2, RouteState::Held));
        let drained = tables.drained();
        tokio::pin!(drained);
        assert!(poll_once(drained.as_mut()).await.is_none());
        // As if another request had counted itself out before the table came, and says so only now.
        request.0.emptied.notify_waiters();
        assert!(poll_once(drained.as_mut()).await.is_none());
        drop(request);
        assert_eq!(poll_once(drained.as_mut()).await, Some(2));
    }

    #[test]
    fn of_threads_that_race_with_holds_none_is_inside_a_drained_one() {
        let tables = Tables::new(table(1, RouteState::Serving));
        let inside = AtomicUsize::new(0);
        let done = AtomicBool::new(false);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut most = 0;
        std::thread::scope(|scope| {
            // More threads than processors, none of which yields: so they are stopped between any two steps.
            for _ in 0..4 {
                scope.spawn(|| {
                    let acme = acme();
                    while !done.load(Ordering::SeqCst) {
                        if let Look::Admitted(_, in_flight) = tables.look(&acme) {
                            inside.fetch_add(1, Ordering::SeqCst);
                            (0..1000).for_each(|_| std::hint::spin_loop());
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(in_flight);
                        }
                    }
                });
            }
            for generation in (2..4000).step_by(2) {
                tables.install(table(generation, RouteState::Held));
                runtime.block_on(tables.drained());
                most = (0..500).map(|_| inside.load(Ordering::SeqCst)).max().max(Some(most)).unwrap();
                tables.install(table(generation + 1, RouteState::Serving));
                (0..500).for_each(|_| std::hint::spin_loop());
            }
            done.store(true, Ordering::SeqCst);
        });
        assert_eq!(most, 0);
    }

    /// Polls once: `None` when the future is not done.
    async fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut future = Some(future);
        std::future::poll_fn(|cx| match future.take().map(|future| future.poll(cx)) {
            Some(std::task::Poll::Ready(output)) => std::task::Poll::Ready(Some(output)),
            _ => std::task::Poll::Ready(None),
        })
        .await
    }
}
