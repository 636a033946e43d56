//! Reading the header of a WAL segment: whose it is.
//!
//! Source: PostgreSQL `src/include/access/xlog_internal.h`, `XLogLongPageHeaderData`.

/// What the first page of a segment says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub timeline: u32,
    /// Position of the segment's first byte.
    pub start: u64,
    pub system_identifier: u64,
    pub segment_bytes: u32,
}

/// The flag of a page header that has the long form; a segment's first page always has it.
const LONG_HEADER: u16 = 0x0002;

impl Header {
    /// Reads the header at the start of a segment. `None` if these bytes cannot be one.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let magic = u16_at(0)?;
        // 0xD110 is version 15's; every version so far has had the same first byte.
        if magic >> 8 != 0xD1 || u16_at(2)? & LONG_HEADER == 0 {
            return None;
        }
        Some(Self {
            timeline: u32_at(4)?,
            start: u64_at(8)?,
            system_identifier: u64_at(24)?,
            segment_bytes: u32_at(32)?,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A segment of 1 MiB whose content depends on `seed`.
    pub(crate) fn segment(header: Header, seed: u8) -> Vec<u8> {
        let mut bytes = vec![seed; header.segment_bytes as usize];
        bytes[0..2].copy_from_slice(&0xD110_u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&LONG_HEADER.to_le_bytes());
        bytes[4..8].copy_from_slice(&header.timeline.to_le_bytes());
        bytes[8..16].copy_from_slice(&header.start.to_le_bytes());
        bytes[24..32].copy_from_slice(&header.system_identifier.to_le_bytes());
        bytes[32..36].copy_from_slice(&header.segment_bytes.to_le_bytes());
        bytes
    }

    #[test]
    fn a_header_reads_back() {
        let header = Header { timeline: 3, start: 5 << 20, system_identifier: 42, segment_bytes: 1 << 20 };
        assert_eq!(Header::read(&segment(header, 9)), Some(header));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Header::read(&bytes);
        }
    }
}
