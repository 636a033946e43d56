//! How often somebody may ask: for each tenant, each operator, and each address that has not shown who it is.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use loomworks_control::accelerator::{Accelerator, Rate};
use loomworks_control::access::{Caller, Identity, Scope};
use loomworks_core::ids::TenantId;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Beyond so many askers at once those who come new share one allowance.
const ASKERS_MAX: usize = 100_000;
/// How often the askers are counted, in requests.
const COUNTED_EVERY: u64 = 1024;

/// An allowance that fills up again by so many requests a second, up to `burst`.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { per_second: NonZeroU32::new(100).expect("not 0"), burst: NonZeroU32::new(200).expect("not 0") }
    }
}

/// Who uses up an allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    /// All keys of a tenant together.
    Tenant(uuid::Uuid),
    /// A key of the platform's own people, or an operator's account.
    Operator(uuid::Uuid),
    /// Somebody who has not shown who he is.
    Address(IpAddr),
    /// All who came when there were too many to tell apart.
    Crowd,
}

impl Asker {
    /// Gateways are part of the platform and are not limited.
    pub(crate) fn of(caller: &Caller) -> Option<Self> {
        match (caller.scope, caller.identity) {
            (Scope::Gateway, _) => None,
            (Scope::TenantAdmin(tenant) | Scope::TenantUser(tenant), _) => Some(Self::Tenant(tenant.0)),
            (Scope::Operator, Identity::Key(key)) => Some(Self::Operator(key.0)),
            (Scope::Operator, Identity::Operator { operator, .. }) => Some(Self::Operator(operator.0)),
        }
    }

    /// Under which tenant and name all processes count him together. Addresses are counted by each for itself: who
    /// has many of them would only make Redis work.
    fn shared_name(self) -> Option<(Option<TenantId>, String)> {
        match self {
            Self::Tenant(tenant) => Some((Some(TenantId(tenant)), "requests".to_owned())),
            Self::Operator(operator) => Some((None, operator.to_string())),
            Self::Address(_) | Self::Crowd => None,
        }
    }

