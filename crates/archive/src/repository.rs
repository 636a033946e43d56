//! A repository: opening it, whose it is, and what went wrong.
//!
//! Every object that makes others count is written whole and only if its name is free, so a step that runs twice finds
//! its own work and two writers cannot replace each other's.

use std::fmt;
use std::sync::Arc;

use loomworks_core::lsn::Segment;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::coverage::Coverage;
use crate::keys::{KeyError, KeyProvider, Keys};
use crate::lineage::Lineage;
use crate::seal::DoesNotOpen;
use crate::store::{Location, Store, StoreError};

const VERSION: u32 = 2;
const IDENTITY: &str = "repository.json";

/// What tells a cluster from every other one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// `pg_control_system().system_identifier`.
    pub system_identifier: u64,
    /// Bytes of a WAL segment.
    pub segment_bytes: u64,
    pub major_version: u32,
}

#[derive(Serialize, Deserialize)]
struct Identity {
    version: u32,
    /// Chosen when the repository was made. A cluster that was restored has the system identifier of its source, so
    /// keys and objects are bound to this.
    repository_id: Uuid,
    #[serde(flatten)]
    cluster: ClusterIdentity,
}

/// One cluster's repository. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(crate) store: Store,
    pub(crate) keys: Keys,
    pub(crate) coverage: Coverage,
    id: Uuid,
    pub cluster: ClusterIdentity,
}

#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("there is no repository in `{0}`")]
    Missing(Location),
    #[error("the repository in `{0}` has version {1}, this program reads version {VERSION}")]
    Version(Location, u32),
    #[error("the repository in `{location}` belongs to cluster {theirs}, not to {ours}")]
    OtherCluster { location: Location, theirs: u64, ours: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("`{name}` is damaged: {why}")]
    Damaged { name: String, why: String },
    #[error("`{name}` is gone")]
    Gone { name: String },
    #[error("{what} `{path}`")]
    File { what: &'static str, path: std::path::PathBuf, source: std::io::Error },
}

impl RepositoryError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Missing(_) => Some("`loomworks serve` makes one when it starts"),
            Self::Version(..) => {
                Some("use the version of loomworks that wrote it, or set it aside and begin a new one")
            }
            Self::OtherCluster { .. } => Some("each cluster needs a repository of its own"),
            Self::Store(error) => error.hint(),
            Self::Key(error) => error.hint(),
            Self::Damaged { .. } | Self::Gone { .. } => {
                Some("bring the object back from a copy of the repository, or take a new base backup")
            }
            Self::File { .. } => None,
        }
    }

    pub(crate) fn damaged(name: &str, why: impl fmt::Display) -> Self {
        Self::Damaged { name: name.to_owned(), why: why.to_string() }
    }

    pub(crate) fn does_not_open(name: &str) -> Self {
        Self::damaged(name, DoesNotOpen)
    }
}

impl Repository {
    /// Makes the repository for `cluster`, or opens the one that is there if it is this cluster's.
    pub async fn create(
        location: &Location,
        cluster: ClusterIdentity,
        provider: Arc<dyn KeyProvider>,
    ) -> Result<Self, RepositoryError> {
        Self::create_in(Store::open(location)?, cluster, provider).await
    }

    /// The same in a store that is open.
    pub async fn create_in(
        store: Store,
        cluster: ClusterIdentity,
        provider: Arc<dyn KeyProvider>,
    ) -> Result<Self, RepositoryError> {
        let identity = Identity { version: VERSION, repository_id: Uuid::new_v4(), cluster: cluster.clone() };
        let text = serde_json::to_vec_pretty(&identity).expect("an identity is JSON");
        store.put_new(IDENTITY, text.into()).await?;
        let found = Self::read_identity(&store).await?;
        if found.cluster != cluster {
            let (theirs, ours) = (found.cluster.system_identifier, cluster.system_identifier);
            return Err(RepositoryError::OtherCluster { location: store.location().clone(), theirs, ours });
        }
        let keys = Keys::open(&store, provider, found.repository_id, true).await?;
        Ok(Self::of(store, keys, found.repository_id, cluster))
    }

    /// Whether there is a repository in a store, of whatever cluster and version.
    pub async fn exists_in(store: &Store) -> Result<bool, RepositoryError> {
        Ok(store.size(IDENTITY).await?.is_some())
    }

    /// Opens the repository, whichever cluster's it is.
    pub async fn open(location: &Location, provider: Arc<dyn KeyProvider>) -> Result<Self, RepositoryError> {
        Self::open_in(Store::open(location)?, provider).await
    }

