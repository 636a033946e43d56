//! Base backups in the repository.
//!
//! A backup is taken in three steps that may each be cut and run again: [`Repository::copy_backup`] brings the files,
//! then somebody waits until the WAL from its start to its end is archived, then [`Repository::commit_backup`]
//! writes the manifest. Only with the manifest is it a backup.
//!
//! The files are in groups, one for each database and one for what all share, each sealed with its own key. They are
//! cut into chunks, and a chunk that the repository has already is referred to, neither compressed nor sealed nor
//! stored again: so every backup is whole by what it says, and costs what has changed.

mod copy;
mod fetch;
mod files;
mod group;
mod lay_out;
mod manifest;
pub(crate) mod names;
pub(crate) mod pack;
mod pages;
mod read;
mod sealed;
mod verify;

use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use loomworks_core::lsn::Lsn;
use loomworks_postgres::Cluster;
use loomworks_postgres::cluster::ClusterError;
use serde::{Deserialize, Serialize};

pub use self::lay_out::{Databases, LaidOut, LayOutOptions};
pub use self::verify::{DamagedPage, Problem, VerifyReport};
use crate::keys::{DatabaseOid, Found, KeyError};
use crate::repository::{Repository, RepositoryError};
use crate::seal::DataKey;

/// A base backup. With its manifest in the repository it can be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Its name: the moment it was begun, and something to tell two of the same second apart.
    pub label: String,
    /// Which try of the copy it came from; a part of its objects' names.
    pub attempt: String,
    pub timeline: u32,
    /// Where replay begins.
    pub start: Lsn,
    /// Up to where replay must go before the files are consistent.
    pub end: Lsn,
    /// The number of the next transaction at the start, with its epoch in the upper half.
    pub next_xid: u64,
    /// By the database's clock.
    pub started_at: Timestamp,
    /// When the copy was complete, by the database's clock: moments after it can be restored.
    pub finished_at: Timestamp,
    /// The backup whose chunks it could refer to.
    pub previous: Option<String>,
    /// Whether the cluster's pages carried checksums. `None`: pages were not looked at.
    pub page_checksums: Option<bool>,
    /// After so many pages a relation's next file begins.
    pub pages_in_a_file: u32,
    /// By oid; the first is what all databases share.
    pub groups: Vec<Group>,
    /// Of all files.
    pub size_bytes: u64,
    /// What was stored by this backup.
    pub new_bytes: u64,
    /// Pages that were wrong in the cluster itself.
    pub damaged_pages: u64,
}

/// A database in a backup, or what all databases share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub oid: DatabaseOid,
    /// Its name when the backup began.
    pub database: Option<String>,
    pub files: u64,
    pub bytes: u64,
    pub new_bytes: u64,
    pub damaged_pages: u64,
    /// Its key had been deleted when the backup was taken: nothing of it is here.
    pub erased: bool,
}

impl Backup {
    /// A database's group.
    #[must_use]
    pub fn group(&self, oid: DatabaseOid) -> Option<&Group> {
        self.groups.iter().find(|group| group.oid == oid)
    }
}

/// How a backup is taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOptions {
    /// Stores everything again, whatever former backups have.
    pub full: bool,
    /// How many threads read, compress and seal. `None`: as many as there are processors.
    pub workers: Option<usize>,
}

/// How far something has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub bytes_done: u64,
    pub bytes_total: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Server(#[from] ClusterError),
    #[error("`{0}` is no name for a backup")]
    Label(String),
    #[error("there is no backup `{0}`")]
    NoBackup(String),
    #[error("the WAL of backup `{0}` is not archived yet")]
    WalIncomplete(String),
    #[error("backup `{0}` was committed with other content")]
    Differs(String),
    #[error("the copy of backup `{0}` is gone: it waited for so long that it was removed")]
    CopyGone(String),
    #[error("backup `{label}` has no database {oid}")]
    NoDatabase { label: String, oid: DatabaseOid },
    #[error("the key of database {oid} was deleted: nothing in backup `{label}` can bring it back")]
    Erased { label: String, oid: DatabaseOid },
    #[error("`{0}` is not empty")]
    NotEmpty(std::path::PathBuf),
}

impl From<KeyError> for BackupError {
    fn from(error: KeyError) -> Self {
        Self::Repository(error.into())
    }
}

impl BackupError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Repository(error) => error.hint(),
            Self::Server(_) => None,
            Self::Label(_) => Some("letters, digits, `-` and `_`, at most 100"),
            Self::NoBackup(_) => Some("list the backups there are"),
            Self::WalIncomplete(_) => Some("wait until the archive has come as far"),
            Self::Differs(_) | Self::CopyGone(_) => Some("take a new backup"),
            Self::NoDatabase { .. } => Some("it was made later, or dropped before: choose another backup"),
            Self::Erased { .. } => None,
            Self::NotEmpty(_) => Some("give a directory that does not exist yet"),
        }
    }
}

