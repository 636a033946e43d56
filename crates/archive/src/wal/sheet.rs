//! Writing segments: records at given places, the headers of the pages they touch, holes where nothing is.

use loomworks_core::lsn::Segment;

use super::layout::{Geometry, PAGE_BYTES, page_of};
use super::record::{HEADER, Header, rm, xlog};

/// A finished segment. What is in no run is zeros and can be left a hole in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SparseSegment {
    pub segment: Segment,
    /// All of it.
    pub bytes: Vec<u8>,
    /// Where in `bytes` there is something: whole pages, in order, not touching each other.
    pub runs: Vec<std::ops::Range<u32>>,
}

/// Memory of a segment that is not needed any more: zeros, as long as it was.
pub struct Blank(pub(crate) Vec<u8>);

impl SparseSegment {
    /// To clear what is in it costs less than to get as much memory anew.
    #[must_use]
    pub fn into_blank(self) -> Blank {
        let Self { mut bytes, runs, .. } = self;
        for run in runs {
            bytes[run.start as usize..run.end as usize].fill(0);
        }
        Blank(bytes)
    }
}

/// The longest filling record, so that PostgreSQL reads it into the buffer it has.
const LONGEST_NOOP: u64 = 128 << 10;
const SMALLEST: u64 = HEADER as u64;

pub(super) struct Sheet {
    geometry: Geometry,
    open: Option<Page>,
    finished: Vec<SparseSegment>,
    blanks: Vec<Blank>,
    /// From which position on which timeline goes.
    timelines: Vec<(u64, u32)>,
}

/// The segment that is being written.
struct Page {
    number: u64,
    timeline: u32,
    bytes: Vec<u8>,
    touched: Vec<bool>,
}

