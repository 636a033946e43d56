//! Laying out the WAL that a server replays: of what all share and of some databases, up to a moment.
//!
//! Objects are read and opened many at once, ahead of the one place where they are merged in order. A server finds its WAL
//! in a directory and runs no program that opens a repository; as segments get their names when they are complete, it may
//! replay while the next ones are written.

mod writers;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use futures_util::{StreamExt, TryStreamExt};
use loomworks_core::lsn::Lsn;

use self::writers::Writers;
use crate::keys::{DatabaseOid, Found, SHARED};
use crate::lineage::Lineage;
use crate::range::{Header, Opened};
use crate::repository::{Repository, RepositoryError, blocking};
use crate::wal::{Outcome, SelectError, Selection, SparseSegment, Until};

/// Objects that are read ahead.
const READ_AHEAD: usize = 16;

/// What is to be laid out.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Where the server begins to read: the start of its base backup.
    pub from: Lsn,
    /// The first transaction id that was not given out then.
    pub next_xid: u64,
    pub lineage: Lineage,
    /// Beside what all share.
    pub databases: BTreeSet<DatabaseOid>,
    pub until: Until,
    /// Before here the ends of all transactions are kept: a database was made as a copy of another one, whose rows are those
    /// of any of them.
    pub transactions_until: Lsn,
}

/// What a try has come to.
#[derive(Debug)]
pub enum Laid {
    Out(Replayable),
    /// More is needed than was asked for, which showed on the way. What was written so far must not be used.
    Again(Replay),
}

/// What was laid out.
#[derive(Clone, Debug)]
pub struct Replayable {
    pub outcome: Outcome,
    /// Bytes of streams that were read and put in their places.
    pub stream_bytes: u64,
    pub segments: u64,
}

/// Streams of one object.
struct Streams {
    name: String,
    header: Header,
    shared: Vec<u8>,
    kept: Vec<Vec<u8>>,
}

