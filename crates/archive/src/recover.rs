//! Recovering a whole cluster: onto an empty machine, with nothing but the repository and the master key.
//!
//! Files of all databases whose keys are there are laid out, and the WAL of all of them beside, merged already. The server
//! then recovers as PostgreSQL does from any archive: `restore_command` takes the next segment of what was laid out, and at
//! its end a new timeline begins, so what is archived from then on is told from what was.

use std::path::{Path, PathBuf};

use loomworks_core::lsn::Lsn;
use serde::Serialize;

use crate::backup::{Backup, BackupError, Databases, LaidOut, LayOutOptions, Progress};
use crate::keys::DatabaseOid;
use crate::replay::{Replay, Replayable};
use crate::repository::{Repository, RepositoryError};
use crate::restore::{self, CannotRestore, Parts, Target};
use crate::wal::Until;

/// How a cluster is brought back.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterPlan {
    /// `None`: to the end of what is archived.
    pub target: Option<Target>,
    #[serde(skip)]
    pub backup: Backup,
    pub timeline: u32,
    pub archived_up_to: Lsn,
    pub wal_bytes: u64,
    /// Databases of the backup whose keys were deleted. They stay away.
    pub erased: Vec<DatabaseOid>,
}

/// Why a cluster cannot be brought back.
#[derive(Debug, thiserror::Error)]
pub enum CannotRecover {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Target(#[from] CannotRestore),
    #[error("the WAL of the newest base backup is not complete in the repository")]
    Incomplete,
}

impl CannotRecover {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Repository(error) => error.hint().map(str::to_owned),
            Self::Target(error) => Some(error.hint()),
            Self::Incomplete => Some("name an earlier moment with --time".to_owned()),
        }
    }
}

impl Repository {
    /// The newest timeline of which there is WAL.
    pub async fn newest_timeline(&self) -> Result<u32, RepositoryError> {
        let names = self.store.names("wal").await?;
        let timelines = names.iter().filter_map(|name| u32::from_str_radix(name, 16).ok());
        timelines.max().ok_or_else(|| RepositoryError::Gone { name: "wal".to_owned() })
    }

    /// How the cluster would be brought back. Changes nothing.
    pub async fn plan_recovery(
        &self,
        target: Option<Target>,
        now: jiff::Timestamp,
    ) -> Result<ClusterPlan, CannotRecover> {
        let timeline = self.newest_timeline().await?;
        let catalog = self.catalog(timeline).await?;
        let archived_up_to = catalog.archived_up_to.unwrap_or_default();
        let backup = match target {
            Some(target) => restore::base(&catalog, target, now)?,
            None => catalog.backups.last().ok_or(CannotRestore::NoBackup)?,
        };
        if !self.has(timeline, backup.start, backup.end).await? {
            return Err(CannotRecover::Incomplete);
        }
        let readable = self.readable_databases().await?;
        let erased = backup.groups.iter().map(|group| group.oid);
        let erased = erased.filter(|oid| *oid >= 16_384 && !readable.contains(oid)).collect();
        let wal_bytes = archived_up_to.0.saturating_sub(backup.start.0);
        Ok(ClusterPlan { target, backup: backup.clone(), timeline, archived_up_to, wal_bytes, erased })
    }

    /// Lays the files out in `data`, which must not exist, and the WAL in `wal`.
    pub async fn lay_out_cluster(
        &self,
        plan: &ClusterPlan,
        data: &Path,
        wal: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(LaidOut, Replayable), BackupError> {
        let options = LayOutOptions { durable: true, ..LayOutOptions::default() };
        let parts = Parts { files: plan.backup.size_bytes, wal: plan.wal_bytes };
        let of_files = |laid| progress(parts.of_files(laid));
        let laid = self.lay_out(&plan.backup, &Databases::All, data, options, &of_files).await?;
        let replay = Replay {
            from: plan.backup.start,
            next_xid: plan.backup.next_xid,
            lineage: self.lineage(plan.timeline).await?,
            databases: self.readable_databases().await?,
            until: plan.target.map_or(Until::End, restore::until),
            transactions_until: Lsn(0),
        };
        let replayable =
            self.lay_out_wal(&replay, wal, &|done, all| progress(parts.of_wal(done, all))).await?;
        Ok((laid, replayable))
    }
}

/// Hands a segment that was laid out to recovery. `Ok(false)`: there is no such one, which is how it learns that it has
/// reached the end.
pub fn take(directory: &Path, name: &str, to: &Path) -> std::io::Result<bool> {
    let path: PathBuf = directory.join(name);
    if name.contains('/') || !path.is_file() {
        return Ok(false);
    }
    std::fs::copy(&path, to)?;
    Ok(true)
}
