//! A group while it is copied: which of its chunks are stored already, where new ones go, what its files consist of.
//!
//! Several threads work on one group. Whoever meets a chunk first stores it; all others refer to it.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use loomworks_core::lsn::Lsn;
use tokio::task::JoinHandle;

use super::manifest::{Chunk, DamagedBlock, FileOf, Fingerprint, Manifest, PackRef};
use super::pack::{Pack, Place};
use crate::keys::DatabaseOid;
use crate::repository::RepositoryError;
use crate::seal::DataKey;

/// Chunks that the repository has already.
#[derive(Debug, Default)]
pub(crate) struct Known {
    packs: Vec<PackRef>,
    chunks: HashMap<Fingerprint, Chunk>,
}

impl Known {
    /// Adds the chunks of those packs that may be referred to.
    pub(crate) fn add(
        &mut self,
        packs: &[PackRef],
        chunks: &[Chunk],
        usable: impl Fn(usize, &PackRef) -> bool,
    ) {
        let taken: Vec<Option<u32>> = (0..)
            .zip(packs)
            .map(|(number, pack)| {
                usable(number, pack).then(|| {
                    self.packs.push(pack.clone());
                    u32::try_from(self.packs.len() - 1).expect("fewer packs than chunks")
                })
            })
            .collect();
        for chunk in chunks {
            if let Some(pack) = taken[chunk.pack as usize] {
                self.chunks.entry(chunk.fingerprint).or_insert(Chunk { pack, ..*chunk });
            }
        }
    }

    /// Adds what a former backup had, but for packs of which it used less than half: their chunks are stored again, so
    /// that nothing needs those packs once the backups before are gone.
    pub(crate) fn add_backup(&mut self, manifest: &Manifest, is_there: impl Fn(&PackRef) -> bool) {
        let mut used = vec![0; manifest.packs.len()];
        for chunk in &manifest.chunks {
            used[chunk.pack as usize] += u64::from(chunk.stored);
        }
        self.add(&manifest.packs, &manifest.chunks, |number, pack| {
            is_there(pack) && used[number] * 2 >= pack.bytes
        });
    }
}

/// A pack of the group that is being filled.
pub(crate) struct OpenPack {
    pub(crate) number: u32,
    pub(crate) pack: Pack,
}

/// What was read of a part of a file.
#[derive(Debug)]
pub(crate) struct PieceRead {
    /// Which of the group's files.
    pub(crate) file: u32,
    /// The first of its places.
    pub(crate) first: usize,
    pub(crate) chunks: Vec<u32>,
    /// Up to where in the file there was something. `None`: there was no file.
    pub(crate) end: Option<u64>,
    pub(crate) damaged: Vec<DamagedBlock>,
    /// Wrong, but younger than the backup's start: right if it is no younger than it can be.
    pub(crate) doubtful: Vec<(DamagedBlock, Lsn)>,
}

/// A file that is to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) bytes: u64,
}

pub(crate) struct GroupCopy {
    pub(crate) oid: DatabaseOid,
    pub(crate) database: Option<String>,
    pub(crate) chunk_bytes: u32,
    pub(crate) key: DataKey,
    pub(crate) fingerprint_key: [u8; 32],
    pub(crate) directories: Vec<String>,
    pub(crate) files: Vec<Listed>,
    known: Known,
    state: Mutex<State>,
    open: Mutex<Vec<OpenPack>>,
    uploads: Mutex<Vec<JoinHandle<Result<(), RepositoryError>>>>,
    /// Tasks that nobody has begun, and tasks that are not done.
    pub(crate) tasks_waiting: AtomicUsize,
    pub(crate) tasks_left: AtomicUsize,
}

#[derive(Default)]
struct State {
    ids: HashMap<Fingerprint, u32>,
    chunks: Vec<Chunk>,
    packs: Vec<PackRef>,
    /// Which of the packs a known pack has become.
    taken: HashMap<u32, u32>,
    read: Vec<PieceRead>,
    /// Files that are in no directory: what the server says of the backup.
    told: Vec<FileOf>,
    new_bytes: u64,
}

/// Who stores a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is stored, or somebody else does it.
    Stored(u32),
    /// Whoever asked.
    Yours(u32),
}

/// What a group has become.
pub(crate) struct Assembled {
    pub(crate) manifest: Manifest,
    pub(crate) doubtful: Vec<(DamagedBlock, Lsn)>,
    pub(crate) bytes: u64,
    pub(crate) new_bytes: u64,
}

