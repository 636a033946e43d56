//! Which WAL is in the repository.
//!
//! What was seen once is remembered, so that asking often costs one listing of what came since. A name that was seen
//! may have been removed since by retention: who reads it finds out.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use loomworks_core::lsn::{Lsn, Segment};

use crate::lineage::Lineage;
use crate::repository::{Repository, RepositoryError, segment_name};

/// What is known of each timeline. Cheap to clone; clones know the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(Arc<Mutex<HashMap<u32, Known>>>);

#[derive(Clone, Debug, Default)]
struct Known {
    segments: BTreeSet<u64>,
    /// Of segments that are not complete: which positions are there, from, to.
    pieces: BTreeMap<u64, BTreeMap<Lsn, Lsn>>,
    /// When the newest of its objects was stored.
    newest_at: Option<Timestamp>,
}

/// The name below which a segment's pieces are kept until it is complete.
pub(crate) fn pieces_name(segment: Segment, segment_bytes: u64) -> String {
    format!("{}.pieces", segment_name(segment, segment_bytes))
}

/// Where a piece is kept.
pub(crate) fn piece_name(segment: Segment, segment_bytes: u64, from: Lsn, to: Lsn) -> String {
    format!("{}/{:016X}-{:016X}", pieces_name(segment, segment_bytes), from.0, to.0)
}

impl Known {
    fn note(&mut self, name: &str, segment_bytes: u64) {
        let mut parts = name.split('/').skip(2);
        let (Some(file), piece) = (parts.next(), parts.next()) else { return };
        match (piece, file.strip_suffix(".pieces")) {
            (None, None) => {
                if let Some(segment) = Segment::from_file_name(file, segment_bytes) {
                    self.segments.insert(segment.number);
                    self.pieces.remove(&segment.number);
                }
            }
            (Some(piece), Some(file)) => {
                let position = |hex: &str| u64::from_str_radix(hex, 16).ok().map(Lsn);
                let ends = piece.split_once('-').and_then(|(from, to)| position(from).zip(position(to)));
                if let Some((segment, (from, to))) = Segment::from_file_name(file, segment_bytes).zip(ends)
                    && !self.segments.contains(&segment.number)
                {
                    let pieces = self.pieces.entry(segment.number).or_default();
                    // Of two that begin alike the longer holds the other.
                    let end = pieces.entry(from).or_insert(to);
                    *end = to.max(*end);
                }
            }
            _ => {}
        }
    }

    /// Up to where a segment is there from its first byte on.
    fn reach(&self, number: u64, segment_bytes: u64) -> Lsn {
        let start = Lsn(number * segment_bytes);
        if self.segments.contains(&number) {
            return Lsn(start.0 + segment_bytes);
        }
        self.chain(number, segment_bytes).last().map_or(start, |&(_, to)| to)
    }

    /// The pieces of a segment that follow each other from its first byte on.
    fn chain(&self, number: u64, segment_bytes: u64) -> Vec<(Lsn, Lsn)> {
        let mut at = Lsn(number * segment_bytes);
        let pieces = self.pieces.get(&number);
        let mut chain = Vec::new();
        while let Some(&to) = pieces.and_then(|pieces| pieces.get(&at)).filter(|&&to| to > at) {
            chain.push((at, to));
            at = to;
        }
        chain
    }
}

impl Repository {
    /// What is known of a timeline, after a look at what came since.
    async fn known(&self, timeline: u32) -> Result<Known, RepositoryError> {
        let bytes = self.cluster.segment_bytes;
        let mut known = self.coverage.lock().remove(&timeline).unwrap_or_default();
        // A segment that came late, because two archive side by side, must not be missed: the look begins before the
        // first gap.
        let numbers = known.segments.iter().zip(known.segments.iter().skip(1));
        let gap = numbers.filter(|(a, b)| **a + 1 != **b).map(|(a, _)| *a).next();
        let after = gap.or_else(|| known.segments.last().copied());
        let after = after.map(|number| segment_name(Segment { timeline, number }, bytes));
        known.pieces.clear();
        let listed = self.store.list_after(&format!("wal/{timeline:08X}"), after.as_deref()).await?;
        for entry in &listed {
            known.note(&entry.name, bytes);
            known.newest_at = known.newest_at.max(Some(entry.modified_at));
        }
        self.coverage.lock().insert(timeline, known.clone());
        Ok(known)
    }

