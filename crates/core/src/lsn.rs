//! Positions in the write-ahead log and the names of its segment files.
//!
//! Source: PostgreSQL `src/include/access/xlogdefs.h` and `xlog_internal.h`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in the write-ahead log, written `16/B374D848`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// Text that is no position in the write-ahead log.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a WAL position such as `16/B374D848`")]
pub struct NotAnLsn(String);

impl FromStr for Lsn {
    type Err = NotAnLsn;

    fn from_str(text: &str) -> Result<Self, NotAnLsn> {
        let parse = |part: &str| {
            let hex = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            hex.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(parse(high)? << 32 | parse(low)?)))
            .ok_or_else(|| NotAnLsn(text.to_owned()))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A WAL segment file: which timeline, which segment.
///
/// The number counts segments from the start of the log, so it can be compared and added to; the file name
/// splits it in two, which is why it needs the segment size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Segment {
    pub timeline: u32,
    pub number: u64,
}

impl Segment {
    /// The segment that holds the byte at `lsn`. `segment_bytes` is the cluster's `wal_segment_size`.
    #[must_use]
    pub fn at(timeline: u32, lsn: Lsn, segment_bytes: u64) -> Self {
        Self { timeline, number: lsn.0 / segment_bytes }
    }

    /// The segment that holds the last byte *before* `lsn`: the one that must be archived for everything up to
    /// `lsn` to be safe.
    #[must_use]
    pub fn before(timeline: u32, lsn: Lsn, segment_bytes: u64) -> Self {
        Self { timeline, number: lsn.0.saturating_sub(1) / segment_bytes }
    }

    /// The file name PostgreSQL gives it: 24 hexadecimal digits.
    #[must_use]
    pub fn file_name(self, segment_bytes: u64) -> String {
        let per_id = 0x1_0000_0000 / segment_bytes;
        format!("{:08X}{:08X}{:08X}", self.timeline, self.number / per_id, self.number % per_id)
    }

    /// Reads a file name. `None` for anything but a whole segment (history, backup label, `.partial`).
    #[must_use]
    pub fn from_file_name(name: &str, segment_bytes: u64) -> Option<Self> {
        if name.len() != 24 || !name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)) {
            return None;
        }
        let part = |range: std::ops::Range<usize>| u64::from_str_radix(&name[range], 16).ok();
        let per_id = 0x1_0000_0000 / segment_bytes;
        let (timeline, id, within) = (part(0..8)?, part(8..16)?, part(16..24)?);
        (within < per_id)
            .then(|| Self { timeline: u32::try_from(timeline).unwrap_or(0), number: id * per_id + within })
    }

    /// The position of the first byte after it.
    #[must_use]
    pub fn end(self, segment_bytes: u64) -> Lsn {
        Lsn((self.number + 1) * segment_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB16: u64 = 16 << 20;

    #[test]
    fn names_are_those_postgresql_gives() {
        let segment = Segment::at(1, "16/B374D848".parse().unwrap(), MIB16);
        assert_eq!(segment.file_name(MIB16), "0000000100000016000000B3");
        assert_eq!(segment.end(MIB16), "16/B4000000".parse().unwrap());
    }

    #[test]
    fn a_position_on_a_boundary_needs_the_segment_before_it() {
        let boundary = Lsn(3 * MIB16);
        assert_eq!(Segment::before(1, boundary, MIB16).number, 2);
        assert_eq!(Segment::at(1, boundary, MIB16).number, 3);
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "g/0", "123456789/0", "+1/0", "1/0/0", " 1/0"] {
            assert_eq!(text.parse::<Lsn>(), Err(NotAnLsn(text.to_owned())), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_whole_segment_is_refused() {
        for name in ["00000002.history", "000000010000000000000003.partial", "0000000100000000000000fF", ""] {
            assert_eq!(Segment::from_file_name(name, MIB16), None, "{name:?}");
        }
        assert_eq!(Segment::from_file_name("000000010000000000000100", MIB16), None);
    }

    proptest! {
        #[test]
        fn a_position_reads_back(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse(), Ok(Lsn(value)));
        }

        #[test]
        fn a_segment_reads_back(timeline in 1_u32.., lsn: u64, shift in 20_u32..=30) {
            let bytes = 1_u64 << shift;
            let segment = Segment::at(timeline, Lsn(lsn), bytes);
            prop_assert_eq!(Segment::from_file_name(&segment.file_name(bytes), bytes), Some(segment));
        }
    }
}
