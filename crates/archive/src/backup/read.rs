//! Reading files: a task's pieces are read, looked at, cut into chunks, and what is new goes into packs.
//!
//! This runs on threads that may block. Memory is bounded: each task has a buffer and a pack, and a full pack waits
//! until few others are on their way to the store.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use loomworks_core::lsn::Lsn;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::files::{CONTROL_FILE, relation_of};
use super::group::{Claim, GroupCopy, OpenPack, PieceRead};
use super::manifest::{DamagedBlock, FileOf, LARGE_CHUNK_BYTES, fingerprint};
use super::pack::Pack;
use super::pages::{self, PAGE_BYTES};
use crate::repository::{Repository, RepositoryError, file_error};
use crate::seal::random;

const LEVEL: i32 = 3;
/// What is read at once.
const READ_BYTES: usize = 1 << 20;
static ZEROS: [u8; LARGE_CHUNK_BYTES as usize] = [0; LARGE_CHUNK_BYTES as usize];

/// A page that is wrong may just be written: it is looked at so often before it counts as wrong.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// What all tasks of a copy share.
pub(crate) struct Copying {
    pub(crate) repository: Repository,
    pub(crate) root: PathBuf,
    pub(crate) label: String,
    /// How pages are looked at, if they are.
    pub(crate) pages: Option<PageRules>,
    pub(crate) handle: Handle,
    /// How many packs may be on their way at once.
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) bytes_done: AtomicU64,
    /// Something has failed: the rest need not be read.
    pub(crate) failed: Arc<AtomicBool>,
    pub(crate) tools: Mutex<Vec<Tools>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct PageRules {
    pub(crate) checksums: bool,
    pub(crate) start: Lsn,
    pub(crate) in_a_file: u32,
}

/// A part of a file, from one chunk's begin to another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) file: u32,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// What a thread needs; kept from task to task.
pub(crate) struct Tools {
    buffer: Vec<u8>,
    packed: Vec<u8>,
    compressor: zstd::bulk::Compressor<'static>,
}

impl Tools {
    fn new() -> Self {
        let compressor = zstd::bulk::Compressor::new(LEVEL).expect("zstd has this level");
        Self { buffer: vec![0; READ_BYTES], packed: Vec::new(), compressor }
    }
}

/// Reads a task's pieces. `Ok(true)`: it was the group's last one.
pub(crate) fn run(copying: &Copying, group: &GroupCopy, pieces: &[Piece]) -> Result<bool, RepositoryError> {
    let waiting = group.tasks_waiting.fetch_sub(1, Ordering::AcqRel) - 1;
    let tools = copying.tools.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut filler =
        Filler { copying, group, tools: tools.unwrap_or_else(Tools::new), pack: group.take_open() };
    for piece in pieces {
        if copying.failed.load(Ordering::Relaxed) {
            break;
        }
        let read = filler.read(*piece)?;
        group.took(read);
        copying.bytes_done.fetch_add(piece.bytes, Ordering::Relaxed);
    }
    let Filler { tools, pack, .. } = filler;
    copying.tools.lock().unwrap_or_else(PoisonError::into_inner).push(tools);
    match pack {
        Some(pack) if waiting > 0 => group.leave_open(pack),
        Some(pack) => upload(copying, group, pack),
        None => {}
    }
    let last = group.tasks_left.fetch_sub(1, Ordering::AcqRel) == 1;
    if last {
        while let Some(pack) = group.take_open() {
            upload(copying, group, pack);
        }
    }
    Ok(last)
}

/// Adds files to the group that lie in no directory.
pub(crate) fn tell(copying: &Copying, group: &GroupCopy, files: &[(&str, &str)]) {
    let mut filler = Filler { copying, group, tools: Tools::new(), pack: None };
    for (path, content) in files {
        let chunks =
            content.as_bytes().chunks(group.chunk_bytes as usize).map(|chunk| filler.chunk(chunk)).collect();
        group.told(FileOf { path: (*path).to_owned(), mode: 0o600, bytes: content.len() as u64, chunks });
    }
    if let Some(pack) = filler.pack {
        upload(copying, group, pack);
    }
}

struct Filler<'a> {
    copying: &'a Copying,
    group: &'a GroupCopy,
    tools: Tools,
    pack: Option<OpenPack>,
}

