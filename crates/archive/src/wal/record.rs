//! One record: what its header says, and who owns it.
//!
//! ```text
//! │total 4│xid 4│prev 8│info 1│rmid 1│0 0│crc 4│ block headers … main header │ block data … main data │
//! ```
//!
//! The databases that a record touches are in its block headers, before any data. A record without block references may
//! name its database at the start of its main data.

use super::SHARED;
use super::layout::{u16_at, u32_at, u64_at};
use super::version::Version;
use super::xact;

pub(super) const HEADER: usize = 24;
/// `XLogRecordMaxSize`. No server inserts a larger one.
pub(super) const MAX_RECORD: u32 = 1020 << 20;
/// Within so many bytes of a record's start, its owner is known. 33 block references with images come to about 940.
pub(super) const HEAD: usize = 1024;

/// Resource managers, `rmgrlist.h`.
pub(super) mod rm {
    pub(in super::super) const XLOG: u8 = 0;
    pub(in super::super) const XACT: u8 = 1;
    pub(in super::super) const SMGR: u8 = 2;
    pub(in super::super) const DBASE: u8 = 4;
    pub(in super::super) const TBLSPC: u8 = 5;
    pub(in super::super) const RELMAP: u8 = 7;
    pub(in super::super) const STANDBY: u8 = 8;
    pub(in super::super) const HEAP2: u8 = 9;
    pub(in super::super) const HEAP: u8 = 10;
    pub(in super::super) const BTREE: u8 = 11;
    pub(in super::super) const GIST: u8 = 14;
    pub(in super::super) const LOGICALMSG: u8 = 21;
    pub(in super::super) const LAST_BUILTIN: u8 = LOGICALMSG;
    pub(in super::super) const FIRST_CUSTOM: u8 = 128;
}

/// Codes of `RM_XLOG`.
pub(super) mod xlog {
    pub(in super::super) const CHECKPOINT_SHUTDOWN: u8 = 0x00;
    pub(in super::super) const CHECKPOINT_ONLINE: u8 = 0x10;
    pub(in super::super) const NOOP: u8 = 0x20;
    pub(in super::super) const SWITCH: u8 = 0x40;
    pub(in super::super) const OVERWRITE_CONTRECORD: u8 = 0xD0;
}

/// `RM_DBASE`: a database made by copying files.
pub(super) const DBASE_CREATE_FILE_COPY: u8 = 0x00;
/// `RM_DBASE`: a database whose pages follow, as those of another one were.
pub(super) const DBASE_CREATE_WAL_LOG: u8 = 0x10;

/// The fixed part of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub total: u32,
    pub xid: u32,
    pub prev: u64,
    pub info: u8,
    pub rmid: u8,
    pub padding: u16,
    pub crc: u32,
}

impl Header {
    pub(super) fn read(bytes: &[u8]) -> Self {
        Self {
            total: u32_at(bytes, 0),
            xid: u32_at(bytes, 4),
            prev: u64_at(bytes, 8),
            info: bytes[16],
            rmid: bytes[17],
            padding: u16_at(bytes, 18),
            crc: u32_at(bytes, 20),
        }
    }

    /// The 24 bytes, with the checksum of all of the record. `body`: the checksum of what follows them.
    pub(super) fn seal(&self, body: u32) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.total.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.xid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.prev.to_le_bytes());
        bytes[16] = self.info;
        bytes[17] = self.rmid;
        bytes[18..20].copy_from_slice(&self.padding.to_le_bytes());
        let crc = crc32c::crc32c_append(body, &bytes[..20]);
        bytes[20..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What the resource manager says of the record; the low half belongs to everybody.
    pub(super) fn code(&self) -> u8 {
        self.info & 0xF0
    }

    /// The rest of the segment is left empty after it.
    pub(super) fn is_switch(&self) -> bool {
        self.rmid == rm::XLOG && self.code() == xlog::SWITCH
    }

    pub(super) fn is_plausible(&self) -> bool {
        is_plausible_total(self.total) && (self.rmid <= rm::LAST_BUILTIN || self.rmid >= rm::FIRST_CUSTOM)
    }
}

pub(super) fn is_plausible_total(total: u32) -> bool {
    (HEADER as u32..=MAX_RECORD).contains(&total)
}

/// What is known of a record once its headers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Class {
    pub owner: u32,
    /// Whether the record said so. Otherwise it is shared for want of anything better.
    pub known: bool,
    /// When a transaction committed or aborted, in microseconds since 2000-01-01.
    pub time: Option<i64>,
}

impl Class {
    const fn of(owner: u32) -> Self {
        Self { owner, known: true, time: None }
    }

    const UNKNOWN: Self = Self { owner: SHARED, known: false, time: None };
}

