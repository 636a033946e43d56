//! What of a data directory belongs in a base backup, and whose it is.
//!
//! What does not belong is what PostgreSQL's own `pg_basebackup` leaves out, and what we put there ourselves. Source:
//! PostgreSQL documentation, "Backing Up The Data Directory"; `src/backend/backup/basebackup.c`.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::keys::{DatabaseOid, SHARED};

/// The file that is read and laid out last: without it there is no cluster.
pub(crate) const CONTROL_FILE: &str = "global/pg_control";
/// What tells the server where replay must begin.
pub(crate) const LABEL_FILE: &str = "backup_label";

/// Files of the data directory itself that stay behind.
const FILES_LEFT: [&str; 10] = [
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
    "postgresql.auto.conf.tmp",
    "current_logfiles",
    "current_logfiles.tmp",
];

/// Ours: what the server says before its log begins.
const START_LOG: &str = "start.log";

/// Directories of which only the name is kept.
const EMPTIED: [&str; 8] = [
    "pg_wal",
    "pg_stat_tmp",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
];

/// A directory or a file below the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Relative, with `/` between its parts.
    pub(crate) path: String,
    pub(crate) group: DatabaseOid,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File { bytes: u64, mode: u32 },
}

/// Which file of which relation a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relation<'a> {
    pub(crate) number: &'a str,
    /// `None`: the relation itself.
    pub(crate) fork: Option<&'a str>,
    /// Relations are cut into files of 1 GiB; counted from 0.
    pub(crate) segment: u32,
}

impl<'a> Relation<'a> {
    /// Reads `16384`, `16384_fsm`, `16384_vm.1`. `None`: no permanent relation's file.
    pub(crate) fn parse(name: &'a str) -> Option<Self> {
        let (stem, segment) = match name.split_once('.') {
            Some((stem, segment)) if is_number(segment) => (stem, segment.parse().ok()?),
            Some(_) => return None,
            None => (name, 0),
        };
        let (number, fork) = match stem.split_once('_') {
            Some((number, fork @ ("fsm" | "vm" | "init"))) => (number, Some(fork)),
            Some(_) => return None,
            None => (stem, None),
        };
        is_number(number).then_some(Self { number, fork, segment })
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A temporary relation's file: `t3_16384`, with fork and segment.
fn is_temporary(name: &str) -> bool {
    let rest = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    rest.is_some_and(|(backend, rest)| is_number(backend) && Relation::parse(rest).is_some())
}

/// The database of a path: of `base/<oid>` and `pg_tblspc/<oid>/<version>/<oid>` and what is in them.
pub(crate) fn group_of(path: &str) -> DatabaseOid {
    let mut parts = path.split('/');
    let oid = match (parts.next(), parts.next()) {
        (Some("base"), Some(oid)) => Some(oid),
        (Some("pg_tblspc"), Some(_)) => parts.nth(1),
        _ => None,
    };
    oid.filter(|oid| is_number(oid)).and_then(|oid| oid.parse().ok()).unwrap_or(SHARED)
}

/// Whether a path is a relation's file that consists of pages.
pub(crate) fn relation_of(path: &str) -> Option<Relation<'_>> {
    let (parent, name) = path.rsplit_once('/')?;
    (parent == "global" || group_of(parent) != SHARED).then(|| Relation::parse(name)).flatten()
}

/// How much of something is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    All,
    /// The directory without what is in it.
    Name,
    Nothing,
}

/// Judges one name in a directory by itself.
fn keep(parent: &str, name: &str) -> Keep {
    let nothing = name.starts_with("pgsql_tmp")
        || name.starts_with("pg_internal.init")
        || name == ".DS_Store"
        // What `durable` writes before it renames.
        || (name.starts_with('.') && name.ends_with(".tmp"));
    if nothing {
        return Keep::Nothing;
    }
    match parent {
        "" if FILES_LEFT.contains(&name) || name == START_LOG => Keep::Nothing,
        "" if EMPTIED.contains(&name) => Keep::Name,
        _ if group_of(parent) != SHARED && is_temporary(name) => Keep::Nothing,
        _ => Keep::All,
    }
}

/// Whether a file is of an unlogged relation, which begins anew from its `_init` fork after a crash.
fn begins_anew(name: &str, with_init: &HashSet<String>) -> bool {
    Relation::parse(name).is_some_and(|file| file.fork != Some("init") && with_init.contains(file.number))
}

