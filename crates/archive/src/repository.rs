//! A repository in a directory: opening it, and the only ways to read and write in it.
//!
//! Every object is written whole and only if its name is free, so a step that runs twice finds its own work and two
//! writers cannot replace each other's.

use std::io;
use std::path::{Path, PathBuf};

use loomworks_core::durable;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;
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
    #[serde(flatten)]
    cluster: ClusterIdentity,
}

/// One cluster's repository.
#[derive(Clone, Debug)]
pub struct Repository {
    root: PathBuf,
    pub cluster: ClusterIdentity,
}

#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("there is no repository in `{0}`")]
    Missing(PathBuf),
    #[error("the repository in `{0}` has version {1}, this program reads version {VERSION}")]
    Version(PathBuf, u32),
    #[error("the repository in `{root}` belongs to cluster {theirs}, not to {ours}")]
    OtherCluster { root: PathBuf, theirs: u64, ours: u64 },
    #[error("{what} `{path}`")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("`{path}` is damaged")]
    Damaged { path: PathBuf, source: io::Error },
}

impl RepositoryError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Missing(_) => Some("`loomworks serve` makes one when it starts"),
            Self::Version(..) => Some("use the version of loomworks that wrote it, or a newer one"),
            Self::OtherCluster { .. } => Some("each cluster needs a repository of its own"),
            Self::Io { .. } => None,
            Self::Damaged { .. } => {
                Some("restore the file from a copy of the repository, or take a new base backup")
            }
        }
    }
}

impl Repository {
    /// Makes the repository for `cluster`, or opens the one that is there if it is this cluster's.
    pub async fn create(root: &Path, cluster: ClusterIdentity) -> Result<Self, RepositoryError> {
        let root = root.to_owned();
        blocking(move || {
            for directory in ["", "wal", "backups"] {
                let path = root.join(directory);
                durable::create_dir_all(&path).map_err(io_error("make", &path))?;
            }
            let path = root.join(IDENTITY);
            let identity = Identity { version: VERSION, cluster: cluster.clone() };
            let text = serde_json::to_vec_pretty(&identity)
                .map_err(io::Error::from)
                .map_err(io_error("write", &path))?;
            durable::write_if_absent(&path, &text).map_err(io_error("write", &path))?;
            let found = Self::read_identity(&root)?;
            if found.cluster == cluster {
                return Ok(found);
            }
            let (theirs, ours) = (found.cluster.system_identifier, cluster.system_identifier);
            Err(RepositoryError::OtherCluster { root, theirs, ours })
        })
        .await
    }

    /// Opens the repository, whichever cluster's it is.
    pub async fn open(root: &Path) -> Result<Self, RepositoryError> {
        let root = root.to_owned();
        blocking(move || Self::read_identity(&root)).await
    }

    fn read_identity(root: &Path) -> Result<Self, RepositoryError> {
        let path = root.join(IDENTITY);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RepositoryError::Missing(root.to_owned()));
            }
            Err(source) => return Err(RepositoryError::Io { what: "read", path, source }),
        };
        let identity: Identity = serde_json::from_slice(&text)
            .map_err(|error| RepositoryError::Damaged { path, source: error.into() })?;
        if identity.version != VERSION {
            return Err(RepositoryError::Version(root.to_owned(), identity.version));
        }
        Ok(Self { root: root.to_owned(), cluster: identity.cluster })
    }

    pub(crate) fn wal_directory(&self) -> PathBuf {
        self.root.join("wal")
    }

    pub(crate) fn backups_directory(&self) -> PathBuf {
        self.root.join("backups")
    }

    /// Where it is, for commands that PostgreSQL runs and for messages.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
}

pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RepositoryError {
    let path = path.to_owned();
    move |source| RepositoryError::Io { what, path, source }
}

/// Runs file work away from the threads that serve requests.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RepositoryError> + Send + 'static,
) -> Result<T, RepositoryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(RepositoryError::Io {
                what: "finish work in",
                path: PathBuf::new(),
                source: io::Error::other("the program is stopping"),
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(system_identifier: u64) -> ClusterIdentity {
        ClusterIdentity { system_identifier, segment_bytes: 16 << 20, major_version: 15 }
    }

    #[tokio::test]
    async fn two_clusters_cannot_share_one() {
        let dir = tempfile::tempdir().unwrap();
        Repository::create(dir.path(), identity(1)).await.unwrap();
        Repository::create(dir.path(), identity(1)).await.unwrap();
        let error = Repository::create(dir.path(), identity(2)).await.unwrap_err();
        assert!(matches!(error, RepositoryError::OtherCluster { theirs: 1, ours: 2, .. }), "{error}");
        assert!(error.hint().is_some());
    }

    #[tokio::test]
    async fn what_is_missing_damaged_or_newer_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Repository::open(dir.path());
        assert!(matches!(open().await.unwrap_err(), RepositoryError::Missing(_)));
        durable::write(&dir.path().join(IDENTITY), b"{").unwrap();
        assert!(matches!(open().await.unwrap_err(), RepositoryError::Damaged { .. }));
        let newer = serde_json::to_vec(&Identity { version: 2, cluster: identity(1) }).unwrap();
        durable::write(&dir.path().join(IDENTITY), &newer).unwrap();
        assert!(matches!(open().await.unwrap_err(), RepositoryError::Version(_, 2)));
    }
}
