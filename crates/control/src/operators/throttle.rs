//! How often one may try to log in: the more tries failed, the longer the wait.
//!
//! Counted for each account that is named, whether it exists or not, and for each address from which somebody comes. A
//! try is counted before it is made and taken back when it was right, so that many at the same time are not fewer. A
//! try that must wait is not counted: whoever knows the password gets in when the wait is over.
//!
//! In memory: a restart forgets, and costs an attacker nothing he could rely on.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is remembered about accounts and addresses at the most, each.
const ENTRIES_MAX: usize = 10_000;
/// After so long without a try everything is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// How patient we are.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// Failures without a wait.
    free: u32,
    /// The longest wait. An account's is short, so that nobody can be locked out for long by somebody else.
    longest: Duration,
}

const WITH_ACCOUNT: Patience = Patience { free: 5, longest: Duration::from_secs(60) };
const WITH_ADDRESS: Patience = Patience { free: 20, longest: Duration::from_secs(900) };

impl Patience {
    /// The wait after so many failures: 1 s, 2 s, 4 s, …
    fn wait(self, failures: u32) -> Duration {
        match failures.checked_sub(self.free) {
            None => Duration::ZERO,
            Some(over) => Duration::from_secs(1 << over.min(20)).min(self.longest),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Tried {
    failures: u32,
    last: Instant,
}

struct Counts<K> {
    patience: Patience,
    tried: HashMap<K, Tried>,
}

impl<K: Eq + Hash + Clone> Counts<K> {
    fn new(patience: Patience) -> Self {
        Self { patience, tried: HashMap::new() }
    }

    /// How long this one has to wait from `now` on.
    fn wait(&self, key: &K, now: Instant) -> Duration {
        let Some(tried) = self.tried.get(key) else { return Duration::ZERO };
        (tried.last + self.patience.wait(tried.failures)).saturating_duration_since(now)
    }

    fn count(&mut self, key: &K, now: Instant) {
        self.make_room(now);
        let tried = self.tried.entry(key.clone()).or_insert(Tried { failures: 0, last: now });
        if now.saturating_duration_since(tried.last) >= FORGOTTEN_AFTER {
            tried.failures = 0;
        }
        *tried = Tried { failures: tried.failures.saturating_add(1), last: now };
    }

    fn take_back(&mut self, key: &K) {
        if let Some(tried) = self.tried.get_mut(key) {
            tried.failures = tried.failures.saturating_sub(1);
        }
    }

    /// When it is full the half with the fewest failures is forgotten: filling it with new names frees no old one.
    fn make_room(&mut self, now: Instant) {
        if self.tried.len() < ENTRIES_MAX {
            return;
        }
        self.tried.retain(|_, tried| now.saturating_duration_since(tried.last) < FORGOTTEN_AFTER);
        if self.tried.len() < ENTRIES_MAX {
            return;
        }
        let mut all: Vec<(K, Tried)> = self.tried.drain().collect();
        all.sort_by_key(|(_, tried)| std::cmp::Reverse((tried.failures, tried.last)));
        all.truncate(ENTRIES_MAX / 2);
        self.tried.extend(all);
    }
}

/// A network from which somebody comes. One customer has a whole /64 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Network(IpAddr);

impl Network {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (u128::MAX << 64)).into()),
            v4 => v4,
        })
    }
}

/// Who has tried how often.
#[derive(Clone)]
pub(crate) struct Throttle(Arc<Mutex<(Counts<String>, Counts<Network>)>>);

impl Default for Throttle {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((Counts::new(WITH_ACCOUNT), Counts::new(WITH_ADDRESS)))))
    }
}

impl Throttle {
    /// Counts a try, or gives the seconds to wait. Without an account the address alone counts.
    pub(crate) fn admit(&self, account: Option<&str>, address: IpAddr, now: Instant) -> Result<(), u64> {
        let (accounts, addresses) = &mut *self.lock();
        let (account, network) = (account.map(str::to_owned), Network::of(address));
        let wait = account.as_ref().map_or(Duration::ZERO, |account| accounts.wait(account, now));
        let wait = wait.max(addresses.wait(&network, now));
        if !wait.is_zero() {
            return Err(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
        }
        if let Some(account) = account {
            accounts.count(&account, now);
        }
        addresses.count(&network, now);
        Ok(())
    }

    /// The try was right. The account's failures are over; those of the address are not: somebody with an account of
    /// his own could otherwise try other people's for ever.
    pub(crate) fn succeeded(&self, account: Option<&str>, address: IpAddr) {
        let (accounts, addresses) = &mut *self.lock();
        if let Some(account) = account {
            accounts.tried.remove(account);
        }
        addresses.take_back(&Network::of(address));
    }

    fn lock(&self) -> MutexGuard<'_, (Counts<String>, Counts<Network>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn the_wait_for_an_account_doubles_and_has_an_end() {
        let (throttle, mut now) = (Throttle::default(), Instant::now());
        for _ in 0..5 {
            throttle.admit(Some("ann"), address(1), now).unwrap();
        }
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            // From elsewhere it is the same wait; another account has none.
            assert_eq!(throttle.admit(Some("ann"), address(2), now), Err(expected));
            throttle.admit(Some("bob"), address(3), now).unwrap();
            throttle.succeeded(Some("bob"), address(3));
            now += Duration::from_secs(expected);
            throttle.admit(Some("ann"), address(1), now).unwrap();
        }
    }

    #[test]
    fn a_right_password_ends_the_accounts_wait_and_not_the_addresss() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..20 {
            throttle.admit(Some(&format!("account {n}")), address(1), now).unwrap();
        }
        throttle.succeeded(Some("account 1"), address(1));
        throttle.admit(Some("account 1"), address(1), now).unwrap();
        assert_eq!(throttle.admit(Some("one more"), address(1), now), Err(1));
        assert_eq!(throttle.admit(Some("one more"), address(2), now), Ok(()));
    }

    #[test]
    fn tries_at_the_same_time_are_all_counted() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        let admitted = (0..100).filter(|n| throttle.admit(Some("ann"), address(*n), now).is_ok()).count();
        assert_eq!(admitted, 5);
    }

    #[test]
    fn after_an_hour_all_is_forgotten() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..5 {
            throttle.admit(Some("ann"), address(1), now).unwrap();
        }
        let later = now + FORGOTTEN_AFTER;
        for _ in 0..5 {
            throttle.admit(Some("ann"), address(1), later).unwrap();
        }
        assert!(throttle.admit(Some("ann"), address(1), later).is_err());
    }

    #[test]
    fn a_flood_of_names_is_bounded_and_frees_nobody() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..5 {
            throttle.admit(Some("ann"), address(1), now).unwrap();
        }
        for n in 0..30_000_u32 {
            let _ = throttle.admit(Some(&n.to_string()), IpAddr::V4(n.into()), now);
        }
        assert!(throttle.lock().0.tried.len() <= ENTRIES_MAX);
        assert!(throttle.lock().1.tried.len() <= ENTRIES_MAX);
        assert_eq!(throttle.admit(Some("ann"), address(1), now), Err(1));
    }

    #[test]
    fn a_customers_network_is_one_address() {
        let network = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
