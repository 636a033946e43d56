//! The write-ahead log taken apart by database, put together again, and put together for some databases only.
//!
//! Pure: bytes in, bytes out. Nothing here reads a file, compresses or encrypts.
//!
//! ```text
//!             ┌─ split ─► stream of database 16384 ─┐
//! range of WAL┤           stream of database 16385 ─┼─ merge ─────► the same bytes
//!             └─────────► shared stream ────────────┘
//!                           shared + 16384 ─────────── Selection ─► segments in which only 16384 goes on
//! ```
//!
//! Each record has one owner: a database, or nobody in particular ([`SHARED`]). A tenant's data key encrypts the stream of
//! its database; once the key is gone, so is all that the tenant wrote. That only holds if **no row content ever
//! lands in the shared stream**:
//!
//! | record | owner |
//! | --- | --- |
//! | any with block references, all to one database (heap, indexes, sequences, full-page images, generic) | that database |
//! | … to shared catalogs (database 0): roles, databases, tablespaces, subscriptions, their comments and settings | shared |
//! | … to several databases: PostgreSQL writes none | shared, counted as unclassified |
//! | SMGR create, truncate | database of the relation |
//! | DBASE create (copied, logged), drop | the database that is made or dropped |
//! | RELMAP update | its database, shared for the shared map |
//! | LOGICALMSG: text that a session chose | database of the session |
//! | HEAP truncate; HEAP2 rewrite, new cid (only with `wal_level = logical`): oids, tuple ids | their database |
//! | BTREE, GIST page reuse: locator and xid | database of the index |
//! | XACT prepare: locks, oids, and the identifier that a session chose | database of the session |
//! | XACT commit, abort, also of prepared ones: times, xids, locators, hashes of catalog keys; with `wal_level = logical` the identifier of a prepared transaction, which is a name and no row | shared |
//! | XACT assignment, invalidations; STANDBY: xids, oids, hashes | shared |
//! | XLOG but full-page images, CLOG, MULTIXACT, `COMMIT_TS`, REPLORIGIN, TBLSPC | shared |
//! | without block references, of an extension's resource manager | shared, counted as unclassified |
//!
//! Facts are from PostgreSQL's `access/xlogrecord.h`, `xlog_internal.h`, `xlogreader.c` and the headers of the resource
//! managers, versions 15 to 18; the tests read what servers of these versions wrote.

#[cfg(test)]
mod forge;
mod layout;
mod merge;
mod pieces;
mod record;
mod select;
mod sheet;
mod split;
#[cfg(test)]
mod tests;
mod version;
mod walk;
mod xact;

pub use layout::{Geometry, NoGeometry, PAGE_BYTES, Range};
pub use merge::{merge, merge_into};
pub use pieces::Damaged;
pub use record::checkpoint_next_xid;
pub use select::{Outcome, SelectError, Selection, Until};
pub use sheet::{Blank, SparseSegment};
pub use split::{Split, SplitError, Tail, split};
pub use version::{UnknownVersion, Version};
pub use walk::Carry;

/// The owner of what belongs to no database.
pub const SHARED: u32 = 0;
