//! Laying a backup's files out in a directory.
//!
//! Every byte that is written was proven to be the one that was copied: its part opened with its group's key in its own
//! place, and its fingerprint is the manifest's. The control file, without which PostgreSQL does not start, gets its
//! name last: a directory that was laid out by half cannot be mistaken for a cluster.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};
use loomworks_core::durable;

use super::fetch::{self, Fetch, Places};
use super::files::CONTROL_FILE;
use super::manifest::Manifest;
use super::{Backup, BackupError, Progress};
use crate::keys::{DatabaseOid, SHARED};
use crate::repository::{Repository, RepositoryError, blocking, file_error};
use crate::seal::DataKey;

/// What the control file is called until everything else is there.
const CONTROL_WAITING: &str = "global/pg_control.waiting";
/// It would make the server put links where we put directories.
const TABLESPACE_MAP: &str = "tablespace_map";
const TABLESPACES: &str = "pg_tblspc/";

/// Groups whose manifests are read ahead.
const GROUPS_AHEAD: usize = 4;

/// Which databases are laid out, beside what all share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Databases {
    /// All whose keys were not deleted.
    All,
    Only(BTreeSet<DatabaseOid>),
}

#[derive(Clone, Copy, Debug, Default)]
pub struct LayOutOptions {
    /// Flushes everything before the control file gets its name. Clusters that are thrown away need it not.
    pub durable: bool,
    /// How many threads open and unpack. `None`: as many as there are processors.
    pub workers: Option<usize>,
}

/// What was laid out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaidOut {
    pub files: u64,
    pub bytes: u64,
    /// Databases whose keys were deleted: nothing of them is there.
    pub erased: Vec<DatabaseOid>,
    /// Oids of tablespaces that are directories in `pg_tblspc` now. The server accepts them with
    /// `allow_in_place_tablespaces = on` only.
    pub tablespaces: BTreeSet<u32>,
}

/// A group whose files have been made and wait for their content.
struct Made {
    manifest: Manifest,
    places: Places,
    key: DataKey,
    into: PathBuf,
}

impl Repository {
    /// Lays a backup's files out in `into`, which must be empty or not exist. They belong to whoever runs this.
    ///
    /// Tablespaces become directories in `pg_tblspc`, wherever they were: nothing is written outside of `into`.
    pub async fn lay_out(
        &self,
        backup: &Backup,
        which: &Databases,
        into: &Path,
        options: LayOutOptions,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<LaidOut, BackupError> {
        let mut laid_out = LaidOut::default();
        let mut groups = Vec::new();
        for oid in chosen(backup, which)? {
            match (self.key_of_group(backup, oid).await?, which) {
                (Some(key), _) => groups.push((oid, key)),
                (None, Databases::All) => laid_out.erased.push(oid),
                (None, Databases::Only(_)) => {
                    return Err(BackupError::Erased { label: backup.label.clone(), oid });
                }
            }
        }
        let root = into.to_owned();
        blocking(move || begin(&root)).await?;

        let wanted = |oid: &DatabaseOid| backup.group(*oid).map_or(0, |group| group.bytes);
        let bytes_total = groups.iter().map(|(oid, _)| wanted(oid)).sum();
        let bytes_done = Arc::new(AtomicU64::new(0));
        let workers =
            options.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));

        let report = || {
            let bytes_done = bytes_done.load(Ordering::Relaxed).min(bytes_total);
            progress(Progress { bytes_done, bytes_total });
        };
        {
            let made = stream::iter(groups)
                .map(|(oid, key)| async move {
                    let manifest = self.read_group(backup, oid, &key).await?;
                    let into = into.to_owned();
                    Ok::<_, BackupError>(blocking(move || Made::make(manifest, key, into)).await?)
                })
                .buffered(GROUPS_AHEAD);
            let fetches = made.flat_map(|made| match made {
                Ok(made) => {
                    let made = Arc::new(made);
                    laid_out.files += made.manifest.files.len() as u64;
                    laid_out.bytes += made.manifest.files.iter().map(|file| file.bytes).sum::<u64>();
                    laid_out
                        .tablespaces
                        .extend(made.manifest.directories.iter().filter_map(|path| tablespace(path)));
                    // Holes are laid out already.
                    let holes = made.hole_bytes();
                    bytes_done.fetch_add(holes, Ordering::Relaxed);
                    let fetches = fetch::fetches(&made.manifest.chunks);
                    stream::iter(
                        fetches.into_iter().map(|fetch| Ok((made.clone(), fetch))).collect::<Vec<_>>(),
                    )
                }
                Err(error) => stream::iter(vec![Err(error)]),
            });
            let mut written = std::pin::pin!(
                fetches
                    .map(|fetch| {
                        let bytes_done = bytes_done.clone();
                        async move {
                            let (made, fetch) = fetch?;
                            let bytes = fetch::read(self, &made.manifest, &fetch).await?;
                            let repository = self.clone();
                            let written = blocking(move || made.write(&repository, &fetch, &bytes)).await?;
                            bytes_done.fetch_add(written, Ordering::Relaxed);
                            Ok::<_, BackupError>(())
                        }
                    })
                    // Twice as many: while half of them are opened, the others are read.
                    .buffer_unordered(2 * workers)
            );
            while written.try_next().await?.is_some() {
                report();
            }
        }
        let root = into.to_owned();
        blocking(move || end(&root, options.durable)).await?;
        report();
        Ok(laid_out)
    }
}

