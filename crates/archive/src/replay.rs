//! Laying out the WAL that a side cluster replays: of what all share and of some databases, up to a moment.
//!
//! Objects are read and opened many at once, ahead of the one place where they are merged in order. What is written is
//! complete before the server starts: it finds its WAL in `pg_wal` and runs no program to get it.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use loomworks_core::lsn::{Lsn, Segment};

use crate::backup::Backup;
use crate::keys::{DatabaseOid, Found, SHARED};
use crate::lineage::Lineage;
use crate::range::{Header, Opened};
use crate::repository::{Repository, RepositoryError, blocking, file_error};
use crate::wal::{self, Outcome, Until};

/// Objects that are read ahead.
const READ_AHEAD: usize = 16;

/// Streams of one object.
struct Streams {
    header: Header,
    shared: Vec<u8>,
    kept: Vec<Vec<u8>>,
}

/// What was laid out.
#[derive(Clone, Debug)]
pub struct Replayable {
    pub outcome: Outcome,
    /// Bytes read of the repository's objects, as stored.
    pub read_bytes: u64,
    pub segments: u64,
}

/// Which databases' records are kept.
#[derive(Clone, Debug)]
pub enum Kept {
    /// All that can be read: for the recovery of a whole cluster.
    All,
    Only(Vec<DatabaseOid>),
}

impl Repository {
    /// Writes into `pg_wal` what a server that was laid out from `backup` must replay.
    pub async fn lay_out_wal(
        &self,
        backup: &Backup,
        lineage: &Lineage,
        kept: &Kept,
        until: Until,
        pg_wal: &Path,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Replayable, RepositoryError> {
        let to = match until {
            Until::Before(lsn) => Some(lsn),
            Until::Time(_) | Until::End => None,
        };
        let names = self.objects(lineage, backup.start, to).await?;
        let total = names.len() as u64;
        let (sender, receiver) = std::sync::mpsc::sync_channel::<Streams>(READ_AHEAD);
        let mut merging = Merging::new(self, backup, lineage, kept, until, pg_wal);
        let merged = tokio::task::spawn_blocking(move || {
            for streams in receiver {
                if merging.take(&streams)? {
                    break;
                }
            }
            merging.finish()
        });
        let mut read_bytes = 0;
        let mut read = futures_util::stream::iter(names)
            .map(|name| self.read_streams(name, lineage, kept))
            .buffered(READ_AHEAD);
        let mut done = 0;
        while let Some((streams, bytes)) = read.try_next().await? {
            read_bytes += bytes;
            done += 1;
            progress(done, total);
            // The other end is gone: it has reached the moment, or failed.
            let sender = sender.clone();
            if blocking(move || sender.send(streams)).await.is_err() {
                break;
            }
        }
        drop((sender, read));
        let (outcome, segments) = match merged.await {
            Ok(merged) => merged?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        Ok(Replayable { outcome, read_bytes, segments })
    }
}
