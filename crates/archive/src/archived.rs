//! WAL in and out of the repository.
//!
//! `archive_command` may be called again for a segment it had pushed, after a crash: the same content is success,
//! other content an error. PostgreSQL removes its own copy once a push returns, so a push returns only when the
//! object and its name are safe, and only after what is stored was put together again and compared.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use loomworks_core::durable;
use loomworks_core::lsn::Segment;

use crate::keys::{DatabaseOid, Found, SHARED};
use crate::lineage::Lineage;
use crate::range::{Header, Opened, encode};
use crate::repository::{Repository, RepositoryError, blocking, file_error, segment_name};
use crate::seal::DataKey;
use crate::wal::{self, Carry, Geometry, Range, Tail};

/// What a push found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pushed {
    Stored,
    /// It was there with the same content.
    AlreadyThere,
}

#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("`{0}` is not the name of a WAL file")]
    Name(String),
    #[error("`{name}` is not a WAL segment of {expected} bytes")]
    NotASegment { name: String, expected: u64 },
    #[error("segment `{name}` is of cluster {theirs}, the repository of cluster {ours}")]
    OtherCluster { name: String, theirs: u64, ours: u64 },
    #[error("segment `{name}` has the position of another segment in its header")]
    Misnamed { name: String },
    #[error("segment `{0}` is already archived with other content")]
    Differs(String),
    #[error(
        "segment `{name}` begins within a record, and segment `{before}`, which has its beginning, is not archived"
    )]
    OutOfOrder { name: String, before: String },
    #[error("segment `{0}` put together again is not what it was")]
    NotProven(String),
    #[error("segment `{name}` cannot be read")]
    Version { name: String, source: wal::NoGeometry },
    #[error("segment `{name}` cannot be taken apart")]
    Split { name: String, source: wal::SplitError },
}

impl PushError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Repository(error) => error.hint(),
            Self::Name(_) => {
                Some("it is called by PostgreSQL as archive_command = 'loomworks wal push … %p'")
            }
            Self::NotASegment { .. } | Self::Misnamed { .. } => Some("is the disk below pg_wal damaged?"),
            Self::OtherCluster { .. } => Some("each cluster needs a repository of its own"),
            Self::Differs(_) => Some("two clusters may be archiving to one repository"),
            Self::OutOfOrder { .. } => Some(
                "it is archived once the segment before it is; if that one is lost for good, begin a new repository",
            ),
            Self::NotProven(_) => Some("please report it; PostgreSQL keeps the segment until it is archived"),
            Self::Version { .. } => Some("this program reads WAL of PostgreSQL 15 to 18"),
            Self::Split { .. } => Some("please report it; PostgreSQL keeps the segment until it is archived"),
        }
    }
}

/// What PostgreSQL archives.
enum Kind {
    Segment(Segment),
    /// The last of a timeline that was left: whole in length, but not to the end.
    Partial(Segment),
    /// A timeline's history. It says nothing of any tenant.
    History,
    /// What a backup says of itself; ours does it in its manifest.
    BackupLabel,
}

impl Kind {
    fn of(name: &str, segment_bytes: u64) -> Option<Self> {
        let segment = |name: &str| Segment::from_file_name(name, segment_bytes);
        if let Some(timeline) = name.strip_suffix(".history") {
            return (timeline.len() == 8 && timeline.bytes().all(|b| b.is_ascii_hexdigit()))
                .then_some(Self::History);
        }
        if let Some(name) = name.strip_suffix(".partial") {
            return segment(name).map(Self::Partial);
        }
        if let Some(name) = name.strip_suffix(".backup") {
            return segment(name.split('.').next()?).map(|_| Self::BackupLabel);
        }
        segment(name).map(Self::Segment)
    }
}

impl Repository {
    /// Stores a WAL segment or a timeline's history.
    pub async fn push(&self, path: &Path) -> Result<Pushed, PushError> {
        self.push_beside(path, path.parent()).await
    }