impl Repository {
    /// Copies the cluster's files under `label`. Run again, it finds its complete copy or begins anew, and refers to
    /// what a former try had stored.
    pub async fn copy_backup(
        &self,
        cluster: &Cluster,
        label: &str,
        options: CopyOptions,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Backup, BackupError> {
        if !names::is_label(label) {
            return Err(BackupError::Label(label.to_owned()));
        }
        if let Some(backup) = self.usable(&names::copied(label)).await? {
            return Ok(backup);
        }
        let backup = copy::copy(self, cluster, label, options, progress).await?;
        // Another process may have been faster with the same step: then its copy counts.
        self.write_once(&names::copied(label), backup).await
    }

    /// A copy that is complete and waits to become a backup, or became one. `None`: there is none, or it is gone.
    pub async fn copied_backup(&self, label: &str) -> Result<Option<Backup>, RepositoryError> {
        self.usable(&names::copied(label)).await
    }

    /// Whether all WAL that the backup needs to become consistent is archived.
    pub async fn has_wal_of(&self, backup: &Backup) -> Result<bool, RepositoryError> {
        self.has(backup.timeline, backup.start, backup.end).await
    }

    /// Writes the manifest: from now on it is a backup. Refused while its WAL is not complete.
    pub async fn commit_backup(&self, backup: &Backup) -> Result<(), BackupError> {
        let (copied, manifest) = (names::copied(&backup.label), names::manifest(&backup.label));
        if !self.has_wal_of(backup).await? {
            return Err(BackupError::WalIncomplete(backup.label.clone()));
        }
        let is_copied =
            async || self.store.size(&copied).await.map(|size| size.is_some()).map_err(RepositoryError::from);
        if !is_copied().await? {
            return Err(BackupError::CopyGone(backup.label.clone()));
        }
        if self.write_once(&manifest, backup.clone()).await? != *backup {
            return Err(BackupError::Differs(backup.label.clone()));
        }
        // A copy is removed before what it consists of: if it is still there, so is all that the manifest counts on.
        if !is_copied().await? {
            self.store.delete(&manifest).await.map_err(RepositoryError::from)?;
            return Err(BackupError::CopyGone(backup.label.clone()));
        }
        Ok(())
    }

    /// All backups, oldest first. What has no manifest is none.
    ///
    /// A manifest that is damaged is told in the log and left out: the others can be restored all the same. Retention
    /// sees it and removes nothing that it may need.
    pub async fn backups(&self) -> Result<Vec<Backup>, RepositoryError> {
        let labels = self.store.names(names::BACKUPS).await?;
        let mut backups: Vec<Backup> = futures_util::stream::iter(labels)
            .map(|label| async move { self.usable(&names::manifest(&label)).await })
            .buffer_unordered(16)
            .try_filter_map(|backup| async { Ok(backup) })
            .try_collect()
            .await?;
        backups.sort_by(|a, b| (a.finished_at, &a.label).cmp(&(b.finished_at, &b.label)));
        Ok(backups)
    }

    /// A backup by its label. `None`: there is none.
    pub async fn backup(&self, label: &str) -> Result<Option<Backup>, RepositoryError> {
        if !names::is_label(label) {
            return Ok(None);
        }
        self.read_backup(&names::manifest(label)).await
    }

    /// Reads a manifest or what will become one. `None`: there is none.
    pub(crate) async fn read_backup(&self, name: &str) -> Result<Option<Backup>, RepositoryError> {
        let Some(content) = self.read_sealed(self.keys.shared(), name).await? else { return Ok(None) };
        let versioned: Versioned =
            serde_json::from_slice(&content).map_err(|error| RepositoryError::damaged(name, error))?;
        if versioned.version != VERSION {
            let why = format!("it has version {}, this program reads version {VERSION}", versioned.version);
            return Err(RepositoryError::damaged(name, why));
        }
        Ok(Some(versioned.backup))
    }

    /// The same; what is damaged counts as not there.
    async fn usable(&self, name: &str) -> Result<Option<Backup>, RepositoryError> {
        match self.read_backup(name).await {
            Err(error @ RepositoryError::Damaged { .. }) => {
                tracing::error!(%error, "left out");
                Ok(None)
            }
            other => other,
        }
    }

    /// Writes a manifest, or what will become one, unless there is one, and gives what is there.
    async fn write_once(&self, name: &str, backup: Backup) -> Result<Backup, BackupError> {
        let text = serde_json::to_vec(&Versioned { version: VERSION, backup: backup.clone() });
        let object = self.seal_object(self.keys.shared(), name, &text.expect("a backup is JSON"));
        if self.store.put_new(name, object.clone()).await.map_err(RepositoryError::from)? {
            return Ok(backup);
        }
        match self.usable(name).await? {
            Some(there) => Ok(there),
            // It was torn when it was written, which a store that writes objects whole does not do.
            None => {
                self.store.replace(name, object).await.map_err(RepositoryError::from)?;
                Ok(backup)
            }
        }
    }

    /// Reads a group's manifest with its key.
    pub(crate) async fn read_group(
        &self,
        backup: &Backup,
        oid: DatabaseOid,
        key: &DataKey,
    ) -> Result<manifest::Manifest, RepositoryError> {
        let name = names::group(&backup.label, &backup.attempt, oid);
        let Some(content) = self.read_sealed(key, &name).await? else {
            return Err(RepositoryError::Gone { name });
        };
        manifest::Manifest::decode(&content).map_err(|error| RepositoryError::damaged(&name, error))
    }

    /// The key of a group of a backup. `None`: it was deleted.
    pub(crate) async fn key_of_group(
        &self,
        backup: &Backup,
        oid: DatabaseOid,
    ) -> Result<Option<DataKey>, RepositoryError> {
        if backup.group(oid).is_some_and(|group| group.erased) {
            return Ok(None);
        }
        let lineage = self.lineage(backup.timeline).await?;
        match self.keys.find(oid, &lineage).await? {
            Found::Key(key) => Ok(Some(key)),
            Found::Erased => Ok(None),
            Found::None => Err(RepositoryError::Gone { name: format!("keys/{oid}-{:08X}", backup.timeline) }),
        }
    }
}

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    #[serde(flatten)]
    backup: Backup,
}
