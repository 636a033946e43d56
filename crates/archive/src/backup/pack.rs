//! Packs: many chunks in one object.
//!
//! ```text
//! "LWP1", salt (16 bytes)
//! sealed part 0 … sealed part n-1      a chunk each, compressed with zstd, or as it is where that is no longer
//! sealed part n                        the index: fingerprint, stored bytes, plain bytes of each part
//! bytes of the sealed index (u32), n (u32), "LWPE"
//! ```
//!
//! A chunk's place is in the manifest that names it, so a pack is read by range and its index is not needed. The index
//! is for a backup that was cut off before it had written a manifest: what it had stored is found again.

use std::ops::Range;

use bytes::Bytes;

use super::manifest::{Chunk, Fingerprint};
use crate::repository::{Repository, RepositoryError};
use crate::seal::{DataKey, DoesNotOpen, ObjectKey, SALT_BYTES, Salt, TAG_BYTES, random};

const MAGIC: &[u8; 4] = b"LWP1";
const END: &[u8; 4] = b"LWPE";
const PART: &str = "pack";
pub(crate) const HEAD_BYTES: usize = MAGIC.len() + SALT_BYTES;
const TAIL_BYTES: u64 = 12;
const ENTRY_BYTES: usize = 24;

/// From this size on a pack is full.
pub(crate) const FULL_BYTES: usize = 16 << 20;

/// The key of a pack's parts.
pub(crate) fn key(repository: &Repository, data_key: &DataKey, name: &str, salt: &Salt) -> ObjectKey {
    data_key.object(salt, &repository.identity(name, PART))
}

/// A pack that is being filled.
pub(crate) struct Pack {
    pub(crate) name: String,
    pub(crate) salt: Salt,
    key: ObjectKey,
    bytes: Vec<u8>,
    index: Vec<u8>,
    parts: u32,
    part: Vec<u8>,
}

/// Where in a pack a chunk came to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) part: u32,
    pub(crate) offset: u32,
    /// With what sealing adds.
    pub(crate) stored: u32,
}

impl Pack {
    pub(crate) fn new(repository: &Repository, data_key: &DataKey, name: String) -> Self {
        let salt = random();
        let key = key(repository, data_key, &name, &salt);
        let mut bytes = Vec::with_capacity(FULL_BYTES + (1 << 18));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&salt);
        Self { name, salt, key, bytes, index: Vec::new(), parts: 0, part: Vec::new() }
    }

    /// Adds a chunk: `content` is what is stored of it, compressed if that is shorter than `plain` bytes.
    pub(crate) fn add(&mut self, fingerprint: &Fingerprint, plain: u32, content: &[u8]) -> Place {
        self.part.clear();
        self.part.extend_from_slice(content);
        self.key.seal(u64::from(self.parts), &mut self.part);
        let place = Place {
            part: self.parts,
            offset: u32::try_from(self.bytes.len()).expect("a pack has a few MiB"),
            stored: u32::try_from(self.part.len()).expect("a chunk has a few KiB"),
        };
        self.bytes.extend_from_slice(&self.part);
        self.index.extend_from_slice(fingerprint);
        self.index.extend_from_slice(&place.stored.to_le_bytes());
        self.index.extend_from_slice(&plain.to_le_bytes());
        self.parts += 1;
        place
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL_BYTES
    }

    /// The whole object.
    pub(crate) fn finish(mut self) -> Bytes {
        self.key.seal(u64::from(self.parts), &mut self.index);
        self.bytes.extend_from_slice(&self.index);
        let index_bytes = u32::try_from(self.index.len()).expect("an index has a few KiB");
        self.bytes.extend_from_slice(&index_bytes.to_le_bytes());
        self.bytes.extend_from_slice(&self.parts.to_le_bytes());
        self.bytes.extend_from_slice(END);
        self.bytes.into()
    }
}

/// Opens parts of packs.
pub(crate) struct Opener {
    decompressor: zstd::bulk::Decompressor<'static>,
    sealed: Vec<u8>,
    unpacked: Vec<u8>,
}