    /// The same. In the directory `beside` the segments before it may lie, should they not be archived yet.
    pub(crate) async fn push_beside(&self, path: &Path, beside: Option<&Path>) -> Result<Pushed, PushError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind =
            Kind::of(&name, self.cluster.segment_bytes).ok_or_else(|| PushError::Name(name.clone()))?;
        let read = path.to_owned();
        let content = blocking(move || std::fs::read(&read).map_err(file_error("read", &read))).await?;
        match kind {
            Kind::Segment(segment) => self.push_segment(&name, segment, content, false, beside).await,
            Kind::Partial(segment) => self.push_segment(&name, segment, content, true, beside).await,
            Kind::History => self.push_history(&name, content.into()).await,
            Kind::BackupLabel => Ok(Pushed::Stored),
        }
    }

    async fn push_history(&self, name: &str, content: Bytes) -> Result<Pushed, PushError> {
        let object = format!("wal/{}/{name}", &name[..8]);
        if self.store.put_new(&object, content.clone()).await.map_err(RepositoryError::from)? {
            return Ok(Pushed::Stored);
        }
        match self.store.get(&object).await.map_err(RepositoryError::from)? {
            Some(there) if there == content => Ok(Pushed::AlreadyThere),
            // A part of it, as a store leaves it that is not atomic.
            Some(there) if content.starts_with(&there) => {
                self.store.replace(&object, content).await.map_err(RepositoryError::from)?;
                Ok(Pushed::Stored)
            }
            _ => Err(PushError::Differs(name.to_owned())),
        }
    }

    async fn push_segment(
        &self,
        name: &str,
        segment: Segment,
        content: Vec<u8>,
        partial: bool,
        beside: Option<&Path>,
    ) -> Result<Pushed, PushError> {
        let geometry = self.check(name, segment, &content, content.len() as u64)?;
        let mut object = segment_name(segment, self.cluster.segment_bytes);
        if partial {
            object.push_str(".partial");
        }
        let range = Range::of_segment(segment, geometry.segment_bytes);
        let lineage = self.lineage(segment.timeline).await?;
        let there = Opened::read_whole(self, &object).await?;
        let carry = match &there {
            Some(_) if !partial => None,
            _ => self.carry_into(&lineage, segment, &content, beside).await?,
        };
        let content = match partial {
            true => alive(name, geometry, range, content, carry.clone()).await?,
            false => content,
        };
        let header = Header::new(range, geometry, &content);
        if let Some(there) = there {
            return same(name, &there, &header);
        }
        let sealed = self.seal_range(name, &object, &lineage, header.clone(), content, carry).await?;
        match self.put_whole(&object, sealed).await? {
            None => Ok(Pushed::Stored),
            // Somebody else wrote it between the look and the write.
            Some(there) => same(name, &there, &header),
        }
    }

    /// Stores a range unless it is there, and gives the one that is. What is there in part only, or damaged, makes way:
    /// it would keep out for ever what it should have been.
    pub(crate) async fn put_whole(
        &self,
        object: &str,
        sealed: Bytes,
    ) -> Result<Option<Opened>, RepositoryError> {
        if self.store.put_new(object, sealed.clone()).await? {
            return Ok(None);
        }
        let there = Opened::read_whole(self, object).await?;
        if there.is_none() {
            self.store.replace(object, sealed).await?;
        }
        Ok(there)
    }

    /// What the segment before one knows of a record that goes on in it: whose the record is.
    ///
    /// Without it the rest of a tenant's record would go to what all share. So a segment that begins within a record waits
    /// for the one before it, unless that lies beside it; only the very first of an archive may begin so. `head`: its first page,
    /// or all of it.
    pub(crate) async fn carry_into(
        &self,
        lineage: &Lineage,
        segment: Segment,
        head: &[u8],
        beside: Option<&Path>,
    ) -> Result<Option<Carry>, PushError> {
        let bytes = self.cluster.segment_bytes;
        let Some(number) = segment.number.checked_sub(1) else { return Ok(None) };
        let before = Segment { timeline: lineage.of_segment(number, bytes), number };
        if let Some(before) = Opened::read(self, &segment_name(before, bytes)).await? {
            return Ok(before.header.carry);
        }
        if !begins_within_a_record(head) {
            return Ok(None);
        }
        let name = before.file_name(bytes);
        if let Some(path) = beside.map(|beside| beside.join(&name)).filter(|path| path.is_file()) {
            let content = blocking(move || std::fs::read(&path).map_err(file_error("read", &path))).await?;
            // Recycled under its name, or not written yet, it is of no use.
            if let Ok(geometry) = self.check(&name, before, &content, content.len() as u64) {
                // A record may be longer than a segment.
                let carry = Box::pin(self.carry_into(lineage, before, &content, beside)).await?;
                let range = Range::of_segment(before, geometry.segment_bytes);
                let split =
                    blocking(move || wal::split(&geometry, &range, &content, carry.as_ref(), Tail::Kept))
                        .await;
                return Ok(split.map_err(|source| PushError::Split { name, source })?.carry);
            }
        }
        match self.archived_up_to(segment.timeline).await? {
            None => Ok(None),
            Some(_) => Err(PushError::OutOfOrder { name: segment.file_name(bytes), before: name }),
        }
    }

    /// Splits a range, seals its streams, and proves that the result gives the range back.
    pub(crate) async fn seal_range(
        &self,
        name: &str,
        object: &str,
        lineage: &Lineage,
        mut header: Header,
        content: Vec<u8>,
        carry: Option<Carry>,
    ) -> Result<Bytes, PushError> {
        let (range, geometry) = (header.range, header.geometry);
        let (taken, content) = blocking(move || {
            let taken = wal::split(&geometry, &range, &content, carry.as_ref(), Tail::Kept);
            (taken, content)
        })
        .await;
        let split = taken.map_err(|source| PushError::Split { name: name.to_owned(), source })?;
        let mut keys: BTreeMap<DatabaseOid, DataKey> = BTreeMap::new();
        for &oid in split.streams.keys() {
            let key = match oid {
                SHARED => self.keys.shared().clone(),
                _ => {
                    self.keys.find_or_make(oid, lineage, range.start).await.map_err(RepositoryError::from)?
                }
            };
            keys.insert(oid, key);
        }
        (header.carry, header.commits, header.records) = (split.carry, split.commit_times, split.records);
        let (repository, object) = (self.clone(), object.to_owned());
        let proven = blocking(move || {
            let hash = header.content.clone();
            let sealed = Bytes::from(encode(&repository, &object, header, &split.streams, &keys));
            let opened = Opened::whole(&repository, &object, sealed.clone())?;
            // What is stored gives the streams, and the streams give the range. Its own memory does for both.
            let mut content = content;
            let mut proven = opened.holds(&repository, &keys, &split.streams, &mut content)?;
            if proven {
                let merged = put_together(&opened, split.streams.values(), content);
                proven = merged.is_ok_and(|merged| blake3::hash(&merged).to_hex().as_str() == hash);
            }
            Ok::<_, RepositoryError>(proven.then_some(sealed))
        });
        proven.await?.ok_or_else(|| PushError::NotProven(name.to_owned()))
    }

    /// Refuses what is not a segment of this cluster or not the one its name says.
    /// `head`: its first page, or all of it.
    pub(crate) fn check(
        &self,
        name: &str,
        segment: Segment,
        head: &[u8],
        len: u64,
    ) -> Result<Geometry, PushError> {
        let expected = self.cluster.segment_bytes;
        let name = name.to_owned();
        let geometry = match Geometry::of_segment(head) {
            Ok(geometry) => geometry,
            Err(wal::NoGeometry::NotASegment) => return Err(PushError::NotASegment { name, expected }),
            Err(source) => return Err(PushError::Version { name, source }),
        };
        if len != expected || u64::from(geometry.segment_bytes) != expected {
            return Err(PushError::NotASegment { name, expected });
        }
        if geometry.system_identifier != self.cluster.system_identifier {
            let (theirs, ours) = (geometry.system_identifier, self.cluster.system_identifier);
            return Err(PushError::OtherCluster { name, theirs, ours });
        }
        if page_address(head) != segment.number * expected {
            return Err(PushError::Misnamed { name });
        }
        Ok(geometry)
    }

    /// Brings a WAL file back to `to`. `Ok(false)`: the repository does not have it, which is how recovery learns
    /// that it has reached the end.
    pub async fn fetch(&self, name: &str, to: &Path) -> Result<bool, RepositoryError> {
        let bytes = self.cluster.segment_bytes;
        let content = match Kind::of(name, bytes) {
            None | Some(Kind::BackupLabel) => None,
            Some(Kind::History) => {
                self.store.get(&format!("wal/{}/{name}", &name[..8])).await?.map(|content| content.to_vec())
            }
            Some(Kind::Segment(segment)) => self.read_segment(segment, &segment_name(segment, bytes)).await?,
            Some(Kind::Partial(segment)) => {
                self.read_segment(segment, &format!("{}.partial", segment_name(segment, bytes))).await?
            }
        };
        let Some(content) = content else { return Ok(false) };
        let to = to.to_owned();
        blocking(move || durable::write(&to, &content).map_err(file_error("write", &to))).await?;
        Ok(true)
    }

    async fn read_segment(&self, segment: Segment, name: &str) -> Result<Option<Vec<u8>>, RepositoryError> {
        let Some(object) = self.store.get(name).await? else { return Ok(None) };
        let lineage = self.lineage(segment.timeline).await?;
        let opened = Opened::whole(self, name, object)?;
        let mut keys = BTreeMap::new();
        for oid in opened.header.databases() {
            match self.keys.find(oid, &lineage).await? {
                Found::Key(key) => drop(keys.insert(oid, key)),
                Found::Erased | Found::None => {
                    return Err(RepositoryError::damaged(
                        name,
                        format!("the key of database {oid} was deleted: restore without it"),
                    ));
                }
            }
        }
        let (repository, name) = (self.clone(), name.to_owned());
        blocking(move || {
            let merged = put_together(&opened, &opened.streams_of_whole(&repository, &keys)?, Vec::new());
            let merged = merged.map_err(|error| RepositoryError::damaged(&name, error))?;
            if blake3::hash(&merged).to_hex().as_str() != opened.header.content {
                return Err(RepositoryError::damaged(&name, "its content is not what it was"));
            }
            Ok(Some(merged))
        })
        .await
    }
}

