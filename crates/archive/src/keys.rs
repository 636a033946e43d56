//! Data keys: one for each database and one for what all share, in the repository, wrapped by the master key.
//!
//! A database has a key of its own from the first record that is archived of it. Whoever deletes that key makes its
//! backups and its WAL unreadable for good, and nobody else's. A database is named by its oid and by the timeline on
//! which it was first seen: after a restore of the whole cluster the same oid may be given to another database.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use loomworks_core::lsn::Lsn;
use loomworks_core::time;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::lineage::Lineage;
use crate::seal::DataKey;
use crate::store::{Store, StoreError};

/// The oid of a database. 0 stands for what all databases share.
pub type DatabaseOid = u32;

/// What all databases share has this in place of an oid.
pub const SHARED: DatabaseOid = 0;

/// Below it, databases belong to the installation (`template1`, `template0`, `postgres`). Source: PostgreSQL
/// `src/include/access/transam.h`, `FirstNormalObjectId`.
const FIRST_NORMAL_OID: DatabaseOid = 16_384;

pub type KeyFuture<'a, T = Vec<u8>> = Pin<Box<dyn Future<Output = Result<T, ProviderError>> + Send + 'a>>;

/// Wraps data keys with the master key, wherever that is kept: in this process, or in a service that never hands it out.
pub trait KeyProvider: Send + Sync + fmt::Debug {
    /// Encrypts. `what_for` is bound to the result: it opens only for the same purpose.
    fn wrap<'a>(&'a self, secret: &'a [u8], what_for: &'a str) -> KeyFuture<'a>;

    /// Opens what [`Self::wrap`] made for the same purpose.
    fn unwrap<'a>(&'a self, wrapped: &'a [u8], what_for: &'a str) -> KeyFuture<'a>;

    /// Whether the key that wraps now has wrapped it, so that to wrap it anew would change nothing. Who cannot tell
    /// says no.
    fn is_current(&self, _wrapped: &[u8]) -> bool {
        false
    }

    /// Looks whether another process has changed the master key in the meantime.
    fn refresh(&self) -> KeyFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// Why the master key could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("another master key has wrapped it")]
    OtherKey,
    #[error("the master key cannot be had: {0}")]
    Unreachable(String),
}

/// A key of the repository, and how it stands with the master key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyStatus {
    /// `keys/16401-00000001`
    pub name: String,
    pub standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The master key that wraps now has wrapped it.
    Current,
    /// A former one has, and still opens it.
    Former,
    Erased,
    /// No key opens it.
    DoesNotOpen,
    Damaged,
}

/// What was wrapped anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrapped {
    pub count: u64,
    /// The keys that nothing opens. They are as they were.
    pub unopened: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the key `{name}` of the repository does not open")]
    Provider { name: String, source: ProviderError },
    #[error("the key `{0}` of the repository is damaged")]
    Damaged(String),
    #[error("the repository has lost its own key, `{0}`")]
    Missing(String),
}

impl KeyError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Provider { source: ProviderError::OtherKey, .. } => Some(
                "give the master key that the repository was written with, see docs/operate/key-management.md",
            ),
            Self::Provider { .. } => None,
            Self::Damaged(_) | Self::Missing(_) => {
                Some("bring the object back from a copy of the repository")
            }
        }
    }
}

/// A key as it lies in the repository.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    id: Uuid,
    /// Where in the WAL the database was first seen.
    since: Lsn,
    /// Absent: deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapped: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    erased_at: Option<Timestamp>,
}

/// A database's key.
#[derive(Clone, Debug)]
pub enum Found {
    Key(DataKey),
    /// It was deleted: what was sealed with it is gone.
    Erased,
    /// There is none yet.
    None,
}

/// The keys of a repository. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keys {
    store: Store,
    provider: Arc<dyn KeyProvider>,
    repository: Uuid,
    shared: DataKey,
    known: Arc<Mutex<HashMap<String, DataKey>>>,
    writing: Arc<tokio::sync::Mutex<()>>,
}

/// While it is there nobody in this process writes a key.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "it is let go")] tokio::sync::OwnedMutexGuard<()>);

const SHARED_KEY: &str = "keys/shared";

fn name(oid: DatabaseOid, timeline: u32) -> String {
    format!("keys/{oid}-{timeline:08X}")
}

