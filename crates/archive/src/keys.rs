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

pub type KeyFuture<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, ProviderError>> + Send + 'a>>;

/// Wraps data keys with the master key, wherever that is kept: in this process, or in a service that never hands it out.
pub trait KeyProvider: Send + Sync + fmt::Debug {
    /// Encrypts. `what_for` is bound to the result: it opens only for the same purpose.
    fn wrap<'a>(&'a self, secret: &'a [u8], what_for: &'a str) -> KeyFuture<'a>;

    /// Opens what [`Self::wrap`] made for the same purpose.
    fn unwrap<'a>(&'a self, wrapped: &'a [u8], what_for: &'a str) -> KeyFuture<'a>;
}

/// Why the master key could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("another master key has wrapped it")]
    OtherKey,
    #[error("the master key's keeper did not answer: {0}")]
    Unreachable(String),
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
}

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
        let known = Arc::default();
        Ok(Self { store: store.clone(), provider, repository, shared, known })
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
                && self.keeper().load_stored(&entry.name).await?.is_some_and(|stored| stored.wrapped.is_some())
            {
                readable.push(oid);
            }
        }
        Ok(readable)
    }

    async fn of_database(&self, oid: DatabaseOid) -> Result<Vec<String>, KeyError> {
        let prefix = format!("keys/{oid}-");
        let all = self.store.list("keys").await?;
        Ok(all.into_iter().map(|entry| entry.name).filter(|name| name.starts_with(&prefix)).collect())
    }

    /// Wraps every key with the master key as it is now. A key that was deleted meanwhile stays so.
    pub async fn rewrap(&self) -> Result<u64, KeyError> {
        let mut rewrapped = 0;
        for entry in self.store.list("keys").await? {
            if let Some((stored, Some(key))) = self.keeper().load(&entry.name).await? {
                let wrapped = self.keeper().wrap(&entry.name, stored.id, &key).await?;
                // Looked at again as late as can be: a deletion must win.
                if self.keeper().load_stored(&entry.name).await?.is_some_and(|now| now.wrapped.is_some()) {
                    self.store
                        .replace(&entry.name, json(&Stored { wrapped: Some(wrapped), ..stored }))
                        .await?;
                    rewrapped += 1;
                }
            }
        }
        Ok(rewrapped)
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
        let damaged = || KeyError::Damaged(name.to_owned());
        let key = match &stored.wrapped {
            None => None,
            Some(wrapped) => {
                let wrapped = BASE64.decode(wrapped).map_err(|_| damaged())?;
                let bytes = self.provider.unwrap(&wrapped, &self.purpose(stored.id)).await;
                let bytes = bytes.map_err(|source| KeyError::Provider { name: name.to_owned(), source })?;
                Some(DataKey::from_bytes(&bytes).ok_or_else(damaged)?)
            }
        };
        Ok(Some((stored, key)))
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
        if self.store.put_new(name, json(&Stored { id, since, wrapped, erased_at: None })).await? {
            return Ok(Some(key));
        }
        Ok(self.load(name).await?.and_then(|(_, key)| key))
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
mod tests {
    use super::*;
    use crate::store::Location;

    const OID: DatabaseOid = 20_000;

    async fn keys() -> (tempfile::TempDir, Store, Arc<PassingProvider>, Keys) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Location::Directory(dir.path().to_owned())).unwrap();
        let provider = Arc::new(PassingProvider::default());
        let keys = Keys::open(&store, provider.clone(), Uuid::nil(), true).await.unwrap();
        (dir, store, provider, keys)
    }

    fn bytes(found: Found) -> Vec<u8> {
        match found {
            Found::Key(key) => key.bytes().to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_key_is_made_once_and_found_by_others() {
        let (_dir, store, provider, keys) = keys().await;
        let lineage = Lineage::first(1);
        assert!(matches!(keys.find(OID, &lineage).await.unwrap(), Found::None));
        let other = Keys::open(&store, provider, Uuid::nil(), false).await.unwrap();
        let (a, b) =
            tokio::join!(keys.find_or_make(OID, &lineage, Lsn(5)), other.find_or_make(OID, &lineage, Lsn(5)));
        assert_eq!(a.unwrap().bytes(), b.unwrap().bytes());
        assert_ne!(bytes(keys.find(OID, &lineage).await.unwrap()), keys.shared().bytes());
        assert_eq!(bytes(keys.find(5, &lineage).await.unwrap()), keys.shared().bytes(), "`postgres` shares");
        assert_eq!(other.shared().bytes(), keys.shared().bytes());
    }

    #[tokio::test]
    async fn a_deleted_key_is_gone_for_everybody_and_never_made_again() {
        let (_dir, store, provider, keys) = keys().await;
        let lineage = Lineage::first(1);
        keys.find_or_make(OID, &lineage, Lsn(5)).await.unwrap();
        assert!(keys.has(OID).await.unwrap());
        keys.erase(OID).await.unwrap();
        keys.erase(OID).await.unwrap();
        keys.erase(OID + 1).await.unwrap();
        assert!(!keys.has(OID).await.unwrap());
        let other = Keys::open(&store, provider, Uuid::nil(), false).await.unwrap();
        for keys in [&keys, &other] {
            for oid in [OID, OID + 1] {
                assert!(matches!(keys.find(oid, &lineage).await.unwrap(), Found::Erased));
                let one = keys.find_or_make(oid, &lineage, Lsn(9)).await.unwrap();
                let two = keys.find_or_make(oid, &lineage, Lsn(9)).await.unwrap();
                assert_ne!(one.bytes(), two.bytes(), "nobody keeps it");
            }
        }
        assert_eq!(keys.rewrap().await.unwrap(), 1, "the shared one");
        assert!(matches!(keys.find(OID, &lineage).await.unwrap(), Found::Erased));
    }

    #[tokio::test]
    async fn the_same_oid_on_another_branch_has_another_key() {
        let (_dir, _store, _provider, keys) = keys().await;
        let (first, later) = (Lineage::first(1), Lineage::from_history(2, "1\t0/100\tx").unwrap());
        let before = keys.find_or_make(OID, &first, Lsn(0x50)).await.unwrap();
        let lost = keys.find_or_make(OID + 1, &first, Lsn(0x150)).await.unwrap();
        assert_eq!(
            bytes(keys.find(OID, &later).await.unwrap()),
            before.bytes(),
            "it was there at the branch"
        );
        assert!(matches!(keys.find(OID + 1, &later).await.unwrap(), Found::None));
        let new = keys.find_or_make(OID + 1, &later, Lsn(0x120)).await.unwrap();
        assert_ne!(new.bytes(), lost.bytes());
    }

    #[tokio::test]
    async fn another_master_key_opens_nothing() {
        let (_dir, store, _provider, keys) = keys().await;
        let error =
            Keys::open(&store, Arc::new(PassingProvider::default()), Uuid::nil(), false).await.unwrap_err();
        assert!(matches!(error, KeyError::Provider { source: ProviderError::OtherKey, .. }), "{error}");
        assert!(error.hint().is_some());
        let error = Keys::open(&store, keys.provider.clone(), Uuid::max(), false).await.unwrap_err();
        assert!(matches!(error, KeyError::Provider { .. }), "of another repository: {error}");
    }

    #[tokio::test]
    async fn keys_are_wrapped_anew_and_stay_the_same() {
        let (_dir, store, provider, keys) = keys().await;
        let lineage = Lineage::first(1);
        let key = keys.find_or_make(OID, &lineage, Lsn(5)).await.unwrap();
        let before = store.get("keys/20000-00000001").await.unwrap();
        assert_eq!(keys.rewrap().await.unwrap(), 2);
        assert_ne!(store.get("keys/20000-00000001").await.unwrap(), before);
        let other = Keys::open(&store, provider, Uuid::nil(), false).await.unwrap();
        assert_eq!(bytes(other.find(OID, &lineage).await.unwrap()), key.bytes());
    }
}
