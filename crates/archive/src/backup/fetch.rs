//! Reading chunks back: which ranges of which packs, and opening what is in them.

use std::ops::Range;

use bytes::Bytes;

use super::manifest::{Chunk, Manifest, fingerprint};
use super::pack;
use crate::repository::{Repository, RepositoryError};
use crate::seal::DataKey;

/// Unused bytes that are read rather than asked around.
const GAP_BYTES: u64 = 256 << 10;
/// What is read at once.
const RANGE_BYTES: u64 = 4 << 20;

/// A part of a pack, and the chunks that are wanted from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fetch {
    pub(crate) pack: u32,
    pub(crate) range: Range<u64>,
    /// By their numbers in the manifest, as they lie.
    pub(crate) chunks: Vec<u32>,
}

/// Puts chunks that lie close together into one read.
pub(crate) fn fetches(chunks: &[Chunk]) -> Vec<Fetch> {
    let mut order: Vec<u32> = (0..).zip(chunks).map(|(number, _)| number).collect();
    order.sort_unstable_by_key(|&number| {
        let chunk = &chunks[number as usize];
        (chunk.pack, chunk.offset)
    });
    let mut fetches: Vec<Fetch> = Vec::new();
    for number in order {
        let chunk = &chunks[number as usize];
        let (from, to) = (u64::from(chunk.offset), u64::from(chunk.offset) + u64::from(chunk.stored));
        match fetches.last_mut() {
            Some(last)
                if last.pack == chunk.pack
                    && from <= last.range.end + GAP_BYTES
                    && to <= last.range.start + RANGE_BYTES =>
            {
                last.range.end = last.range.end.max(to);
                last.chunks.push(number);
            }
            _ => fetches.push(Fetch { pack: chunk.pack, range: from..to, chunks: vec![number] }),
        }
    }
    fetches
}

/// Where in the files each chunk belongs: which file, which place.
pub(crate) struct Places {
    places: Vec<(u32, u32)>,
    /// Where in `places` those of each chunk begin.
    begins: Vec<u32>,
}

impl Places {
    pub(crate) fn of(manifest: &Manifest) -> Self {
        let mut all: Vec<(u32, (u32, u32))> = Vec::new();
        for (number, file) in (0..).zip(&manifest.files) {
            let used = (0..).zip(&file.chunks).filter(|(_, chunk)| **chunk > 0);
            all.extend(used.map(|(place, &chunk)| (chunk - 1, (number, place))));
        }
        all.sort_unstable();
        let mut begins = vec![0; manifest.chunks.len() + 1];
        for (chunk, _) in &all {
            begins[*chunk as usize + 1] += 1;
        }
        for chunk in 0..manifest.chunks.len() {
            begins[chunk + 1] += begins[chunk];
        }
        Self { places: all.into_iter().map(|(_, place)| place).collect(), begins }
    }

    pub(crate) fn of_chunk(&self, chunk: u32) -> &[(u32, u32)] {
        let chunk = chunk as usize;
        &self.places[self.begins[chunk] as usize..self.begins[chunk + 1] as usize]
    }
}

/// Reads a part of a pack. What is shorter than it must be is damaged.
pub(crate) async fn read(
    repository: &Repository,
    manifest: &Manifest,
    fetch: &Fetch,
) -> Result<Bytes, RepositoryError> {
    let name = &manifest.packs[fetch.pack as usize].name;
    match repository.store.get_range(name, fetch.range.clone()).await {
        Ok(Some(bytes)) if bytes.len() as u64 == fetch.range.end - fetch.range.start => Ok(bytes),
        Ok(Some(_)) => Err(RepositoryError::damaged(name, "it is shorter than it must be")),
        Ok(None) => Err(RepositoryError::Gone { name: name.clone() }),
        Err(error) => match repository.store.size(name).await? {
            // Stores answer with an error of their own when a range begins behind an object's end.
            Some(bytes) if bytes <= fetch.range.start => {
                Err(RepositoryError::damaged(name, "it is shorter than it must be"))
            }
            _ => Err(error.into()),
        },
    }
}