    /// The same in a store that is open.
    pub async fn open_in(store: Store, provider: Arc<dyn KeyProvider>) -> Result<Self, RepositoryError> {
        let found = Self::read_identity(&store).await?;
        let keys = Keys::open(&store, provider, found.repository_id, false).await?;
        Ok(Self::of(store, keys, found.repository_id, found.cluster))
    }

    fn of(store: Store, keys: Keys, id: Uuid, cluster: ClusterIdentity) -> Self {
        Self { store, keys, coverage: Coverage::default(), id, cluster }
    }

    /// The version of the repository in a store. `None`: there is none.
    pub async fn version_in(store: &Store) -> Result<Option<u32>, RepositoryError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Some(text) = store.get(IDENTITY).await? else { return Ok(None) };
        let versioned: Versioned =
            serde_json::from_slice(&text).map_err(|error| RepositoryError::damaged(IDENTITY, error))?;
        Ok(Some(versioned.version))
    }

    async fn read_identity(store: &Store) -> Result<Identity, RepositoryError> {
        let location = || store.location().clone();
        match Self::version_in(store).await? {
            None => return Err(RepositoryError::Missing(location())),
            Some(VERSION) => {}
            Some(version) => return Err(RepositoryError::Version(location(), version)),
        }
        let text = store.get(IDENTITY).await?.ok_or_else(|| RepositoryError::Missing(location()))?;
        serde_json::from_slice(&text).map_err(|error| RepositoryError::damaged(IDENTITY, error))
    }

    /// Where it is, for commands that PostgreSQL runs and for messages.
    #[must_use]
    pub fn location(&self) -> &Location {
        self.store.location()
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What an object's key is bound to: this repository, its name, and what in it.
    pub(crate) fn identity(&self, name: &str, part: &str) -> String {
        format!("{} {name} {part}", self.id)
    }

    /// A timeline and those that it came from.
    pub async fn lineage(&self, timeline: u32) -> Result<Lineage, RepositoryError> {
        if timeline == 1 {
            return Ok(Lineage::first(1));
        }
        let name = history_name(timeline);
        match self.store.get(&name).await? {
            Some(content) => std::str::from_utf8(&content)
                .ok()
                .and_then(|text| Lineage::from_history(timeline, text))
                .ok_or_else(|| RepositoryError::damaged(&name, "it is no history of a timeline")),
            // The repository was made when the cluster had this timeline already.
            None => Ok(Lineage::first(timeline)),
        }
    }
}

/// Where a timeline's history is kept. It says nothing of any tenant and is not sealed.
pub(crate) fn history_name(timeline: u32) -> String {
    format!("wal/{timeline:08X}/{timeline:08X}.history")
}

/// Where a segment is kept.
pub(crate) fn segment_name(segment: Segment, segment_bytes: u64) -> String {
    format!("wal/{:08X}/{}", segment.timeline, segment.file_name(segment_bytes))
}

pub(crate) fn file_error(
    what: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> RepositoryError {
    let path = path.to_owned();
    move |source| RepositoryError::File { what, path, source }
}

/// Runs work that takes the processor or a disk away from the threads that serve requests.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Nothing cancels it; the runtime ends it only with the process.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PassingProvider;

    fn identity(system_identifier: u64) -> ClusterIdentity {
        ClusterIdentity { system_identifier, segment_bytes: 16 << 20, major_version: 15 }
    }

    #[tokio::test]
    async fn two_clusters_cannot_share_one() {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::Directory(dir.path().to_owned());
        let provider = Arc::new(PassingProvider::default());
        let create = |number| Repository::create(&location, identity(number), provider.clone());
        create(1).await.unwrap();
        create(1).await.unwrap();
        let error = create(2).await.unwrap_err();
        assert!(matches!(error, RepositoryError::OtherCluster { theirs: 1, ours: 2, .. }), "{error}");
        assert!(error.hint().is_some());
    }

    #[tokio::test]
    async fn what_is_missing_damaged_or_of_another_version_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::Directory(dir.path().to_owned());
        let open = || Repository::open(&location, Arc::new(PassingProvider::default()));
        assert!(matches!(open().await.unwrap_err(), RepositoryError::Missing(_)));
        let store = Store::open(&location).unwrap();
        store.replace(IDENTITY, "{".into()).await.unwrap();
        assert!(matches!(open().await.unwrap_err(), RepositoryError::Damaged { .. }));
        for version in [1, 3] {
            store.replace(IDENTITY, format!("{{\"version\": {version}}}").into()).await.unwrap();
            assert!(
                matches!(open().await.unwrap_err(), RepositoryError::Version(_, found) if found == version)
            );
        }
    }
}