/// Whether the first page goes on with a record of the page before it: `XLP_FIRST_IS_CONTRECORD` of `xlp_info`. Source:
/// PostgreSQL `src/include/access/xlog_internal.h`.
fn begins_within_a_record(head: &[u8]) -> bool {
    head.get(2).is_some_and(|flags| flags & 1 != 0)
}

/// `xlp_pageaddr` of the first page. Source: PostgreSQL `src/include/access/xlog_internal.h`.
fn page_address(head: &[u8]) -> u64 {
    head.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn same(name: &str, there: &Opened, ours: &Header) -> Result<Pushed, PushError> {
    match there.header.content == ours.content {
        true => Ok(Pushed::AlreadyThere),
        false => Err(PushError::Differs(name.to_owned())),
    }
}

fn put_together<'a>(
    opened: &Opened,
    streams: impl IntoIterator<Item = &'a Vec<u8>>,
    memory: Vec<u8>,
) -> Result<Vec<u8>, wal::Damaged> {
    let streams: Vec<&[u8]> = streams.into_iter().map(Vec::as_slice).collect();
    wal::merge_into(&opened.header.geometry, &opened.header.range, &streams, memory)
}

/// A range up to the end of valid WAL, with zeros behind it: what a recycled segment held before may be anybody's.
async fn alive(
    name: &str,
    geometry: Geometry,
    range: Range,
    mut content: Vec<u8>,
    carry: Option<Carry>,
) -> Result<Vec<u8>, PushError> {
    let name = name.to_owned();
    blocking(move || {
        let split = wal::split(&geometry, &range, &content, carry.as_ref(), Tail::Dead);
        let split = split.map_err(|source| PushError::Split { name, source })?;
        if let Some(end) = split.end {
            let alive = usize::try_from(end.0.saturating_sub(range.start.0)).unwrap_or(usize::MAX);
            content.iter_mut().skip(alive).for_each(|byte| *byte = 0);
        }
        Ok(content)
    })
    .await
}
