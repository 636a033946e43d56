//! Keys that were checked a moment ago, in memory.
//!
//! A request with a key in use costs one keyed checksum and one look into one of many small maps. bcrypt runs once for
//! a key in a process: when a key's minute is over, the database is asked whether it is still good, and its hash is
//! checked again only if that is another one.
//!
//! A key that is revoked meanwhile must not come back: whoever asks the database notes the [`Generation`] before, and
//! who holds the key is believed later only if no key has changed since. That the key fits its hash stays true and is
//! kept all the same, so that nobody can have other people's keys hashed again and again by changing his own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use loomworks_core::ExposeSecret;
use loomworks_core::api_key::ApiKey;
use loomworks_core::ids::{ApiKeyId, TenantId};
use tokio::time::timeout;

use super::hashing::{Hashing, TURN_MAX};
use super::turns::{Turn, Turns};
use crate::access::{Caller, Identity};
use crate::credentials::MasterKey;
use crate::error::Error;

/// How long a checked key is believed, while this process hears of changes.
const TRUSTED_FOR: Duration = Duration::from_secs(60);
/// The same while it does not: less than the second within which a revocation is seen everywhere.
const TRUSTED_UNHEARD: Duration = Duration::from_millis(500);
/// How often the use of a key is noted.
const USE_NOTED_EVERY: Duration = Duration::from_secs(60);

const SHARDS: usize = 64;
/// Some 65,000 keys in all, at about 300 bytes each.
const KEYS_A_SHARD_MAX: usize = 1024;

pub(super) type Mac = [u8; 32];

/// How many changes of keys this process has heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(u64);

/// Keys that were checked a moment ago.
#[derive(Clone)]
pub struct KeyRing(Arc<Ring>);

struct Ring {
    pepper: ring::hmac::Key,
    shards: [RwLock<HashMap<Mac, Known>>; SHARDS],
    /// The keys that are being looked up, so that a burst of requests with one costs one look.
    looking: Turns<Mac>,
    generation: AtomicU64,
    hearing: AtomicBool,
    used: Mutex<Vec<ApiKeyId>>,
    began: Instant,
    /// bcrypt takes 50 milliseconds of a core: half of the cores at most, so that keys that are new here do not stop
    /// those that are known.
    checking: Hashing,
    /// One at a time and apart, so that making keys keeps nobody from using his.
    making: Hashing,
    hashed: AtomicU64,
}

struct Known {
    caller: Caller,
    until: Instant,
    /// The hash that the key was found to fit.
    hash: Arc<str>,
    /// The last period in which its use was noted, from 1.
    use_noted: AtomicU32,
}