impl Filler<'_> {
    fn read(&mut self, piece: Piece) -> Result<PieceRead, RepositoryError> {
        let chunk_bytes = self.group.chunk_bytes as usize;
        let first = (piece.offset / chunk_bytes as u64) as usize;
        let mut read = PieceRead {
            file: piece.file,
            first,
            chunks: Vec::new(),
            end: None,
            damaged: vec![],
            doubtful: vec![],
        };
        let listed = &self.group.files[piece.file as usize];
        let path = self.copying.root.join(&listed.path);
        let file = match File::open(&path) {
            Ok(file) => file,
            // Dropped since it was listed; the WAL says so too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(read),
            Err(source) => return Err(file_error("read", &path)(source)),
        };
        read.end = Some(0);
        let rules = self.copying.pages.zip(relation_of(&listed.path));
        let (mut at, to) = (piece.offset, piece.offset + piece.bytes);
        while at < to {
            let wanted = READ_BYTES.min((to - at) as usize);
            let mut buffer = std::mem::take(&mut self.tools.buffer);
            let filled = match listed.path == CONTROL_FILE {
                true => read_still(&file, at, &mut buffer[..wanted]),
                false => read_full(&file, at, &mut buffer[..wanted]),
            };
            let filled = filled.map_err(file_error("read", &path))?;
            if filled > 0 {
                read.end = Some(at + filled as u64);
            }
            if let Some((rules, relation)) = &rules {
                let looked = Look { file: &file, rules, segment: relation.segment, read: &mut read };
                looked.at(at, &mut buffer[..filled]).map_err(file_error("read", &path))?;
            }
            read.chunks.extend(buffer[..filled].chunks(chunk_bytes).map(|chunk| self.chunk(chunk)));
            self.tools.buffer = buffer;
            at += filled as u64;
            if filled < wanted {
                break;
            }
        }
        Ok(read)
    }

    /// Refers to a chunk as files do, and stores it if it is new.
    fn chunk(&mut self, chunk: &[u8]) -> u32 {
        if chunk == &ZEROS[..chunk.len()] {
            return 0;
        }
        let fingerprint = fingerprint(&self.group.fingerprint_key, chunk);
        let id = match self.group.claim(&fingerprint) {
            Claim::Stored(id) => id,
            Claim::Yours(id) => {
                let plain = u32::try_from(chunk.len()).expect("a chunk has a few KiB");
                let Tools { packed, compressor, .. } = &mut self.tools;
                packed.clear();
                // There is room for less than the chunk: what does not get shorter is stored as it is.
                packed.reserve(chunk.len() - 1);
                let content = match compressor.compress_to_buffer(chunk, packed) {
                    Ok(bytes) if bytes < chunk.len() => &packed[..],
                    _ => chunk,
                };
                let open = self.pack.get_or_insert_with(|| begin_pack(self.copying, self.group));
                let place = open.pack.add(&fingerprint, plain, content);
                self.group.placed(id, open.number, place, plain);
                if open.pack.is_full()
                    && let Some(full) = self.pack.take()
                {
                    upload(self.copying, self.group, full);
                }
                id
            }
        };
        id + 1
    }
}

fn begin_pack(copying: &Copying, group: &GroupCopy) -> OpenPack {
    let id = u64::from_be_bytes(random());
    let name = format!("packs/{}/{}.{id:016x}", group.oid, copying.label);
    let pack = Pack::new(&copying.repository, &group.key, name);
    OpenPack { number: group.add_pack(&pack), pack }
}

/// Sends a pack on its way. Waits while others are still on theirs.
fn upload(copying: &Copying, group: &GroupCopy, open: OpenPack) {
    let permit =
        copying.handle.block_on(copying.uploads.clone().acquire_owned()).expect("it is never closed");
    let (store, failed, name) =
        (copying.repository.store.clone(), copying.failed.clone(), open.pack.name.clone());
    let content = open.pack.finish();
    group.finished_pack(open.number, content.len() as u64);
    let put = async move {
        let put = store.put_new(&name, content).await;
        drop(permit);
        let put = match put {
            Ok(true) => Ok(()),
            Ok(false) => Err(RepositoryError::damaged(&name, "something else has its name")),
            Err(error) => Err(error.into()),
        };
        if put.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
        put
    };
    group.add_upload(copying.handle.spawn(put));
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads until two reads give the same: the server writes the control file in place.
fn read_still(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut again = buffer.to_vec();
    for _ in 0..100 {
        let (first, second) = (read_full(file, at, buffer)?, read_full(file, at, &mut again)?);
        if buffer[..first] == again[..second] {
            return Ok(first);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("it does not stand still"))
}

/// Looks at the pages of a part of a relation's file.
struct Look<'a> {
    file: &'a File,
    rules: &'a PageRules,
    segment: u32,
    read: &'a mut PieceRead,
}

impl Look<'_> {
    fn at(self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let first = offset / PAGE_BYTES as u64;
        // What is left over at the end of the file is no page yet.
        for (number, page) in (first..).zip(bytes.as_chunks_mut::<PAGE_BYTES>().0) {
            let in_file = u32::try_from(number).unwrap_or(u32::MAX);
            let block = self.segment.wrapping_mul(self.rules.in_a_file).wrapping_add(in_file);
            let whole = |page: &[u8; PAGE_BYTES]| pages::is_whole(page, block, self.rules.checksums);
            let mut looks = 1;
            while !whole(page) && looks < LOOKS {
                std::thread::sleep(BETWEEN_LOOKS);
                let mut again = [0; PAGE_BYTES];
                // Where the file has been cut off meanwhile, what was read before is as good.
                if read_full(self.file, number * PAGE_BYTES as u64, &mut again)? == PAGE_BYTES {
                    *page = again;
                }
                looks += 1;
            }
            if !whole(page) {
                let wrong = DamagedBlock { file: self.read.file, block: in_file };
                let lsn = pages::lsn(page);
                match lsn < self.rules.start {
                    true => self.read.damaged.push(wrong),
                    false => self.read.doubtful.push((wrong, lsn)),
                }
            }
        }
        Ok(())
    }
}
