//! Walking over a range of WAL: which record is where, and what is cut by the range's ends.
//!
//! A record counts only if PostgreSQL's own reader would take it: plausible length, `xl_prev` right, checksum right, each
//! page it crosses with the right header. The first one that does not ends the log; what follows may be zeros or what
//! a recycled segment held before.
//!
//! ```text
//!      carry ──► │ Part (tail) │ Record │ Record │ Part (aborted head) │ Record │ … │ Part (head) │ ──► carry
//! ```

use loomworks_core::lsn::Lsn;
use serde::{Deserialize, Serialize};

use super::SHARED;
use super::layout::{
    FIRST_IS_CONTINUED, FIRST_IS_OVERWRITE, Geometry, PAGE_BYTES, PageHeader, align, page_of,
};
use super::record::{Class, HEAD, HEADER, Header, classify, is_plausible_total};

/// What the walk over a range leaves to the walk over the next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Carry {
    /// The end of the range: the next one begins here.
    pub end: Lsn,
    /// Where the log goes on. Later than `end` within the empty rest of a segment.
    pub(super) next: Lsn,
    /// Start of the last whole record. `None`: not known.
    pub(super) last: Option<Lsn>,
    pub(super) timeline: u32,
    /// Bytes of a page header that the end of the range cuts.
    pub(super) header: Vec<u8>,
    pub(super) open: Option<Open>,
}

/// A record that the end of the range cuts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Open {
    /// `None`: it began before the first range.
    pub start: Option<Lsn>,
    /// Whose it is. `None`: its headers are cut too, and `head` holds all there is of it.
    pub owner: Option<u32>,
    pub known: bool,
    pub head: Vec<u8>,
    /// Its whole length; 0 if not even that is known.
    pub total: u32,
    pub got: u32,
    /// Checksum of what follows the fixed header.
    pub crc: u32,
}

impl Carry {
    /// For a range that begins where a record does, with nothing known of what is before.
    #[must_use]
    pub fn at_record(start: Lsn) -> Self {
        Self { end: start, next: start, last: None, timeline: 0, header: Vec::new(), open: None }
    }

    /// Whether a walk could have left this.
    pub(super) fn is_sound(&self) -> bool {
        self.header.len() < 40
            && self.open.as_ref().is_none_or(|open| {
                let got = open.got as usize;
                let head = open.head.len();
                let rest = if open.total == 0 { got < 4 } else { open.got < open.total };
                let whole = if open.owner.is_some() { got.min(HEADER) } else { got.min(HEAD) };
                rest && (head == whole || open.start.is_none())
                    && (open.start.is_some() || (open.owner.is_some() && open.total > 0))
            })
    }

    /// Where the record begins that the end of the range cuts.
    #[must_use]
    pub fn open_record(&self) -> Option<Lsn> {
        self.open.as_ref().and_then(|open| open.start)
    }
}

/// Bytes of the log and where they are.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    pub geometry: &'a Geometry,
    pub start: u64,
    pub end: u64,
    pub bytes: &'a [u8],
}

impl<'a> Window<'a> {
    /// The bytes from `from` up to `to`, both within.
    pub(super) fn slice(&self, from: u64, to: u64) -> &'a [u8] {
        &self.bytes[(from - self.start) as usize..(to - self.start) as usize]
    }

    /// The payload from `at` on, page by page, up to `len` bytes or the end.
    pub(super) fn portions(self, at: u64, len: u64) -> Portions<'a> {
        Portions { window: self, at, left: len }
    }
}

pub(super) struct Portions<'a> {
    window: Window<'a>,
    at: u64,
    left: u64,
}

impl<'a> Iterator for Portions<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let page = page_of(self.at);
        self.at = self.at.max(page + self.window.geometry.header_bytes(page));
        let to = (page + PAGE_BYTES).min(self.window.end).min(self.at + self.left);
        if to <= self.at {
            return None;
        }
        let portion = (self.at, self.window.slice(self.at, to));
        self.left -= to - self.at;
        self.at = to;
        Some(portion)
    }
}

/// What the walk meets, in the order of the log.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// A whole record.
    Record { at: u64, header: Header, class: Class },
    /// A piece of one: `len` bytes of the `remaining` (0: not known) that there still are of it.
    Part { at: u64, len: u32, remaining: u32, continued: bool, class: Class, completes: bool },
    /// The log ends: here the next record would have begun. Nothing follows.
    End(u64),
}

enum State {
    /// No record's start is known.
    Lost,
    /// In a record.
    In(Current),
    /// The next record begins here or after the padding or the header that is here.
    Between(u64),
    Over,
}