impl Repository {
    /// Writes into `directory`, which exists, the segments that a server must replay. `progress` is told of objects that
    /// are behind it and of how many there are.
    pub async fn lay_out_wal(
        &self,
        replay: &Replay,
        directory: &Path,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Replayable, RepositoryError> {
        let mut replay = replay.clone();
        loop {
            match self.try_to_lay_out_wal(&replay, directory, progress).await? {
                Laid::Out(replayable) => return Ok(replayable),
                Laid::Again(more) => replay = more,
            }
        }
    }

    /// The same, once. For a server that replays meanwhile.
    pub async fn try_to_lay_out_wal(
        &self,
        replay: &Replay,
        directory: &Path,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Laid, RepositoryError> {
        let to = match replay.until {
            Until::Before(lsn) => Some(lsn),
            Until::Time(_) | Until::End => None,
        };
        let names = self.objects(&replay.lineage, replay.from, to).await?;
        let total = names.len() as u64;
        let (sender, receiver) = mpsc::sync_channel(READ_AHEAD);
        let merging = Merging::new(replay, directory, self.cluster.segment_bytes);
        let merged = tokio::task::spawn_blocking(move || merging.run(&receiver));
        let mut read = futures_util::stream::iter(names)
            .map(|name| self.read_streams(name, replay))
            .buffered(READ_AHEAD);
        let mut done = 0;
        while let Some(streams) = read.try_next().await? {
            done += 1;
            progress(done, total);
            let sender = sender.clone();
            // The other end is gone: it has reached the moment, or failed.
            if !blocking(move || sender.send(streams).is_ok()).await {
                break;
            }
        }
        drop((sender, read));
        match merged.await {
            Ok(merged) => merged,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// The streams that are kept of one object.
    async fn read_streams(&self, name: String, replay: &Replay) -> Result<Streams, RepositoryError> {
        let opened = Opened::read(self, &name).await?;
        let opened = opened.ok_or_else(|| RepositoryError::Gone { name: name.clone() })?;
        let shared = opened.stream(self, SHARED, self.keys.shared()).await?;
        let shared =
            shared.ok_or_else(|| RepositoryError::damaged(&name, "it has no stream of what all share"))?;
        let mut kept = Vec::new();
        for oid in opened.header.databases().filter(|oid| replay.databases.contains(oid)) {
            let Found::Key(key) = self.keys.find(oid, &replay.lineage).await? else {
                return Err(RepositoryError::damaged(
                    &name,
                    format!("the key of database {oid} was deleted"),
                ));
            };
            kept.extend(opened.stream(self, oid, &key).await?);
        }
        Ok(Streams { name, header: opened.header, shared, kept })
    }

    /// The databases whose records can be read: all but those whose keys were deleted.
    pub async fn readable_databases(&self) -> Result<BTreeSet<DatabaseOid>, RepositoryError> {
        // Those of the installation itself share the cluster's key.
        let mut databases = BTreeSet::from([1, 4, 5]);
        databases.extend(self.keys.readable().await?);
        Ok(databases)
    }
}

/// Merges streams in order and has segments written.
struct Merging {
    replay: Replay,
    directory: PathBuf,
    segment_bytes: u64,
}

impl Merging {
    fn new(replay: &Replay, directory: &Path, segment_bytes: u64) -> Self {
        let (replay, directory) = (replay.clone(), directory.to_owned());
        Self { replay, directory, segment_bytes }
    }

    fn run(&self, receiver: &mpsc::Receiver<Streams>) -> Result<Laid, RepositoryError> {
        std::thread::scope(|scope| {
            let mut writers = Writers::start(scope, &self.directory, self.segment_bytes);
            let merged = self.merge(receiver, &mut writers);
            let segments = writers.finish()?;
            let mut laid = merged?.expect("writers end early by an error only");
            if let Laid::Out(replayable) = &mut laid {
                replayable.segments = segments;
            }
            Ok(laid)
        })
    }

    /// `None`: a writer has ended.
    fn merge(
        &self,
        receiver: &mpsc::Receiver<Streams>,
        writers: &mut Writers<'_>,
    ) -> Result<Option<Laid>, RepositoryError> {
        let mut selection: Option<Selection> = None;
        let mut stream_bytes = 0;
        for Streams { name, header, shared, kept } in receiver {
            let Replay { from, next_xid, databases, until, transactions_until, .. } = &self.replay;
            let selection = selection.get_or_insert_with(|| {
                let mut new = Selection::new(header.geometry, *from, databases, *next_xid, *until);
                new.keep_transactions_until(*transactions_until);
                new
            });
            stream_bytes += (shared.len() + kept.iter().map(Vec::len).sum::<usize>()) as u64;
            let kept: Vec<&[u8]> = kept.iter().map(Vec::as_slice).collect();
            writers.blanks().for_each(|blank| selection.reuse(blank));
            match selection.push(&header.range, &shared, &kept) {
                Ok(segments) => {
                    if !write(writers, segments) {
                        return Ok(None);
                    }
                }
                // A database that was made as a copy of another's files needs those too.
                Err(SelectError::NeedsDatabase(oid)) => {
                    let mut more = self.replay.clone();
                    more.databases.insert(oid);
                    return Ok(Some(Laid::Again(more)));
                }
                Err(SelectError::Copied(at)) => {
                    let more = Replay { transactions_until: at, ..self.replay.clone() };
                    return Ok(Some(Laid::Again(more)));
                }
                Err(error) => return Err(RepositoryError::damaged(&name, error)),
            }
            if selection.is_complete() {
                break;
            }
        }
        let selection = selection.ok_or_else(|| RepositoryError::Gone {
            name: format!("the WAL at {} of timeline {}", self.replay.from, self.replay.lineage.timeline()),
        })?;
        let (segments, outcome) = selection.finish();
        let replayable = Replayable { outcome, stream_bytes, segments: 0 };
        Ok(write(writers, segments).then_some(Laid::Out(replayable)))
    }
}

/// Whether there is still somebody who writes.
fn write(writers: &mut Writers<'_>, segments: Vec<SparseSegment>) -> bool {
    segments.into_iter().all(|segment| writers.write(segment))
}
