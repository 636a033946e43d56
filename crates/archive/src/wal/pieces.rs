//! A stream: what one owner has of a range, and nothing that can be computed.
//!
//! ```text
//! │fixed header│ bodies of the records … │ places │ lengths │ xids │ kinds │ patches │
//! ```
//!
//! A whole record is a row over the four columns: how far it is from the owner's record before it, its length, its
//! transaction, its resource manager and code. `xl_prev` and `xl_crc` follow from the rest. Columns of like things
//! compress better than rows. A *fragment* is a record that the range cuts, or that was given up: its bytes as they are.
//! Patches, in the shared stream only, are all bytes of the range that nothing else explains.
//!
//! Whatever is wrong with a stream is an error, found by its checksum at the latest.

use loomworks_core::lsn::Lsn;

use super::layout::{Geometry, Range, align, u32_at, u64_at};
use super::record::{HEADER, MAX_RECORD};

const FORMAT: u8 = 1;
const FIXED: usize = 64;

/// A stream that cannot be what a split made of the range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a WAL stream is damaged: {0}")]
pub struct Damaged(pub &'static str);

/// What the shared stream says of all of the range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Whole {
    /// Checksum of the range's bytes, as merging gives them back.
    pub crc: u32,
    /// How many bytes of the range are valid WAL.
    pub valid: u32,
    /// `xl_prev` of the first record that begins in the range.
    pub first_prev: u64,
}

/// What a stream is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Piece<'a> {
    /// A whole record; `body` is what follows its fixed header.
    Record { place: u64, total: u32, xid: u32, info: u8, rmid: u8, body: &'a [u8] },
    /// Bytes of a record of which `remaining` are left from here on (0: not known).
    Fragment { place: u64, remaining: u32, continued: bool, bytes: &'a [u8] },
}

impl Piece<'_> {
    pub(super) fn place(&self) -> u64 {
        match self {
            Self::Record { place, .. } | Self::Fragment { place, .. } => *place,
        }
    }

    /// How much of the line of places it takes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Record { total, .. } => u64::from(*total),
            Self::Fragment { bytes, .. } => bytes.len() as u64,
        }
    }

    /// Whether a record begins and ends in it.
    pub(super) fn is_record(&self) -> bool {
        match self {
            Self::Record { .. } => true,
            Self::Fragment { remaining, continued, bytes, .. } => {
                !continued && bytes.len() == *remaining as usize
            }
        }
    }
}

/// Puts a stream together.
pub(super) struct Builder {
    /// Room for the fixed header, then bodies.
    bytes: Vec<u8>,
    places: Vec<u8>,
    lengths: Vec<u8>,
    xids: Vec<u8>,
    kinds: Vec<u8>,
    cursor: u64,
    xid: u32,
}

impl Builder {
    /// `start`: the place of the range's first payload byte.
    pub(super) fn new(start: u64) -> Self {
        let empty = Vec::new;
        Self {
            bytes: vec![0; FIXED],
            places: empty(),
            lengths: empty(),
            xids: empty(),
            kinds: empty(),
            cursor: start,
            xid: 0,
        }
    }

    /// A record; its body is to follow.
    pub(super) fn record(&mut self, place: u64, total: u32, xid: u32, info: u8, rmid: u8) {
        let distance = (place - align(self.cursor)) / 8;
        put(&mut self.places, distance << 1);
        put(&mut self.lengths, u64::from(total));
        let step = xid.wrapping_sub(self.xid).cast_signed();
        put(&mut self.xids, u64::from(((step << 1) ^ (step >> 31)).cast_unsigned()));
        self.kinds.extend_from_slice(&[rmid, info]);
        (self.cursor, self.xid) = (place + u64::from(total), xid);
    }

    /// A fragment; its bytes are to follow.
    pub(super) fn fragment(&mut self, place: u64, len: u32, remaining: u32, continued: bool) {
        put(&mut self.places, (place - self.cursor) << 1 | 1);
        put(&mut self.lengths, u64::from(len));
        put(&mut self.lengths, u64::from(remaining) << 1 | u64::from(continued));
        self.cursor = place + u64::from(len);
    }

