//! Restoring: which backup and which WAL bring a moment back, and laying the backup out.

use std::path::Path;

use jiff::Timestamp;
use loomworks_core::lsn::Lsn;
use serde::{Deserialize, Serialize};

use crate::backup::{Backup, BackupError, Databases, LayOutOptions, Progress};
use crate::keys::{DatabaseOid, SHARED};
use crate::replay::{Laid, Replay};
use crate::repository::{Repository, RepositoryError};
use crate::wal::Until;

/// A moment to go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Just before the record at this position: where a snapshot was taken.
    Lsn(Lsn),
    /// After the last transaction that committed at or before this moment.
    Time(Timestamp),
}

/// What the repository can offer.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// Oldest first.
    pub backups: Vec<Backup>,
    /// How far the WAL goes.
    pub archived_up_to: Option<Lsn>,
    /// The timeline that the cluster is on.
    pub timeline: u32,
}

/// The base backup that a restore begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    pub label: String,
    pub timeline: u32,
    pub start: Lsn,
    pub end: Lsn,
    pub finished_at: Timestamp,
    /// Bytes of files that must be brought back.
    pub size_bytes: u64,
}

/// How a moment of one database is brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    pub target: Target,
    /// The database as it was numbered at that moment.
    pub database: DatabaseOid,
    pub backup: Base,
    /// The timeline whose WAL is replayed, with those that it came from.
    pub timeline: u32,
    /// How long the WAL is that is looked through. Of it only what is the database's own and what all share is read.
    pub wal_bytes: u64,
}

/// Why a moment cannot be brought back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotRestore {
    #[error("there is no base backup yet")]
    NoBackup,
    #[error("{asked} is before the oldest moment that can be restored")]
    TooEarly { asked: String, earliest: String },
    #[error("{asked} is in the future")]
    TooLate { asked: String, latest: String },
    #[error("{0} is not archived yet")]
    NotArchived(Lsn),
}

impl CannotRestore {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NoBackup => "take one with `loomworks backup run`".into(),
            Self::TooEarly { earliest, .. } => format!("recoverable from {earliest}"),
            Self::TooLate { latest, .. } => format!("recoverable up to {latest}"),
            Self::NotArchived(_) => "wait until the snapshot is ready".into(),
        }
    }
}

/// The newest backup that was complete before the target: the least WAL to replay. Pure.
pub fn base(catalog: &Catalog, target: Target, now: Timestamp) -> Result<&Backup, CannotRestore> {
    let oldest = catalog.backups.first().ok_or(CannotRestore::NoBackup)?;
    let archived = catalog.archived_up_to.unwrap_or_default();
    match target {
        Target::Time(asked) if asked > now => {
            return Err(CannotRestore::TooLate { asked: asked.to_string(), latest: now.to_string() });
        }
        Target::Lsn(lsn) if lsn > archived => return Err(CannotRestore::NotArchived(lsn)),
        _ => {}
    }
    let suits = |backup: &&Backup| match target {
        Target::Lsn(lsn) => backup.end <= lsn,
        Target::Time(time) => backup.finished_at <= time,
    };
    catalog.backups.iter().rev().find(suits).ok_or_else(|| match target {
        Target::Lsn(lsn) => {
            CannotRestore::TooEarly { asked: lsn.to_string(), earliest: oldest.end.to_string() }
        }
        Target::Time(time) => {
            CannotRestore::TooEarly { asked: time.to_string(), earliest: oldest.finished_at.to_string() }
        }
    })
}

/// How a moment of a database is brought back. Pure.
pub fn plan(
    catalog: &Catalog,
    database: DatabaseOid,
    target: Target,
    now: Timestamp,
) -> Result<RestorePlan, CannotRestore> {
    let backup = base(catalog, target, now)?;
    let to = match target {
        Target::Lsn(lsn) => lsn,
        Target::Time(_) => catalog.archived_up_to.unwrap_or_default(),
    };
    let files = backup.groups.iter().filter(|group| group.oid == database || group.oid == SHARED);
    let base = Base {
        label: backup.label.clone(),
        timeline: backup.timeline,
        start: backup.start,
        end: backup.end,
        finished_at: backup.finished_at,
        size_bytes: files.map(|group| group.bytes).sum(),
    };
    let wal_bytes = to.0.saturating_sub(backup.start.0);
    Ok(RestorePlan { target, database, backup: base, timeline: catalog.timeline, wal_bytes })
}

