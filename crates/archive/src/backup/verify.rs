//! Reading a backup back and proving it.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};

use super::fetch::{self, Fetch, Places};
use super::files::relation_of;
use super::manifest::{DamagedBlock, Manifest};
use super::pages::{self, PAGE_BYTES};
use super::{Backup, BackupError, Progress};
use crate::keys::DatabaseOid;
use crate::repository::{Repository, RepositoryError, blocking};
use crate::seal::DataKey;

/// What reading a backup back has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    pub label: String,
    /// Groups that were read.
    pub groups: u64,
    pub files: u64,
    pub chunks: u64,
    /// Of the files that the chunks make up.
    pub bytes: u64,
    /// Databases whose keys were deleted: there is nothing to prove.
    pub erased: Vec<DatabaseOid>,
    /// Objects that are missing or damaged.
    pub problems: Vec<Problem>,
    /// Pages that were damaged in the cluster already.
    pub damaged_pages: Vec<DamagedPage>,
    /// Pages that are wrong although the manifest does not say so.
    pub wrong_pages: Vec<DamagedPage>,
}

/// An object that is missing or damaged, and what cannot be restored for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub oid: DatabaseOid,
    pub object: String,
    pub why: String,
    /// Some of the files that need it.
    pub files: Vec<String>,
}

/// A page that is not what PostgreSQL would accept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DamagedPage {
    pub oid: DatabaseOid,
    pub path: String,
    /// Counted from the file's begin.
    pub block: u32,
}

/// How many files a problem names.
const FILES_NAMED: usize = 5;

impl VerifyReport {
    /// Whether everything that can be restored would be what it was.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.wrong_pages.is_empty()
    }

    fn problem(&mut self, oid: DatabaseOid, error: &RepositoryError, files: Vec<String>) {
        let (RepositoryError::Damaged { name: object, .. } | RepositoryError::Gone { name: object }) = error
        else {
            return;
        };
        if let Some(known) =
            self.problems.iter_mut().find(|known| known.oid == oid && known.object == *object)
        {
            let room = FILES_NAMED.saturating_sub(known.files.len());
            let new: Vec<_> =
                files.into_iter().filter(|file| !known.files.contains(file)).take(room).collect();
            known.files.extend(new);
            return;
        }
        let files = files.into_iter().take(FILES_NAMED).collect();
        self.problems.push(Problem { oid, object: object.clone(), why: error.to_string(), files });
    }
}

struct Reading {
    manifest: Manifest,
    places: Places,
    key: DataKey,
}

/// What one read has shown.
#[derive(Default)]
struct Seen {
    bytes: u64,
    damaged: Vec<(u32, RepositoryError)>,
    wrong: Vec<DamagedBlock>,
}