impl Sheet {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self { geometry, open: None, finished: Vec::new(), blanks: Vec::new(), timelines: Vec::new() }
    }

    /// From `lsn` on, WAL is of this timeline. A segment is of the newest that it has.
    pub(super) fn timeline(&mut self, lsn: u64, timeline: u32) {
        if self.timelines.last().is_none_or(|(_, last)| *last != timeline) {
            self.timelines.push((lsn, timeline));
        }
    }

    /// Begins with the segment of `lsn`. What is before it in the segment stays a hole: recovery reads the segment's first
    /// header and then goes to the page of `lsn`.
    pub(super) fn begin(&mut self, lsn: u64) {
        self.touch(self.geometry.segment_start(lsn), None);
    }

    pub(super) fn take_finished(&mut self) -> Vec<SparseSegment> {
        std::mem::take(&mut self.finished)
    }

    /// Memory for another segment.
    pub(super) fn reuse(&mut self, blank: Blank) {
        self.blanks.push(blank);
    }

    /// Ends with the segment that is being written.
    pub(super) fn finish(&mut self) {
        if let Some(page) = self.open.take() {
            self.finished.push(page.finish(&self.geometry));
        }
    }

    /// Writes a record whose bytes are `parts`, `total` together. Places come in rising order.
    pub(super) fn write(&mut self, place: u64, total: u32, parts: &[&[u8]]) {
        let segment_bytes = u64::from(self.geometry.segment_bytes);
        let mut at = self.geometry.lsn(place);
        let (mut left, mut inside) = (total, false);
        for part in parts {
            let mut part = *part;
            while !part.is_empty() {
                let page = page_of(at);
                if at == page {
                    at += self.geometry.header_bytes(page);
                }
                let first = at == page + self.geometry.header_bytes(page);
                let open = self.touch(page, (inside && first).then_some(left));
                let room = (page + PAGE_BYTES - at) as usize;
                let here;
                (here, part) = part.split_at(part.len().min(room));
                let from = (at % segment_bytes) as usize;
                open.bytes[from..from + here.len()].copy_from_slice(here);
                at += here.len() as u64;
                left -= here.len() as u32;
                inside = true;
            }
        }
    }

    /// Fills what is between two places with records that do nothing; the gap is 0 or 24 bytes or more. Returns the position
    /// of the last record, which is `prev` if there is nothing to fill.
    ///
    /// ```text
    /// … kept │ NOOP NOOP │ kept …                      within a segment
    /// … kept │ SWITCH (hole ……) ║ SWITCH (hole ……) ║ NOOP │ kept …    to its end and further
    /// ```
    pub(super) fn fill(&mut self, from: u64, to: u64, mut prev: u64) -> u64 {
        let payload = self.geometry.segment_payload();
        let mut at = from;
        while at < to {
            let left = to - at;
            let room = payload - at % payload;
            let beyond = left.saturating_sub(room);
            // What is left must have room for another record.
            let fits = |taken: u64, of: u64| of == taken || of >= taken + SMALLEST;
            let next = if left >= room && room >= SMALLEST && fits(0, beyond) {
                self.switch(at, prev);
                at + room
            } else {
                // Up to the end of the gap, or over the segment's end with as little as can be.
                let wanted = if room < SMALLEST { SMALLEST } else { left.min(LONGEST_NOOP) };
                let taken = if fits(wanted, left) { wanted } else { left.min(wanted + SMALLEST) };
                let taken = if fits(taken, left) { taken } else { left };
                self.noop(at, taken as u32, prev);
                at + taken
            };
            prev = self.geometry.lsn(at);
            at = next;
        }
        prev
    }

    fn switch(&mut self, place: u64, prev: u64) {
        let header = Header {
            total: HEADER as u32,
            xid: 0,
            prev,
            info: xlog::SWITCH,
            rmid: rm::XLOG,
            padding: 0,
            crc: 0,
        };
        self.write(place, HEADER as u32, &[&header.seal(crc32c::crc32c(&[]))]);
    }

    fn noop(&mut self, place: u64, total: u32, prev: u64) {
        static ZEROS: [u8; (LONGEST_NOOP + 2 * SMALLEST) as usize] = [0; _];
        let body = total - HEADER as u32;
        let mut main = [0; 5];
        let main = match body {
            0 => &main[..0],
            1..=257 => {
                (main[0], main[1]) = (255, (body - 2) as u8);
                &main[..2]
            }
            _ => {
                main[0] = 254;
                main[1..].copy_from_slice(&(body - 5).to_le_bytes());
                &main[..]
            }
        };
        let zeros = &ZEROS[..body as usize - main.len()];
        let header = Header { total, xid: 0, prev, info: xlog::NOOP, rmid: rm::XLOG, padding: 0, crc: 0 };
        let header = header.seal(crc32c::crc32c_append(crc32c::crc32c(main), zeros));
        self.write(place, total, &[&header, main, zeros]);
    }

    /// The segment with the page, whose header is written if it is not.
    fn touch(&mut self, page: u64, continued: Option<u32>) -> &mut Page {
        let segment_bytes = u64::from(self.geometry.segment_bytes);
        let number = page / segment_bytes;
        if self.open.as_ref().is_none_or(|open| open.number != number) {
            self.finish();
        }
        let geometry = self.geometry;
        let of_segment = self.timelines.iter().rev().find(|(from, _)| from / segment_bytes <= number);
        let timeline = of_segment.map_or(0, |(_, timeline)| *timeline);
        let open = self.open.get_or_insert_with(|| Page {
            number,
            timeline,
            bytes: self.blanks.pop().map_or_else(|| vec![0; segment_bytes as usize], |Blank(bytes)| bytes),
            touched: vec![false; (segment_bytes / PAGE_BYTES) as usize],
        });
        let within = page % segment_bytes;
        let touched = &mut open.touched[(within / PAGE_BYTES) as usize];
        if !std::mem::replace(touched, true) || continued.is_some() {
            let (header, len) = geometry.header(page, open.timeline, continued);
            open.bytes[within as usize..within as usize + len].copy_from_slice(&header[..len]);
        }
        open
    }
}

impl Page {
    fn finish(self, geometry: &Geometry) -> SparseSegment {
        let mut runs: Vec<std::ops::Range<u32>> = Vec::new();
        for (page, _) in self.touched.iter().enumerate().filter(|(_, touched)| **touched) {
            let start = page as u32 * PAGE_BYTES as u32;
            let end = start + PAGE_BYTES as u32;
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        debug_assert_eq!(self.bytes.len(), geometry.segment_bytes as usize);
        let segment = Segment { timeline: self.timeline, number: self.number };
        SparseSegment { segment, bytes: self.bytes, runs }
    }
}
