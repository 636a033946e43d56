//! Redis, if there is one: wake-ups, who has which job, counters. It makes things faster and is never the truth.
//!
//! Everything here may fail, be slow or be forgotten at any moment (`FLUSHALL`), and nothing is lost or wrong: who
//! asks gets `None` and does without, who tells is not kept waiting. Trouble is logged when it begins and when it is
//! over. Keys are `freight:{tenant}:{resource}:{identifier}`, with `platform` for what belongs to no tenant:
//!
//! | key | holds |
//! | --- | --- |
//! | `freight:{tenant}:jobs:active` | a set of the ids of the jobs that run |
//! | `freight:{tenant}:queue:{high\|default\|low}` | how many jobs waited a few seconds ago |
//! | `freight:{tenant}:locks:{job}` | the node that has the job in hand |
//! | `freight:{tenant}:rate:requests` | when the tenant's allowance of requests is whole again, in microseconds since 1970 |
//! | `freight:platform:rate:{id}` | the same of an operator: of a key, or of an account |
//! | `freight:platform:jobs:wake` | a channel: a job waits |

mod publisher;

use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use loomworks_core::ids::TenantId;
use loomworks_core::{ExposeSecret, SecretString};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, FromRedisValue, Pipeline, RedisResult, Script};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::error::{Error, chain};
use crate::jobs::Signals;

pub(crate) use publisher::Notes;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than Redis ever takes, shorter than anybody notices.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);

/// After a failure nobody asks for so long: a Redis that is away must not cost each request a timeout.
const REST: Duration = Duration::from_secs(1);

/// So often at most a process says to the others that jobs wait.
const PASSED_ON_EVERY: Duration = Duration::from_millis(20);

const WAKE: &str = "freight:platform:jobs:wake";

/// The generic cell rate algorithm: of an allowance all that is kept is the moment at which it is whole again, and each
/// request moves that moment on. By Redis's own clock, so that processes need not agree on the time; a moment that is
/// further away than an empty allowance takes to fill was written before that clock was turned back.
///
/// In microseconds. Gives how many requests remain, and how long to wait if this one was one too many.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.call('TIME')
         local now = time[1] * 1e6 + time[2]
         local each, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
         local whole = tonumber(redis.call('GET', KEYS[1]) or now) or now
         whole = math.min(math.max(whole, now), now + each * burst) + each
         local left = now + each * burst - whole
         if left < 0 then return {0, math.ceil(-left)} end
         local lasts = math.max(1, math.ceil((whole - now) / 1000))
         redis.call('SET', KEYS[1], string.format('%.3f', whole), 'PX', lasts)
         return {math.floor(left / each), 0}",
    )
});

/// How fast an allowance fills up again, and how much is in it at most.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

/// How an allowance stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub remaining: u32,
    /// Until the request may be made, if it may not be now.
    pub wait: Option<Duration>,
}

/// The connection to Redis, or none. Cheap to clone.
#[derive(Clone, Default)]
pub struct Accelerator(Option<Arc<Parts>>);

struct Parts {
    client: Client,
    /// So many commands at once, each on a connection of its own.
    slots: Semaphore,
    idle: std::sync::Mutex<Vec<ConnectionManager>>,
    health: std::sync::Mutex<Health>,
}

/// Whether it worked the last time.
enum Health {
    Unknown,
    Well,
    Resting(Instant),
}

impl Accelerator {
    /// Redis at this URL (`redis://…`, `unix:///…`), over at most so many connections. Whether it answers is seen when
    /// it is used.
    pub fn new(url: &SecretString, connections: usize) -> Result<Self, Error> {
        // Not the parser's words: they may have the password in them.
        let client = Client::open(url.expose_secret()).map_err(|_| {
            Error::invalid("this is no address of a Redis")
                .with_hint("write redis://HOST:PORT or unix:///PATH")
        })?;
        Ok(Self(Some(Arc::new(Parts {
            client,
            slots: Semaphore::new(connections),
            idle: std::sync::Mutex::default(),
            health: std::sync::Mutex::new(Health::Unknown),
        }))))
    }

    /// Takes one request from an allowance that all processes share, if there is one in it. `None`: nobody counts.
    pub async fn take(&self, tenant: Option<TenantId>, name: &str, rate: Rate) -> Option<Taken> {
        let parts = self.0.as_ref()?;
        let mut call = TAKE.key(key(tenant, "rate", name));
        call.arg(1e6 / f64::from(rate.per_second.get())).arg(rate.burst.get());
        let asked = parts.ask(ANSWER_TIMEOUT, async |connection| call.invoke_async(connection).await);
        let (remaining, wait): (u32, u64) = asked.await?;
        Some(Taken { remaining, wait: (wait > 0).then(|| Duration::from_micros(wait)) })
    }

    /// Says to all processes that a job waits.
    async fn tell_job_waits(&self) {
        self.run::<i64>(Cmd::publish(WAKE, "")).await;
    }

