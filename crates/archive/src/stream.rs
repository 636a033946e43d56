//! Archiving as the WAL is written: the archive is seconds behind, not a segment.
//!
//! `pg_receivewal` receives into a directory of ours. What has come since the last look of a segment that is not complete
//! is stored as a piece of it; when the segment is, it is stored whole and its pieces go. `archive_command` may store
//! the same segments at the same time: one of both wins, the other finds it.

mod received;

use std::path::{Path, PathBuf};
use std::time::Duration;

use loomworks_core::lsn::{Lsn, Segment};
use loomworks_postgres::Cluster;
use loomworks_postgres::receive::{self, Received};
use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::archived::PushError;
use crate::coverage::{piece_name, pieces_name};
use crate::range::{Header, Opened};
use crate::repository::{Repository, RepositoryError, blocking, file_error};
use crate::wal::{self, Carry, Range, Tail};

/// The slot by which the server knows what was received.
pub const SLOT: &str = "loomworks_archiver";

/// How far behind the archive may be, but for what storing takes.
const INTERVAL: Duration = Duration::from_secs(1);

/// A segment that is being received.
struct Growing {
    segment: Segment,
    /// What is stored of it ends here.
    stored: Lsn,
    carry: Option<Carry>,
}

/// Receives and stores until it is told to stop.
pub async fn run(
    repository: Repository,
    cluster: Cluster,
    directory: PathBuf,
    mut stopped: watch::Receiver<bool>,
) {
    let mut archiver = Archiver { repository, cluster, directory, growing: None };
    while !*stopped.borrow() {
        if let Err(error) = archiver.receive(&mut stopped).await {
            warn!(
                error = &error as &dyn std::error::Error,
                "receiving WAL was interrupted; it is begun again"
            );
        }
        tokio::select! {
            () = told(&mut stopped) => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

struct Archiver {
    repository: Repository,
    cluster: Cluster,
    directory: PathBuf,
    growing: Option<Growing>,
}

impl Archiver {
    async fn receive(&mut self, stopped: &mut watch::Receiver<bool>) -> Result<(), PushError> {
        let failed = |error: loomworks_postgres::cluster::ClusterError| RepositoryError::File {
            what: "receive WAL into",
            path: PathBuf::from("the archiver's directory"),
            source: std::io::Error::other(error),
        };
        receive::ensure_slot(&self.cluster, SLOT).await.map_err(failed)?;
        let mut child = receive::start(&self.cluster, SLOT, &self.directory).map_err(failed)?;
        info!(slot = SLOT, "receiving WAL");
        loop {
            tokio::select! {
                () = told(stopped) => {
                    drop(child.kill().await);
                    // What came last is stored before the end.
                    return self.store().await;
                }
                status = child.wait() => {
                    let said = said(&mut child).await;
                    warn!(?status, said, "pg_receivewal ended");
                    return self.store().await;
                }
                () = tokio::time::sleep(INTERVAL) => {}
            }
            if let Err(error) = self.store().await {
                // The server keeps what is not archived by its archive_command, and the slot what was not received.
                warn!(
                    error = &error as &dyn std::error::Error,
                    "storing received WAL failed; it is tried again"
                );
            }
        }
    }

    /// Stores what was received and is not stored yet.
    async fn store(&mut self) -> Result<(), PushError> {
        let directory = self.directory.clone();
        let look = blocking(move || Received::look(&directory).map_err(file_error("list", &directory)));
        let received = look.await?;
        for name in &received.complete {
            self.store_complete(name).await?;
        }
        match received.partial_path(&self.directory).zip(received.partial) {
            Some((path, name)) => self.store_piece(&path, &name).await,
            None => Ok(()),
        }
    }

    async fn store_complete(&mut self, name: &str) -> Result<(), PushError> {
        let path = self.directory.join(name);
        let wal = self.cluster.directory.join("pg_wal");
        self.repository.push_beside(&path, Some(&wal)).await?;
        blocking(move || std::fs::remove_file(&path).map_err(file_error("remove", &path))).await?;
        let bytes = self.repository.cluster.segment_bytes;
        let Some(segment) = Segment::from_file_name(name, bytes) else { return Ok(()) };
        if self.growing.as_ref().is_some_and(|growing| growing.segment <= segment) {
            self.growing = None;
        }
        let pieces = self.repository.store.list(&pieces_name(segment, bytes)).await;
        let pieces = pieces.map_err(RepositoryError::from)?;
        let removed = self.repository.store.delete_all(pieces.into_iter().map(|entry| entry.name)).await;
        Ok(removed.map_err(RepositoryError::from)?)
    }

    async fn store_piece(&mut self, path: &Path, name: &str) -> Result<(), PushError> {
        let bytes = self.repository.cluster.segment_bytes;
        let Some(segment) = Segment::from_file_name(name, bytes) else { return Ok(()) };
        let (path, open) = (path.to_owned(), path.to_owned());
        let file = blocking(move || received::Partial::open(&open).map_err(file_error("read", &open)));
        // It is complete by now.
        let Some(file) = file.await? else { return Ok(()) };
        // The first record may not have come yet.
        let Ok(geometry) = self.repository.check(name, segment, &file.head, file.len) else { return Ok(()) };
        let growing = match self.growing.take().filter(|growing| growing.segment == segment) {
            Some(growing) => growing,
            None => self.begin(segment, &file.head).await?,
        };
        let growing = self.growing.insert(growing);
        let (from, start) = (growing.stored, Lsn(segment.number * bytes));
        let lineage = self.repository.lineage(segment.timeline).await?;
        let carry = growing.carry.clone();
        let (name, timeline) = (name.to_owned(), segment.timeline);
        let content = blocking(move || {
            let content = file.read_from(from.0 - start.0);
            let mut content = content.map_err(file_error("read", &path))?;
            let range = Range { timeline, start: from, end: Lsn(from.0 + content.len() as u64) };
            let split = wal::split(&geometry, &range, &content, carry.as_ref(), Tail::Dead);
            let split = split.map_err(|source| PushError::Split { name: name.clone(), source })?;
            let end = split.end.map_or(range.end, |end| end.max(from));
            content.truncate(usize::try_from(end.0 - from.0).unwrap_or(usize::MAX));
            Ok::<_, PushError>((name, content))
        });
        let (name, content) = content.await?;
        if content.is_empty() {
            return Ok(());
        }
        let to = Lsn(from.0 + content.len() as u64);
        let object = piece_name(segment, bytes, from, to);
        let header = Header::new(Range { timeline, start: from, end: to }, geometry, &content);
        let carry = growing.carry.clone();
        let sealed = self.repository.seal_range(&name, &object, &lineage, header, content, carry).await?;
        let carry = Opened::whole(&self.repository, &object, sealed.clone())?.header.carry;
        self.repository.put_whole(&object, sealed).await?;
        if let Some(growing) = &mut self.growing {
            (growing.stored, growing.carry) = (to, carry);
        }
        Ok(())
    }

    /// Goes on after the pieces that are there. `head`: its first page.
    async fn begin(&self, segment: Segment, head: &[u8]) -> Result<Growing, PushError> {
        let bytes = self.repository.cluster.segment_bytes;
        let start = Lsn(segment.number * bytes);
        let lineage = self.repository.lineage(segment.timeline).await?;
        let there = self.repository.objects(&lineage, start, None).await?;
        let pieces = pieces_name(segment, bytes);
        for last in there.iter().rev().filter(|name| name.starts_with(&pieces)) {
            match Opened::read_whole(&self.repository, last).await? {
                Some(last) => {
                    return Ok(Growing { segment, stored: last.header.range.end, carry: last.header.carry });
                }
                // Only a part of one. What is stored in its place may be shorter, and would count for less.
                None => self.repository.store.delete(last).await.map_err(RepositoryError::from)?,
            }
        }
        let wal = self.cluster.directory.join("pg_wal");
        let carry = self.repository.carry_into(&lineage, segment, head, Some(&wal)).await?;
        Ok(Growing { segment, stored: start, carry })
    }
}

/// Waits until it is told to stop.
async fn told(stopped: &mut watch::Receiver<bool>) {
    // Whoever would tell it is gone: that is told too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn said(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(stderr) = &mut child.stderr {
        drop(stderr.read_to_string(&mut text).await);
    }
    text.trim().to_owned()
}
