//! Writes WAL for tests, byte by byte and knowing nothing of the code under test.

use super::layout::{Geometry, Range};
use super::version::Version;
use loomworks_core::lsn::Lsn;

pub(super) const SYSTEM: u64 = 0x1122_3344_5566_7788;
pub(super) const MIB: u64 = 1 << 20;

pub(super) fn geometry() -> Geometry {
    Geometry { version: Version::V15, segment_bytes: 1 << 20, system_identifier: SYSTEM }
}

/// A record that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forged {
    pub at: u64,
    pub end: u64,
    pub rmid: u8,
    pub info: u8,
    pub xid: u32,
    pub body: Vec<u8>,
}

pub(super) struct Forge {
    pub geometry: Geometry,
    pub timeline: u32,
    pub start: u64,
    pub bytes: Vec<u8>,
    pub prev: u64,
    pub records: Vec<Forged>,
    /// Flags for the next page's header.
    flags: u16,
}

impl Forge {
    /// Begins at a page of segment 5, so many pages before the segment's end.
    pub(super) fn before_segment_end(pages: u64) -> Self {
        Self::at(6 * MIB - pages * 8192)
    }

    pub(super) fn at(start: u64) -> Self {
        let geometry = geometry();
        Self { geometry, timeline: 1, start, bytes: vec![], prev: start - 64, records: vec![], flags: 0 }
    }

