//! Copying the cluster's files into the repository.
//!
//! ```text
//! pg_backup_start ─► list files ─► tasks ─► read, look, cut, compress, seal ─► packs ─► groups' manifests
//!                                                         pg_control, pg_backup_stop ─► shared manifest ─► `copied`
//! ```
//!
//! Each try has a name of its own, which is in the names of the manifests it writes, so nothing of two tries is mixed.
//! What is used again of a former try are chunks: each is found by its content in a pack that is whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use loomworks_core::lsn::Lsn;
use loomworks_postgres::Cluster;
use loomworks_postgres::backup::{Running, Stopped};
use tokio::sync::{Mutex, Semaphore};

use super::files::{CONTROL_FILE, Found, Kind, LABEL_FILE};
use super::group::{GroupCopy, Known, Listed};
use super::manifest::{CHUNK_BYTES, LARGE_CHUNK_BYTES, PackRef};
use super::pages::{self, PAGE_BYTES};
use super::read::{Copying, PageRules, Piece};
use super::{Backup, BackupError, CopyOptions, Group, Progress, files, names, pack, read};
use crate::keys::{DatabaseOid, Found as FoundKey, SHARED};
use crate::lineage::Lineage;
use crate::repository::{Repository, RepositoryError, blocking, file_error};
use crate::seal::{DataKey, random};

/// Files are read in pieces of this size, so that several threads can read one file.
const PIECE_BYTES: u64 = 32 << 20;
/// A task has as many pieces as make about so much, or so many small ones.
const TASK_BYTES: u64 = 32 << 20;
const TASK_PIECES: usize = 2000;
/// What opening a file costs, in bytes read.
const OPENING_BYTES: u64 = 16 << 10;

/// From this size on a group has large chunks. What is known of a chunk takes some 150 bytes of memory: of a group of this
/// size some 300 MB.
const LARGE_GROUP_BYTES: u64 = 32 << 30;

/// Groups that are made ready ahead, and groups whose manifests are on their way.
const GROUPS_AHEAD: usize = 8;
const GROUPS_BEHIND: usize = 16;

/// Everything that is known before the files are read.
struct Prepared {
    copying: Copying,
    running: Mutex<Running>,
    lineage: Lineage,
    start: Lsn,
    previous: Option<Backup>,
    attempt: String,
    /// All packs with their sizes.
    packs: HashMap<String, u64>,
}

/// A database's files, as they were listed.
#[derive(Default)]
struct ListedGroup {
    directories: Vec<String>,
    files: Vec<Listed>,
}

struct Task {
    group: Arc<GroupCopy>,
    pieces: Vec<Piece>,
}

/// What is written of a group when it is done.
struct Finished {
    group: Group,
    packs: Vec<PackRef>,
}