/// Lists what belongs in the backup, parents before what is in them.
///
/// What vanishes meanwhile is not there: the WAL says so too.
pub(crate) fn list(root: &Path, log_directory: &str) -> Result<Vec<Found>, (PathBuf, io::Error)> {
    let log = root.join(log_directory);
    let mut found = Vec::new();
    let mut waiting = vec![String::new()];
    while let Some(parent) = waiting.pop() {
        let directory = root.join(&parent);
        let names = match names_in(&directory) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !parent.is_empty() => continue,
            Err(error) => return Err((directory, error)),
        };
        let in_database = group_of(&parent) != SHARED;
        let with_init: HashSet<String> = match in_database {
            true => names.iter().filter_map(|name| name.strip_suffix("_init")).map(str::to_owned).collect(),
            false => HashSet::new(),
        };
        for name in names {
            let keep = keep(&parent, &name);
            if keep == Keep::Nothing || in_database && begins_anew(&name, &with_init) {
                continue;
            }
            let path = if parent.is_empty() { name } else { format!("{parent}/{name}") };
            let full = root.join(&path);
            // Tablespaces and the WAL may lie elsewhere; no other link is followed.
            let follow = parent == "pg_tblspc" || path == "pg_wal";
            let meta = if follow { std::fs::metadata(&full) } else { std::fs::symlink_metadata(&full) };
            let meta = match meta {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err((full, error)),
            };
            let group = group_of(&path);
            if meta.is_dir() {
                if keep == Keep::All && full != log {
                    waiting.push(path.clone());
                }
                found.push(Found { path, group, kind: Kind::Directory });
            } else if meta.is_file() {
                let kind = Kind::File { bytes: meta.len(), mode: meta.mode() & 0o777 };
                found.push(Found { path, group, kind });
            } else {
                tracing::warn!(path, "neither a file nor a directory: it is not in the backup");
            }
        }
    }
    Ok(found)
}

fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        match entry?.file_name().into_string() {
            Ok(name) => names.push(name),
            // PostgreSQL gives no such names.
            Err(name) => tracing::warn!(?name, "a name that is no UTF-8: it is not in the backup"),
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_belong_to_their_database() {
        for (path, group) in [
            ("base", SHARED),
            ("base/5", 5),
            ("base/16384/2619_vm", 16_384),
            ("base/pgsql_tmp", SHARED),
            ("pg_tblspc/16400", SHARED),
            ("pg_tblspc/16400/PG_15_202209061", SHARED),
            ("pg_tblspc/16400/PG_15_202209061/16384", 16_384),
            ("pg_tblspc/16400/PG_15_202209061/16384/1", 16_384),
            ("global/1262", SHARED),
            ("postgresql.conf", SHARED),
        ] {
            assert_eq!(group_of(path), group, "{path}");
        }
    }

    #[test]
    fn relations_are_told_by_their_names() {
        let relation = |number, fork, segment| Some(Relation { number, fork, segment });
        assert_eq!(relation_of("base/5/16384"), relation("16384", None, 0));
        assert_eq!(relation_of("base/5/16384.3"), relation("16384", None, 3));
        assert_eq!(relation_of("global/1262_fsm"), relation("1262", Some("fsm"), 0));
        assert_eq!(relation_of("pg_tblspc/1/PG_15/5/7_vm.1"), relation("7", Some("vm"), 1));
        for path in
            ["base/5/PG_VERSION", "base/5/t3_16384", "pg_xact/0000", "global/pg_control", "base/5/1_x"]
        {
            assert_eq!(relation_of(path), None, "{path}");
        }
    }

    #[test]
    fn what_stays_behind_is_left_and_directories_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let elsewhere = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::File::create(path).unwrap();
        };
        let kept = [
            "PG_VERSION",
            "base/5/1",
            "base/5/2_init",
            "base/5/pg_filenode.map",
            "base/5/3",
            "global/1262",
            "pg_xact/0000",
            "postgresql.conf",
            "pg_logical/mappings/m",
        ];
        let left = [
            "postmaster.pid",
            "current_logfiles",
            "start.log",
            "backup_label",
            "base/5/2",
            "base/5/2.1",
            "base/5/2_vm",
            "base/5/t3_7",
            "base/5/t3_7_fsm",
            "base/5/pg_internal.init.77",
            "global/pg_internal.init",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/x",
            "pg_stat_tmp/global.stat",
            "pg_replslot/s/state",
            "log/today.log",
            ".postgresql.conf.7.tmp",
        ];
        for path in kept.iter().chain(&left) {
            put(path);
        }
        std::fs::create_dir_all(root.join("pg_tblspc")).unwrap();
        std::fs::create_dir_all(elsewhere.path().join("PG_15/5")).unwrap();
        std::fs::File::create(elsewhere.path().join("PG_15/5/9")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), root.join("pg_tblspc/77")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();

        let found = list(root, "log").unwrap();
        let mut files: Vec<&str> =
            found.iter().filter(|f| f.kind != Kind::Directory).map(|f| f.path.as_str()).collect();
        let mut expected = kept.to_vec();
        expected.push("pg_tblspc/77/PG_15/5/9");
        files.sort_unstable();
        expected.sort_unstable();
        assert_eq!(files, expected);
        for directory in ["pg_wal", "pg_stat_tmp", "pg_replslot", "log", "base/5", "pg_tblspc/77/PG_15/5"] {
            let entry = found.iter().find(|f| f.path == directory);
            assert_eq!(entry.map(|entry| &entry.kind), Some(&Kind::Directory), "{directory}");
        }
        assert!(!found.iter().any(|f| f.path.starts_with("base/pgsql_tmp") || f.path == "link"));
        for (place, entry) in found.iter().enumerate() {
            if let Some((parent, _)) = entry.path.rsplit_once('/') {
                assert!(found[..place].iter().any(|before| before.path == parent), "{}", entry.path);
            }
        }
    }
}