impl GroupCopy {
    pub(crate) fn new(
        oid: DatabaseOid,
        database: Option<String>,
        chunk_bytes: u32,
        key: DataKey,
        directories: Vec<String>,
        files: Vec<Listed>,
        known: Known,
    ) -> Self {
        Self {
            oid,
            database,
            chunk_bytes,
            fingerprint_key: key.fingerprint_key(),
            key,
            directories,
            files,
            known,
            state: Mutex::default(),
            open: Mutex::default(),
            uploads: Mutex::default(),
            tasks_waiting: AtomicUsize::new(0),
            tasks_left: AtomicUsize::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn claim(&self, fingerprint: &Fingerprint) -> Claim {
        let mut state = self.state();
        if let Some(&id) = state.ids.get(fingerprint) {
            return Claim::Stored(id);
        }
        let id = u32::try_from(state.chunks.len()).expect("fewer than 2^32 chunks: 256 TiB");
        state.ids.insert(*fingerprint, id);
        let Some(known) = self.known.chunks.get(fingerprint) else {
            let (pack, part, offset, stored, plain) = (0, 0, 0, 0, 0);
            state.chunks.push(Chunk { fingerprint: *fingerprint, pack, part, offset, stored, plain });
            return Claim::Yours(id);
        };
        let pack = match state.taken.get(&known.pack) {
            Some(&pack) => pack,
            None => {
                let pack = state.add_pack(self.known.packs[known.pack as usize].clone());
                state.taken.insert(known.pack, pack);
                pack
            }
        };
        state.chunks.push(Chunk { pack, ..*known });
        Claim::Stored(id)
    }

    /// Says where a chunk was put that was the caller's to store.
    pub(crate) fn placed(&self, id: u32, pack: u32, place: Place, plain: u32) {
        let Place { part, offset, stored } = place;
        let mut state = self.state();
        let chunk = &mut state.chunks[id as usize];
        *chunk = Chunk { pack, part, offset, stored, plain, ..*chunk };
    }

    pub(crate) fn add_pack(&self, pack: &Pack) -> u32 {
        self.state().add_pack(PackRef { name: pack.name.clone(), salt: pack.salt, bytes: 0 })
    }

    pub(crate) fn finished_pack(&self, number: u32, bytes: u64) {
        let mut state = self.state();
        state.packs[number as usize].bytes = bytes;
        state.new_bytes += bytes;
    }

    pub(crate) fn took(&self, read: PieceRead) {
        self.state().read.push(read);
    }

    pub(crate) fn told(&self, file: FileOf) {
        self.state().told.push(file);
    }

    /// A pack that somebody has left open.
    pub(crate) fn take_open(&self) -> Option<OpenPack> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(crate) fn leave_open(&self, pack: OpenPack) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(pack);
    }

    pub(crate) fn add_upload(&self, upload: JoinHandle<Result<(), RepositoryError>>) {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).push(upload);
    }