/// The record at hand.
struct Current {
    start: Option<u64>,
    owner: Option<Class>,
    total: u32,
    got: u32,
    crc: u32,
}

pub(super) struct Walk<'a> {
    window: Window<'a>,
    /// The timeline of the range: the newest that a page may be of.
    timeline: u32,
    page_timeline: u32,
    last: Option<u64>,
    state: State,
    /// The header bytes that the range before had, if its end cut one.
    cut_header: &'a [u8],
    /// The first bytes of the record at hand, for those that cross a page.
    head: Box<[u8; HEAD]>,
    head_len: usize,
    carry: Option<Carry>,
}

/// Where a record's bytes end, going from page to page.
enum Extent {
    Whole(u64),
    /// The range ends before. So many bytes of it are here.
    Cut(u32),
    /// The page here says that the record was given up. So many bytes are before it.
    Aborted(u64, u32),
    Broken,
}

impl<'a> Walk<'a> {
    pub(super) fn new(window: Window<'a>, timeline: u32, carry: Option<&'a Carry>) -> Self {
        let mut walk = Self {
            window,
            timeline,
            page_timeline: 0,
            last: None,
            state: State::Lost,
            cut_header: &[],
            head: Box::new([0; HEAD]),
            head_len: 0,
            carry: None,
        };
        if let Some(carry) = carry {
            walk.last = carry.last.map(|lsn| lsn.0);
            walk.page_timeline = carry.timeline;
            walk.cut_header = &carry.header;
            walk.state = match &carry.open {
                None => State::Between(carry.next.0.max(window.start)),
                Some(open) => {
                    walk.head_len = open.head.len().min(HEAD);
                    walk.head[..walk.head_len].copy_from_slice(&open.head[..walk.head_len]);
                    let class = |owner| Class { owner, known: open.known, time: None };
                    State::In(Current {
                        start: open.start.map(|lsn| lsn.0),
                        owner: open.owner.map(class),
                        total: open.total,
                        got: open.got,
                        crc: open.crc,
                    })
                }
            };
        }
        walk
    }

    /// What the next range needs, once there are no more steps. `None`: the log ended, or nothing is known.
    pub(super) fn into_carry(self) -> Option<Carry> {
        self.carry
    }

