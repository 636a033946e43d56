//! Restoring: which backup and which WAL bring a moment back, and laying the backup out.

use std::fs::File;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use loomworks_core::durable;
use loomworks_core::lsn::Lsn;
use loomworks_postgres::config::RecoveryTarget;
use serde::{Deserialize, Serialize};

use crate::backup::{Backup, digest};
use crate::repository::{Repository, RepositoryError, blocking, io_error};

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
}

/// How a moment is brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    pub target: Target,
    pub backup: Backup,
    /// WAL to replay at most, uncompressed.
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

/// Chooses the newest backup that was complete before the target: the least WAL to replay. Pure.
pub fn plan(catalog: &Catalog, target: Target, now: Timestamp) -> Result<RestorePlan, CannotRestore> {
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
    let backup = catalog.backups.iter().rev().find(suits).ok_or_else(|| match target {
        Target::Lsn(lsn) => {
            CannotRestore::TooEarly { asked: lsn.to_string(), earliest: oldest.end.to_string() }
        }
        Target::Time(time) => {
            CannotRestore::TooEarly { asked: time.to_string(), earliest: oldest.finished_at.to_string() }
        }
    })?;
    let to = match target {
        Target::Lsn(lsn) => lsn,
        Target::Time(_) => archived,
    };
    Ok(RestorePlan { target, backup: backup.clone(), wal_bytes: to.0.saturating_sub(backup.start.0) })
}

impl RestorePlan {
    /// The target in PostgreSQL's terms.
    #[must_use]
    pub fn recovery_target(&self) -> RecoveryTarget {
        match self.target {
            Target::Lsn(lsn) => RecoveryTarget::Before(lsn),
            Target::Time(time) => RecoveryTarget::Time(time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()),
        }
    }
}

impl Repository {
    /// What can be restored now.
    pub async fn catalog(&self) -> Result<Catalog, RepositoryError> {
        let backups = self.backups().await?;
        let timeline = backups.last().map_or(1, |backup| backup.timeline);
        Ok(Catalog { backups, archived_up_to: self.archived_up_to(timeline).await? })
    }

    /// Lays a backup's files out in `into`, which must not exist.
    ///
    /// The control file, without which PostgreSQL does not start, gets its name last: a directory that was laid out
    /// by half cannot be mistaken for a cluster.
    pub async fn lay_out(&self, backup: &Backup, into: &Path) -> Result<(), RepositoryError> {
        let (archive, backup, into) = (self.archive_of(backup), backup.clone(), into.to_owned());
        blocking(move || {
            let (_, sha256) = digest(&archive).map_err(io_error("read", &archive))?;
            if sha256 != backup.sha256 {
                let source = io::Error::other("its checksum is not the one of the manifest");
                return Err(RepositoryError::Damaged { path: archive, source });
            }
            unpack(&archive, &into).map_err(io_error("lay out", &into))
        })
        .await
    }
}

fn unpack(archive: &Path, into: &Path) -> io::Result<()> {
    const CONTROL: &str = "global/pg_control";
    const CONTROL_WAITING: &str = "global/pg_control.waiting";
    durable::create_dir_all(into)?;
    let mut tar = tar::Archive::new(zstd::Decoder::new(File::open(archive)?)?);
    for entry in tar.entries()? {
        let mut entry = entry?;
        if entry.path()?.as_ref() == Path::new(CONTROL) {
            entry.unpack(into.join(CONTROL_WAITING))?;
        } else if !entry.unpack_in(into)? {
            return Err(io::Error::other("the archive has a path that leads out of it"));
        }
    }
    durable::rename(&into.join(CONTROL_WAITING), &into.join(CONTROL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(label: &str, end: u64, finished_at: &str) -> Backup {
        Backup {
            label: label.into(),
            timeline: 1,
            start: Lsn(end - 10),
            end: Lsn(end),
            finished_at: finished_at.parse().unwrap(),
            size_bytes: 1,
            sha256: String::new(),
        }
    }

    fn catalog() -> Catalog {
        Catalog {
            backups: vec![
                backup("old", 100, "2026-01-01T02:00:00Z"),
                backup("new", 200, "2026-01-02T02:00:00Z"),
            ],
            archived_up_to: Some(Lsn(300)),
        }
    }

    fn now() -> Timestamp {
        "2026-01-03T00:00:00Z".parse().unwrap()
    }

    fn chosen(target: Target) -> Result<String, CannotRestore> {
        plan(&catalog(), target, now()).map(|plan| plan.backup.label)
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
        let empty = Catalog { backups: vec![], archived_up_to: None };
        assert_eq!(plan(&empty, Target::Lsn(Lsn(1)), now()), Err(CannotRestore::NoBackup));
    }

    #[test]
    fn the_plan_counts_the_wal_from_the_backups_start() {
        assert_eq!(plan(&catalog(), Target::Lsn(Lsn(250)), now()).unwrap().wal_bytes, 60);
        assert_eq!(plan(&catalog(), time("2026-01-02T12:00:00Z"), now()).unwrap().wal_bytes, 110);
    }
}