    pub(super) fn body(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn finish(self, range: &Range, owner: u32, whole: Whole, patches: &[u8]) -> Vec<u8> {
        let Self { mut bytes, places, lengths, xids, kinds, .. } = self;
        let columns = [&places[..], &lengths, &xids, &kinds, patches];
        bytes.reserve_exact(columns.iter().map(|column| column.len()).sum());
        for column in columns {
            bytes.extend_from_slice(column);
        }
        bytes[0] = FORMAT;
        bytes[8..16].copy_from_slice(&range.start.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&((range.end.0 - range.start.0) as u32).to_le_bytes());
        bytes[20..24].copy_from_slice(&range.timeline.to_le_bytes());
        bytes[24..28].copy_from_slice(&owner.to_le_bytes());
        bytes[28..32].copy_from_slice(&whole.crc.to_le_bytes());
        bytes[32..36].copy_from_slice(&whole.valid.to_le_bytes());
        bytes[36..44].copy_from_slice(&whole.first_prev.to_le_bytes());
        for (at, column) in (44..).step_by(4).zip(columns) {
            bytes[at..at + 4].copy_from_slice(&(column.len() as u32).to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// A stream whose checksum is right, to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream<'a> {
    pub owner: u32,
    pub whole: Whole,
    pub patches: &'a [u8],
    bodies: &'a [u8],
    places: &'a [u8],
    lengths: &'a [u8],
    xids: &'a [u8],
    kinds: &'a [u8],
}

impl<'a> Stream<'a> {
    pub(super) fn read(bytes: &'a [u8], range: &Range) -> Result<Self, Damaged> {
        let fixed = bytes.get(..FIXED).ok_or(Damaged("it is too short"))?;
        if fixed[0] != FORMAT || fixed[1..4] != [0; 3] {
            return Err(Damaged("its format is unknown"));
        }
        if crc32c::crc32c(&bytes[8..]) != u32_at(fixed, 4) {
            return Err(Damaged("its checksum is wrong"));
        }
        let written = Range {
            timeline: u32_at(fixed, 20),
            start: Lsn(u64_at(fixed, 8)),
            end: Lsn(u64_at(fixed, 8).saturating_add(u64::from(u32_at(fixed, 16)))),
        };
        if written != *range {
            return Err(Damaged("it is of another range"));
        }
        let mut rest = &bytes[FIXED..];
        let mut columns = [&[][..]; 5];
        for (at, column) in (44..64).step_by(4).zip(&mut columns).rev() {
            let len = u32_at(fixed, at) as usize;
            let cut = rest.len().checked_sub(len).ok_or(Damaged("its columns are too long"))?;
            (rest, *column) = rest.split_at(cut);
        }
        let [places, lengths, xids, kinds, patches] = columns;
        let whole = Whole { crc: u32_at(fixed, 28), valid: u32_at(fixed, 32), first_prev: u64_at(fixed, 36) };
        Ok(Self { owner: u32_at(fixed, 24), whole, patches, bodies: rest, places, lengths, xids, kinds })
    }

    /// Its pieces in the order of the log, each within the range.
    pub(super) fn pieces(&self, geometry: &Geometry, range: &Range) -> Pieces<'a> {
        let (cursor, end) = (geometry.place(range.start.0), geometry.place(range.end.0));
        Pieces { stream: *self, cursor, end, xid: 0 }
    }
}

pub(super) struct Pieces<'a> {
    /// What is left of each column.
    stream: Stream<'a>,
    cursor: u64,
    end: u64,
    xid: u32,
}

impl<'a> Pieces<'a> {
    /// The next piece.
    pub(super) fn next(&mut self) -> Result<Option<Piece<'a>>, Damaged> {
        if self.stream.places.is_empty() {
            return Ok(None);
        }
        let distance = get(&mut self.stream.places)?;
        let record = distance & 1 == 0;
        let (from, distance) = match record {
            true => (align(self.cursor), (distance >> 1).saturating_mul(8)),
            false => (self.cursor, distance >> 1),
        };
        let place = from.saturating_add(distance);
        let len = get(&mut self.stream.lengths)?;
        if place.saturating_add(len) > self.end {
            return Err(Damaged("a record reaches over the range's end"));
        }
        self.cursor = place + len;
        let piece = if record {
            if !(HEADER as u64..=u64::from(MAX_RECORD)).contains(&len) {
                return Err(Damaged("a record has an impossible length"));
            }
            let step = get(&mut self.stream.xids)? as u32;
            let step = (step >> 1).cast_signed() ^ -((step & 1).cast_signed());
            self.xid = self.xid.wrapping_add_signed(step);
            let [rmid, info] = *self.stream.kinds.split_off(..2).ok_or(SHORT)? else { return Err(SHORT) };
            let body = self.stream.bodies.split_off(..len as usize - HEADER).ok_or(SHORT)?;
            Piece::Record { place, total: len as u32, xid: self.xid, info, rmid, body }
        } else {
            let rest = get(&mut self.stream.lengths)?;
            let remaining = u32::try_from(rest >> 1).map_err(|_| Damaged("a fragment is too long"))?;
            let bytes = self.stream.bodies.split_off(..len as usize).ok_or(SHORT)?;
            Piece::Fragment { place, remaining, continued: rest & 1 == 1, bytes }
        };
        Ok(Some(piece))
    }
}

const SHORT: Damaged = Damaged("a column is too short");

/// Patches: distance from the one before, length, bytes.
pub(super) fn put_patch(patches: &mut Vec<u8>, distance: usize, bytes: &[u8]) {
    put(patches, distance as u64);
    put(patches, bytes.len() as u64);
    patches.extend_from_slice(bytes);
}

/// The next patch, as distance and bytes.
pub(super) fn get_patch<'a>(patches: &mut &'a [u8]) -> Result<Option<(usize, &'a [u8])>, Damaged> {
    if patches.is_empty() {
        return Ok(None);
    }
    let (distance, len) = (get(patches)?, get(patches)?);
    let too_far = Damaged("a patch lies outside the range");
    let len = usize::try_from(len).map_err(|_| too_far)?;
    let bytes = patches.split_off(..len).ok_or(too_far)?;
    Ok(Some((usize::try_from(distance).map_err(|_| too_far)?, bytes)))
}

/// LEB128.
fn put(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn get(from: &mut &[u8]) -> Result<u64, Damaged> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *from.split_off_first().ok_or(SHORT)?;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Damaged("a number is too long"))
}
