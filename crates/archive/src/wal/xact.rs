//! What the record of a transaction's end says: when, which transactions, which relations go.
//!
//! ```text
//! │time 8│xinfo 4│database 8│n, subxacts 4 each│n, locators 12 each│n, stats│n, messages 16 each│prepared xid 4│…
//! ```
//!
//! Each part but the time is there only if `xinfo` says so, and `xinfo` only if the record's info does.

use super::layout::{u32_at, u64_at};
use super::version::Version;

pub(super) const COMMIT: u8 = 0x00;
pub(super) const PREPARE: u8 = 0x10;
pub(super) const ABORT: u8 = 0x20;
pub(super) const COMMIT_PREPARED: u8 = 0x30;
pub(super) const ABORT_PREPARED: u8 = 0x40;
pub(super) const ASSIGNMENT: u8 = 0x50;
pub(super) const INVALIDATIONS: u8 = 0x60;
const HAS_XINFO: u8 = 0x80;

/// What `RM_XACT` does with the record.
pub(super) fn operation(info: u8) -> u8 {
    info & 0x70
}

/// Whether it ends a transaction, so that it begins with a time.
pub(super) fn has_time(info: u8) -> bool {
    matches!(operation(info), COMMIT | ABORT | COMMIT_PREPARED | ABORT_PREPARED)
}

/// The main data of a commit or abort record.
#[derive(Clone, Copy, Debug)]
pub(super) struct End<'a> {
    /// Microseconds since 2000-01-01.
    pub time: i64,
    subxacts: &'a [u8],
    locators: &'a [u8],
    /// The prepared transaction that ends. The record's own xid is another's then.
    pub prepared: Option<u32>,
}

impl<'a> End<'a> {
    /// `None` if it is not to be understood.
    pub(super) fn read(info: u8, main: &'a [u8], version: Version) -> Option<Self> {
        const DATABASE: u32 = 1 << 0;
        const SUBXACTS: u32 = 1 << 1;
        const LOCATORS: u32 = 1 << 2;
        const MESSAGES: u32 = 1 << 3;
        const PREPARED: u32 = 1 << 4;
        const STATS: u32 = 1 << 8;
        let mut rest = Rest(main);
        let time = u64_at(rest.take(8)?, 0).cast_signed();
        let parts = if info & HAS_XINFO != 0 { u32_at(rest.take(4)?, 0) } else { 0 };
        if parts & DATABASE != 0 {
            rest.take(8)?;
        }
        let mut list = |part: u32, item_bytes: usize| {
            if parts & part != 0 { rest.list(item_bytes) } else { Some(&[][..]) }
        };
        let (subxacts, locators) = (list(SUBXACTS, 4)?, list(LOCATORS, 12)?);
        list(STATS, version.stats_item_bytes())?;
        list(MESSAGES, 16)?;
        let prepared = if parts & PREPARED != 0 { Some(u32_at(rest.take(4)?, 0)) } else { None };
        Some(Self { time, subxacts, locators, prepared })
    }

    /// The subtransactions that end with it.
    pub(super) fn subxacts(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.subxacts.chunks_exact(4).map(|xid| u32_at(xid, 0))
    }

    /// The databases of the relations whose files go.
    pub(super) fn dropped_in(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.locators.chunks_exact(12).map(|locator| u32_at(locator, 4))
    }
}

/// What is not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(len)?;
        self.0 = left;
        Some(taken)
    }

    /// A count and so many items.
    fn list(&mut self, item_bytes: usize) -> Option<&'a [u8]> {
        let items = u32_at(self.take(4)?, 0) as usize;
        self.take(items.checked_mul(item_bytes)?)
    }
}
