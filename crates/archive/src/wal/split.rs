//! Splitting a range of WAL into a stream for each database and one for all the rest.
//!
//! Lossless by construction: each byte of the range is in a record, or was compared with what merging will put there, and
//! goes as a patch if it differs. The one exception is asked for: [`Tail::Dead`].

use std::collections::{BTreeMap, HashMap};

use loomworks_core::lsn::Lsn;

use super::SHARED;
use super::layout::{Geometry, Range, page_of};
use super::pieces::{Builder, Whole, put_patch};
use super::record::{Class, HEADER, Header};
use super::walk::{Carry, Step, Walk, Window};

/// What happens to bytes after the end of valid WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// They are kept, in the shared stream.
    Kept,
    /// They are replaced by zeros. For a `.partial` segment: there may be anything that a recycled segment held
    /// before, of any tenant.
    Dead,
}

/// A range, split.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Split {
    /// By the database's oid, uncompressed. The [`SHARED`] one is always there.
    pub streams: BTreeMap<u32, Vec<u8>>,
    /// What splitting the next range needs. `None`: the log has ended, or a record's start was never found.
    pub carry: Option<Carry>,
    /// Where valid WAL ended, if it did. It may be before the range: then what the range before had of a record was not
    /// the start of one.
    pub end: Option<Lsn>,
    /// The earliest and the latest time at which a transaction ended, in microseconds since 2000-01-01.
    pub commit_times: Option<(i64, i64)>,
    /// How many records ended in the range.
    pub records: u64,
    /// Bytes in the shared stream of which nobody can say whose they are: the end of a record whose start was in no
    /// range, records of unknown resource managers, what follows the end of the log.
    pub unclassified_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SplitError {
    #[error("a range of WAL must have its own length and 1 GB at most, in segments of 1 MB to 1 GB")]
    Range,
    #[error("the carry is not of the range before")]
    Carry,
}

/// Splits `bytes`, which are those of `range`. `carry` is from the range before, if that was split.
pub fn split(
    geometry: &Geometry,
    range: &Range,
    bytes: &[u8],
    carry: Option<&Carry>,
    tail: Tail,
) -> Result<Split, SplitError> {
    if range.len() != Some(bytes.len()) || !geometry.is_possible() {
        return Err(SplitError::Range);
    }
    if carry.is_some_and(|carry| carry.end != range.start || !carry.is_sound()) {
        return Err(SplitError::Carry);
    }
    let window = Window { geometry, start: range.start.0, end: range.end.0, bytes };
    let mut walk = Walk::new(window, range.timeline, carry);
    let mut splitter = Splitter {
        window,
        timeline: range.timeline,
        start: geometry.place(range.start.0),
        owners: Owners::default(),
        patches: Vec::new(),
        patched: range.start.0,
        covered: range.start.0,
    };
    let mut split = Split {
        streams: BTreeMap::new(),
        carry: None,
        end: None,
        commit_times: None,
        records: 0,
        unclassified_bytes: 0,
    };
    let mut whole = Whole { crc: 0, valid: bytes.len() as u32, first_prev: 0 };
    let mut first = true;
    while let Some(step) = walk.next() {
        match step {
            Step::Record { at, header, class } => {
                if std::mem::take(&mut first) {
                    whole.first_prev = header.prev;
                }
                splitter.record(at, &header, class.owner);
                split.records += 1;
                split.count(&class, header.total);
            }
            Step::Part { at, len, remaining, continued, class, completes } => {
                splitter.part(at, len, remaining, continued, class.owner);
                split.records += u64::from(completes);
                split.count(&class, len);
            }
            Step::End(at) => {
                split.end = Some(Lsn(at));
                whole.valid = at.saturating_sub(range.start.0) as u32;
            }
        }
    }
    split.carry = walk.into_carry();
    whole.crc = match (split.end, tail) {
        (Some(_), Tail::Dead) => {
            // From here on merging leaves zeros.
            let alive = (splitter.covered - range.start.0) as usize;
            append_zeros(crc32c::crc32c(&bytes[..alive]), bytes.len() - alive)
        }
        (end, _) => {
            let patches = splitter.patches.len();
            splitter.zeros_until(range.end.0);
            if end.is_some() {
                split.unclassified_bytes += (splitter.patches.len() - patches) as u64;
            }
            crc32c::crc32c(bytes)
        }
    };
    let Splitter { owners, patches, start, .. } = splitter;
    let mut builders = owners.builders;
    if !builders.iter().any(|(owner, _)| *owner == SHARED) {
        builders.push((SHARED, Builder::new(start)));
    }
    split.streams = builders
        .into_iter()
        .map(|(owner, builder)| match owner {
            SHARED => (owner, builder.finish(range, owner, whole, &patches)),
            _ => (owner, builder.finish(range, owner, Whole::default(), &[])),
        })
        .collect();
    Ok(split)
}

