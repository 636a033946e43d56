//! Base backups in the repository.
//!
//! A backup is taken in three steps that may each be cut and run again: [`Repository::copy_backup`] brings the files,
//! then somebody waits until the WAL from its start to its end is archived, then [`Repository::commit_backup`]
//! writes the manifest. Only with the manifest is it a backup.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use loomworks_core::durable;
use loomworks_core::lsn::Lsn;
use loomworks_postgres::Cluster;
use loomworks_postgres::cluster::ClusterError;
use serde::{Deserialize, Serialize};

use crate::repository::{Repository, RepositoryError, blocking, io_error};

const ARCHIVE: &str = "base.tar.zst";
const MANIFEST: &str = "manifest.json";

/// A base backup. With its manifest in the repository it can be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Its name: the moment it was begun, and something to tell two of the same second apart.
    pub label: String,
    pub timeline: u32,
    /// Where replay begins.
    pub start: Lsn,
    /// Up to where replay must go before the files are consistent.
    pub end: Lsn,
    /// When the copy was complete, by the database's clock: moments after it can be restored.
    pub finished_at: Timestamp,
    /// Compressed.
    pub size_bytes: u64,
    /// SHA-256 of the compressed archive, hexadecimal.
    pub sha256: String,
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("copy the cluster's files")]
    Copy(#[source] ClusterError),
    #[error("the WAL of backup `{0}` is not archived yet")]
    WalIncomplete(String),
}

impl Repository {
    /// Copies the cluster's files under `label`. Run again, it finds its complete copy or begins anew.
    pub async fn copy_backup(
        &self,
        cluster: &Cluster,
        label: &str,
        now: impl Fn() -> Timestamp,
    ) -> Result<Backup, BackupError> {
        let directory = self.backups_directory().join(label);
        let copied = directory.join("copied.json");
        if let Some(backup) = read_json(&copied).await? {
            return Ok(backup);
        }
        // pg_basebackup runs as the server's account, so it writes beside and the result is moved here.
        let staging = self.backups_directory().join(format!("{label}.partial"));
        let base = loomworks_postgres::backup::take(cluster, &staging).await.map_err(BackupError::Copy)?;
        let finished_at = now();
        let label = label.to_owned();
        Ok(blocking(move || {
            durable::create_dir_all(&directory).map_err(io_error("make", &directory))?;
            let archive = directory.join(ARCHIVE);
            durable::sync(&base.archive).map_err(io_error("flush", &base.archive))?;
            durable::rename(&base.archive, &archive).map_err(io_error("rename to", &archive))?;
            let (size_bytes, sha256) = digest(&archive).map_err(io_error("read", &archive))?;
            let backup = Backup {
                label,
                timeline: base.timeline,
                start: base.start,
                end: base.end,
                finished_at,
                size_bytes,
                sha256,
            };
            write_json(&copied, &backup)?;
            std::fs::remove_dir_all(&staging).map_err(io_error("remove", &staging))?;
            Ok(backup)
        })
        .await?)
    }

    /// Whether all WAL that the backup needs to become consistent is archived.
    pub async fn has_wal_of(&self, backup: &Backup) -> Result<bool, RepositoryError> {
        self.has(backup.timeline, backup.start, backup.end).await
    }

    /// Writes the manifest: from now on it is a backup. Refused while its WAL is not complete.
    pub async fn commit_backup(&self, backup: &Backup) -> Result<(), BackupError> {
        if !self.has_wal_of(backup).await? {
            return Err(BackupError::WalIncomplete(backup.label.clone()));
        }
        let (path, backup) = (self.backups_directory().join(&backup.label).join(MANIFEST), backup.clone());
        Ok(blocking(move || write_json(&path, &backup)).await?)
    }

    /// All backups, oldest first. What has no manifest is none.
    pub async fn backups(&self) -> Result<Vec<Backup>, RepositoryError> {
        let directory = self.backups_directory();
        let list = directory.clone();
        let entries = blocking(move || {
            let entries = std::fs::read_dir(&list).map_err(io_error("list", &list))?;
            Ok(entries.filter_map(|entry| Some(entry.ok()?.path().join(MANIFEST))).collect::<Vec<PathBuf>>())
        })
        .await?;
        let mut backups = Vec::new();
        for manifest in entries {
            backups.extend(read_json(&manifest).await?);
        }
        backups.sort_by_key(|backup: &Backup| (backup.finished_at, backup.label.clone()));
        Ok(backups)
    }

    pub(crate) fn archive_of(&self, backup: &Backup) -> PathBuf {
        self.backups_directory().join(&backup.label).join(ARCHIVE)
    }
}

fn write_json(path: &Path, backup: &Backup) -> Result<(), RepositoryError> {
    let text = serde_json::to_vec_pretty(backup).map_err(io::Error::from).map_err(io_error("write", path))?;
    durable::write_if_absent(path, &text).map(drop).map_err(io_error("write", path))
}

async fn read_json(path: &Path) -> Result<Option<Backup>, RepositoryError> {
    let path = path.to_owned();
    blocking(move || match std::fs::read(&path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(source) => Err(RepositoryError::Io { what: "read", path, source }),
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| RepositoryError::Damaged { path, source: error.into() }),
    })
    .await
}

/// Size and SHA-256 of a file.
pub(crate) fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let (mut size, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            let hex = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok((size, hex));
        }
        context.update(&buffer[..read]);
        size += read as u64;
    }
}
