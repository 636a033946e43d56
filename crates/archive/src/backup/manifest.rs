//! A group's manifest: which files it has, of which chunks they consist, and where those are.
//!
//! Numbers are written as LEB128, texts with their length before them. The chunks come column by column, each as the
//! difference to what would be expected after the one before, so that zstd makes little of them.

use std::path::{Component, Path};

use super::pack::stored_bytes_max;
use crate::seal::{SALT_BYTES, Salt, TAG_BYTES};

/// A chunk: two pages. A change to one page stores two.
pub(crate) const CHUNK_BYTES: u32 = 16 << 10;
/// A chunk of a large group: fewer, so that what is known of them fits into memory.
pub(crate) const LARGE_CHUNK_BYTES: u32 = 64 << 10;
/// What a repository that was written otherwise may have.
const CHUNK_BYTES_MAX: u64 = 16 << 20;
const VERSION: u64 = 1;

/// Tells a chunk's content from every other of the same database: BLAKE3 with the database's key, cut to 16 bytes.
pub(crate) type Fingerprint = [u8; 16];

pub(crate) fn fingerprint(key: &[u8; 32], content: &[u8]) -> Fingerprint {
    *blake3::keyed_hash(key, content).as_bytes().first_chunk().expect("BLAKE3 gives 32 bytes")
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) chunk_bytes: u32,
    pub(crate) packs: Vec<PackRef>,
    pub(crate) chunks: Vec<Chunk>,
    /// Parents before what is in them.
    pub(crate) directories: Vec<String>,
    pub(crate) files: Vec<FileOf>,
    pub(crate) damaged: Vec<DamagedBlock>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackRef {
    pub(crate) name: String,
    pub(crate) salt: Salt,
    pub(crate) bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) fingerprint: Fingerprint,
    /// Which of the manifest's packs.
    pub(crate) pack: u32,
    pub(crate) part: u32,
    pub(crate) offset: u32,
    pub(crate) stored: u32,
    pub(crate) plain: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileOf {
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) bytes: u64,
    /// For each place of the file in turn 0 for zeros, else one more than the chunk's number. A chunk may be shorter
    /// than its place; zeros follow it then.
    pub(crate) chunks: Vec<u32>,
}

/// A page that was wrong when it was read, and that nothing in the WAL makes right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DamagedBlock {
    pub(crate) file: u32,
    /// Of the file, not of the relation.
    pub(crate) block: u32,
}