impl Repository {
    /// Reads all of a backup and proves it: every chunk opens and is the one that was copied, every page is right but
    /// for those that the WAL replaces. What the store cannot answer is an error; what it has lost is in the report.
    pub async fn verify_backup(
        &self,
        label: &str,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<VerifyReport, BackupError> {
        let Some(backup) = self.backup(label).await? else {
            return Err(BackupError::NoBackup(label.to_owned()));
        };
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let mut report = VerifyReport { label: label.to_owned(), ..VerifyReport::default() };
        let (mut bytes_done, bytes_total) = (0, backup.size_bytes);
        let backup = Arc::new(backup);
        for group in &backup.groups {
            let oid = group.oid;
            let Some(key) = self.key_of_group(&backup, oid).await? else {
                report.erased.push(oid);
                continue;
            };
            let manifest = match self.read_group(&backup, oid, &key).await {
                Ok(manifest) => manifest,
                Err(error @ (RepositoryError::Damaged { .. } | RepositoryError::Gone { .. })) => {
                    report.problem(oid, &error, Vec::new());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            report.groups += 1;
            report.files += manifest.files.len() as u64;
            report.chunks += manifest.chunks.len() as u64;
            let named = |page: &DamagedBlock, manifest: &Manifest| DamagedPage {
                oid,
                path: manifest.files[page.file as usize].path.clone(),
                block: page.block,
            };
            report.damaged_pages.extend(manifest.damaged.iter().map(|page| named(page, &manifest)));
            let places = Places::of(&manifest);
            let reading = Arc::new(Reading { manifest, places, key });
            let fetches = fetch::fetches(&reading.manifest.chunks);
            let mut seen = std::pin::pin!(
                stream::iter(fetches)
                    .map(|fetch| {
                        let (reading, backup) = (reading.clone(), backup.clone());
                        async move { reading.fetch(self, backup, fetch).await }
                    })
                    .buffer_unordered(2 * workers)
            );
            while let Some(seen) = seen.next().await {
                let seen = seen?;
                bytes_done += seen.bytes;
                report.bytes += seen.bytes;
                for (chunk, error) in seen.damaged {
                    report.problem(oid, &error, reading.files_of(chunk));
                }
                let known = &reading.manifest.damaged;
                let new = seen.wrong.iter().filter(|page| !known.contains(page));
                report.wrong_pages.extend(new.map(|page| named(page, &reading.manifest)));
                progress(Progress { bytes_done: bytes_done.min(bytes_total), bytes_total });
            }
        }
        report.wrong_pages.sort_unstable();
        progress(Progress { bytes_done: bytes_total, bytes_total });
        Ok(report)
    }
}

impl Reading {
    async fn fetch(
        self: Arc<Self>,
        repository: &Repository,
        backup: Arc<Backup>,
        fetch: Fetch,
    ) -> Result<Seen, RepositoryError> {
        let bytes = match fetch::read(repository, &self.manifest, &fetch).await {
            Ok(bytes) => bytes,
            Err(RepositoryError::Gone { name }) => {
                let gone = |&chunk: &u32| (chunk, RepositoryError::Gone { name: name.clone() });
                return Ok(Seen { damaged: fetch.chunks.iter().map(gone).collect(), ..Seen::default() });
            }
            Err(RepositoryError::Damaged { name, why }) => {
                let damaged = |&chunk: &u32| (chunk, RepositoryError::damaged(&name, &why));
                return Ok(Seen { damaged: fetch.chunks.iter().map(damaged).collect(), ..Seen::default() });
            }
            Err(error) => return Err(error),
        };
        let repository = repository.clone();
        blocking(move || {
            let mut seen = Seen::default();
            fetch::open(&repository, &self.key, &self.manifest, &fetch, &bytes, |chunk, content| {
                match content {
                    Ok(content) => self.look(&backup, chunk, content, &mut seen),
                    Err(error) => seen.damaged.push((chunk, error)),
                }
                Ok(())
            })?;
            Ok(seen)
        })
        .await
    }

    /// Looks at the pages of a chunk, at each of its places.
    fn look(&self, backup: &Backup, chunk: u32, content: &[u8], seen: &mut Seen) {
        for &(file, place) in self.places.of_chunk(chunk) {
            seen.bytes += content.len() as u64;
            let path = &self.manifest.files[file as usize].path;
            let Some((checksums, relation)) = backup.page_checksums.zip(relation_of(path)) else { continue };
            let first = u64::from(place) * u64::from(self.manifest.chunk_bytes) / PAGE_BYTES as u64;
            for (number, page) in (first..).zip(content.as_chunks::<PAGE_BYTES>().0) {
                let in_file = u32::try_from(number).unwrap_or(u32::MAX);
                let block = relation.segment.wrapping_mul(backup.pages_in_a_file).wrapping_add(in_file);
                if !pages::is_whole(page, block, checksums)
                    && !pages::is_replaced_by_wal(pages::lsn(page), backup.start, backup.end)
                {
                    seen.wrong.push(DamagedBlock { file, block: in_file });
                }
            }
        }
    }

    fn files_of(&self, chunk: u32) -> Vec<String> {
        let places = self.places.of_chunk(chunk).iter();
        places.map(|&(file, _)| self.manifest.files[file as usize].path.clone()).collect()
    }
}