impl Split {
    fn count(&mut self, class: &Class, bytes: u32) {
        if !class.known {
            self.unclassified_bytes += u64::from(bytes);
        }
        if let Some(time) = class.time {
            let (first, last) = self.commit_times.unwrap_or((time, time));
            self.commit_times = Some((first.min(time), last.max(time)));
        }
    }
}

/// The streams that grow. Records of one owner mostly follow each other.
#[derive(Default)]
struct Owners {
    builders: Vec<(u32, Builder)>,
    /// Which builder is an owner's.
    places: HashMap<u32, usize>,
    last: usize,
}

impl Owners {
    fn of(&mut self, owner: u32, start: u64) -> &mut Builder {
        if self.builders.get(self.last).is_none_or(|(last, _)| *last != owner) {
            self.last = *self.places.entry(owner).or_insert_with(|| {
                self.builders.push((owner, Builder::new(start)));
                self.builders.len() - 1
            });
        }
        &mut self.builders[self.last].1
    }
}

struct Splitter<'a> {
    window: Window<'a>,
    timeline: u32,
    /// The place at which the range starts.
    start: u64,
    owners: Owners,
    patches: Vec<u8>,
    /// The end of the last patch.
    patched: u64,
    /// All before is in a stream or was compared.
    covered: u64,
}

impl Splitter<'_> {
    fn record(&mut self, at: u64, header: &Header, owner: u32) {
        let place = self.window.geometry.place(at);
        let builder = self.owners.of(owner, self.start);
        // No server writes anything into the padding.
        let mut skip = if header.padding == 0 {
            builder.record(place, header.total, header.xid, header.info, header.rmid);
            HEADER
        } else {
            builder.fragment(place, header.total, header.total, false);
            0
        };
        self.bytes(at, header.total, header.total, false, owner, &mut skip);
    }

    fn part(&mut self, at: u64, len: u32, remaining: u32, continued: bool, owner: u32) {
        if len > 0 {
            let place = self.window.geometry.place(at);
            self.owners.of(owner, self.start).fragment(place, len, remaining, continued);
            self.bytes(at, len, remaining, continued, owner, &mut 0);
        }
    }

    /// Gives `len` bytes to their owner, but the first `skip`, and compares what lies between them and before.
    fn bytes(&mut self, at: u64, len: u32, remaining: u32, continued: bool, owner: u32, skip: &mut usize) {
        let mut left = remaining;
        let mut inside = continued;
        for (at, bytes) in self.window.portions(at, u64::from(len)) {
            if at != self.covered {
                self.compare_until(at, inside.then_some(left));
            }
            let skipped = (*skip).min(bytes.len());
            *skip -= skipped;
            self.owners.of(owner, self.start).body(&bytes[skipped..]);
            self.covered = at + bytes.len() as u64;
            left = left.saturating_sub(bytes.len() as u32);
            inside = true;
        }
    }

    /// Compares what is before the bytes of a record at `at`: zeros, and the header of its page if they are the page's
    /// first. `continued`: how much of the record is left, if it began on a page before.
    fn compare_until(&mut self, at: u64, continued: Option<u32>) {
        let page = page_of(at);
        let header_end = page + self.window.geometry.header_bytes(page);
        if header_end > self.covered {
            self.zeros_until(page);
            let (header, _) =
                self.window.geometry.header(page, self.timeline, continued.filter(|_| at == header_end));
            let skipped = (self.covered - page) as usize;
            let found = self.window.slice(self.covered, header_end);
            self.compare(found, &header[skipped..]);
        }
        self.zeros_until(at);
    }

    /// Compares everything up to `to` with zeros.
    fn zeros_until(&mut self, to: u64) {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.covered < to {
            let chunk = (to - self.covered).min(ZEROS.len() as u64);
            let found = self.window.slice(self.covered, self.covered + chunk);
            self.compare(found, &ZEROS[..chunk as usize]);
        }
    }

    /// Makes patches of what differs. Differences that are near each other become one.
    fn compare(&mut self, found: &[u8], expected: &[u8]) {
        const NEAR: usize = 4;
        let start = self.covered;
        self.covered += found.len() as u64;
        let mut from = 0;
        while found[from..] != expected[from..found.len()] {
            let differs = |at: usize| found[at] != expected[at];
            let Some(first) = (from..found.len()).find(|at| differs(*at)) else { return };
            let (mut end, mut at) = (first + 1, first + 1);
            while at < found.len() && at <= end + NEAR {
                if differs(at) {
                    end = at + 1;
                }
                at += 1;
            }
            let distance = start + first as u64 - self.patched;
            put_patch(&mut self.patches, distance as usize, &found[first..end]);
            self.patched = start + end as u64;
            from = end;
        }
    }
}

/// The checksum of bytes that `zeros` zeros follow.
fn append_zeros(mut crc: u32, mut zeros: usize) -> u32 {
    const ZEROS: [u8; 4096] = [0; 4096];
    while zeros > 0 {
        let chunk = zeros.min(ZEROS.len());
        crc = crc32c::crc32c_append(crc, &ZEROS[..chunk]);
        zeros -= chunk;
    }
    crc
}
