//! The frame of a base backup: the server is told that its files are being copied, and says what belongs to them.
//!
//! Between [`start`] and [`Running::stop`] one connection is held. When it ends in between, the server forgets the
//! backup and nothing is left to clean up.

use jiff::Timestamp;
use loomworks_core::lsn::Lsn;
use sqlx::PgConnection;

use crate::cluster::{Cluster, ClusterError};

/// A base backup that has begun.
#[derive(Debug)]
pub struct Running {
    connection: PgConnection,
    cluster: Cluster,
    pub timeline: u32,
    /// Where replay begins.
    pub start: Lsn,
    /// By the server's clock.
    pub started_at: Timestamp,
    /// The number of the next transaction, with its epoch in the upper half.
    pub next_xid: u64,
    /// Oid and name, by oid.
    pub databases: Vec<(u32, String)>,
    pub pages: Pages,
    /// Where the server's own log goes: absolute, or below the data directory.
    pub log_directory: String,
}

/// How the server's pages look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    pub bytes: u32,
    /// Whether they carry checksums.
    pub checksums: bool,
    /// After so many a relation's next file begins.
    pub in_a_file: u32,
}

/// A base backup whose files have all been copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Up to where replay must go before the files are consistent.
    pub end: Lsn,
    /// By the server's clock, when that position had been reached.
    pub finished_at: Timestamp,
    /// The content of `backup_label`.
    pub label_file: String,
    /// The content of `tablespace_map`; empty if there is no tablespace.
    pub tablespace_map: String,
}

/// Begins a base backup with a checkpoint at full speed.
pub async fn start(cluster: &Cluster, label: &str) -> Result<Running, ClusterError> {
    let mut connection = cluster.connect("postgres").await?;
    let begun = begin(&mut connection, label).await;
    let (begun, settings, databases) = begun.map_err(|source| failed(cluster, source))?;
    let (start, started_at, timeline, next_xid) = begun;
    let (page_bytes, checksums, in_a_file, log_directory) = settings;
    Ok(Running {
        connection,
        cluster: cluster.clone(),
        timeline: u32::try_from(timeline).map_err(|error| unreadable(cluster, error))?,
        start: start.parse().map_err(|error| unreadable(cluster, error))?,
        started_at: Timestamp::from_microsecond(started_at).map_err(|error| unreadable(cluster, error))?,
        next_xid: full_xid(&next_xid).ok_or_else(|| unreadable(cluster, format!("next xid `{next_xid}`")))?,
        databases: databases
            .into_iter()
            .filter_map(|(oid, name)| Some((u32::try_from(oid).ok()?, name)))
            .collect(),
        pages: Pages {
            bytes: u32::try_from(page_bytes).map_err(|error| unreadable(cluster, error))?,
            checksums,
            in_a_file: u32::try_from(in_a_file).map_err(|error| unreadable(cluster, error))?,
        },
        log_directory,
    })
}

type Begun = (String, i64, i32, String);
type Settings = (i32, bool, i32, String);

async fn begin(
    connection: &mut PgConnection,
    label: &str,
) -> sqlx::Result<(Begun, Settings, Vec<(i64, String)>)> {
    // The connection is idle while the files are read, which may take hours.
    sqlx::raw_sql("SET statement_timeout = 0; SET idle_session_timeout = 0")
        .execute(&mut *connection)
        .await?;
    let (start, started_at): (String, i64) = sqlx::query_as(
        "SELECT pg_backup_start($1, fast => true)::text, (extract(epoch FROM clock_timestamp()) * 1e6)::int8",
    )
    .bind(label)
    .fetch_one(&mut *connection)
    .await?;
    let (timeline, next_xid): (i32, String) =
        sqlx::query_as("SELECT timeline_id, next_xid FROM pg_control_checkpoint()")
            .fetch_one(&mut *connection)
            .await?;
    let settings = sqlx::query_as(
        "SELECT current_setting('block_size')::int4, current_setting('data_checksums')::bool,
                (SELECT setting::int4 FROM pg_settings WHERE name = 'segment_size'), current_setting('log_directory')",
    )
    .fetch_one(&mut *connection)
    .await?;
    let databases = sqlx::query_as("SELECT oid::int8, datname::text FROM pg_database ORDER BY oid")
        .fetch_all(&mut *connection)
        .await?;
    Ok(((start, started_at, timeline, next_xid), settings, databases))
}

impl Running {
    /// The position up to which the server has written its log by now: no page is younger.
    pub async fn written_up_to(&mut self) -> Result<Lsn, ClusterError> {
        let lsn: String = sqlx::query_scalar("SELECT pg_current_wal_insert_lsn()::text")
            .fetch_one(&mut self.connection)
            .await
            .map_err(|source| failed(&self.cluster, source))?;
        lsn.parse().map_err(|error| unreadable(&self.cluster, error))
    }

    /// Ends the backup. That its WAL is archived is for others to wait for.
    pub async fn stop(&mut self) -> Result<Stopped, ClusterError> {
        let stopped: sqlx::Result<(String, String, String)> = sqlx::query_as(
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(wait_for_archive => false)",
        )
        .fetch_one(&mut self.connection)
        .await;
        let (end, label_file, tablespace_map) = stopped.map_err(|source| failed(&self.cluster, source))?;
        let finished_at: i64 =
            sqlx::query_scalar("SELECT ceil(extract(epoch FROM clock_timestamp()) * 1e6)::int8")
                .fetch_one(&mut self.connection)
                .await
                .map_err(|source| failed(&self.cluster, source))?;
        Ok(Stopped {
            end: end.parse().map_err(|error| unreadable(&self.cluster, error))?,
            finished_at: Timestamp::from_microsecond(finished_at)
                .map_err(|error| unreadable(&self.cluster, error))?,
            label_file,
            tablespace_map,
        })
    }
}

fn failed(cluster: &Cluster, source: sqlx::Error) -> ClusterError {
    ClusterError::Query { directory: cluster.directory.clone(), source }
}

fn unreadable(cluster: &Cluster, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClusterError {
    failed(cluster, sqlx::Error::Decode(error.into()))
}

/// Reads `epoch:xid`.
fn full_xid(text: &str) -> Option<u64> {
    let (epoch, xid) = text.split_once(':')?;
    Some(u64::from(epoch.parse::<u32>().ok()?) << 32 | u64::from(xid.parse::<u32>().ok()?))
}

/// Whether a server still replays WAL, and how far it is.
pub async fn recovering(connection: &mut PgConnection) -> sqlx::Result<(bool, Option<String>)> {
    sqlx::query_as("SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text").fetch_one(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_number_is_read_with_its_epoch() {
        assert_eq!(full_xid("0:740"), Some(740));
        assert_eq!(full_xid("2:1"), Some((2 << 32) + 1));
        assert_eq!(full_xid("740"), None);
    }
}