/// The cluster's own database `postgres`, by which a server is asked whether it is ready. Source: PostgreSQL
/// `src/include/catalog/pg_database.dat`.
const POSTGRES: DatabaseOid = 5;

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// A target in the terms of who merges WAL.
pub(crate) fn until(target: Target) -> Until {
    match target {
        Target::Lsn(lsn) => Until::Before(lsn),
        Target::Time(time) => Until::Time(time.as_microsecond() - POSTGRES_EPOCH),
    }
}

/// Bytes of the two parts of what is laid out. WAL counts by its length, most of which is passed over.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) files: u64,
    pub(crate) wal: u64,
}

impl Parts {
    /// What is to be told while files are laid out.
    pub(crate) fn of_files(self, laid: Progress) -> Progress {
        Progress { bytes_done: laid.bytes_done.min(self.files), bytes_total: self.files + self.wal }
    }

    /// And after them, with so many of all objects of WAL behind.
    pub(crate) fn of_wal(self, done: u64, all: u64) -> Progress {
        let bytes_done = self.files + self.wal * done.min(all) / all.max(1);
        Progress { bytes_done, bytes_total: self.files + self.wal }
    }
}

impl RestorePlan {
    /// The databases whose files and records a side cluster needs.
    #[must_use]
    pub fn databases(&self) -> Vec<DatabaseOid> {
        vec![POSTGRES, self.database]
    }

    fn parts(&self) -> Parts {
        Parts { files: self.backup.size_bytes, wal: self.wal_bytes }
    }
}

impl Repository {
    /// What can be restored now of a cluster that is on `timeline`.
    pub async fn catalog(&self, timeline: u32) -> Result<Catalog, RepositoryError> {
        let backups = self.backups().await?;
        Ok(Catalog { backups, archived_up_to: self.archived_up_to(timeline).await?, timeline })
    }

