//! What differs between PostgreSQL's versions, found by the magic number of a page.

use serde::{Deserialize, Serialize};

/// A version whose WAL we can read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Version {
    V15,
    V16,
    V17,
    V18,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("WAL with magic number {magic:#06X} is of no version of PostgreSQL from 15 to 18")]
pub struct UnknownVersion {
    pub magic: u16,
}

/// One row a version. What is not here is the same in all of them: record and block headers, flags of images, the codes
/// of the resource managers, where a checkpoint holds `nextXid`.
struct Facts {
    version: Version,
    major: u32,
    magic: u16,
    /// `sizeof(xl_xact_stats_item)`: since 18 the object's id has eight bytes.
    stats_item_bytes: usize,
}

const FACTS: [Facts; 4] = [
    Facts { version: Version::V15, major: 15, magic: 0xD110, stats_item_bytes: 12 },
    Facts { version: Version::V16, major: 16, magic: 0xD113, stats_item_bytes: 12 },
    Facts { version: Version::V17, major: 17, magic: 0xD116, stats_item_bytes: 12 },
    Facts { version: Version::V18, major: 18, magic: 0xD118, stats_item_bytes: 16 },
];

impl Version {
    /// The version that writes pages with this magic number.
    pub fn of_magic(magic: u16) -> Result<Self, UnknownVersion> {
        FACTS
            .iter()
            .find(|facts| facts.magic == magic)
            .map(|facts| facts.version)
            .ok_or(UnknownVersion { magic })
    }

    #[must_use]
    pub fn of_major(major: u32) -> Option<Self> {
        FACTS.iter().find(|facts| facts.major == major).map(|facts| facts.version)
    }

    #[must_use]
    pub fn major(self) -> u32 {
        self.facts().major
    }

    #[must_use]
    pub fn magic(self) -> u16 {
        self.facts().magic
    }

    pub(super) fn stats_item_bytes(self) -> usize {
        self.facts().stats_item_bytes
    }

    fn facts(self) -> &'static Facts {
        &FACTS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_found_by_its_magic_number() {
        for facts in &FACTS {
            assert_eq!(Version::of_magic(facts.magic), Ok(facts.version));
            assert_eq!(Version::of_major(facts.major), Some(facts.version));
            assert_eq!((facts.version.magic(), facts.version.major()), (facts.magic, facts.major));
        }
        assert_eq!(Version::of_magic(0xD119), Err(UnknownVersion { magic: 0xD119 }));
    }
}