    /// Passes on to the other processes what this one hears from the database, and wakes this one by what they pass on
    /// while it does not hear the database itself. Ends at once without Redis, otherwise never.
    pub(crate) async fn hear(&self, signals: &Signals) {
        if let Some(parts) = &self.0 {
            tokio::join!(parts.hear(signals), self.pass_on(signals));
        }
    }

    async fn pass_on(&self, signals: &Signals) {
        loop {
            signals.called().await;
            self.tell_job_waits().await;
            // What is called meanwhile is passed on at once.
            tokio::time::sleep(PASSED_ON_EVERY).await;
        }
    }

    async fn run<T: FromRedisValue>(&self, command: Cmd) -> Option<T> {
        let parts = self.0.as_ref()?;
        parts.ask(ANSWER_TIMEOUT, async |connection| command.query_async(connection).await).await
    }

    async fn run_all(&self, commands: &Pipeline) {
        if let Some(parts) = &self.0 {
            parts.ask(CONNECT_TIMEOUT, async |connection| commands.exec_async(connection).await).await;
        }
    }

    fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

impl Parts {
    async fn hear(&self, signals: &Signals) {
        loop {
            if let Ok(Ok(mut channel)) =
                tokio::time::timeout(CONNECT_TIMEOUT, self.client.get_async_pubsub()).await
                && channel.subscribe(WAKE).await.is_ok()
            {
                let mut calls = channel.on_message();
                while calls.next().await.is_some() {
                    signals.wake_unless_hearing();
                }
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// Asks on a connection that nobody else uses at the moment.
    async fn ask<T>(
        &self,
        patience: Duration,
        question: impl AsyncFnOnce(&mut ConnectionManager) -> RedisResult<T>,
    ) -> Option<T> {
        if matches!(&*lock(&self.health), Health::Resting(until) if Instant::now() < *until) {
            return None;
        }
        let asked = async {
            let _slot = self.slots.acquire().await;
            let idle = lock(&self.idle).pop();
            let mut connection = match idle {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let answer = question(&mut connection).await?;
            Ok((connection, answer))
        };
        // Whoever asks something is kept waiting: better no answer than one that comes after the connection's own time.
        let asked = tokio::time::timeout(patience, asked).await;
        match asked.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())) {
            Ok((connection, answer)) => {
                self.note(Ok(()));
                lock(&self.idle).push(connection);
                Some(answer)
            }
            Err(error) => {
                self.note(Err(error));
                None
            }
        }
    }

    async fn connect(&self) -> RedisResult<ConnectionManager> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_number_of_retries(0);
        ConnectionManager::new_with_config(self.client.clone(), config).await
    }

    fn note(&self, result: RedisResult<()>) {
        let mut health = lock(&self.health);
        match result {
            Ok(()) => {
                if matches!(*health, Health::Resting(_)) {
                    info!("Redis answers again");
                }
                *health = Health::Well;
            }
            Err(error) => {
                if !matches!(*health, Health::Resting(_)) {
                    warn!(error = chain(&error), "Redis does not answer; going on without it");
                }
                *health = Health::Resting(Instant::now() + REST);
                // What else is open is as dead, or will be asked again for nothing.
                lock(&self.idle).clear();
            }
        }
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn key(tenant: Option<TenantId>, resource: &str, identifier: &str) -> String {
    let tenant = tenant.map_or_else(|| "platform".to_owned(), |tenant| tenant.to_string());
    format!("freight:{tenant}:{resource}:{identifier}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_four_words() {
        let tenant: TenantId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        assert_eq!(
            key(Some(tenant), "jobs", "active"),
            "freight:00000000-0000-4000-8000-000000000001:jobs:active"
        );
        assert_eq!(key(None, "queue", "high"), "freight:platform:queue:high");
    }

    #[test]
    fn an_address_that_is_none_is_refused_without_telling_its_password() {
        let error = Accelerator::new(&SecretString::from("nonsense://:geheim@x"), 1).err().unwrap();
        assert!(!format!("{error} {error:?}").contains("geheim"));
    }

    #[tokio::test]
    async fn without_redis_nobody_counts_and_nobody_waits() {
        let none = Accelerator::default();
        let rate = Rate { per_second: NonZeroU32::MIN, burst: NonZeroU32::MIN };
        assert_eq!(none.take(None, "x", rate).await, None);
        let nobody = Accelerator::new(&SecretString::from("redis://127.0.0.1:9"), 2).unwrap();
        assert_eq!(nobody.take(None, "x", rate).await, None);
        nobody.tell_job_waits().await;
    }

    #[tokio::test]
    async fn what_one_process_hears_wakes_one_that_has_lost_the_database() {
        let redis = loomworks_testkit::Redis::start();
        let process = || {
            let accelerator = Accelerator::new(&redis.url().into(), 4).expect("an address");
            let signals = Signals::default();
            let hearing = signals.clone();
            tokio::spawn(async move { accelerator.hear(&hearing).await });
            signals
        };
        let (hears, deaf) = (process(), process());
        while redis.cli(&["PUBSUB", "NUMSUB", WAKE]) != format!("{WAKE}\n2") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        hears.call();
        deaf.woken().await;
    }
}
