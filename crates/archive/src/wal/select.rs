//! Putting WAL together for some databases only, for a side cluster that has no others.
//!
//! What is kept stays at its position; the rest is filled with records that do nothing. Records before and after them know
//! each other by `xl_prev`, so that is written anew, and with it the checksum.
//!
//! Dropped is, besides other databases' records:
//!
//! - what only a hot standby needs (`RM_STANDBY`, XACT assignment and invalidations);
//! - making and dropping tablespaces, which would touch the live cluster's directories;
//! - a record that a crash cut short, with the record that says so;
//! - the end of a transaction that did nothing to what is kept: see [`Transactions`]. The side cluster then takes it for
//!   one that never ended, and nothing there refers to it. A kept database that is made within the log is a copy of another
//!   one, and its rows name transactions that worked in that one: all that ended before it was made are kept.
//!
//! A record may be cut by the end of a range within its headers, so that its head is in the shared stream and its tail in its
//! database's. It is known to be kept once its tail comes. Hence the segments come one range late.

use std::collections::{BTreeSet, HashSet};

use loomworks_core::lsn::Lsn;

use super::SHARED;
use super::layout::{Geometry, Range, align, u32_at};
use super::pieces::{Damaged, Piece, Pieces, Stream};
use super::record::{
    DBASE_CREATE_FILE_COPY, DBASE_CREATE_WAL_LOG, HEADER, Header, Parts, is_plausible_total, rm, xlog,
};
use super::sheet::{Blank, Sheet, SparseSegment};
use super::xact;

/// How far to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// All there is.
    End,
    /// Before the first record that starts at or after this position.
    Before(Lsn),
    /// Before the first kept end of a transaction later than this, in microseconds since 2000-01-01.
    Time(i64),
}

/// What a selection came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Where the selected WAL ends, as a server tells of it that has replayed it all.
    pub end: Lsn,
    /// Whether what `until` asks for was reached; otherwise the WAL was over before.
    pub reached: bool,
    /// The time of the last kept commit. With [`Until::Time`] it is no later than that.
    pub last_commit: Option<i64>,
    /// The latest time at which any transaction ended, kept or not, up to where the selection stopped. If it is later
    /// than what was asked for, the WAL does reach that time, though nothing kept ended after it.
    pub latest_time: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SelectError {
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// Start again with [`Selection::keep_transactions_until`] this position: what was copied into a kept database names
    /// transactions that worked in another one, whose ends have been dropped.
    #[error("a kept database was made as a copy of another one at {0}")]
    Copied(Lsn),
    /// Start again with this one kept too.
    #[error("a kept database was made as a copy of the files of database {0}, which is not kept")]
    NeedsDatabase(u32),
    #[error("ranges of WAL do not follow each other: expected {expected}, found {found}")]
    OutOfOrder { expected: Lsn, found: Lsn },
    #[error("a stream of database {0} was given, which is not kept")]
    NotKept(u32),
}

/// A selection in progress. Feed it ranges in order, then finish it.
pub struct Selection {
    geometry: Geometry,
    kept: BTreeSet<u32>,
    until: Until,
    /// Place of the first record that recovery reads.
    from: u64,
    transactions: Transactions,
    /// The ends of all transactions before this place are kept.
    transactions_until: u64,
    /// The end of a transaction was dropped.
    dropped_an_end: bool,
    sheet: Sheet,
    /// Up to this place everything is written.
    written: u64,
    /// Position of the last record that was written.
    prev: u64,
    /// A record of which only a part has come.
    pending: Option<Pending>,
    expected: Option<Lsn>,
    /// Where the log ends, as far as it is known.
    end: u64,
    stopped: bool,
    /// The log ended within a range: none follows.
    over: bool,
    last_commit: Option<i64>,
    latest_time: Option<i64>,
}

struct Pending {
    place: u64,
    bytes: Vec<u8>,
}

/// A record to decide on. `body` is what follows the fixed header.
#[derive(Clone, Copy)]
struct Record<'a> {
    place: u64,
    header: Header,
    body: &'a [u8],
}

