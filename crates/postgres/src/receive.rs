//! Receiving WAL over the replication protocol, with PostgreSQL's own `pg_receivewal`.
//!
//! It writes a segment that is not complete yet as `<name>.partial`, whole in length, and renames it when it is. Where
//! it goes on after a stop it sees by what lies in its directory, or by its slot, which also keeps the server from
//! removing what was not received.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Child;

use crate::cluster::{Cluster, ClusterError, SUPERUSER};
use crate::installation::InstallationError;

/// How much WAL the slot may keep back before the server gives up on it: an archiver that is away must not fill the
/// disk. What `archive_command` has not archived is kept all the same.
pub const SLOT_KEEPS: &str = "8GB";

/// Where a slot stands. Source: PostgreSQL documentation, `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes of WAL that it keeps back.
    pub behind_bytes: i64,
}

/// Looks at a slot. `None`: there is none.
pub async fn slot(cluster: &Cluster, name: &str) -> Result<Option<Slot>, ClusterError> {
    let mut admin = cluster.connect("postgres").await?;
    let row: Option<(bool, Option<String>, Option<i64>)> = sqlx::query_as(
        "SELECT active, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint
         FROM pg_replication_slots WHERE slot_name = $1",
    )
    .bind(name)
    .fetch_optional(&mut admin)
    .await
    .map_err(|source| ClusterError::Query { directory: cluster.directory.clone(), source })?;
    Ok(row.map(|(active, wal_status, behind)| Slot { active, wal_status, behind_bytes: behind.unwrap_or(0) }))
}

/// Makes the slot unless it is there and of use. One that has lost its WAL is made anew.
///
/// A `pg_receivewal` whose process was killed lives on and keeps the slot: it is told to end by ending its connection.
pub async fn ensure_slot(cluster: &Cluster, name: &str) -> Result<(), ClusterError> {
    let found = slot(cluster, name).await?;
    let lost = found.as_ref().is_some_and(|slot| slot.wal_status.as_deref() == Some("lost"));
    let found_none = found.is_none();
    let mut admin = cluster.connect("postgres").await?;
    let failed = |source| ClusterError::Query { directory: cluster.directory.clone(), source };
    if lost {
        sqlx::query("SELECT pg_drop_replication_slot($1)")
            .bind(name)
            .execute(&mut admin)
            .await
            .map_err(failed)?;
    }
    if found.is_some_and(|slot| slot.active) {
        let sql = "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots
                   WHERE slot_name = $1 AND active_pid IS NOT NULL";
        sqlx::query(sql).bind(name).execute(&mut admin).await.map_err(failed)?;
    }
    if lost || found_none {
        let sql = "SELECT pg_create_physical_replication_slot($1, immediately_reserve => true)";
        sqlx::query(sql).bind(name).execute(&mut admin).await.map_err(failed)?;
    }
    Ok(())
}

/// Starts receiving into `directory`. The process ends by itself when the server does, and with the value that is given.
pub fn start(cluster: &Cluster, slot: &str, directory: &Path) -> Result<Child, ClusterError> {
    let mut command = cluster.installation.command("pg_receivewal");
    command
        .arg("--directory")
        .arg(directory)
        .arg("--host")
        .arg(&cluster.socket_directory)
        .args(["--port", &cluster.port.to_string(), "--username", SUPERUSER, "--no-password", "--slot", slot])
        .args(["--no-loop", "--synchronous", "--status-interval", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().map_err(|source| {
        ClusterError::Program(InstallationError::Spawn { program: "pg_receivewal".into(), source })
    })
}

/// What was received, oldest first: complete segments, and the one that is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    pub complete: Vec<String>,
    /// The segment's name, without its ending.
    pub partial: Option<String>,
}

impl Received {
    /// Looks into the directory.
    pub fn look(directory: &Path) -> std::io::Result<Self> {
        let mut found = Self::default();
        let names =
            std::fs::read_dir(directory)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        for name in names {
            match name.strip_suffix(".partial") {
                // After a change of the timeline the former one's last segment stays partial.
                Some(segment) => found.partial = Some(segment.to_owned()),
                None if name.len() == 24 || name.ends_with(".history") => found.complete.push(name),
                None => {}
            }
        }
        Ok(found)
    }

    /// Where the partial segment lies.
    #[must_use]
    pub fn partial_path(&self, directory: &Path) -> Option<PathBuf> {
        self.partial.as_ref().map(|name| directory.join(format!("{name}.partial")))
    }
}