    pub(super) fn here(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub(super) fn range(&self, from: u64, to: u64) -> Range {
        Range { timeline: self.timeline, start: Lsn(from), end: Lsn(to) }
    }

    pub(super) fn slice(&self, from: u64, to: u64) -> &[u8] {
        &self.bytes[(from - self.start) as usize..(to - self.start) as usize]
    }

    fn page(&mut self, remaining: u32) {
        let here = self.here();
        let long = here.is_multiple_of(u64::from(self.geometry.segment_bytes));
        let flags = std::mem::take(&mut self.flags) | u16::from(remaining > 0) | if long { 2 } else { 0 };
        self.bytes.extend_from_slice(&self.geometry.version.magic().to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&self.timeline.to_le_bytes());
        self.bytes.extend_from_slice(&here.to_le_bytes());
        self.bytes.extend_from_slice(&remaining.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if long {
            self.bytes.extend_from_slice(&SYSTEM.to_le_bytes());
            self.bytes.extend_from_slice(&self.geometry.segment_bytes.to_le_bytes());
            self.bytes.extend_from_slice(&8192_u32.to_le_bytes());
        }
    }

    /// Where the next record begins.
    pub(super) fn align(&mut self) -> u64 {
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
        if self.here().is_multiple_of(8192) {
            self.page(0);
        }
        self.here()
    }

    fn write(&mut self, record: &[u8], upto: usize) {
        for (done, byte) in record[..upto].iter().enumerate() {
            if self.here().is_multiple_of(8192) {
                self.page((record.len() - done) as u32);
            }
            self.bytes.push(*byte);
        }
    }

    fn seal(&self, rmid: u8, info: u8, xid: u32, body: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend_from_slice(&(body.len() as u32 + 24).to_le_bytes());
        record.extend_from_slice(&xid.to_le_bytes());
        record.extend_from_slice(&self.prev.to_le_bytes());
        record.extend_from_slice(&[info, rmid, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend_from_slice(&crc.to_le_bytes());
        record.extend_from_slice(body);
        record
    }

    pub(super) fn record(&mut self, rmid: u8, info: u8, xid: u32, body: &[u8]) -> u64 {
        let at = self.align();
        let record = self.seal(rmid, info, xid, body);
        self.write(&record, record.len());
        self.prev = at;
        self.records.push(Forged { at, end: self.here(), rmid, info, xid, body: body.to_vec() });
        at
    }

    /// The rest of the segment is left empty.
    pub(super) fn switch(&mut self) {
        self.record(0, 0x40, 0, &[]);
        self.fill_segment();
    }

    pub(super) fn fill_segment(&mut self) {
        while !self.here().is_multiple_of(u64::from(self.geometry.segment_bytes)) {
            self.bytes.push(0);
        }
    }

    /// A record of which only what fits on its first pages was written before a crash, and what PostgreSQL writes at the next
    /// page then. False if the record would not cross a page.
    pub(super) fn abort(&mut self, rmid: u8, info: u8, xid: u32, body: &[u8], pages: u64) -> bool {
        let at = self.align();
        let record = self.seal(rmid, info, xid, body);
        let room = (8192 - at % 8192) as usize;
        let fits = room + (pages as usize) * (8192 - 40);
        if record.len() <= fits {
            return false;
        }
        self.write(&record, room);
        while !self.here().is_multiple_of(8192) || self.here() < at - at % 8192 + (pages + 1) * 8192 {
            let done = self.payload_since(at);
            if self.here().is_multiple_of(8192) {
                self.page((record.len() - done) as u32);
            } else {
                self.bytes.push(record[done]);
            }
        }
        self.flags = 8;
        let mut body = vec![255, 16];
        body.extend_from_slice(&at.to_le_bytes());
        body.extend_from_slice(&[1; 8]);
        self.record(0, 0xD0, 0, &body);
        true
    }

    fn payload_since(&self, at: u64) -> usize {
        (self.geometry.place(self.here()) - self.geometry.place(at)) as usize
    }
}

/// The body of a record with one block reference and data.
pub(super) fn block(database: u32, relation: u32, data: &[u8], main: &[u8]) -> Vec<u8> {
    blocks(&[database], relation, data, main)
}

/// The body of a record with a block reference to each database; the first has the data.
pub(super) fn blocks(databases: &[u32], relation: u32, data: &[u8], main: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for (id, database) in databases.iter().enumerate() {
        let len = if id == 0 { data.len() as u16 } else { 0 };
        body.extend_from_slice(&[id as u8, if len > 0 { 0x20 } else { 0 }]);
        body.extend_from_slice(&len.to_le_bytes());
        for number in [1663, *database, relation, 7] {
            body.extend_from_slice(&number.to_le_bytes());
        }
    }
    main_header(&mut body, main.len());
    body.extend_from_slice(data);
    body.extend_from_slice(main);
    body
}

/// The body of a record that has main data only.
pub(super) fn main_only(main: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    main_header(&mut body, main.len());
    body.extend_from_slice(main);
    body
}

fn main_header(body: &mut Vec<u8>, len: usize) {
    match len {
        0 => {}
        1..256 => body.extend_from_slice(&[255, len as u8]),
        _ => {
            body.push(254);
            body.extend_from_slice(&(len as u32).to_le_bytes());
        }
    }
}

/// The main data of a logical message.
pub(super) fn message(database: u32, text: &[u8]) -> Vec<u8> {
    let mut main = database.to_le_bytes().to_vec();
    main.extend_from_slice(&[0; 4]);
    main.extend_from_slice(&1_u64.to_le_bytes());
    main.extend_from_slice(&(text.len() as u64).to_le_bytes());
    main.push(0);
    main.extend_from_slice(text);
    main
}

/// The main data of a commit or abort and whether it has more than a time.
pub(super) fn end(time: i64, subxacts: &[u32], dropped_in: &[u32], prepared: Option<u32>) -> (u8, Vec<u8>) {
    let mut main = time.to_le_bytes().to_vec();
    let parts = u32::from(!subxacts.is_empty()) << 1
        | u32::from(!dropped_in.is_empty()) << 2
        | u32::from(prepared.is_some()) << 4;
    if parts == 0 {
        return (0, main);
    }
    main.extend_from_slice(&parts.to_le_bytes());
    if !subxacts.is_empty() {
        main.extend_from_slice(&(subxacts.len() as u32).to_le_bytes());
        subxacts.iter().for_each(|xid| main.extend_from_slice(&xid.to_le_bytes()));
    }
    if !dropped_in.is_empty() {
        main.extend_from_slice(&(dropped_in.len() as u32).to_le_bytes());
        for database in dropped_in {
            [1663, *database, 9]
                .iter()
                .for_each(|number: &u32| main.extend_from_slice(&number.to_le_bytes()));
        }
    }
    if let Some(xid) = prepared {
        main.extend_from_slice(&xid.to_le_bytes());
    }
    (0x80, main)
}

/// Reads records as PostgreSQL does, from `from` until it would stop. Returns them and the position where it stopped.
pub(super) fn read(geometry: &Geometry, start: u64, bytes: &[u8], from: u64) -> (Vec<Forged>, u64) {
    let number = |at: u64, len: usize| -> Option<u64> {
        let at = at.checked_sub(start)? as usize;
        let found = bytes.get(at..at + len)?;
        Some(found.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    // Magic, address, timeline; gives flags, remaining length and where payload begins.
    let page = |at: u64| -> Option<(u64, u64, u64)> {
        let long = at.is_multiple_of(u64::from(geometry.segment_bytes));
        let right = number(at, 2)? == u64::from(geometry.version.magic())
            && number(at + 8, 8)? == at
            && number(at + 4, 4)? == 1
            && (number(at + 2, 2)? & 2 != 0) == long
            && (!long || (number(at + 24, 8)? == SYSTEM && number(at + 36, 4)? == 8192));
        let header = if long { 40 } else { 24 };
        right.then_some((number(at + 2, 2)?, number(at + 16, 4)?, at + header))
    };
    let mut records: Vec<Forged> = Vec::new();
    let mut at = from;
    // As when a file is opened.
    assert!(page(from - from % u64::from(geometry.segment_bytes)).is_some(), "the first page of the segment");
    'records: loop {
        at = (at + 7) & !7;
        let stopped = at;
        if at.is_multiple_of(8192) {
            match page(at) {
                Some((flags, 0, payload)) if flags & 1 == 0 => at = payload,
                _ => return (records, stopped),
            }
        } else if page(at - at % 8192).is_none() {
            return (records, stopped);
        }
        let Some(total) = number(at, 4).filter(|total| *total >= 24) else { return (records, stopped) };
        let (mut record, mut byte) = (Vec::new(), at);
        while (record.len() as u64) < total {
            if byte.is_multiple_of(8192) {
                let left = total - record.len() as u64;
                match page(byte) {
                    Some((flags, remaining, payload)) if flags & 1 != 0 && remaining == left => {
                        byte = payload;
                    }
                    Some((flags, _, _)) if flags & 8 != 0 => {
                        at = byte;
                        continue 'records;
                    }
                    _ => return (records, stopped),
                }
            }
            let Some(next) = bytes.get((byte - start) as usize) else { return (records, stopped) };
            record.push(*next);
            byte += 1;
        }
        let field = |from: usize| u32::from_le_bytes(record[from..from + 4].try_into().unwrap());
        let prev = u64::from(field(8)) | u64::from(field(12)) << 32;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]);
        let follows = records.last().map_or(prev < at, |last| last.at == prev);
        if !follows || crc != field(20) {
            return (records, stopped);
        }
        let (info, rmid) = (record[16], record[17]);
        let xid = field(4);
        records.push(Forged { at, end: byte, rmid, info, xid, body: record[24..].to_vec() });
        at = if rmid == 0 && info == 0x40 {
            let segment = u64::from(geometry.segment_bytes);
            byte.div_ceil(8).saturating_mul(8).div_ceil(segment) * segment
        } else {
            byte
        };
    }
}