    /// Lays out in `into`, which must not exist, the files that a side cluster begins with. Gives what it must replay, which
    /// [`Self::lay_out_wal_of`] brings, also while the server runs already.
    pub async fn lay_out_files_of(
        &self,
        plan: &RestorePlan,
        into: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Replay, BackupError> {
        let label = &plan.backup.label;
        let backup = self.backup(label).await?.ok_or_else(|| BackupError::NoBackup(label.clone()))?;
        // One that was made since is made again by the WAL.
        let files = plan.databases().into_iter().filter(|oid| backup.group(*oid).is_some()).collect();
        let options = LayOutOptions::default();
        let of_files = |laid| progress(plan.parts().of_files(laid));
        self.lay_out(&backup, &Databases::Only(files), into, options, &of_files).await?;
        Ok(Replay {
            from: backup.start,
            next_xid: backup.next_xid,
            // A side cluster replays this one to its end and follows no other.
            lineage: self.lineage(backup.timeline).await?,
            databases: plan.databases().into_iter().collect(),
            until: until(plan.target),
            transactions_until: Lsn(0),
        })
    }

    /// Lays out its WAL up to the target. If more is needed, the files must be laid out anew as well.
    pub async fn lay_out_wal_of(
        &self,
        plan: &RestorePlan,
        replay: &Replay,
        into: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Laid, BackupError> {
        let of_wal = |done, all| progress(plan.parts().of_wal(done, all));
        let laid = self.try_to_lay_out_wal(replay, &into.join("pg_wal"), &of_wal).await?;
        match &laid {
            Laid::Out(laid) if plan.backup.timeline != plan.timeline && !laid.outcome.reached => {
                let name = format!("the WAL of timeline {} up to that moment", plan.backup.timeline);
                Err(RepositoryError::Gone { name }.into())
            }
            _ => Ok(laid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::Group;

    const DATABASE: DatabaseOid = 20_000;

    fn backup(label: &str, end: u64, finished_at: &str) -> Backup {
        let finished_at = finished_at.parse().unwrap();
        let group = |oid, bytes| Group { oid, bytes, ..Group::default() };
        Backup {
            label: label.into(),
            attempt: String::new(),
            timeline: 1,
            start: Lsn(end - 10),
            end: Lsn(end),
            next_xid: 1000,
            started_at: finished_at,
            finished_at,
            previous: None,
            page_checksums: Some(true),
            pages_in_a_file: 131_072,
            groups: vec![
                group(SHARED, 5),
                group(POSTGRES, 7),
                group(DATABASE, 100),
                group(DATABASE + 1, 1000),
            ],
            size_bytes: 1112,
            new_bytes: 1,
            damaged_pages: 0,
        }
    }

    fn catalog() -> Catalog {
        Catalog {
            backups: vec![
                backup("old", 100, "2026-01-01T02:00:00Z"),
                backup("new", 200, "2026-01-02T02:00:00Z"),
            ],
            archived_up_to: Some(Lsn(300)),
            timeline: 1,
        }
    }

    fn now() -> Timestamp {
        "2026-01-03T00:00:00Z".parse().unwrap()
    }

    fn chosen(target: Target) -> Result<String, CannotRestore> {
        plan(&catalog(), DATABASE, target, now()).map(|plan| plan.backup.label)
    }

    fn time(text: &str) -> Target {
        Target::Time(text.parse().unwrap())
    }

    #[test]
    fn the_newest_backup_before_the_target_is_taken() {
        assert_eq!(chosen(Target::Lsn(Lsn(200))).unwrap(), "new");
        assert_eq!(chosen(Target::Lsn(Lsn(199))).unwrap(), "old");
        assert_eq!(chosen(time("2026-01-02T02:00:00Z")).unwrap(), "new");
        assert_eq!(chosen(time("2026-01-02T01:59:59Z")).unwrap(), "old");
    }

    #[test]
    fn what_cannot_be_restored_says_what_can() {
        let early = chosen(time("2025-12-31T00:00:00Z")).unwrap_err();
        assert_eq!(early.hint(), "recoverable from 2026-01-01T02:00:00Z");
        assert!(matches!(chosen(Target::Lsn(Lsn(99))), Err(CannotRestore::TooEarly { .. })));
        assert!(matches!(chosen(Target::Lsn(Lsn(301))), Err(CannotRestore::NotArchived(_))));
        assert!(matches!(chosen(time("2027-01-01T00:00:00Z")), Err(CannotRestore::TooLate { .. })));
        let empty = Catalog { backups: vec![], archived_up_to: None, timeline: 1 };
        assert_eq!(plan(&empty, DATABASE, Target::Lsn(Lsn(1)), now()), Err(CannotRestore::NoBackup));
    }

    #[test]
    fn the_plan_counts_the_wal_from_the_backups_start() {
        let planned = |target| plan(&catalog(), DATABASE, target, now()).unwrap();
        assert_eq!(planned(Target::Lsn(Lsn(250))).wal_bytes, 60);
        assert_eq!(planned(time("2026-01-02T12:00:00Z")).wal_bytes, 110);
    }

    #[test]
    fn only_the_databases_own_files_and_what_all_share_are_counted() {
        let planned = plan(&catalog(), DATABASE, Target::Lsn(Lsn(250)), now()).unwrap();
        assert_eq!(planned.backup.size_bytes, 105);
        assert_eq!(planned.databases(), [POSTGRES, DATABASE]);
    }

    #[test]
    fn what_is_told_of_files_and_wal_only_grows() {
        let parts = Parts { files: 100, wal: 1000 };
        let laid = |bytes_done| Progress { bytes_done, bytes_total: 120 };
        let told =
            [parts.of_files(laid(60)), parts.of_files(laid(120)), parts.of_wal(1, 4), parts.of_wal(4, 4)];
        assert_eq!(told.map(|progress| progress.bytes_done), [60, 100, 350, 1100]);
        assert!(told.iter().all(|progress| progress.bytes_total == 1100));
        assert_eq!(Parts { files: 0, wal: 0 }.of_wal(0, 0).bytes_done, 0);
    }

    #[test]
    fn times_count_from_postgresqls_epoch() {
        assert_eq!(until(time("2000-01-01T00:00:01Z")), Until::Time(1_000_000));
        assert_eq!(until(Target::Lsn(Lsn(7))), Until::Before(Lsn(7)));
    }
}