/// The groups that are wanted, the shared one first.
fn chosen(backup: &Backup, which: &Databases) -> Result<Vec<DatabaseOid>, BackupError> {
    match which {
        Databases::All => Ok(backup.groups.iter().map(|group| group.oid).collect()),
        Databases::Only(oids) => {
            if let Some(&oid) = oids.iter().find(|&&oid| backup.group(oid).is_none()) {
                return Err(BackupError::NoDatabase { label: backup.label.clone(), oid });
            }
            Ok([SHARED].into_iter().chain(oids.iter().copied().filter(|&oid| oid != SHARED)).collect())
        }
    }
}

fn begin(into: &Path) -> Result<(), BackupError> {
    durable::create_dir_all(into).map_err(file_error("make", into))?;
    let mut entries = std::fs::read_dir(into).map_err(file_error("list", into))?;
    match entries.next() {
        Some(_) => Err(BackupError::NotEmpty(into.to_owned())),
        None => Ok(()),
    }
}

fn end(into: &Path, durable: bool) -> Result<(), RepositoryError> {
    let (waiting, control) = (into.join(CONTROL_WAITING), into.join(CONTROL_FILE));
    if durable {
        let flushed = File::open(into).and_then(|directory| Ok(rustix::fs::syncfs(&directory)?));
        flushed.map_err(file_error("flush", into))?;
    }
    durable::rename(&waiting, &control).map_err(file_error("rename to", &control))
}

/// The oid of a tablespace, if the path is its directory.
fn tablespace(path: &str) -> Option<u32> {
    path.strip_prefix(TABLESPACES)?.parse().ok()
}

fn on_disk(into: &Path, path: &str) -> PathBuf {
    into.join(if path == CONTROL_FILE { CONTROL_WAITING } else { path })
}

impl Made {
    /// Makes a group's directories and its files, which consist of zeros so far.
    fn make(mut manifest: Manifest, key: DataKey, into: PathBuf) -> Result<Self, RepositoryError> {
        manifest.files.retain(|file| file.path != TABLESPACE_MAP);
        for path in &manifest.directories {
            let path = into.join(path);
            // Groups are made side by side: whoever comes first makes what is above.
            let made = DirBuilder::new().mode(0o700).recursive(true).create(&path);
            made.map_err(file_error("make", &path))?;
        }
        for file in &manifest.files {
            let path = on_disk(&into, &file.path);
            // Whoever owns it must be able to write it, here and now.
            let mode = file.mode & 0o777 | 0o600;
            let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
            let made = made.and_then(|made| made.set_len(file.bytes));
            made.map_err(file_error("make", &path))?;
        }
        let places = Places::of(&manifest);
        Ok(Self { manifest, places, key, into })
    }

    fn hole_bytes(&self) -> u64 {
        let chunk_bytes = u64::from(self.manifest.chunk_bytes);
        let of = |bytes: u64, place: u64| chunk_bytes.min(bytes - place * chunk_bytes);
        let files = self.manifest.files.iter();
        files
            .flat_map(|file| {
                let holes = (0..).zip(&file.chunks).filter(|(_, chunk)| **chunk == 0);
                holes.map(|(place, _)| of(file.bytes, place))
            })
            .sum()
    }

    /// Writes what a read has brought, to all places where it belongs.
    fn write(&self, repository: &Repository, fetch: &Fetch, bytes: &[u8]) -> Result<u64, RepositoryError> {
        let mut written = 0;
        let mut open: Option<(u32, File)> = None;
        fetch::open(repository, &self.key, &self.manifest, fetch, bytes, |chunk, content| {
            let content = content?;
            for &(number, place) in self.places.of_chunk(chunk) {
                let path = || on_disk(&self.into, &self.manifest.files[number as usize].path);
                let file = match &mut open {
                    Some((of, file)) if *of == number => file,
                    other => {
                        let file = OpenOptions::new().write(true).open(path());
                        &mut other
                            .insert((number, file.map_err(|error| file_error("write", &path())(error))?))
                            .1
                    }
                };
                let at = u64::from(place) * u64::from(self.manifest.chunk_bytes);
                file.write_all_at(content, at).map_err(|error| file_error("write", &path())(error))?;
                written += content.len() as u64;
            }
            Ok(())
        })?;
        Ok(written)
    }
}
