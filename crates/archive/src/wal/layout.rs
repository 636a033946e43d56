//! Where the bytes of records are: segments, pages, their headers, and the line of payload between the headers.
//!
//! ```text
//! segment │long header│payload ……│header│payload ……│header│payload ……│
//! payload              0 ……… 8151        8152 ……… 16319               both in steps of 8, so what begins aligned in
//!                                                                     one is aligned in the other
//! ```
//!
//! A position in the log ([`Lsn`]) counts all bytes; a *place* counts payload only, from the start of the log. Records are
//! one after the other on the line of places, whatever pages they cross.

use loomworks_core::lsn::{Lsn, Segment};
use serde::{Deserialize, Serialize};

use super::version::{UnknownVersion, Version};

/// `XLOG_BLCKSZ`. Another size needs a server built for it, and is refused.
pub const PAGE_BYTES: u64 = 8192;
pub(super) const SHORT_HEADER: u64 = 24;
pub(super) const LONG_HEADER: u64 = 40;

/// Flags of a page header, `xlp_info`.
pub(super) const FIRST_IS_CONTINUED: u16 = 0x0001;
pub(super) const HAS_LONG_HEADER: u16 = 0x0002;
/// The page follows a record that a crash cut short and that will never be whole.
pub(super) const FIRST_IS_OVERWRITE: u16 = 0x0008;
const KNOWN_FLAGS: u16 = 0x000F;

/// What is the same in all segments of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Geometry {
    pub version: Version,
    /// `wal_segment_size`, a power of two from 1 MB to 1 GB.
    pub segment_bytes: u32,
    pub system_identifier: u64,
}

/// A piece of the log on one timeline: from `start` up to before `end`. It may begin and end anywhere, also within a
/// record or a page header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Range {
    pub timeline: u32,
    pub start: Lsn,
    pub end: Lsn,
}

/// What begins with no header of a WAL segment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoGeometry {
    #[error(transparent)]
    Version(#[from] UnknownVersion),
    #[error("these bytes are not the start of a WAL segment")]
    NotASegment,
}

impl Range {
    /// All of a segment.
    #[must_use]
    pub fn of_segment(segment: Segment, segment_bytes: u32) -> Self {
        let bytes = u64::from(segment_bytes);
        let end = segment.end(bytes);
        Self { timeline: segment.timeline, start: Lsn(end.0 - bytes), end }
    }

    /// How many bytes it has. 1 GB at most, the size of the largest segment: streams count in 32 bits.
    #[must_use]
    pub(super) fn len(&self) -> Option<usize> {
        let len = self.end.0.checked_sub(self.start.0)?;
        // Positions near the end of all positions would overflow in sums.
        (len <= 1 << 30 && self.end.0 < 1 << 62).then_some(len as usize)
    }
}

impl Geometry {
    /// Reads the header at the start of a segment.
    pub fn of_segment(bytes: &[u8]) -> Result<Self, NoGeometry> {
        let header = bytes.get(..LONG_HEADER as usize).ok_or(NoGeometry::NotASegment)?;
        if u16_at(header, 2) & HAS_LONG_HEADER == 0 {
            return Err(NoGeometry::NotASegment);
        }
        let geometry = Self {
            version: Version::of_magic(u16_at(header, 0))?,
            system_identifier: u64_at(header, 24),
            segment_bytes: u32_at(header, 32),
        };
        let page_fits = u64::from(u32_at(header, 36)) == PAGE_BYTES;
        if geometry.is_possible() && page_fits { Ok(geometry) } else { Err(NoGeometry::NotASegment) }
    }