/// Opens the chunks of what was read, and gives each to `take` once it is proven to be what it must be.
pub(crate) fn open(
    repository: &Repository,
    data_key: &DataKey,
    manifest: &Manifest,
    fetch: &Fetch,
    bytes: &[u8],
    mut take: impl FnMut(u32, Result<&[u8], RepositoryError>) -> Result<(), RepositoryError>,
) -> Result<(), RepositoryError> {
    let packed = &manifest.packs[fetch.pack as usize];
    let key = pack::key(repository, data_key, &packed.name, &packed.salt);
    let fingerprint_key = data_key.fingerprint_key();
    let mut opener = pack::Opener::new();
    for &number in &fetch.chunks {
        let chunk = &manifest.chunks[number as usize];
        let from = (u64::from(chunk.offset) - fetch.range.start) as usize;
        let sealed = &bytes[from..from + chunk.stored as usize];
        let content = match opener.open(&key, chunk.part, sealed, chunk.plain) {
            Ok(content) if fingerprint(&fingerprint_key, content) == chunk.fingerprint => Ok(content),
            _ => Err(RepositoryError::does_not_open(&packed.name)),
        };
        take(number, content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup::manifest::FileOf;

    fn chunk(pack: u32, offset: u32, stored: u32) -> Chunk {
        Chunk { fingerprint: [0; 16], pack, part: 0, offset, stored, plain: stored }
    }

    #[test]
    fn chunks_that_lie_close_together_are_read_at_once() {
        let chunks = [chunk(1, 100, 50), chunk(0, 2_000_000, 50), chunk(0, 20, 50), chunk(0, 100, 50)];
        let fetches = fetches(&chunks);
        let shown: Vec<_> = fetches.iter().map(|f| (f.pack, f.range.clone(), f.chunks.clone())).collect();
        assert_eq!(
            shown,
            [(0, 20..150, vec![2, 3]), (0, 2_000_000..2_000_050, vec![1]), (1, 100..150, vec![0])]
        );
    }

    #[test]
    fn a_chunk_is_found_at_all_its_places() {
        let file = |chunks: &[u32]| FileOf { path: "f".into(), mode: 0, bytes: 0, chunks: chunks.to_vec() };
        let manifest = Manifest {
            chunk_bytes: 1,
            packs: vec![],
            chunks: vec![chunk(0, 0, 1); 3],
            directories: vec![],
            files: vec![file(&[0, 3, 1]), file(&[3])],
            damaged: vec![],
        };
        let places = Places::of(&manifest);
        assert_eq!(places.of_chunk(0), [(0, 2)]);
        assert_eq!(places.of_chunk(1), []);
        assert_eq!(places.of_chunk(2), [(0, 1), (1, 0)]);
    }

    proptest! {
        #[test]
        fn every_chunk_is_read_once_within_its_range(
            places in proptest::collection::vec((0..3_u32, 0..20_000_000_u32, 17..70_000_u32), 0..200),
        ) {
            let chunks: Vec<_> = places.into_iter().map(|(pack, at, stored)| chunk(pack, at, stored)).collect();
            let fetches = fetches(&chunks);
            let mut seen: Vec<u32> = fetches.iter().flat_map(|fetch| fetch.chunks.clone()).collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..chunks.len() as u32));
            for fetch in fetches {
                prop_assert!(fetch.range.end - fetch.range.start <= RANGE_BYTES);
                for number in fetch.chunks {
                    let chunk = &chunks[number as usize];
                    let (from, to) = (u64::from(chunk.offset), u64::from(chunk.offset + chunk.stored));
                    prop_assert_eq!(chunk.pack, fetch.pack);
                    prop_assert!(fetch.range.start <= from && to <= fetch.range.end);
                }
            }
        }
    }
}