impl Keys {
    /// Opens a repository's keys; with `make` a new repository gets the key for what all share.
    pub(crate) async fn open(
        store: &Store,
        provider: Arc<dyn KeyProvider>,
        repository: Uuid,
        make: bool,
    ) -> Result<Self, KeyError> {
        let keeper = Keeper { store, provider: &*provider, repository };
        let shared = match keeper.load(SHARED_KEY).await? {
            Some((_, Some(key))) => key,
            None if make => {
                keeper.make(SHARED_KEY, Lsn(0)).await?.ok_or_else(|| KeyError::Missing(SHARED_KEY.into()))?
            }
            _ => return Err(KeyError::Missing(SHARED_KEY.into())),
        };
        let (known, writing) = (Arc::default(), Arc::default());
        Ok(Self { store: store.clone(), provider, repository, shared, known, writing })
    }

    fn keeper(&self) -> Keeper<'_> {
        Keeper { store: &self.store, provider: &*self.provider, repository: self.repository }
    }

    /// The key for what all databases share: it also seals what tells what is where.
    #[must_use]
    pub fn shared(&self) -> &DataKey {
        &self.shared
    }

    /// The key of a database on a timeline.
    pub async fn find(&self, oid: DatabaseOid, lineage: &Lineage) -> Result<Found, KeyError> {
        if oid < FIRST_NORMAL_OID {
            return Ok(Found::Key(self.shared.clone()));
        }
        for (timeline, end) in lineage.timelines() {
            let name = name(oid, timeline);
            if let Some(key) = self.known().get(&name) {
                return Ok(Found::Key(key.clone()));
            }
            match self.keeper().load(&name).await? {
                Some((stored, key)) if stored.since < end => {
                    return Ok(match key {
                        Some(key) => {
                            // Of an older timeline it counts for those only that left it later.
                            if end == Lsn(u64::MAX) {
                                self.known().insert(name, key.clone());
                            }
                            Found::Key(key)
                        }
                        None => Found::Erased,
                    });
                }
                _ => {}
            }
        }
        Ok(Found::None)
    }

    /// The key of a database; one is made if there is none. What is still archived of a database whose key was deleted
    /// gets a key that nobody keeps.
    pub async fn find_or_make(
        &self,
        oid: DatabaseOid,
        lineage: &Lineage,
        since: Lsn,
    ) -> Result<DataKey, KeyError> {
        match self.find(oid, lineage).await? {
            Found::Key(key) => Ok(key),
            Found::Erased => Ok(DataKey::random()),
            Found::None => {
                let name = name(oid, lineage.timeline());
                let _held = self.hold().await;
                let made = self.keeper().make(&name, since).await?;
                Ok(made.unwrap_or_else(DataKey::random))
            }
        }
    }

    /// Deletes a database's key on every timeline. What was sealed with it can never be read again.
    pub async fn erase(&self, oid: DatabaseOid) -> Result<(), KeyError> {
        assert!(oid >= FIRST_NORMAL_OID, "the installation's own databases have no key of their own");
        let mut names = self.of_database(oid).await?;
        if names.is_empty() {
            // Nothing was archived of it yet; what still comes must not be readable either.
            names.push(name(oid, 1));
        }
        let _held = self.hold().await;
        for name in names {
            self.known().remove(&name);
            let before = self.keeper().load_stored(&name).await?;
            let since = before.as_ref().map_or(Lsn(0), |stored| stored.since);
            let id = before.map_or_else(Uuid::new_v4, |stored| stored.id);
            let stored = Stored { id, since, wrapped: None, erased_at: Some(time::now()) };
            self.store.replace(&name, json(&stored)).await?;
        }
        Ok(())
    }

    /// Whether a database has a key that opens anything.
    pub async fn has(&self, oid: DatabaseOid) -> Result<bool, KeyError> {
        for name in self.of_database(oid).await? {
            if self.keeper().load_stored(&name).await?.is_some_and(|stored| stored.wrapped.is_some()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The databases that have a key which opens anything.
    pub(crate) async fn readable(&self) -> Result<Vec<DatabaseOid>, KeyError> {
        let mut readable = Vec::new();
        for entry in self.store.list("keys").await? {
            let oid = entry.name["keys/".len()..].split('-').next().and_then(|oid| oid.parse().ok());
            if let Some(oid) = oid
                && self
                    .keeper()
                    .load_stored(&entry.name)
                    .await?
                    .is_some_and(|stored| stored.wrapped.is_some())
            {
                readable.push(oid);
            }
        }
        Ok(readable)
    }

    /// Every key that opens anything.
    pub(crate) async fn all(&self) -> Result<Vec<DataKey>, KeyError> {
        let mut all = Vec::new();
        for entry in self.store.list("keys").await? {
            all.extend(self.keeper().load(&entry.name).await?.and_then(|(_, key)| key));
        }
        Ok(all)
    }

    async fn of_database(&self, oid: DatabaseOid) -> Result<Vec<String>, KeyError> {
        let prefix = format!("keys/{oid}-");
        let all = self.store.list("keys").await?;
        Ok(all.into_iter().map(|entry| entry.name).filter(|name| name.starts_with(&prefix)).collect())
    }

    /// Wraps every key with the master key that wraps now, if a former one has wrapped it. May be cut off anywhere. A key
    /// that is deleted meanwhile stays so.
    pub async fn rewrap(&self) -> Result<Rewrapped, KeyError> {
        self.refresh().await?;
        let mut rewrapped = Rewrapped::default();
        for entry in self.store.list("keys").await? {
            // Held for each key by itself, so that others can be made and deleted in between.
            let _held = self.hold().await;
            match self.keeper().rewrap(&entry.name).await {
                Ok(true) => rewrapped.count += 1,
                Ok(false) => {}
                Err(KeyError::Provider { source: ProviderError::OtherKey, .. } | KeyError::Damaged(_)) => {
                    rewrapped.unopened.push(entry.name);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(rewrapped)
    }

    /// Waits until nobody in this process writes a key, and lets nobody begin. Whoever drops a master key looks under it
    /// that nothing needs that one.
    pub async fn hold(&self) -> Held {
        Held(self.writing.clone().lock_owned().await)
    }

    /// The names of the keys that the master key which wraps now has not wrapped, whether they open or not.
    pub async fn not_current(&self) -> Result<Vec<String>, KeyError> {
        let mut names = Vec::new();
        for KeyStatus { name, standing } in self.statuses(false).await? {
            if !matches!(standing, Standing::Current | Standing::Erased) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Opens every key and says how it stands, by name.
    pub async fn examine(&self) -> Result<Vec<KeyStatus>, KeyError> {
        self.statuses(true).await
    }

    async fn refresh(&self) -> Result<(), KeyError> {
        self.provider.refresh().await.map_err(|source| KeyError::Provider { name: SHARED_KEY.into(), source })
    }

    async fn statuses(&self, open: bool) -> Result<Vec<KeyStatus>, KeyError> {
        self.refresh().await?;
        let keeper = self.keeper();
        let names = self.store.list("keys").await?.into_iter().map(|entry| entry.name);
        let looked = futures_util::stream::iter(names).map(async |name| {
            let standing = keeper.standing(&name, open).await?;
            Ok::<_, KeyError>(standing.map(|standing| KeyStatus { name, standing }))
        });
        let all: Vec<Option<KeyStatus>> = looked.buffered(16).try_collect().await?;
        Ok(all.into_iter().flatten().collect())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, DataKey>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads and writes keys.
struct Keeper<'a> {
    store: &'a Store,
    provider: &'a dyn KeyProvider,
    repository: Uuid,
}

impl Keeper<'_> {
    fn purpose(&self, id: Uuid) -> String {
        format!("loomworks repository {} key {id}", self.repository)
    }

    async fn load_stored(&self, name: &str) -> Result<Option<Stored>, KeyError> {
        let Some(content) = self.store.get(name).await? else { return Ok(None) };
        serde_json::from_slice(&content).map(Some).map_err(|_| KeyError::Damaged(name.to_owned()))
    }

    /// `None`: there is none. `Some((_, None))`: it was deleted.
    async fn load(&self, name: &str) -> Result<Option<(Stored, Option<DataKey>)>, KeyError> {
        let Some(stored) = self.load_stored(name).await? else { return Ok(None) };
        let key = self.unwrap(name, &stored).await?;
        Ok(Some((stored, key)))
    }

    async fn unwrap(&self, name: &str, stored: &Stored) -> Result<Option<DataKey>, KeyError> {
        let Some(wrapped) = &stored.wrapped else { return Ok(None) };
        let damaged = || KeyError::Damaged(name.to_owned());
        let wrapped = BASE64.decode(wrapped).map_err(|_| damaged())?;
        let bytes = self.provider.unwrap(&wrapped, &self.purpose(stored.id)).await;
        let bytes = bytes.map_err(|source| KeyError::Provider { name: name.to_owned(), source })?;
        DataKey::from_bytes(&bytes).map(Some).ok_or_else(damaged)
    }

    /// How a key stands; what wrapped it is looked at only, unless it is to be opened. `None`: there is none.
    async fn standing(&self, name: &str, open: bool) -> Result<Option<Standing>, KeyError> {
        let stored = match self.load_stored(name).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return Ok(None),
            Err(KeyError::Damaged(_)) => return Ok(Some(Standing::Damaged)),
            Err(error) => return Err(error),
        };
        if open {
            match self.unwrap(name, &stored).await {
                Ok(_) => {}
                Err(KeyError::Damaged(_)) => return Ok(Some(Standing::Damaged)),
                Err(KeyError::Provider { source: ProviderError::OtherKey, .. }) => {
                    return Ok(Some(Standing::DoesNotOpen));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(match &stored.wrapped {
            None => Standing::Erased,
            Some(wrapped) if self.is_current(wrapped) => Standing::Current,
            Some(_) => Standing::Former,
        }))
    }

    fn is_current(&self, wrapped: &str) -> bool {
        BASE64.decode(wrapped).is_ok_and(|wrapped| self.provider.is_current(&wrapped))
    }

    /// `Ok(false)`: there was nothing to do.
    async fn rewrap(&self, name: &str) -> Result<bool, KeyError> {
        let Some(stored) = self.load_stored(name).await? else { return Ok(false) };
        if stored.wrapped.as_ref().is_none_or(|wrapped| self.is_current(wrapped)) {
            return Ok(false);
        }
        let Some(key) = self.unwrap(name, &stored).await? else { return Ok(false) };
        let wrapped = Some(self.wrap(name, stored.id, &key).await?);
        self.store.replace(name, json(&Stored { wrapped, ..stored })).await?;
        Ok(true)
    }

    async fn wrap(&self, name: &str, id: Uuid, key: &DataKey) -> Result<String, KeyError> {
        let wrapped = self.provider.wrap(key.bytes(), &self.purpose(id)).await;
        let wrapped = wrapped.map_err(|source| KeyError::Provider { name: name.to_owned(), source })?;
        Ok(BASE64.encode(wrapped))
    }

    /// Makes a key, or finds the one that somebody else made meanwhile. `None`: it was deleted meanwhile.
    async fn make(&self, name: &str, since: Lsn) -> Result<Option<DataKey>, KeyError> {
        let (id, key) = (Uuid::new_v4(), DataKey::random());
        let wrapped = Some(self.wrap(name, id, &key).await?);
        if !self.store.put_new(name, json(&Stored { id, since, wrapped, erased_at: None })).await? {
            return Ok(self.load(name).await?.and_then(|(_, key)| key));
        }
        // Another process may have changed the master key since this one read it, and looked for what the former one
        // wraps before there was this. Nothing is sealed with the key before that is put right.
        let refreshed = self.provider.refresh().await;
        refreshed.map_err(|source| KeyError::Provider { name: name.to_owned(), source })?;
        self.rewrap(name).await?;
        Ok(Some(key))
    }
}

fn json(stored: &Stored) -> bytes::Bytes {
    serde_json::to_vec_pretty(stored).expect("a key's description is JSON").into()
}

/// A master key that this process knows and nobody keeps.
#[derive(Debug)]
pub struct PassingProvider(DataKey);

impl Default for PassingProvider {
    fn default() -> Self {
        Self(DataKey::random())
    }
}

impl KeyProvider for PassingProvider {
    fn is_current(&self, _wrapped: &[u8]) -> bool {
        true
    }

    fn wrap<'a>(&'a self, secret: &'a [u8], what_for: &'a str) -> KeyFuture<'a> {
        let salt = crate::seal::random();
        let mut sealed = secret.to_vec();
        self.0.object(&salt, what_for).seal(0, &mut sealed);
        Box::pin(async move { Ok([&salt[..], &sealed].concat()) })
    }

    fn unwrap<'a>(&'a self, wrapped: &'a [u8], what_for: &'a str) -> KeyFuture<'a> {
        Box::pin(async move {
            let (salt, sealed) = wrapped.split_first_chunk().ok_or(ProviderError::OtherKey)?;
            let mut sealed = sealed.to_vec();
            let opened = self.0.object(salt, what_for).open(0, &mut sealed);
            opened.map(<[u8]>::to_vec).map_err(|_| ProviderError::OtherKey)
        })
    }
}

#[cfg(test)]
mod tests;