    pub(super) fn is_possible(&self) -> bool {
        self.segment_bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&self.segment_bytes)
    }

    /// How much payload a segment has.
    pub(super) fn segment_payload(&self) -> u64 {
        let pages = u64::from(self.segment_bytes) / PAGE_BYTES;
        pages * (PAGE_BYTES - SHORT_HEADER) - (LONG_HEADER - SHORT_HEADER)
    }

    pub(super) fn segment_start(&self, lsn: u64) -> u64 {
        lsn & !(u64::from(self.segment_bytes) - 1)
    }

    /// How long the header of the page at `page` is.
    pub(super) fn header_bytes(&self, page: u64) -> u64 {
        if page == self.segment_start(page) { LONG_HEADER } else { SHORT_HEADER }
    }

    /// The place of the first payload byte at or after a position.
    pub(super) fn place(&self, lsn: u64) -> u64 {
        let number = lsn >> self.segment_bytes.trailing_zeros();
        let within = lsn & (u64::from(self.segment_bytes) - 1);
        let (page, byte) = (within / PAGE_BYTES, within % PAGE_BYTES);
        let (before, header) = match page {
            0 => (0, LONG_HEADER),
            _ => (page * (PAGE_BYTES - SHORT_HEADER) - (LONG_HEADER - SHORT_HEADER), SHORT_HEADER),
        };
        number * self.segment_payload() + before + byte.saturating_sub(header)
    }

    /// The position of a payload byte.
    pub(super) fn lsn(&self, place: u64) -> u64 {
        let (number, within) = (place / self.segment_payload(), place % self.segment_payload());
        // As if the first header were short too: then pages are all alike.
        let within = within + (LONG_HEADER - SHORT_HEADER);
        let (page, byte) = (within / (PAGE_BYTES - SHORT_HEADER), within % (PAGE_BYTES - SHORT_HEADER));
        (number << self.segment_bytes.trailing_zeros()) + page * PAGE_BYTES + SHORT_HEADER + byte
    }

    /// The position that a server tells of when the record that ends at a place was the last. At the end of a page it is
    /// not beyond the next one's header.
    pub(super) fn end_lsn(&self, place: u64) -> u64 {
        let lsn = self.lsn(place);
        let page = page_of(lsn);
        if lsn == page + self.header_bytes(page) { page } else { lsn }
    }

    /// The header that a page has. `continued`: how much is left of the record that goes on here.
    pub(super) fn header(&self, page: u64, timeline: u32, continued: Option<u32>) -> ([u8; 40], usize) {
        let mut header = [0; LONG_HEADER as usize];
        let len = self.header_bytes(page);
        let mut flags = if continued.is_some() { FIRST_IS_CONTINUED } else { 0 };
        if len == LONG_HEADER {
            flags |= HAS_LONG_HEADER;
            header[24..32].copy_from_slice(&self.system_identifier.to_le_bytes());
            header[32..36].copy_from_slice(&self.segment_bytes.to_le_bytes());
            header[36..40].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        }
        header[..2].copy_from_slice(&self.version.magic().to_le_bytes());
        header[2..4].copy_from_slice(&flags.to_le_bytes());
        header[4..8].copy_from_slice(&timeline.to_le_bytes());
        header[8..16].copy_from_slice(&page.to_le_bytes());
        header[16..20].copy_from_slice(&continued.unwrap_or(0).to_le_bytes());
        (header, len as usize)
    }
}

/// A page header as it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageHeader {
    pub timeline: u32,
    pub flags: u16,
    pub remaining: u32,
}

impl PageHeader {
    /// Reads a header and checks all that PostgreSQL's reader checks. `None`: the log does not go on here.
    pub(super) fn read(geometry: &Geometry, page: u64, bytes: &[u8]) -> Option<Self> {
        let flags = u16_at(bytes, 2);
        let long = geometry.header_bytes(page) == LONG_HEADER;
        let right = u16_at(bytes, 0) == geometry.version.magic()
            && flags & !KNOWN_FLAGS == 0
            && (flags & HAS_LONG_HEADER != 0) == long
            && u64_at(bytes, 8) == page;
        let right = right
            && (!long
                || (u64_at(bytes, 24) == geometry.system_identifier
                    && u32_at(bytes, 32) == geometry.segment_bytes
                    && u64::from(u32_at(bytes, 36)) == PAGE_BYTES));
        right.then(|| Self { timeline: u32_at(bytes, 4), flags, remaining: u32_at(bytes, 16) })
    }

    pub(super) fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

pub(super) fn page_of(lsn: u64) -> u64 {
    lsn & !(PAGE_BYTES - 1)
}

/// `MAXALIGN`.
pub(super) fn align(value: u64) -> u64 {
    (value + 7) & !7
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn geometry(shift: u32) -> Geometry {
        Geometry { version: Version::V15, segment_bytes: 1 << shift, system_identifier: 7 }
    }

    #[test]
    fn a_header_reads_back_and_a_wrong_one_does_not() {
        let geometry = geometry(20);
        for (page, len) in [(3 << 20, 40), ((3 << 20) + 8192, 24)] {
            let (bytes, found) = geometry.header(page, 5, Some(99));
            assert_eq!(found, len);
            let header = PageHeader::read(&geometry, page, &bytes[..len]).unwrap();
            assert_eq!((header.timeline, header.remaining), (5, 99));
            assert!(header.is(FIRST_IS_CONTINUED));
            assert!(PageHeader::read(&geometry, page + 8192, &bytes).is_none(), "another page's");
        }
        let (bytes, _) = geometry.header(3 << 20, 5, None);
        assert_eq!(Geometry::of_segment(&bytes), Ok(geometry));
        assert_eq!(Geometry::of_segment(&bytes[..39]), Err(NoGeometry::NotASegment));
        let mut newer = bytes;
        newer[0] = 0x19;
        assert_eq!(Geometry::of_segment(&newer), Err(NoGeometry::Version(UnknownVersion { magic: 0xD119 })));
    }

    proptest! {
        #[test]
        fn a_place_is_a_position_and_back(shift in 20_u32..=30, place in 0_u64..1 << 50) {
            let geometry = geometry(shift);
            let lsn = geometry.lsn(place);
            prop_assert_eq!(geometry.place(lsn), place);
            prop_assert_eq!(lsn % 8, place % 8);
            prop_assert!(lsn - page_of(lsn) >= geometry.header_bytes(page_of(lsn)));
            let next = geometry.lsn(place + 1);
            let header = if page_of(next) > lsn { geometry.header_bytes(page_of(next)) } else { 0 };
            prop_assert_eq!(next, lsn + 1 + header);
        }
    }
}