impl Opener {
    pub(crate) fn new() -> Self {
        let decompressor = zstd::bulk::Decompressor::new().expect("there is memory");
        Self { decompressor, sealed: Vec::new(), unpacked: Vec::new() }
    }

    /// Opens one part and gives the chunk, `plain` bytes.
    pub(crate) fn open(
        &mut self,
        key: &ObjectKey,
        part: u32,
        sealed: &[u8],
        plain: u32,
    ) -> Result<&[u8], DoesNotOpen> {
        self.sealed.clear();
        self.sealed.extend_from_slice(sealed);
        let content = key.open(u64::from(part), &mut self.sealed)?;
        let plain = plain as usize;
        if content.len() == plain {
            return Ok(content);
        }
        self.unpacked.clear();
        self.unpacked.reserve(plain);
        match self.decompressor.decompress_to_buffer(content, &mut self.unpacked) {
            Ok(bytes) if bytes == plain => Ok(&self.unpacked),
            _ => Err(DoesNotOpen),
        }
    }
}

/// Where in a pack of so many bytes its index is, told from its last [`TAIL_BYTES`].
pub(crate) fn index_of(pack_bytes: u64, tail: &[u8]) -> Option<Range<u64>> {
    let (index_bytes, end) = (tail.first_chunk()?, tail.get(8..)?);
    let to = pack_bytes.checked_sub(TAIL_BYTES)?;
    let from = to.checked_sub(u32::from_le_bytes(*index_bytes).into())?;
    (end == END && from >= HEAD_BYTES as u64).then_some(from..to)
}

/// What a pack's index says of its chunks: as a manifest would have them, of pack 0.
pub(crate) async fn chunks_of(
    repository: &Repository,
    data_key: &DataKey,
    name: &str,
    pack_bytes: u64,
) -> Result<(Salt, Vec<Chunk>), RepositoryError> {
    let damaged = || RepositoryError::damaged(name, "it is no whole pack");
    let read = async |range: Range<u64>| {
        let read = repository.store.get_range(name, range).await?;
        read.ok_or_else(|| RepositoryError::Gone { name: name.to_owned() })
    };
    if pack_bytes < HEAD_BYTES as u64 + TAIL_BYTES {
        return Err(damaged());
    }
    let head = read(0..HEAD_BYTES as u64).await?;
    let tail = read(pack_bytes - TAIL_BYTES..pack_bytes).await?;
    let salt = *head.strip_prefix(MAGIC).and_then(|rest| rest.first_chunk()).ok_or_else(damaged)?;
    let range = index_of(pack_bytes, &tail).ok_or_else(damaged)?;
    let (chunks_end, index) = (range.start, read(range).await?);
    let parts = u32::from_le_bytes(*tail[4..].first_chunk().ok_or_else(damaged)?);
    let mut index = index.to_vec();
    let key = key(repository, data_key, name, &salt);
    let index =
        key.open(parts.into(), &mut index).map_err(|DoesNotOpen| RepositoryError::does_not_open(name))?;
    let (entries, rest) = index.as_chunks::<ENTRY_BYTES>();
    let mut offset = HEAD_BYTES as u64;
    let mut chunks = Vec::with_capacity(entries.len());
    for (part, entry) in (0..).zip(entries) {
        let number = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        let fingerprint = *entry.first_chunk().expect("an entry begins with a fingerprint");
        let (stored, plain) = (number(16), number(20));
        let place = u32::try_from(offset).map_err(|_| damaged())?;
        chunks.push(Chunk { fingerprint, pack: 0, part, offset: place, stored, plain });
        offset += u64::from(stored);
    }
    if !rest.is_empty() || chunks.len() != parts as usize || offset != chunks_end {
        return Err(damaged());
    }
    Ok((salt, chunks))
}

/// The longest that a part of `plain` bytes can be.
pub(crate) fn stored_bytes_max(plain: u32) -> u32 {
    plain + TAG_BYTES as u32
}
