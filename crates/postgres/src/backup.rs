//! Taking a base backup with PostgreSQL's own `pg_basebackup`.

use std::path::{Path, PathBuf};

use loomworks_core::lsn::Lsn;
use serde::Deserialize;

use crate::cluster::{Cluster, ClusterError, SUPERUSER, remove_directory};

/// A base backup as it lies in a directory.
#[derive(Clone, Debug)]
pub struct BaseBackup {
    /// The data directory as a tar file, compressed with zstd.
    pub archive: PathBuf,
    pub timeline: u32,
    /// Where replay begins.
    pub start: Lsn,
    /// Up to where it must go before the files are consistent.
    pub end: Lsn,
}

/// The parts of `backup_manifest` that we read (PostgreSQL documentation, "Backup Manifest Format").
#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<WalRange>,
}

#[derive(Deserialize)]
struct WalRange {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

/// Copies the cluster's files into `directory` (made anew), without WAL: that is the archive's.
pub async fn take(cluster: &Cluster, directory: &Path) -> Result<BaseBackup, ClusterError> {
    remove_directory(directory).await?;
    let socket = cluster.socket_directory.to_string_lossy();
    let target = directory.to_string_lossy();
    let arguments = [
        "--host",
        &socket,
        "--port",
        &cluster.port.to_string(),
        "--username",
        SUPERUSER,
        "--no-password",
        "--pgdata",
        &target,
        "--format=tar",
        "--compress=client-zstd:3",
        "--wal-method=none",
        "--checkpoint=fast",
        "--label=loomworks",
    ]
    .map(str::to_owned);
    cluster.installation.run("pg_basebackup", arguments).await?;
    read(directory).map_err(|source| ClusterError::File { what: "read", path: directory.to_owned(), source })
}

fn read(directory: &Path) -> std::io::Result<BaseBackup> {
    let text = std::fs::read_to_string(directory.join("backup_manifest"))?;
    let manifest: Manifest = serde_json::from_str(&text)?;
    let range =
        manifest.wal_ranges.first().ok_or_else(|| std::io::Error::other("the manifest names no WAL"))?;
    Ok(BaseBackup {
        archive: directory.join("base.tar.zst"),
        timeline: range.timeline,
        start: range.start,
        end: range.end,
    })
}