    pub(crate) fn take_uploads(&self) -> Vec<JoinHandle<Result<(), RepositoryError>>> {
        std::mem::take(&mut self.uploads.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts the manifest together once everything was read.
    pub(crate) fn assemble(&self) -> Assembled {
        let mut state = std::mem::take(&mut *self.state());
        state.read.sort_by_key(|read| (read.file, read.first));
        let mut files: Vec<FileOf> = Vec::new();
        // Damaged pages name the files as they were listed; some of those may be gone.
        let mut places: HashMap<u32, u32> = HashMap::new();
        let (mut damaged, mut doubtful) = (Vec::new(), Vec::new());
        for read in &mut state.read {
            let Some(end) = read.end else { continue };
            let place = *places.entry(read.file).or_insert_with(|| {
                let listed = &self.files[read.file as usize];
                files.push(FileOf {
                    path: listed.path.clone(),
                    mode: listed.mode,
                    bytes: 0,
                    chunks: Vec::new(),
                });
                u32::try_from(files.len() - 1).expect("fewer files than 2^32")
            });
            let file = &mut files[place as usize];
            file.bytes = file.bytes.max(end);
            file.chunks.resize(read.first, 0);
            file.chunks.append(&mut read.chunks);
            let at = |page: &DamagedBlock| DamagedBlock { file: place, ..*page };
            damaged.extend(read.damaged.iter().map(at));
            doubtful.extend(read.doubtful.iter().map(|(page, lsn)| (at(page), *lsn)));
        }
        files.append(&mut state.told);
        for file in &mut files {
            file.chunks.resize(file.bytes.div_ceil(self.chunk_bytes.into()) as usize, 0);
        }
        let bytes = files.iter().map(|file| file.bytes).sum();
        let manifest = Manifest {
            chunk_bytes: self.chunk_bytes,
            packs: state.packs,
            chunks: state.chunks,
            directories: self.directories.clone(),
            files,
            damaged,
        };
        Assembled { manifest, doubtful, bytes, new_bytes: state.new_bytes }
    }
}

impl State {
    fn add_pack(&mut self, pack: PackRef) -> u32 {
        self.packs.push(pack);
        u32::try_from(self.packs.len() - 1).expect("fewer packs than chunks")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::manifest::CHUNK_BYTES;

    fn pack(name: &str, bytes: u64) -> PackRef {
        PackRef { name: name.into(), salt: [0; 16], bytes }
    }

    fn chunk(number: u8, pack: u32, stored: u32) -> Chunk {
        Chunk { fingerprint: [number; 16], pack, part: number.into(), offset: 0, stored, plain: CHUNK_BYTES }
    }

    fn group(known: Known, files: &[&str]) -> GroupCopy {
        let files = files.iter().map(|path| Listed { path: (*path).into(), mode: 0o600, bytes: 0 }).collect();
        GroupCopy::new(7, None, CHUNK_BYTES, DataKey::random(), vec![], files, known)
    }

    fn manifest(packs: Vec<PackRef>, chunks: Vec<Chunk>) -> Manifest {
        Manifest {
            chunk_bytes: CHUNK_BYTES,
            packs,
            chunks,
            directories: vec![],
            files: vec![],
            damaged: vec![],
        }
    }

    fn read(file: u32, first: usize, chunks: &[u32], end: Option<u64>) -> PieceRead {
        PieceRead { file, first, chunks: chunks.to_vec(), end, damaged: vec![], doubtful: vec![] }
    }

    #[test]
    fn what_is_known_is_referred_to_and_what_is_new_is_stored_once() {
        let mut known = Known::default();
        known.add_backup(
            &manifest(vec![pack("a", 100), pack("b", 100)], vec![chunk(1, 0, 60), chunk(2, 1, 60)]),
            |_| true,
        );
        let group = group(known, &[]);
        assert_eq!(group.claim(&[9; 16]), Claim::Yours(0));
        assert_eq!(group.claim(&[9; 16]), Claim::Stored(0));
        assert_eq!(group.claim(&[2; 16]), Claim::Stored(1));
        let assembled = group.assemble().manifest;
        assert_eq!(assembled.packs, [pack("b", 100)], "only what is used");
        assert_eq!(assembled.chunks[1], chunk(2, 0, 60));
    }

    #[test]
    fn chunks_of_packs_that_are_mostly_unused_or_gone_are_stored_again() {
        let mut known = Known::default();
        let packs = vec![pack("half", 100), pack("less", 100), pack("gone", 100)];
        let chunks = vec![chunk(1, 0, 50), chunk(2, 1, 49), chunk(3, 2, 100)];
        known.add_backup(&manifest(packs, chunks), |pack| pack.name != "gone");
        let group = group(known, &[]);
        assert_eq!(group.claim(&[1; 16]), Claim::Stored(0));
        assert_eq!(group.claim(&[2; 16]), Claim::Yours(1));
        assert_eq!(group.claim(&[3; 16]), Claim::Yours(2));
    }

    #[test]
    fn files_that_vanish_shrink_and_grow_are_put_together() {
        let group = group(Known::default(), &["gone", "shrank", "hole", "empty"]);
        let chunk = u64::from(CHUNK_BYTES);
        group.took(read(2, 4, &[5], Some(4 * chunk + 10)));
        group.took(read(0, 0, &[], None));
        group.took(read(1, 0, &[1, 2], Some(chunk + 100)));
        group.took(read(1, 4, &[], None));
        group.took(read(2, 0, &[3], Some(chunk)));
        group.took(read(3, 0, &[], Some(0)));
        let files = group.assemble().manifest.files;
        let shown: Vec<_> = files.iter().map(|f| (f.path.as_str(), f.bytes, f.chunks.clone())).collect();
        assert_eq!(
            shown,
            [
                ("shrank", chunk + 100, vec![1, 2]),
                ("hole", 4 * chunk + 10, vec![3, 0, 0, 0, 5]),
                ("empty", 0, vec![])
            ]
        );
    }
}