/// Copies the files and gives the backup, which no object names yet.
pub(super) async fn copy(
    repository: &Repository,
    cluster: &Cluster,
    label: &str,
    options: CopyOptions,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Backup, BackupError> {
    let attempt = format!("{:016x}", u64::from_be_bytes(random()));
    let previous = match options.full {
        true => None,
        false => repository.backups().await?.pop(),
    };
    // From here on nothing is removed that this copy may refer to. It comes before anybody looks what is there.
    let begun = previous.as_ref().map(|backup| backup.label.as_str()).unwrap_or_default();
    let name = names::begun(label, &attempt);
    let object = repository.seal_object(repository.keys.shared(), &name, begun.as_bytes());
    repository.store.put_new(&name, object).await.map_err(RepositoryError::from)?;
    let packs = packs_there(repository).await?;

    let running = loomworks_postgres::backup::start(cluster, label).await?;
    let lineage = repository.lineage(running.timeline).await?;
    let workers =
        options.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (root, log_directory) = (cluster.directory.clone(), running.log_directory.clone());
    let found = blocking(move || files::list(&root, &log_directory)).await;
    let found = found.map_err(|(path, source)| file_error("list", &path)(source))?;

    let pages = (running.pages.bytes as usize == PAGE_BYTES).then_some(PageRules {
        checksums: running.pages.checksums,
        start: running.start,
        in_a_file: running.pages.in_a_file,
    });
    let mut backup = Backup {
        label: label.to_owned(),
        attempt: attempt.clone(),
        timeline: running.timeline,
        start: running.start,
        end: running.start,
        next_xid: running.next_xid,
        started_at: running.started_at,
        finished_at: running.started_at,
        previous: previous.as_ref().map(|backup| backup.label.clone()),
        page_checksums: pages.map(|rules| rules.checksums),
        pages_in_a_file: running.pages.in_a_file,
        groups: Vec::new(),
        size_bytes: 0,
        new_bytes: 0,
        damaged_pages: 0,
    };
    let names: HashMap<DatabaseOid, String> = running.databases.iter().cloned().collect();
    let prepared = Arc::new(Prepared {
        copying: Copying {
            repository: repository.clone(),
            root: cluster.directory.clone(),
            label: label.to_owned(),
            pages,
            handle: tokio::runtime::Handle::current(),
            uploads: Arc::new(Semaphore::new(2 * workers)),
            bytes_done: AtomicU64::new(0),
            failed: Arc::new(AtomicBool::new(false)),
            tools: std::sync::Mutex::default(),
        },
        lineage,
        start: running.start,
        running: Mutex::new(running),
        previous,
        attempt,
        packs,
    });
    let (finished, stopped) = prepared.clone().run(by_group(found), names, workers, progress).await?;

    backup.end = stopped.end;
    backup.finished_at = stopped.finished_at;
    let mut used = Vec::new();
    for Finished { group, packs } in finished {
        backup.size_bytes += group.bytes;
        backup.new_bytes += group.new_bytes;
        backup.damaged_pages += group.damaged_pages;
        backup.groups.push(group);
        used.extend(packs);
    }
    backup.groups.sort_by_key(|group| group.oid);
    prepared.write_packs(&backup, used).await?;
    Ok(backup)
}

/// All packs with their sizes.
async fn packs_there(repository: &Repository) -> Result<HashMap<String, u64>, RepositoryError> {
    let packs = repository.store.list(names::PACKS).await?;
    Ok(packs.into_iter().map(|entry| (entry.name, entry.bytes)).collect())
}

fn by_group(found: Vec<Found>) -> BTreeMap<DatabaseOid, ListedGroup> {
    let mut groups: BTreeMap<_, ListedGroup> = BTreeMap::from([(SHARED, ListedGroup::default())]);
    for Found { path, group, kind } in found {
        let group = groups.entry(group).or_default();
        match kind {
            Kind::Directory => group.directories.push(path),
            Kind::File { bytes, mode } => group.files.push(Listed { path, mode, bytes }),
        }
    }
    groups
}

/// Cuts a group's files into tasks. There is one at least. The control file is in none.
fn tasks(files: &[Listed]) -> Vec<Vec<Piece>> {
    let mut tasks = vec![Vec::new()];
    let mut weight = 0;
    for (file, listed) in (0..).zip(files).filter(|(_, listed)| listed.path != CONTROL_FILE) {
        let mut offset = 0;
        loop {
            let bytes = PIECE_BYTES.min(listed.bytes - offset);
            let full = |task: &Vec<Piece>| task.len() >= TASK_PIECES || weight + bytes > TASK_BYTES;
            if tasks.last().is_some_and(|task| !task.is_empty() && full(task)) {
                tasks.push(Vec::new());
                weight = 0;
            }
            tasks.last_mut().expect("there is one").push(Piece { file, offset, bytes });
            weight += bytes + OPENING_BYTES;
            offset += bytes;
            if offset >= listed.bytes {
                break;
            }
        }
    }
    tasks
}

impl Prepared {
    async fn run(
        self: Arc<Self>,
        groups: BTreeMap<DatabaseOid, ListedGroup>,
        mut databases: HashMap<DatabaseOid, String>,
        workers: usize,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(Vec<Finished>, Stopped), BackupError> {
        let bytes_total = groups.values().flat_map(|group| &group.files).map(|file| file.bytes).sum();
        let report = || {
            let bytes_done = self.copying.bytes_done.load(Ordering::Relaxed).min(bytes_total);
            progress(Progress { bytes_done, bytes_total });
        };
        let mut finished = Vec::new();
        let mut listed = Vec::new();
        for (oid, group) in groups {
            let name = databases.remove(&oid);
            match self.key_of(oid).await? {
                Some(key) => listed.push((oid, name, key, group)),
                // Nobody could ever read it.
                None => finished.push(Finished {
                    group: Group { oid, database: name, erased: true, ..Group::default() },
                    packs: Vec::new(),
                }),
            }
        }
        // The shared group comes first and is kept open to the end: its last files are told by the server.
        let shared = Arc::new(self.prepare(listed.remove(0)).await?);
        shared.tasks_left.store(1, Ordering::Release);
        let first = self.tasks_of(&shared);

        let copy = self.clone();
        let prepared = stream::iter(listed)
            .map(move |listed| {
                let copy = copy.clone();
                async move { copy.prepare(listed).await.map(|group| copy.tasks_of(&Arc::new(group))) }
            })
            .buffered(GROUPS_AHEAD);
        let tasks = stream::iter([Ok(first)]).chain(prepared).flat_map(|tasks| match tasks {
            Ok(tasks) => stream::iter(tasks.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        });
        let copy = self.clone();
        let done = tasks
            .map(move |task| {
                let copy = copy.clone();
                async move {
                    let Task { group, pieces } = task?;
                    blocking(move || {
                        let last = read::run(&copy.copying, &group, &pieces)?;
                        Ok::<_, BackupError>(last.then_some(group))
                    })
                    .await
                }
            })
            .buffer_unordered(workers);
        let copy = self.clone();
        let done = done
            .map(move |group| {
                let copy = copy.clone();
                async move {
                    match group? {
                        Some(group) => copy.finish(&group).await.map(Some),
                        None => Ok(None),
                    }
                }
            })
            .buffer_unordered(GROUPS_BEHIND);
        let mut done = std::pin::pin!(done);
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                next = done.next() => match next {
                    Some(Ok(group)) => finished.extend(group),
                    Some(Err(error)) => {
                        self.copying.failed.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                    None => break,
                },
                _ = tick.tick() => report(),
            }
        }

        let (copy, group) = (self.clone(), shared.clone());
        blocking(move || copy.read_control(&group)).await?;
        let stopped = self.stop().await?;
        let (copy, group, told) = (self.clone(), shared.clone(), stopped.clone());
        blocking(move || {
            let map = (!told.tablespace_map.is_empty()).then_some((TABLESPACE_MAP, &*told.tablespace_map));
            let files: Vec<_> = [(LABEL_FILE, &*told.label_file)].into_iter().chain(map).collect();
            read::tell(&copy.copying, &group, &files);
        })
        .await;
        finished.push(self.finish(&shared).await?);
        report();
        Ok((finished, stopped))
    }

    /// A database's key. `None`: it was deleted.
    async fn key_of(&self, oid: DatabaseOid) -> Result<Option<DataKey>, RepositoryError> {
        let keys = &self.copying.repository.keys;
        match keys.find(oid, &self.lineage).await? {
            FoundKey::Key(key) => Ok(Some(key)),
            FoundKey::Erased => Ok(None),
            FoundKey::None => Ok(Some(keys.find_or_make(oid, &self.lineage, self.start).await?)),
        }
    }

    /// Looks up which of a group's chunks are stored already.
    async fn prepare(
        &self,
        (oid, database, key, listed): (DatabaseOid, Option<String>, DataKey, ListedGroup),
    ) -> Result<GroupCopy, BackupError> {
        let repository = &self.copying.repository;
        let mut known = Known::default();
        let bytes: u64 = listed.files.iter().map(|file| file.bytes).sum();
        let mut chunk_bytes = if bytes < LARGE_GROUP_BYTES { CHUNK_BYTES } else { LARGE_CHUNK_BYTES };
        let is_there = |pack: &PackRef| self.packs.get(&pack.name) == Some(&pack.bytes);
        let previous =
            self.previous.as_ref().filter(|backup| backup.group(oid).is_some_and(|group| !group.erased));
        if let Some(previous) = previous {
            match repository.read_group(previous, oid, &key).await {
                Ok(manifest) => {
                    // Cut otherwise, nothing would be found again.
                    if [CHUNK_BYTES, LARGE_CHUNK_BYTES].contains(&manifest.chunk_bytes) {
                        chunk_bytes = manifest.chunk_bytes;
                    }
                    known.add_backup(&manifest, is_there);
                }
                Err(RepositoryError::Store(error)) => return Err(RepositoryError::Store(error).into()),
                // Another database had this oid then, or the object is damaged: everything is stored again.
                Err(error) => tracing::warn!(oid, %error, "the backup before is of no use for this one"),
            }
        }
        let of_label = format!("packs/{oid}/{}.", self.copying.label);
        for (name, &bytes) in self.packs.iter().filter(|(name, _)| name.starts_with(&of_label)) {
            match pack::chunks_of(repository, &key, name, bytes).await {
                Ok((salt, chunks)) => {
                    known.add(&[PackRef { name: name.clone(), salt, bytes }], &chunks, |_, _| true);
                }
                Err(RepositoryError::Store(error)) => return Err(RepositoryError::Store(error).into()),
                Err(error) => tracing::warn!(oid, %error, "a pack of a former try is of no use"),
            }
        }
        Ok(GroupCopy::new(oid, database, chunk_bytes, key, listed.directories, listed.files, known))
    }

    fn tasks_of(&self, group: &Arc<GroupCopy>) -> Vec<Task> {
        let tasks = tasks(&group.files);
        group.tasks_waiting.fetch_add(tasks.len(), Ordering::AcqRel);
        group.tasks_left.fetch_add(tasks.len(), Ordering::AcqRel);
        tasks.into_iter().map(|pieces| Task { group: group.clone(), pieces }).collect()
    }

    /// Reads the control file, after everything else.
    fn read_control(&self, group: &GroupCopy) -> Result<(), RepositoryError> {
        let mut files = (0..).zip(&group.files);
        let pieces = files.find(|(_, listed)| listed.path == CONTROL_FILE);
        let pieces = pieces.map(|(file, listed)| Piece { file, offset: 0, bytes: listed.bytes });
        group.tasks_waiting.fetch_add(1, Ordering::AcqRel);
        read::run(&self.copying, group, pieces.as_slice()).map(drop)
    }

    async fn stop(&self) -> Result<Stopped, BackupError> {
        Ok(self.running.lock().await.stop().await?)
    }

    /// Waits for a group's packs and writes its manifest.
    async fn finish(&self, group: &Arc<GroupCopy>) -> Result<Finished, BackupError> {
        for upload in group.take_uploads() {
            upload.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        }
        let assembling = group.clone();
        let mut assembled = blocking(move || assembling.assemble()).await;
        let manifest = &mut assembled.manifest;
        if !assembled.doubtful.is_empty() {
            let end = self.running.lock().await.written_up_to().await?;
            let wrong = assembled
                .doubtful
                .iter()
                .filter(|(_, lsn)| !pages::is_replaced_by_wal(*lsn, self.start, end));
            manifest.damaged.extend(wrong.map(|(page, _)| *page));
        }
        manifest.damaged.sort_unstable();
        for page in &manifest.damaged {
            let path = &manifest.files[page.file as usize].path;
            tracing::error!(path, block = page.block, "a page is damaged in the cluster itself");
        }
        let repository = &self.copying.repository;
        let name = names::group(&self.copying.label, &self.attempt, group.oid);
        let object = repository.seal_object(&group.key, &name, &manifest.encode());
        if !repository.store.put_new(&name, object).await.map_err(RepositoryError::from)? {
            return Err(RepositoryError::damaged(&name, "something else has its name").into());
        }
        Ok(Finished {
            group: Group {
                oid: group.oid,
                database: group.database.clone(),
                files: manifest.files.len() as u64,
                bytes: assembled.bytes,
                new_bytes: assembled.new_bytes,
                damaged_pages: manifest.damaged.len() as u64,
                erased: false,
            },
            packs: assembled.manifest.packs,
        })
    }

    /// Says which packs the backup needs, once all of them are seen to be there.
    async fn write_packs(&self, backup: &Backup, used: Vec<PackRef>) -> Result<(), BackupError> {
        let repository = &self.copying.repository;
        let there = packs_there(repository).await?;
        if let Some(gone) = used.iter().find(|pack| there.get(&pack.name) != Some(&pack.bytes)) {
            return Err(RepositoryError::Gone { name: gone.name.clone() }.into());
        }
        let mut used: Vec<&str> = used.iter().map(|pack| pack.name.as_str()).collect();
        used.sort_unstable();
        let name = names::packs(&backup.label, &backup.attempt);
        let object = repository.seal_object(repository.keys.shared(), &name, used.join("\n").as_bytes());
        repository.store.put_new(&name, object).await.map_err(RepositoryError::from)?;
        Ok(())
    }
}

const TABLESPACE_MAP: &str = "tablespace_map";

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(path: &str, bytes: u64) -> Listed {
        Listed { path: path.into(), mode: 0o600, bytes }
    }

    #[test]
    fn tasks_cover_every_file_once_but_the_control_file() {
        let mut files = vec![listed(CONTROL_FILE, 8192), listed("a", 0), listed("b", 3 * PIECE_BYTES + 5)];
        files.extend((0..5000).map(|number| listed(&format!("f{number}"), 8192)));
        let tasks = tasks(&files);
        assert!(tasks.iter().all(|task| !task.is_empty() && task.len() <= TASK_PIECES));
        let mut reached: HashMap<u32, u64> = HashMap::new();
        for piece in tasks.iter().flatten() {
            let end = reached.entry(piece.file).or_default();
            assert_eq!(*end, piece.offset);
            *end += piece.bytes;
        }
        assert_eq!(reached.len(), files.len() - 1);
        assert!(reached.iter().all(|(&file, &end)| files[file as usize].bytes == end));
        assert!(tasks.len() > 6);
    }

    #[test]
    fn a_group_without_files_has_a_task_too() {
        assert_eq!(tasks(&[]), [Vec::new()]);
    }
}