/// Why bytes are no manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoManifest {
    #[error("it is of a version that this program does not read")]
    Version,
    #[error("it ends too early")]
    Short,
    #[error("what it says cannot be")]
    Nonsense,
    #[error("it names a path that leads out of the directory")]
    LeadsOut,
}

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.chunks.len() * 24 + self.files.len() * 48 + 64);
        number(&mut out, VERSION);
        number(&mut out, self.chunk_bytes.into());
        number(&mut out, self.packs.len() as u64);
        for pack in &self.packs {
            text(&mut out, &pack.name);
            out.extend_from_slice(&pack.salt);
            number(&mut out, pack.bytes);
        }
        number(&mut out, self.chunks.len() as u64);
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.fingerprint);
        }
        for (before, chunk) in pairs(&self.chunks) {
            difference(&mut out, before.pack, chunk.pack);
        }
        for (before, chunk) in pairs(&self.chunks) {
            difference(&mut out, before.part.wrapping_add(1), chunk.part);
        }
        for (before, chunk) in pairs(&self.chunks) {
            difference(&mut out, before.offset.wrapping_add(before.stored), chunk.offset);
        }
        for chunk in &self.chunks {
            number(&mut out, chunk.stored.into());
        }
        for chunk in &self.chunks {
            difference(&mut out, self.chunk_bytes, chunk.plain);
        }
        number(&mut out, self.directories.len() as u64);
        for path in &self.directories {
            text(&mut out, path);
        }
        number(&mut out, self.files.len() as u64);
        for file in &self.files {
            text(&mut out, &file.path);
            number(&mut out, file.mode.into());
            number(&mut out, file.bytes);
            let mut expected = 1;
            for &chunk in &file.chunks {
                difference(&mut out, expected, chunk);
                expected = chunk.wrapping_add(1);
            }
        }
        number(&mut out, self.damaged.len() as u64);
        for page in &self.damaged {
            number(&mut out, page.file.into());
            number(&mut out, page.block.into());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, NoManifest> {
        let mut rest = Reader(bytes);
        if rest.number()? != VERSION {
            return Err(NoManifest::Version);
        }
        let chunk_bytes = rest.number()?;
        if chunk_bytes == 0 || chunk_bytes > CHUNK_BYTES_MAX {
            return Err(NoManifest::Nonsense);
        }
        let chunk_bytes = chunk_bytes as u32;
        let count = rest.count()?;
        let packs = (0..count)
            .map(|_| {
                let name = rest.text()?;
                let salt = *rest.take(SALT_BYTES)?.first_chunk().ok_or(NoManifest::Short)?;
                Ok(PackRef { name, salt, bytes: rest.number()? })
            })
            .collect::<Result<Vec<_>, NoManifest>>()?;
        let chunks = decode_chunks(&mut rest, chunk_bytes, &packs)?;
        let count = rest.count()?;
        let directories = (0..count).map(|_| rest.path()).collect::<Result<Vec<_>, _>>()?;
        let count = rest.count()?;
        let files = (0..count)
            .map(|_| {
                let (path, mode, bytes) = (rest.path()?, rest.number32()?, rest.number()?);
                let places = bytes.div_ceil(chunk_bytes.into());
                // Each place takes a byte at least.
                if places > rest.0.len() as u64 {
                    return Err(NoManifest::Short);
                }
                let mut expected = 1;
                let mut of_file = Vec::with_capacity(places as usize);
                for _ in 0..places {
                    let chunk = rest.difference(expected)?;
                    if chunk as usize > chunks.len() {
                        return Err(NoManifest::Nonsense);
                    }
                    of_file.push(chunk);
                    expected = chunk.wrapping_add(1);
                }
                Ok(FileOf { path, mode, bytes, chunks: of_file })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let count = rest.count()?;
        let damaged = (0..count)
            .map(|_| {
                let page = DamagedBlock { file: rest.number32()?, block: rest.number32()? };
                if page.file as usize >= files.len() { Err(NoManifest::Nonsense) } else { Ok(page) }
            })
            .collect::<Result<Vec<_>, _>>()?;
        match rest.0 {
            [] => Ok(Self { chunk_bytes, packs, chunks, directories, files, damaged }),
            _ => Err(NoManifest::Nonsense),
        }
    }
}

fn decode_chunks(
    rest: &mut Reader<'_>,
    chunk_bytes: u32,
    packs: &[PackRef],
) -> Result<Vec<Chunk>, NoManifest> {
    let count = rest.count()?;
    let fingerprints = rest.take(count.checked_mul(16).ok_or(NoManifest::Short)?)?.as_chunks::<16>().0;
    let blank = |&fingerprint: &Fingerprint| Chunk { fingerprint, ..NO_CHUNK };
    let mut chunks: Vec<Chunk> = fingerprints.iter().map(blank).collect();
    let mut before = NO_CHUNK;
    for chunk in &mut chunks {
        chunk.pack = rest.difference(before.pack)?;
        before = *chunk;
    }
    let mut before = NO_CHUNK;
    for chunk in &mut chunks {
        chunk.part = rest.difference(before.part.wrapping_add(1))?;
        before = *chunk;
    }
    let offsets = rest.differences(count)?;
    for chunk in &mut chunks {
        chunk.stored = rest.number32()?;
    }
    for chunk in &mut chunks {
        chunk.plain = rest.difference(chunk_bytes)?;
    }
    let mut before = NO_CHUNK;
    for (chunk, offset) in chunks.iter_mut().zip(offsets) {
        chunk.offset = before.offset.wrapping_add(before.stored).wrapping_add(offset);
        before = *chunk;
    }
    let possible = |chunk: &Chunk| {
        let pack = packs.get(chunk.pack as usize);
        let end = u64::from(chunk.offset) + u64::from(chunk.stored);
        (1..=chunk_bytes).contains(&chunk.plain)
            && chunk.stored > TAG_BYTES as u32
            && chunk.stored <= stored_bytes_max(chunk.plain)
            && pack.is_some_and(|pack| end <= pack.bytes)
    };
    if chunks.iter().all(possible) { Ok(chunks) } else { Err(NoManifest::Nonsense) }
}

/// What comes before the first chunk.
const NO_CHUNK: Chunk =
    Chunk { fingerprint: [0; 16], pack: 0, part: u32::MAX, offset: 0, stored: 0, plain: 0 };

fn pairs(chunks: &[Chunk]) -> impl Iterator<Item = (&Chunk, &Chunk)> {
    std::iter::once(&NO_CHUNK).chain(chunks).zip(chunks)
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Small in both directions: 0, -1, 1, -2 are 0, 1, 2, 3.
fn difference(out: &mut Vec<u8>, expected: u32, value: u32) {
    let apart = value.wrapping_sub(expected) as i32;
    number(out, u64::from(((apart << 1) ^ (apart >> 31)) as u32));
}

fn text(out: &mut Vec<u8>, text: &str) {
    number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], NoManifest> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(NoManifest::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, NoManifest> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(NoManifest::Nonsense)
    }

    fn number32(&mut self) -> Result<u32, NoManifest> {
        self.number()?.try_into().map_err(|_| NoManifest::Nonsense)
    }

    /// How many things follow, of which each takes a byte at least.
    fn count(&mut self) -> Result<usize, NoManifest> {
        let count = self.number()?;
        if count > self.0.len() as u64 { Err(NoManifest::Short) } else { Ok(count as usize) }
    }

    fn difference(&mut self, expected: u32) -> Result<u32, NoManifest> {
        let apart = self.number32()?;
        Ok(expected.wrapping_add((apart >> 1) ^ (apart & 1).wrapping_neg()))
    }

    fn differences(&mut self, count: usize) -> Result<Vec<u32>, NoManifest> {
        (0..count).map(|_| self.difference(0)).collect()
    }

    fn text(&mut self) -> Result<String, NoManifest> {
        let bytes = self.count()?;
        String::from_utf8(self.take(bytes)?.to_vec()).map_err(|_| NoManifest::Nonsense)
    }

    /// A path that stays below where it is laid out.
    fn path(&mut self) -> Result<String, NoManifest> {
        let path = self.text()?;
        let stays = !path.is_empty()
            && !path.contains('\0')
            && Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)));
        if stays { Ok(path) } else { Err(NoManifest::LeadsOut) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(packs: Vec<PackRef>) -> impl Strategy<Value = Chunk> {
        let count = packs.len() as u32;
        (any::<[u8; 16]>(), 0..count, any::<u32>(), 1..=CHUNK_BYTES, any::<u32>(), any::<u32>()).prop_map(
            move |(fingerprint, pack, part, plain, stored, offset)| {
                let stored = 17 + stored % (stored_bytes_max(plain) - 16);
                let room = packs[pack as usize].bytes as u32 - stored;
                Chunk { fingerprint, pack, part, plain, stored, offset: offset % (room + 1) }
            },
        )
    }

    fn file(chunks: u32) -> impl Strategy<Value = FileOf> {
        (
            proptest::collection::vec(0..=chunks, 0..5),
            "[a-z]{1,9}(/[0-9_]{1,5}){0,2}",
            0..0o777_u32,
            1..=CHUNK_BYTES,
        )
            .prop_map(|(chunks, path, mode, last)| {
                let whole = (chunks.len() as u64).saturating_sub(1) * u64::from(CHUNK_BYTES);
                let bytes = if chunks.is_empty() { 0 } else { whole + u64::from(last) };
                FileOf { path, mode, bytes, chunks }
            })
    }

    fn manifest() -> impl Strategy<Value = Manifest> {
        let pack = ("[0-9a-z./]{1,20}", any::<[u8; 16]>(), 1_u64 << 18..1 << 24)
            .prop_map(|(name, salt, bytes)| PackRef { name, salt, bytes });
        proptest::collection::vec(pack, 1..4)
            .prop_flat_map(|packs| (proptest::collection::vec(chunk(packs.clone()), 0..20), Just(packs)))
            .prop_flat_map(|(chunks, packs)| {
                let files = proptest::collection::vec(file(chunks.len() as u32), 1..6);
                let damaged = proptest::collection::vec((0..100_u32, any::<u32>()), 0..3);
                (Just(packs), Just(chunks), proptest::collection::vec("[a-z]{1,5}", 0..4), files, damaged)
            })
            .prop_map(|(packs, chunks, directories, files, damaged)| {
                let count = files.len() as u32;
                let block = |(file, block)| DamagedBlock { file: file % count, block };
                let damaged = damaged.into_iter().map(block).collect();
                Manifest { chunk_bytes: CHUNK_BYTES, packs, chunks, directories, files, damaged }
            })
    }

    fn with_path(path: &str) -> Manifest {
        let files = vec![FileOf { path: path.into(), mode: 0o600, bytes: 0, chunks: vec![] }];
        Manifest {
            chunk_bytes: 8192,
            packs: vec![],
            chunks: vec![],
            directories: vec![],
            files,
            damaged: vec![],
        }
    }

    #[test]
    fn a_path_that_leads_out_is_refused() {
        for path in ["../x", "/etc/passwd", "base/../../x", "..", "", "a\0b", "."] {
            assert_eq!(Manifest::decode(&with_path(path).encode()), Err(NoManifest::LeadsOut), "{path:?}");
        }
        let good = with_path("base/5/1259");
        assert_eq!(Manifest::decode(&good.encode()), Ok(good));
    }

    #[test]
    fn another_version_is_refused() {
        let mut bytes = with_path("a").encode();
        bytes[0] = 2;
        assert_eq!(Manifest::decode(&bytes), Err(NoManifest::Version));
    }

    proptest! {
        #[test]
        fn a_manifest_reads_back(manifest in manifest()) {
            let bytes = manifest.encode();
            for end in 0..bytes.len() {
                prop_assert!(Manifest::decode(&bytes[..end]).is_err());
            }
            prop_assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        }

        #[test]
        fn no_bytes_panic(mut bytes: Vec<u8>) {
            let _ = Manifest::decode(&bytes);
            bytes.insert(0, 1);
            let _ = Manifest::decode(&bytes);
        }

        #[test]
        fn no_change_panics(manifest in manifest(), at: proptest::sample::Index, value: u8) {
            let mut bytes = manifest.encode();
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = Manifest::decode(&bytes);
        }
    }
}