/// Who owns the record that begins with `bytes`. `None`: that needs more of its bytes.
pub(super) fn classify(bytes: &[u8]) -> Option<Class> {
    if bytes.len() < HEADER {
        return None;
    }
    let header = Header::read(bytes);
    let body_len = (header.total as usize).checked_sub(HEADER)?;
    let body = &bytes[HEADER..bytes.len().min(header.total as usize)];
    let parts = match Parts::read(body, body_len) {
        Ok(parts) => parts,
        Err(Unreadable::Short) if body.len() < body_len => return None,
        Err(_) => return Some(Class::UNKNOWN),
    };
    match parts.databases {
        Databases::One(database) => return Some(Class::of(database)),
        Databases::Many => return Some(Class::UNKNOWN),
        Databases::None => {}
    }
    let main = body.get(parts.main..).unwrap_or_default();
    let whole = body.len() == body_len;
    let named = |at: usize| match main.get(at..at + 4) {
        Some(bytes) => Some(Class::of(u32_at(bytes, 0))),
        None => whole.then_some(Class::UNKNOWN),
    };
    match (header.rmid, header.code()) {
        (rm::XACT, _) if xact::has_time(header.info) => match main.get(..8) {
            Some(time) => Some(Class { time: Some(u64_at(time, 0).cast_signed()), ..Class::of(SHARED) }),
            None => whole.then_some(Class::UNKNOWN),
        },
        // `TwoPhaseFileHeader`: magic, length, xid, database.
        (rm::XACT, _) if xact::operation(header.info) == xact::PREPARE => named(12),
        // `xl_smgr_create` begins with the locator (tablespace, database, relation), `xl_smgr_truncate` with a block.
        (rm::SMGR, 0x10) => named(4),
        (rm::SMGR, 0x20) => named(8),
        (rm::DBASE | rm::RELMAP | rm::LOGICALMSG, _) => named(0),
        // REWRITE: xid, database. NEW_CID: four numbers, then the locator. TRUNCATE: database.
        (rm::HEAP2, 0x00 | 0x80) => named(4),
        (rm::HEAP2, 0x70 | 0xF0) => named(20),
        (rm::HEAP, 0x30 | 0xB0) => named(0),
        // Page reuse: locator.
        (rm::BTREE, 0xD0) | (rm::GIST, 0x20) => named(4),
        (rm::FIRST_CUSTOM.., _) => Some(Class::UNKNOWN),
        _ => Some(Class::of(SHARED)),
    }
}

/// The databases of a record's block references.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Databases {
    None,
    One(u32),
    Many,
}

/// What a record's block headers say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Parts {
    pub databases: Databases,
    /// Where the main data begins, counted from the end of the fixed header.
    pub main: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unreadable {
    /// More of the record is needed.
    Short,
    /// No record looks like this.
    Nonsense,
}

impl Parts {
    /// Reads the headers at the start of `body`, of which the record has `body_len` bytes.
    pub(super) fn read(body: &[u8], body_len: usize) -> Result<Self, Unreadable> {
        const IMAGE: u8 = 0x10;
        const SAME_RELATION: u8 = 0x80;
        const HAS_HOLE: u8 = 0x01;
        const COMPRESSED: u8 = 0x04 | 0x08 | 0x10;
        let take = |at: usize, len: usize| body.get(at..at + len).ok_or(Unreadable::Short);
        let (mut at, mut data, mut main_len) = (0, 0, 0);
        let mut databases = Databases::None;
        // What is not header is data: the headers say how much.
        while body_len.saturating_sub(at) > data {
            match take(at, 1)?[0] {
                255 => {
                    main_len = usize::from(take(at + 1, 1)?[0]);
                    at += 2;
                }
                254 => {
                    main_len = u32_at(take(at + 1, 4)?, 0) as usize;
                    at += 5;
                }
                // Where the change came from by replication.
                253 => {
                    at += 3;
                    continue;
                }
                // The top-level transaction of a subtransaction's first record.
                252 => {
                    at += 5;
                    continue;
                }
                0..=32 => {
                    let head = take(at, 4)?;
                    let flags = head[1];
                    data += usize::from(u16_at(head, 2));
                    at += 4;
                    if flags & IMAGE != 0 {
                        let image = take(at, 5)?;
                        data += usize::from(u16_at(image, 0));
                        let hole_length = image[4] & HAS_HOLE != 0 && image[4] & COMPRESSED != 0;
                        at += if hole_length { 7 } else { 5 };
                    }
                    if flags & SAME_RELATION == 0 {
                        let database = u32_at(take(at, 12)?, 4);
                        databases = match databases {
                            Databases::None => Databases::One(database),
                            Databases::One(other) if other != database => Databases::Many,
                            same => same,
                        };
                        at += 12;
                    } else if databases == Databases::None {
                        return Err(Unreadable::Nonsense);
                    }
                    at += 4;
                    continue;
                }
                _ => return Err(Unreadable::Nonsense),
            }
            // The main data's header is always the last.
            data += main_len;
            break;
        }
        if at > body.len() {
            return Err(Unreadable::Short);
        }
        if at + data != body_len {
            return Err(Unreadable::Nonsense);
        }
        // Main data is last, after the blocks' data.
        Ok(Self { databases, main: body_len - main_len })
    }
}

/// `nextXid` of a checkpoint record (all of it, or its start), as a 64-bit number. `None` for other records.
#[must_use]
pub fn checkpoint_next_xid(record: &[u8], _version: Version) -> Option<u64> {
    /// Of `CheckPoint`: redo 8, two timelines 4 each, a flag (18: and `wal_level`) in 8.
    const NEXT_XID: usize = 24;
    if record.len() < HEADER {
        return None;
    }
    let header = Header::read(record);
    let checkpoint = header.rmid == rm::XLOG
        && matches!(header.code(), xlog::CHECKPOINT_SHUTDOWN | xlog::CHECKPOINT_ONLINE);
    let body = &record[HEADER..];
    let parts = Parts::read(body, (header.total as usize).checked_sub(HEADER)?).ok()?;
    checkpoint
        .then(|| body.get(parts.main + NEXT_XID..parts.main + NEXT_XID + 8))
        .flatten()
        .map(|b| u64_at(b, 0))
}