    /// Whether all WAL from `from` up to the byte before `to` is here, read on `timeline` and those it came from.
    pub async fn has(&self, timeline: u32, from: Lsn, to: Lsn) -> Result<bool, RepositoryError> {
        let lineage = self.lineage(timeline).await?;
        match self.objects(&lineage, from, Some(to)).await {
            Ok(_) => Ok(true),
            Err(RepositoryError::Gone { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How far the archive of a timeline has come: the end of its newest WAL. Whether all before it is there says
    /// [`Self::has`].
    pub async fn archived_up_to(&self, timeline: u32) -> Result<Option<Lsn>, RepositoryError> {
        Ok(self.newest_wal(timeline).await?.0)
    }

    /// The same, and when its newest WAL was stored.
    pub async fn newest_wal(
        &self,
        timeline: u32,
    ) -> Result<(Option<Lsn>, Option<Timestamp>), RepositoryError> {
        let bytes = self.cluster.segment_bytes;
        let known = self.known(timeline).await?;
        let newest = known.segments.last().copied().into_iter().chain(known.pieces.keys().copied()).max();
        let reach = newest.map(|number| known.reach(number, bytes));
        let reach = reach.filter(|reach| !known.segments.is_empty() || reach.0 % bytes != 0);
        Ok((reach, known.newest_at))
    }

    /// The objects that hold the WAL from the segment of `from` up to `to`, in order. `None`: up to where it goes.
    pub(crate) async fn objects(
        &self,
        lineage: &Lineage,
        from: Lsn,
        to: Option<Lsn>,
    ) -> Result<Vec<String>, RepositoryError> {
        let bytes = self.cluster.segment_bytes;
        let mut names = Vec::new();
        let mut number = from.0 / bytes;
        let mut known: HashMap<u32, Known> = HashMap::new();
        while to.is_none_or(|to| number * bytes < to.0) {
            let timeline = lineage.of_segment(number, bytes);
            if let Entry::Vacant(vacant) = known.entry(timeline) {
                vacant.insert(self.known(timeline).await?);
            }
            let (known, segment) = (&known[&timeline], Segment { timeline, number });
            let end = Lsn((number + 1) * bytes);
            if known.segments.contains(&number) {
                names.push(segment_name(segment, bytes));
            } else {
                let chain = known.chain(number, bytes);
                names.extend(chain.iter().map(|&(from, to)| piece_name(segment, bytes, from, to)));
            }
            let reach = known.reach(number, bytes);
            if to.is_some_and(|to| reach < to.min(end)) {
                return Err(RepositoryError::Gone { name: segment_name(segment, bytes) });
            }
            if reach < end {
                break;
            }
            number += 1;
        }
        Ok(names)
    }
}

impl Coverage {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was seen: something was removed.
    pub(crate) fn forget(&self) {
        self.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::keys::PassingProvider;
    use crate::repository::ClusterIdentity;
    use crate::store::Location;

    const BYTES: u64 = 1 << 20;

    async fn repository() -> (tempfile::TempDir, Repository) {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterIdentity { system_identifier: 42, segment_bytes: BYTES, major_version: 15 };
        let location = Location::Directory(dir.path().to_owned());
        let provider = Arc::new(PassingProvider::default());
        (dir, Repository::create(&location, cluster, provider).await.unwrap())
    }

    async fn put(repository: &Repository, name: String) {
        repository.store.replace(&name, Bytes::new()).await.unwrap();
    }

    fn at(number: u64) -> Lsn {
        Lsn(number * BYTES)
    }

    #[tokio::test]
    async fn a_gap_is_noticed_and_its_end_too() {
        let (_dir, repository) = repository().await;
        let segment = |number| segment_name(Segment { timeline: 1, number }, BYTES);
        assert_eq!(repository.archived_up_to(1).await.unwrap(), None);
        for number in [1, 2, 4] {
            put(&repository, segment(number)).await;
        }
        assert_eq!(repository.archived_up_to(1).await.unwrap(), Some(at(5)));
        assert!(repository.has(1, at(1), at(3)).await.unwrap(), "segments 1 and 2");
        assert!(!repository.has(1, at(1), at(5)).await.unwrap(), "3 is missing");
        assert!(repository.has(1, at(4), Lsn(at(5).0 - 7)).await.unwrap());
        put(&repository, segment(3)).await;
        assert!(repository.has(1, at(1), at(5)).await.unwrap(), "3 came late");
        assert_eq!(repository.archived_up_to(2).await.unwrap(), None);
    }

    #[tokio::test]
    async fn pieces_count_where_they_follow_each_other() {
        let (_dir, repository) = repository().await;
        let segment = Segment { timeline: 1, number: 2 };
        let piece = |from: u64, to: u64| piece_name(segment, BYTES, Lsn(at(2).0 + from), Lsn(at(2).0 + to));
        put(&repository, segment_name(Segment { timeline: 1, number: 1 }, BYTES)).await;
        for (from, to) in [(0, 100), (100, 200), (300, 400)] {
            put(&repository, piece(from, to)).await;
        }
        assert!(repository.has(1, at(1), Lsn(at(2).0 + 200)).await.unwrap());
        assert!(!repository.has(1, at(1), Lsn(at(2).0 + 201)).await.unwrap());
        assert_eq!(repository.archived_up_to(1).await.unwrap(), Some(Lsn(at(2).0 + 200)));
        let lineage = Lineage::first(1);
        let objects = repository.objects(&lineage, at(1), None).await.unwrap();
        assert_eq!(
            objects,
            [segment_name(Segment { timeline: 1, number: 1 }, BYTES), piece(0, 100), piece(100, 200)]
        );
        let missing = repository.objects(&lineage, at(1), Some(Lsn(at(2).0 + 300))).await;
        assert!(matches!(missing, Err(RepositoryError::Gone { .. })));
        // All of it is there in pieces, and the segment after it: what is said to be there can be read.
        put(&repository, piece(200, BYTES)).await;
        assert_eq!(repository.archived_up_to(1).await.unwrap(), Some(at(3)), "complete in pieces");
        put(&repository, segment_name(Segment { timeline: 1, number: 3 }, BYTES)).await;
        assert!(repository.has(1, at(1), at(4)).await.unwrap());
        assert_eq!(repository.objects(&lineage, at(1), None).await.unwrap().len(), 5);
        assert_eq!(repository.archived_up_to(1).await.unwrap(), Some(at(4)));
        put(&repository, segment_name(segment, BYTES)).await;
        assert_eq!(repository.objects(&lineage, at(1), None).await.unwrap().len(), 3, "complete now");
        assert_eq!(repository.archived_up_to(1).await.unwrap(), Some(at(4)), "as far as before");
    }

    #[tokio::test]
    async fn what_a_timeline_came_from_counts_up_to_where_it_left() {
        let (_dir, repository) = repository().await;
        for (timeline, number) in [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3)] {
            put(&repository, segment_name(Segment { timeline, number }, BYTES)).await;
        }
        let history = format!("1\t{}\tx\n", Lsn(at(2).0 + 50));
        let name = crate::repository::history_name(2);
        repository.store.replace(&name, history.into()).await.unwrap();
        assert!(repository.has(2, at(1), at(4)).await.unwrap());
        let lineage = repository.lineage(2).await.unwrap();
        let objects = repository.objects(&lineage, at(1), Some(at(3))).await.unwrap();
        assert_eq!(
            objects,
            [(1, 1), (2, 2)].map(|(timeline, number)| segment_name(Segment { timeline, number }, BYTES))
        );
    }
}
