//! Merging all streams of a range back into its bytes.

use super::SHARED;
use super::layout::{Geometry, PAGE_BYTES, Range, page_of};
use super::pieces::{Damaged, Piece, Stream, get_patch};
use super::record::Header;

/// The bytes of `range`, from all its streams in any order. The same bytes that were split, or an error.
pub fn merge(geometry: &Geometry, range: &Range, streams: &[&[u8]]) -> Result<Vec<u8>, Damaged> {
    merge_into(geometry, range, streams, Vec::new())
}

/// The same in memory that was used for something else: getting as much anew costs more than merging.
pub fn merge_into(
    geometry: &Geometry,
    range: &Range,
    streams: &[&[u8]],
    mut memory: Vec<u8>,
) -> Result<Vec<u8>, Damaged> {
    let len = range.len().filter(|_| geometry.is_possible()).ok_or(Damaged("no range is like this"))?;
    let streams = streams.iter().map(|bytes| Stream::read(bytes, range)).collect::<Result<Vec<_>, _>>()?;
    let shared = {
        let mut shared = streams.iter().filter(|stream| stream.owner == SHARED);
        match (shared.next(), shared.next()) {
            (Some(stream), None) => *stream,
            _ => return Err(Damaged("there must be one shared stream")),
        }
    };
    let first = geometry.place(range.start.0);
    let mut starts = Starts::new(first, geometry.place(range.end.0));
    for stream in &streams {
        let mut pieces = stream.pieces(geometry, range);
        while let Some(piece) = pieces.next()? {
            if piece.is_record() {
                starts.mark(piece.place());
            }
        }
    }
    let bytes = if memory.capacity() < len {
        vec![0; len]
    } else {
        memory.clear();
        memory.resize(len, 0);
        memory
    };
    let mut merged = Merged { geometry, range, bytes, pages: Pages::new(range) };
    for stream in &streams {
        let mut pieces = stream.pieces(geometry, range);
        while let Some(piece) = pieces.next()? {
            match piece {
                Piece::Record { place, total, xid, info, rmid, body } => {
                    let prev = starts.before(place).map_or(shared.whole.first_prev, |at| geometry.lsn(at));
                    let header = Header { total, xid, prev, info, rmid, padding: 0, crc: 0 };
                    let header = header.seal(crc32c::crc32c(body));
                    merged.put(place, total, false, &[&header, body]);
                }
                Piece::Fragment { place, remaining, continued, bytes } => {
                    merged.put(place, remaining, continued, &[bytes]);
                }
            }
        }
    }
    merged.patch(shared.patches)?;
    if crc32c::crc32c(&merged.bytes) != shared.whole.crc {
        return Err(Damaged("the streams do not give the range back: one is missing, or too many are there"));
    }
    Ok(merged.bytes)
}

/// Where records begin: a bit for each place at which one can.
struct Starts {
    first: u64,
    bits: Vec<u64>,
}

impl Starts {
    fn new(first: u64, end: u64) -> Self {
        let first = first & !7;
        Self { first, bits: vec![0; ((end - first) / 8 / 64 + 1) as usize] }
    }

    fn mark(&mut self, place: u64) {
        let bit = (place - self.first) / 8;
        self.bits[(bit / 64) as usize] |= 1 << (bit % 64);
    }

    /// The last start before `place`.
    fn before(&self, place: u64) -> Option<u64> {
        let bit = (place - self.first) / 8;
        let mut word = (bit / 64) as usize;
        let mut found = self.bits[word] & !(u64::MAX << (bit % 64));
        while found == 0 {
            word = word.checked_sub(1)?;
            found = self.bits[word];
        }
        let highest = 63 - u64::from(found.leading_zeros());
        Some(self.first + (word as u64 * 64 + highest) * 8)
    }
}

/// Which pages have their header.
struct Pages {
    first: u64,
    done: Vec<bool>,
}

impl Pages {
    fn new(range: &Range) -> Self {
        let first = page_of(range.start.0);
        Self { first, done: vec![false; ((range.end.0 - first) / PAGE_BYTES + 1) as usize] }
    }
}

struct Merged<'a> {
    geometry: &'a Geometry,
    range: &'a Range,
    bytes: Vec<u8>,
    pages: Pages,
}

impl Merged<'_> {
    /// Writes a piece of which `remaining` bytes of its record are left, and the headers of its pages.
    fn put(&mut self, place: u64, remaining: u32, continued: bool, parts: &[&[u8]]) {
        let mut at = self.geometry.lsn(place);
        let (mut left, mut inside) = (remaining, continued);
        for part in parts {
            let mut part = *part;
            while !part.is_empty() {
                let page = page_of(at);
                if at == page {
                    at += self.geometry.header_bytes(page);
                }
                let first = at == page + self.geometry.header_bytes(page);
                self.header(page, (inside && first).then_some(left));
                let room = (page + PAGE_BYTES - at) as usize;
                let here;
                (here, part) = part.split_at(part.len().min(room));
                let from = (at - self.range.start.0) as usize;
                // Places within the range have positions within it.
                self.bytes[from..from + here.len()].copy_from_slice(here);
                at += here.len() as u64;
                left = left.saturating_sub(here.len() as u32);
                inside = true;
            }
        }
    }

    /// Writes the header of a page, as far as it lies in the range, unless it is there.
    fn header(&mut self, page: u64, continued: Option<u32>) {
        let done = &mut self.pages.done[((page - self.pages.first) / PAGE_BYTES) as usize];
        if std::mem::replace(done, true) && continued.is_none() {
            return;
        }
        let (header, len) = self.geometry.header(page, self.range.timeline, continued);
        let cut = self.range.start.0.saturating_sub(page) as usize;
        if cut < len {
            let from = (page + cut as u64 - self.range.start.0) as usize;
            self.bytes[from..from + len - cut].copy_from_slice(&header[cut..len]);
        }
    }

    fn patch(&mut self, mut patches: &[u8]) -> Result<(), Damaged> {
        let outside = Damaged("a patch lies outside the range");
        let mut at = 0_usize;
        while let Some((distance, bytes)) = get_patch(&mut patches)? {
            at = at.checked_add(distance).ok_or(outside)?;
            let end = at.checked_add(bytes.len()).ok_or(outside)?;
            self.bytes.get_mut(at..end).ok_or(outside)?.copy_from_slice(bytes);
            at = end;
        }
        Ok(())
    }
}