impl KeyRing {
    #[must_use]
    pub fn new(master_key: &MasterKey) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Ring {
            pepper: ring::hmac::Key::new(ring::hmac::HMAC_SHA256, master_key.pepper()),
            shards: std::array::from_fn(|_| RwLock::default()),
            looking: Turns::default(),
            generation: AtomicU64::new(0),
            hearing: AtomicBool::new(false),
            used: Mutex::default(),
            began: Instant::now(),
            checking: Hashing::new((cores / 2).clamp(1, 4), TURN_MAX),
            making: Hashing::new(1, TURN_MAX),
            hashed: AtomicU64::new(0),
        }))
    }

    /// How many hashes this process has made or checked.
    #[must_use]
    pub fn hashes(&self) -> u64 {
        self.0.hashed.load(Ordering::Relaxed)
    }

    pub(super) fn mac(&self, key: &ApiKey) -> Mac {
        let tag = ring::hmac::sign(&self.0.pepper, key.expose_secret().as_bytes());
        tag.as_ref().try_into().expect("HMAC-SHA-256 gives 32 bytes")
    }

    /// Who holds this key, if that was found out a moment ago.
    pub(super) fn trusted(&self, mac: &Mac) -> Option<Caller> {
        let shard = self.read(mac);
        let known = shard.get(mac)?;
        let now = Instant::now();
        if now >= known.until {
            return None;
        }
        self.note_use(known, now);
        Some(known.caller.clone())
    }

    /// The hash that this key was found to fit, however long ago.
    pub(super) fn proven(&self, mac: &Mac) -> Option<Arc<str>> {
        Some(self.read(mac).get(mac)?.hash.clone())
    }

    pub(super) fn generation(&self) -> Generation {
        Generation(self.0.generation.load(Ordering::SeqCst))
    }

    /// Keeps what was found out. If a key was changed since `before` it may have been this one: then the next request
    /// with it asks the database again.
    pub(super) fn trust(
        &self,
        before: Generation,
        mac: Mac,
        caller: Caller,
        hash: &str,
        good_for: Option<Duration>,
    ) {
        let now = Instant::now();
        let hearing = self.0.hearing.load(Ordering::SeqCst);
        let trusted_for = if hearing { TRUSTED_FOR } else { TRUSTED_UNHEARD };
        let until = now + good_for.map_or(trusted_for, |left| left.min(trusted_for));
        let mut known = Known { caller, until, hash: hash.into(), use_noted: AtomicU32::new(0) };
        let mut shard = self.write(&mac);
        if let Some(former) = shard.get(&mac) {
            known.use_noted.store(former.use_noted.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.note_use(&known, now);
        // Looked at under the lock under which keys are forgotten.
        if self.generation() != before {
            known.until = now;
        }
        if !shard.contains_key(&mac) && shard.len() >= KEYS_A_SHARD_MAX {
            // Any one: it costs its holder one look, and a full shard no search.
            let any = shard.keys().next().copied();
            any.and_then(|any| shard.remove(&any));
        }
        shard.insert(mac, known);
    }

    fn note_use(&self, known: &Known, now: Instant) {
        let Identity::Key(id) = known.caller.identity else { return };
        let elapsed = now.duration_since(self.0.began).as_secs();
        let period = u32::try_from(elapsed / USE_NOTED_EVERY.as_secs()).unwrap_or(u32::MAX - 1) + 1;
        let noted = known.use_noted.load(Ordering::Relaxed);
        let ours = || known.use_noted.compare_exchange(noted, period, Ordering::Relaxed, Ordering::Relaxed);
        if noted != period && ours().is_ok() {
            lock(&self.0.used).push(id);
        }
    }

    /// The keys that were used since this was asked last, each at most once a minute.
    pub(super) fn take_used(&self) -> Vec<ApiKeyId> {
        std::mem::take(&mut *lock(&self.0.used))
    }

    /// This key was changed.
    pub(super) fn forget(&self, id: ApiKeyId) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
        for shard in &self.0.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, known| known.caller.identity != Identity::Key(id));
        }
    }

    /// Any key may have been changed. What was proven stays proven, but nothing is believed without a look.
    pub(super) fn distrust_all(&self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
        let now = Instant::now();
        for shard in &self.0.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.values_mut().for_each(|known| known.until = now);
        }
    }

    pub(super) fn set_hearing(&self, hearing: bool) {
        self.0.hearing.store(hearing, Ordering::SeqCst);
        self.distrust_all();
    }

    /// Waits for whoever looks the same key up, and keeps others waiting until the result is dropped.
    pub(super) async fn look_alone(&self, mac: &Mac) -> Result<Turn<Mac>, Error> {
        let turn = timeout(TURN_MAX, self.0.looking.take(*mac)).await;
        turn.map_err(|_| Error::Throttled { seconds: 1 })
    }

    /// Checks a key of this owner with bcrypt.
    pub(super) async fn check(
        &self,
        owner: Option<TenantId>,
        work: impl FnOnce() -> Result<bool, bcrypt::BcryptError> + Send + 'static,
    ) -> Result<bool, Error> {
        let ring = self.clone();
        self.0.checking.run(owner, move || ring.count(work)).await
    }

    /// Makes the hash of a new key for this owner with bcrypt.
    pub(super) async fn make(
        &self,
        owner: Option<TenantId>,
        work: impl FnOnce() -> Result<String, bcrypt::BcryptError> + Send + 'static,
    ) -> Result<String, Error> {
        let ring = self.clone();
        self.0.making.run(owner, move || ring.count(work)).await
    }

    fn count<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.hashed.fetch_add(1, Ordering::Relaxed);
        work()
    }

    fn shard(&self, mac: &Mac) -> &RwLock<HashMap<Mac, Known>> {
        &self.0.shards[usize::from(mac[0]) % SHARDS]
    }

    fn read(&self, mac: &Mac) -> RwLockReadGuard<'_, HashMap<Mac, Known>> {
        self.shard(mac).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mac: &Mac) -> RwLockWriteGuard<'_, HashMap<Mac, Known>> {
        self.shard(mac).write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use loomworks_core::ids::TenantId;

    use super::*;
    use crate::access::{Permission, Scope};

    fn ring() -> KeyRing {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::new(&MasterKey::load_or_create(&dir.path().join("key")).unwrap());
        ring.set_hearing(true);
        ring
    }

    fn caller(id: ApiKeyId) -> Caller {
        Caller {
            identity: Identity::Key(id),
            scope: Scope::TenantUser(TenantId::random()),
            permissions: vec![Permission::Read],
            name: "test".into(),
        }
    }

    #[test]
    fn a_key_that_was_looked_up_while_one_changed_is_looked_up_again_and_not_hashed_again() {
        let (ring, id) = (ring(), ApiKeyId::random());
        for changed in [id, ApiKeyId::random()] {
            let before = ring.generation();
            ring.forget(changed);
            ring.trust(before, [1; 32], caller(id), "hash", None);
            assert!(ring.trusted(&[1; 32]).is_none());
            assert_eq!(ring.proven(&[1; 32]).as_deref(), Some("hash"));
        }
        ring.trust(ring.generation(), [1; 32], caller(id), "hash", None);
        assert!(ring.trusted(&[1; 32]).is_some());
        ring.forget(id);
        assert!(ring.trusted(&[1; 32]).is_none() && ring.proven(&[1; 32]).is_none());
    }

    #[test]
    fn a_key_is_believed_no_longer_than_it_lives() {
        let (ring, id) = (ring(), ApiKeyId::random());
        ring.trust(ring.generation(), [1; 32], caller(id), "hash", Some(Duration::ZERO));
        assert!(ring.trusted(&[1; 32]).is_none());
    }

    #[test]
    fn without_news_nothing_is_believed_but_what_was_proven_stays_so() {
        let (ring, id) = (ring(), ApiKeyId::random());
        ring.trust(ring.generation(), [1; 32], caller(id), "hash", None);
        ring.set_hearing(false);
        assert!(ring.trusted(&[1; 32]).is_none());
        assert_eq!(ring.proven(&[1; 32]).as_deref(), Some("hash"));
    }

    #[test]
    fn the_ring_does_not_grow_without_end() {
        let ring = ring();
        for n in 0..2 * KEYS_A_SHARD_MAX as u32 {
            let mut mac = [0; 32];
            mac[1..5].copy_from_slice(&n.to_be_bytes());
            ring.trust(ring.generation(), mac, caller(ApiKeyId::random()), "hash", None);
        }
        assert_eq!(ring.read(&[0; 32]).len(), KEYS_A_SHARD_MAX);
    }

    #[test]
    fn use_is_noted_once_however_often_a_key_is_used() {
        let (ring, id) = (ring(), ApiKeyId::random());
        ring.trust(ring.generation(), [1; 32], caller(id), "hash", None);
        for _ in 0..100 {
            assert!(ring.trusted(&[1; 32]).is_some());
        }
        assert_eq!(ring.take_used(), [id]);
        assert_eq!(ring.take_used(), []);
    }
}