impl Selection {
    /// `from`: where recovery begins to read, the redo position of the backup. `next_xid`: the first transaction id that was not
    /// given out at the backup's checkpoint, as that says it, with its epoch.
    #[must_use]
    pub fn new(geometry: Geometry, from: Lsn, kept: &BTreeSet<u32>, next_xid: u64, until: Until) -> Self {
        let place = geometry.place(from.0);
        Self {
            geometry,
            kept: kept.clone(),
            until,
            from: place,
            transactions: Transactions::new(next_xid),
            transactions_until: 0,
            dropped_an_end: false,
            sheet: Sheet::new(geometry),
            written: place,
            prev: 0,
            pending: None,
            expected: None,
            end: place,
            stopped: false,
            over: false,
            last_commit: None,
            latest_time: None,
        }
    }

    /// Keeps the ends of all transactions before a position.
    pub fn keep_transactions_until(&mut self, lsn: Lsn) {
        self.transactions_until = self.geometry.place(lsn.0);
    }

    /// Nothing more is needed: what `until` asks for was reached.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.stopped
    }

    /// Takes the next range, and gives out what segments are finished. `kept`: the streams of the kept databases that
    /// have one.
    pub fn push(
        &mut self,
        range: &Range,
        shared: &[u8],
        kept: &[&[u8]],
    ) -> Result<Vec<SparseSegment>, SelectError> {
        if self.stopped {
            return Ok(Vec::new());
        }
        range.len().filter(|_| self.geometry.is_possible()).ok_or(Damaged("no range is like this"))?;
        let first = self.expected.is_none();
        let expected = self.expected.unwrap_or_else(|| range.start.min(Lsn(self.geometry.lsn(self.from))));
        if range.start != expected || self.over {
            return Err(SelectError::OutOfOrder { expected, found: range.start });
        }
        self.expected = Some(range.end);
        self.sheet.timeline(range.start.0, range.timeline);
        let shared = Stream::read(shared, range)?;
        if shared.owner != SHARED {
            return Err(Damaged("the shared stream is a database's").into());
        }
        let mut streams = vec![Source::new(&shared, &self.geometry, range)?];
        for bytes in kept {
            let stream = Stream::read(bytes, range)?;
            if !self.kept.contains(&stream.owner) {
                return Err(SelectError::NotKept(stream.owner));
            }
            streams.push(Source::new(&stream, &self.geometry, range)?);
        }
        if first {
            self.sheet.begin(self.geometry.lsn(self.from));
        }
        let end = self.geometry.place(range.end.0);
        self.take(&mut streams)?;
        if !self.stopped {
            // A record that neither went on in this range nor reaches its end was given up, or is not kept.
            self.pending.take_if(|pending| pending.end() < end);
            let valid = self.geometry.place(range.start.0 + u64::from(shared.whole.valid));
            self.end = self.pending.as_ref().map_or(end.min(valid), |pending| pending.place);
            if let Until::Before(lsn) = self.until
                && self.end >= self.geometry.place(lsn.0)
            {
                self.stop(self.geometry.place(lsn.0));
            }
            self.over |= valid < end;
            self.fill_whole_segments();
        }
        Ok(self.sheet.take_finished())
    }

    /// Takes memory of a segment that was given out, for another one.
    pub fn reuse(&mut self, blank: Blank) {
        self.sheet.reuse(blank);
    }

    /// Gives out the rest.
    #[must_use = "the last segments are in it"]
    pub fn finish(mut self) -> (Vec<SparseSegment>, Outcome) {
        // The last record may go beyond it, and what is left may be too little to fill.
        let end = if self.end >= self.written + HEADER as u64 { align(self.end) } else { self.written };
        self.sheet.fill(self.written, end, self.prev);
        self.sheet.finish();
        let outcome = Outcome {
            end: Lsn(self.geometry.end_lsn(end)),
            reached: self.stopped,
            last_commit: self.last_commit,
            latest_time: self.latest_time,
        };
        (self.sheet.take_finished(), outcome)
    }

    /// Nothing after this place is wanted, which may lie within a record that is not kept.
    fn stop(&mut self, place: u64) {
        self.end = place & !7;
        self.stopped = true;
        self.pending = None;
    }

    /// Takes all pieces of a range, in the order of the log.
    fn take(&mut self, streams: &mut [Source<'_>]) -> Result<(), SelectError> {
        while let Some(source) =
            streams.iter_mut().filter(|source| source.piece.is_some()).min_by_key(|source| source.place())
        {
            let Some(piece) = source.advance()? else { break };
            if piece.place() + piece.len() <= self.from {
                continue;
            }
            if let Piece::Fragment { place, remaining, continued, bytes } = piece {
                self.fragment(place, remaining, continued, bytes)?;
            } else if let Piece::Record { place, total, xid, info, rmid, body } = piece {
                self.pending = None;
                let header = Header { total, xid, prev: 0, info, rmid, padding: 0, crc: 0 };
                self.record(&Record { place, header, body })?;
            }
            if self.stopped {
                break;
            }
        }
        Ok(())
    }

    fn fragment(
        &mut self,
        place: u64,
        remaining: u32,
        continued: bool,
        bytes: &[u8],
    ) -> Result<(), SelectError> {
        if continued {
            let Some(pending) = &mut self.pending else {
                return Err(Damaged("a record goes on that did not begin").into());
            };
            if pending.end() != place {
                return Err(Damaged("a record goes on elsewhere than it stopped").into());
            }
            pending.bytes.extend_from_slice(bytes);
        } else {
            if let Until::Before(lsn) = self.until
                && place >= self.geometry.place(lsn.0)
            {
                self.stop(self.geometry.place(lsn.0));
                return Ok(());
            }
            // What it holds is what the streams hold, however long the record says it is.
            self.pending = Some(Pending { place, bytes: bytes.to_vec() });
        }
        let whole = remaining > 0 && bytes.len() == remaining as usize;
        if let Some(Pending { place, bytes }) = self.pending.take_if(|_| whole) {
            let sound = bytes.len() >= HEADER
                && Header::read(&bytes).total as usize == bytes.len()
                && is_plausible_total(bytes.len() as u32);
            if !sound {
                return Err(Damaged("a record is not as long as it says").into());
            }
            let header = Header::read(&bytes);
            let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[HEADER..]), &bytes[..20]);
            if crc != header.crc {
                return Err(Damaged("a record's checksum is wrong").into());
            }
            self.record(&Record { place, header, body: &bytes[HEADER..] })?;
        }
        Ok(())
    }

    /// Keeps or drops a whole record.
    fn record(&mut self, record: &Record<'_>) -> Result<(), SelectError> {
        if let Until::Before(lsn) = self.until
            && record.place >= self.geometry.place(lsn.0)
        {
            self.stop(self.geometry.place(lsn.0));
            return Ok(());
        }
        // What lies between two records are records.
        let gap = record.place.checked_sub(self.written);
        if gap.is_none_or(|gap| gap % 8 != 0 || (1..HEADER as u64).contains(&gap)) {
            return Err(Damaged("a record is where none can be").into());
        }
        let keep = self.is_kept(record)?;
        if self.stopped {
            return Ok(());
        }
        if keep {
            self.prev = self.sheet.fill(self.written, record.place, self.prev);
            let header = Header { prev: self.prev, ..record.header };
            let header = header.seal(crc32c::crc32c(record.body));
            self.sheet.write(record.place, record.header.total, &[&header, record.body]);
            self.prev = self.geometry.lsn(record.place);
            self.written = align(record.place + u64::from(record.header.total));
        }
        Ok(())
    }

    fn is_kept(&mut self, record: &Record<'_>) -> Result<bool, SelectError> {
        let Header { rmid, info, .. } = record.header;
        match (rmid, record.header.code()) {
            // Those of other databases went with them: what filled the segment is filled anew.
            (rm::XLOG, xlog::NOOP | xlog::SWITCH | xlog::OVERWRITE_CONTRECORD)
            | (rm::STANDBY | rm::TBLSPC, _) => {
                return Ok(false);
            }
            (rm::XACT, _) => match xact::operation(info) {
                xact::ASSIGNMENT | xact::INVALIDATIONS => return Ok(false),
                _ if xact::has_time(info) => return Ok(self.transaction_ends(record)),
                _ => {}
            },
            (rm::DBASE, code @ (DBASE_CREATE_FILE_COPY | DBASE_CREATE_WAL_LOG)) => {
                if self.dropped_an_end {
                    return Err(SelectError::Copied(Lsn(self.geometry.lsn(record.place))));
                }
                // The source is the third number.
                let source = main_of(record).and_then(|main| main.get(8..12)).map(|bytes| u32_at(bytes, 0));
                let source = source.filter(|_| code == DBASE_CREATE_FILE_COPY);
                if let Some(source) = source.filter(|source| !self.kept.contains(source)) {
                    return Err(SelectError::NeedsDatabase(source));
                }
            }
            _ => {}
        }
        self.transactions.touches(record.header.xid);
        Ok(true)
    }

    /// Whether the end of a transaction is kept; and whether it is the one to stop before.
    fn transaction_ends(&mut self, record: &Record<'_>) -> bool {
        let main = main_of(record).unwrap_or_default();
        let info = record.header.info;
        let Some(end) = xact::End::read(info, main, self.geometry.version) else { return true };
        let keep = self.transactions.end(record.header.xid, &end)
            || record.place < self.transactions_until
            || end.dropped_in().any(|database| database == SHARED || self.kept.contains(&database));
        if let (true, Until::Time(time)) = (keep, self.until)
            && end.time > time
        {
            self.stop(record.place);
        } else if keep && matches!(xact::operation(info), xact::COMMIT | xact::COMMIT_PREPARED) {
            self.last_commit = Some(end.time);
        }
        self.latest_time = self.latest_time.max(Some(end.time));
        self.dropped_an_end |= !keep;
        keep
    }

    /// Fills the segments of which it is known that nothing kept is in the rest of them, nor a record that begins in one and
    /// has less than a record's header in the next.
    fn fill_whole_segments(&mut self) {
        let payload = self.geometry.segment_payload();
        let known = self.end.saturating_sub(HEADER as u64);
        let boundary = known - known % payload;
        if self.written + (HEADER as u64) <= boundary {
            self.prev = self.sheet.fill(self.written, boundary, self.prev);
            self.written = boundary;
            self.sheet.finish();
        }
    }
}