    /// A network of IPv6 is one asker: whoever has one has all of its 2^64 addresses.
    pub(crate) fn at(address: IpAddr) -> Self {
        Self::Address(match address {
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => IpAddr::V4(v4),
                None => {
                    let [a, b, c, d, ..] = v6.segments();
                    IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
                }
            },
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// How an allowance stands after a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    allowance: Allowance,
    pub(crate) remaining: u32,
    /// Until the request may be made, if it may not be now.
    pub(crate) wait_seconds: Option<u64>,
}

type Buckets = RateLimiter<Asker, DashMapStateStore<Asker>, DefaultClock, StateInformationMiddleware>;

/// Every asker's allowance.
///
/// In memory, and those of tenants and operators in Redis too, if there is one: all processes share them then. Redis is
/// asked by those whom this process would let through, so nobody who is over his allowance costs it anything.
pub(crate) struct Limits {
    allowance: Allowance,
    shared: Accelerator,
    buckets: Buckets,
    clock: DefaultClock,
    asked: AtomicU64,
    crowded: AtomicBool,
}

impl Limits {
    pub(crate) fn new(allowance: Allowance, shared: Accelerator) -> Self {
        let quota = Quota::per_second(allowance.per_second).allow_burst(allowance.burst);
        let buckets = RateLimiter::dashmap(quota).with_middleware::<StateInformationMiddleware>();
        let clock = DefaultClock::default();
        Self { allowance, shared, buckets, clock, asked: AtomicU64::new(0), crowded: AtomicBool::new(false) }
    }

    /// Counts a request of this asker's.
    pub(crate) async fn ask(&self, asker: Asker) -> Standing {
        let here = self.ask_here(asker);
        let Some((tenant, name)) = asker.shared_name().filter(|_| here.wait_seconds.is_none()) else {
            return here;
        };
        let Allowance { per_second, burst } = self.allowance;
        let Some(taken) = self.shared.take(tenant, &name, Rate { per_second, burst }).await else {
            return here;
        };
        Standing {
            remaining: here.remaining.min(taken.remaining),
            wait_seconds: taken.wait.map(whole_seconds),
            ..here
        }
    }

    fn ask_here(&self, asker: Asker) -> Standing {
        if self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(COUNTED_EVERY) {
            if self.buckets.len() >= ASKERS_MAX / 2 {
                self.buckets.retain_recent();
            }
            self.crowded.store(self.buckets.len() >= ASKERS_MAX, Ordering::Relaxed);
        }
        let crowded = self.crowded.load(Ordering::Relaxed) && matches!(asker, Asker::Address(_));
        let asker = if crowded { Asker::Crowd } else { asker };
        let (remaining, wait_seconds) = match self.buckets.check_key(&asker) {
            Ok(state) => (state.remaining_burst_capacity(), None),
            Err(not_until) => (0, Some(whole_seconds(not_until.wait_time_from(self.clock.now())))),
        };
        Standing { allowance: self.allowance, remaining, wait_seconds }
    }
}

fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl Standing {
    /// Source: draft-ietf-httpapi-ratelimit-headers-10: a policy has a quota `q` for each window of `w` seconds; of it
    /// `r` requests remain, and in `t` seconds it is whole again.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        let (rate, burst) = (self.allowance.per_second.get(), self.allowance.burst.get());
        let policy = format!("\"default\";q={burst};w={}", burst.div_ceil(rate));
        let whole_again = burst.saturating_sub(self.remaining).div_ceil(rate);
        let limit = format!("\"default\";r={};t={whole_again}", self.remaining);
        for (name, value) in [(POLICY, policy), (LIMIT, limit)] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(shared: Accelerator) -> Limits {
        let few = Allowance { per_second: NonZeroU32::MIN, burst: NonZeroU32::new(3).unwrap() };
        Limits::new(few, shared)
    }

    fn tenant() -> Asker {
        Asker::Tenant(uuid::Uuid::new_v4())
    }

    /// How many of so many requests may be made.
    async fn admitted(limits: &Limits, asker: Asker, asked: usize) -> usize {
        let mut admitted = 0;
        for _ in 0..asked {
            admitted += usize::from(limits.ask(asker).await.wait_seconds.is_none());
        }
        admitted
    }

    #[tokio::test]
    async fn an_allowance_is_used_up_by_one_asker_alone() {
        let limits = limits(Accelerator::default());
        let (one, other) = (tenant(), tenant());
        let asked: Vec<_> = (0..4).map(|_| limits.ask_here(one)).collect();
        assert_eq!(asked.iter().map(|standing| standing.remaining).collect::<Vec<_>>(), [2, 1, 0, 0]);
        assert!(asked[2].wait_seconds.is_none() && asked[3].wait_seconds.is_some());
        assert!(limits.ask(other).await.wait_seconds.is_none());
        let mut headers = HeaderMap::new();
        asked[0].tell(&mut headers);
        assert_eq!(headers[POLICY], "\"default\";q=3;w=3");
        assert_eq!(headers[LIMIT], "\"default\";r=2;t=1");
    }

    #[test]
    fn a_network_is_one_asker() {
        let at = |text: &str| Asker::at(text.parse().unwrap());
        assert_eq!(at("2001:db8:1:2::1"), at("2001:db8:1:2:ffff::9"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
    }

    #[tokio::test]
    async fn two_processes_share_an_allowance_and_without_redis_each_has_its_own() {
        let mut redis = loomworks_testkit::Redis::start();
        let process = || limits(Accelerator::new(&redis.url().into(), 4).expect("an address"));
        let (one, other) = (process(), process());
        for asker in [tenant(), Asker::Operator(uuid::Uuid::new_v4())] {
            let (first, second) = (admitted(&one, asker, 3).await, admitted(&other, asker, 3).await);
            assert!(first == 3 && second < 3, "{first} and {second}");
        }
        let somebody = Asker::at("192.0.2.1".parse().unwrap());
        assert_eq!((admitted(&one, somebody, 3).await, admitted(&other, somebody, 3).await), (3, 3));

        // Forgotten: it begins anew, and nobody is refused for it.
        let asker = tenant();
        assert_eq!(admitted(&one, asker, 3).await, 3);
        assert_eq!(redis.cli(&["FLUSHALL"]), "OK");
        assert_eq!(admitted(&other, asker, 3).await, 3);
        redis.kill();
        let asker = tenant();
        assert_eq!((admitted(&one, asker, 3).await, admitted(&other, asker, 3).await), (3, 3));
        redis.start_again();
        assert!(one.ask(tenant()).await.wait_seconds.is_none());
    }
}