    pub(super) fn next(&mut self) -> Option<Step> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Over => None,
            State::Lost => self.find(),
            State::In(current) => Some(self.go_on(current, self.window.start)),
            State::Between(at) => self.begin(at),
        }
    }

    /// Without a carry: a page says how much of a record goes on in it, and then the next begins.
    fn find(&mut self) -> Option<Step> {
        let window = self.window;
        let page = page_of(window.start);
        if page == window.start {
            let Some(header) = self.header(page) else {
                if page + window.geometry.header_bytes(page) > window.end {
                    return None;
                }
                return Some(self.end(window.start));
            };
            if !header.is(FIRST_IS_CONTINUED) {
                return self.begin(window.start);
            }
            if header.remaining == 0 {
                return Some(self.end(window.start));
            }
            let current =
                Current { start: None, owner: Some(UNKNOWN), total: header.remaining, got: 0, crc: 0 };
            return Some(self.go_on(current, window.start));
        }
        // In the middle of a page: up to its end nothing is known.
        let at = window.start.max(page + window.geometry.header_bytes(page));
        let next = page + PAGE_BYTES;
        let end = next.min(window.end);
        if at >= end {
            return None;
        }
        let here = (end - at) as u32;
        let header = if next < window.end { self.header(next) } else { None };
        match header {
            Some(header) if header.is(FIRST_IS_CONTINUED) => {
                let total = header.remaining.saturating_add(here);
                let current = Current { start: None, owner: Some(UNKNOWN), total, got: 0, crc: 0 };
                return Some(self.go_on(current, at));
            }
            Some(_) => self.state = State::Between(next),
            None if next + window.geometry.header_bytes(next) > window.end => {}
            None => return Some(self.end(window.start)),
        }
        Some(part(at, here, here, true, UNKNOWN, false))
    }

    /// The next record, if there is one.
    fn begin(&mut self, at: u64) -> Option<Step> {
        let window = self.window;
        let mut at = align(at);
        if at >= window.end {
            self.carry = Some(self.carry(at, None));
            return None;
        }
        let page = page_of(at);
        let header_end = page + window.geometry.header_bytes(page);
        if at < header_end {
            if header_end > window.end {
                self.carry = Some(self.carry(at, None));
                return None;
            }
            match self.header(page) {
                Some(header) if !header.is(FIRST_IS_CONTINUED) => {}
                _ => return Some(self.end(at)),
            }
            at = header_end;
            if at >= window.end {
                self.carry = Some(self.carry(at, None));
                return None;
            }
        }
        let current = Current { start: Some(at), owner: None, total: 0, got: 0, crc: 0 };
        self.head_len = 0;
        if window.end - at < 4 {
            return Some(self.go_on(current, at));
        }
        let rest = window.slice(at, window.end.min(page + PAGE_BYTES));
        let total = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        if !is_plausible_total(total) {
            return Some(self.end(at));
        }
        // Nearly all records lie in one page.
        let Some(record) = rest.get(..total as usize) else {
            return Some(self.go_on(Current { total, ..current }, at));
        };
        let header = Header::read(record);
        let body = crc32c::crc32c(&record[HEADER..]);
        let sealed = crc32c::crc32c_append(body, &record[..20]) == header.crc;
        if !(self.follows(&header, at) && sealed) {
            return Some(self.end(at));
        }
        let class = classify(record).unwrap_or(UNKNOWN);
        self.record_ends(at, &header, at + u64::from(total));
        Some(Step::Record { at, header, class })
    }

    /// The record at hand, of which the next byte is at or after `at`.
    fn go_on(&mut self, mut current: Current, at: u64) -> Step {
        let window = self.window;
        let before = current.got;
        if current.total == 0 {
            // Its length is in the first four bytes, which no page cuts.
            let page_end = page_of(at) + PAGE_BYTES;
            let bytes = window.slice(at, window.end.min(page_end));
            let wanted = 4 - self.head_len.min(4);
            let got = bytes.len().min(wanted);
            let mut length = [0; 4];
            length[..self.head_len.min(4)].copy_from_slice(&self.head[..self.head_len.min(4)]);
            length[4 - wanted..4 - wanted + got].copy_from_slice(&bytes[..got]);
            if got < wanted {
                self.head[..4].copy_from_slice(&length);
                self.head_len += got;
                current.got += got as u32;
                self.carry = Some(self.carry(window.end, Some(self.open(&current))));
                return part(at, got as u32, 0, before > 0, UNDETERMINED, false);
            }
            current.total = u32::from_le_bytes(length);
            if !is_plausible_total(current.total) {
                return self.end(current.start.unwrap_or(at));
            }
        }
        let remaining = current.total.saturating_sub(current.got);
        let extent = self.extent(at, remaining, current.got > 0 || current.start.is_none());
        let here = match extent {
            Extent::Whole(_) => remaining,
            Extent::Cut(here) | Extent::Aborted(_, here) => here,
            Extent::Broken => 0,
        };
        self.feed(&mut current, at, here);
        let head = &self.head[..self.head_len];
        let headless = current.start.is_none();
        if let (false, true, Some(start)) = (headless, head.len() >= HEADER, current.start)
            && !self.follows(&Header::read(head), start)
        {
            return self.end(start);
        }
        let time = match current.owner {
            Some(_) => None,
            None => {
                // A record with longer headers is none of PostgreSQL's.
                let full = (head.len() == HEAD).then_some(UNKNOWN);
                current.owner = classify(head).or(full);
                current.owner.and_then(|class| class.time)
            }
        };
        let class = Class { time, ..current.owner.unwrap_or(UNDETERMINED) };
        match extent {
            Extent::Whole(end) => {
                if let (false, Some(start)) = (headless, current.start) {
                    let header = Header::read(head);
                    if crc32c::crc32c_append(current.crc, &head[..20]) != header.crc {
                        return self.end(start);
                    }
                    self.record_ends(start, &header, end);
                    if before == 0 {
                        return Step::Record { at: start, header, class };
                    }
                } else {
                    self.state = State::Between(end);
                }
                part(at, here, remaining, true, class, !headless)
            }
            Extent::Cut(_) => {
                self.carry = Some(self.carry(window.end, Some(self.open(&current))));
                part(at, here, remaining, before > 0 || headless, class, false)
            }
            Extent::Aborted(page, _) => {
                self.state = State::Between(page);
                part(at, here, remaining, before > 0 || headless, class, false)
            }
            Extent::Broken => self.end(current.start.unwrap_or(window.start)),
        }
    }

    /// Follows a record from page to page. `inside`: some of it was before `at`.
    fn extent(&mut self, at: u64, remaining: u32, inside: bool) -> Extent {
        let window = self.window;
        let (mut at, mut left, mut inside) = (at, u64::from(remaining), inside);
        loop {
            if at >= window.end {
                return Extent::Cut((u64::from(remaining) - left) as u32);
            }
            let page = page_of(at);
            let header_end = page + window.geometry.header_bytes(page);
            if at < header_end {
                if header_end > window.end {
                    return Extent::Cut((u64::from(remaining) - left) as u32);
                }
                let Some(header) = self.header(page) else { return Extent::Broken };
                if inside && header.is(FIRST_IS_OVERWRITE) {
                    return Extent::Aborted(page, (u64::from(remaining) - left) as u32);
                }
                if inside && !(header.is(FIRST_IS_CONTINUED) && u64::from(header.remaining) == left) {
                    return Extent::Broken;
                }
                at = header_end;
            }
            let room = page + PAGE_BYTES - at;
            if left <= room.min(window.end.saturating_sub(at)) {
                return Extent::Whole(at + left);
            }
            let here = room.min(window.end - at);
            left -= here;
            at += here;
            inside = true;
        }
    }

    /// Takes `len` bytes into the checksum and into the head.
    fn feed(&mut self, current: &mut Current, at: u64, len: u32) {
        for (_, bytes) in self.window.portions(at, u64::from(len)) {
            let fixed = HEADER.saturating_sub(current.got as usize).min(bytes.len());
            current.crc = crc32c::crc32c_append(current.crc, &bytes[fixed..]);
            if self.head_len == current.got as usize {
                let more = bytes.len().min(HEAD - self.head_len);
                self.head[self.head_len..self.head_len + more].copy_from_slice(&bytes[..more]);
                self.head_len += more;
            }
            current.got += bytes.len() as u32;
        }
    }

    /// Whether a record with this header may come here.
    fn follows(&self, header: &Header, at: u64) -> bool {
        let prev = match self.last {
            Some(last) => header.prev == last,
            None => header.prev < at,
        };
        prev && header.is_plausible()
    }

    fn record_ends(&mut self, start: u64, header: &Header, end: u64) {
        self.last = Some(start);
        let segment = u64::from(self.window.geometry.segment_bytes);
        let next = if header.is_switch() {
            self.window.geometry.segment_start(align(end) + segment - 1)
        } else {
            end
        };
        self.state = State::Between(next);
    }

    /// The header of a page, if it is right and all of it is known.
    fn header(&mut self, page: u64) -> Option<PageHeader> {
        let window = self.window;
        let len = window.geometry.header_bytes(page);
        let mut bytes = [0; 40];
        let from = page.max(window.start);
        let cut = (from - page) as usize;
        if page + len > window.end || (cut > 0 && self.cut_header.len() != cut) {
            return None;
        }
        bytes[..cut].copy_from_slice(&self.cut_header[..cut]);
        bytes[cut..len as usize].copy_from_slice(window.slice(from, page + len));
        let header = PageHeader::read(window.geometry, page, &bytes[..len as usize])?;
        // A page's timeline is the segment's, or an older one before the point where the timelines part.
        if header.timeline < self.page_timeline || header.timeline > self.timeline {
            return None;
        }
        self.page_timeline = header.timeline;
        Some(header)
    }

    fn end(&mut self, at: u64) -> Step {
        self.state = State::Over;
        self.carry = None;
        Step::End(at)
    }

    fn carry(&self, next: u64, open: Option<Open>) -> Carry {
        let window = self.window;
        let page = page_of(window.end);
        let from = page.max(window.start);
        let header = if window.end > page && window.end < page + window.geometry.header_bytes(page) {
            let before = if from > page { self.cut_header } else { &[] };
            [before, window.slice(from, window.end)].concat()
        } else {
            Vec::new()
        };
        Carry {
            end: Lsn(window.end),
            next: Lsn(next),
            last: self.last.map(Lsn),
            timeline: self.page_timeline,
            header,
            open,
        }
    }

    fn open(&self, current: &Current) -> Open {
        let kept = if current.owner.is_some() { self.head_len.min(HEADER) } else { self.head_len };
        Open {
            start: current.start.map(Lsn),
            owner: current.owner.map(|class| class.owner),
            known: current.owner.is_none_or(|class| class.known),
            head: self.head[..kept].to_vec(),
            total: current.total,
            got: current.got,
            crc: current.crc,
        }
    }
}

fn part(at: u64, len: u32, remaining: u32, continued: bool, class: Class, completes: bool) -> Step {
    Step::Part { at, len, remaining, continued, class, completes }
}

/// What is cut within its headers holds no data yet, so it may go to the shared stream.
const UNDETERMINED: Class = Class { owner: SHARED, known: true, time: None };

/// Nobody can say whose it is.
const UNKNOWN: Class = Class { owner: SHARED, known: false, time: None };