impl Pending {
    fn end(&self) -> u64 {
        self.place + self.bytes.len() as u64
    }
}

fn main_of<'a>(record: &Record<'a>) -> Option<&'a [u8]> {
    let parts = Parts::read(record.body, record.body.len()).ok()?;
    record.body.get(parts.main..)
}

/// A stream and its next piece.
struct Source<'a> {
    pieces: Pieces<'a>,
    piece: Option<Piece<'a>>,
}

impl<'a> Source<'a> {
    fn new(stream: &Stream<'a>, geometry: &Geometry, range: &Range) -> Result<Self, Damaged> {
        let mut pieces = stream.pieces(geometry, range);
        let piece = pieces.next()?;
        Ok(Self { pieces, piece })
    }

    fn place(&self) -> u64 {
        self.piece.as_ref().map_or(u64::MAX, Piece::place)
    }

    fn advance(&mut self) -> Result<Option<Piece<'a>>, Damaged> {
        let next = self.pieces.next()?;
        Ok(std::mem::replace(&mut self.piece, next))
    }
}

/// Which transactions did something to what is kept.
///
/// A transaction that had no id yet when the backup began did all it did after that, so in records that a selection sees: if
/// none of them was kept, nothing kept refers to the transaction. Of an older one that cannot be said, and its end is
/// always kept.
struct Transactions {
    next: u64,
    /// The highest id seen, to extend 32-bit ids.
    highest: u64,
    /// Ids of those at work on what is kept. An id leaves when its transaction ends.
    touching: HashSet<u32>,
    last: u32,
}

impl Transactions {
    fn new(next: u64) -> Self {
        Self { next, highest: next, touching: HashSet::new(), last: 0 }
    }

    /// A kept record was written by `xid`.
    fn touches(&mut self, xid: u32) {
        if xid != 0 && xid != self.last {
            self.last = xid;
            if self.is_new(xid) {
                self.touching.insert(xid);
            }
        }
    }

    /// Whether it got its id after the backup's checkpoint.
    fn is_new(&mut self, xid: u32) -> bool {
        // The nearest 64-bit id, before or after, with these low bits.
        let ahead = i64::from(xid.wrapping_sub(self.highest as u32).cast_signed());
        let full = self.highest.saturating_add_signed(ahead);
        self.highest = self.highest.max(full);
        full >= self.next
    }

    /// A transaction ends. Whether it or one of its subtransactions is old, or touched what is kept.
    fn end(&mut self, xid: u32, end: &xact::End<'_>) -> bool {
        self.last = 0;
        let top = end.prepared.unwrap_or(xid);
        let mut matters = top == 0;
        for xid in std::iter::once(top).filter(|xid| *xid != 0).chain(end.subxacts()) {
            matters |= self.touching.remove(&xid) | !self.is_new(xid);
        }
        matters
    }
}
