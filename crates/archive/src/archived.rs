//! WAL in and out of the repository.
//!
//! `archive_command` may be called again for a segment it had pushed, after a crash: the same content is success,
//! other content an error. PostgreSQL removes its own copy once a push returns, so a push returns only when the
//! object and its name are on disk.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use loomworks_core::durable;
use loomworks_core::lsn::{Lsn, Segment};

use crate::repository::{Repository, RepositoryError, blocking, io_error};
use crate::segment::Header;

/// Level 3 compresses WAL to a quarter at several hundred megabytes a second.
const COMPRESSION_LEVEL: i32 = 3;

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
        }
    }
}

impl Repository {
    /// Stores a WAL segment, a timeline history or a backup label.
    pub async fn push(&self, path: &Path) -> Result<Pushed, PushError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let target = self.object(&name).ok_or_else(|| PushError::Name(name.clone()))?;
        let read = path.to_owned();
        let content = blocking(move || std::fs::read(&read).map_err(io_error("read", &read))).await?;
        if let Some(segment) = Segment::from_file_name(&name, self.cluster.segment_bytes) {
            self.check(&name, segment, &content)?;
        }
        blocking(move || store(&target, &content)).await?.ok_or(PushError::Differs(name))
    }

    /// Refuses what is not a segment of this cluster or not the one its name says.
    fn check(&self, name: &str, segment: Segment, content: &[u8]) -> Result<(), PushError> {
        let expected = self.cluster.segment_bytes;
        let name = name.to_owned();
        let header = Header::read(content)
            .filter(|header| content.len() as u64 == expected && u64::from(header.segment_bytes) == expected);
        let Some(header) = header else {
            return Err(PushError::NotASegment { name, expected });
        };
        if header.system_identifier != self.cluster.system_identifier {
            let (theirs, ours) = (header.system_identifier, self.cluster.system_identifier);
            return Err(PushError::OtherCluster { name, theirs, ours });
        }
        if header.start != segment.number * expected {
            return Err(PushError::Misnamed { name });
        }
        Ok(())
    }

    /// Brings a WAL file back to `to`. `Ok(false)`: the repository does not have it, which is how recovery learns
    /// that it has reached the end.
    pub async fn fetch(&self, name: &str, to: &Path) -> Result<bool, RepositoryError> {
        let Some(object) = self.object(name) else { return Ok(false) };
        let to = to.to_owned();
        blocking(move || match read_object(&object)? {
            Some(content) => durable::write(&to, &content).map_err(io_error("write", &to)).map(|()| true),
            None => Ok(false),
        })
        .await
    }

    /// Whether everything from the segment that holds `from` up to the byte before `to` is here.
    pub async fn has(&self, timeline: u32, from: Lsn, to: Lsn) -> Result<bool, RepositoryError> {
        let bytes = self.cluster.segment_bytes;
        let (first, last) = (Segment::at(timeline, from, bytes), Segment::before(timeline, to, bytes));
        let objects: Vec<PathBuf> = (first.number..=last.number)
            .filter_map(|number| self.object(&Segment { timeline, number }.file_name(bytes)))
            .collect();
        blocking(move || Ok(objects.iter().all(|object| object.exists()))).await
    }

    /// The end of the newest archived segment of a timeline: how far the archive has come.
    pub async fn archived_up_to(&self, timeline: u32) -> Result<Option<Lsn>, RepositoryError> {
        let directory = self.wal_directory().join(format!("{timeline:08X}"));
        let bytes = self.cluster.segment_bytes;
        blocking(move || {
            let entries = match std::fs::read_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                entries => entries.map_err(io_error("list", &directory))?,
            };
            let newest = entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter_map(|name| Segment::from_file_name(name.strip_suffix(".zst")?, bytes))
                .max();
            Ok(newest.map(|segment| segment.end(bytes)))
        })
        .await
    }

    /// Where a WAL file is kept. `None` for a name that PostgreSQL does not give.
    fn object(&self, name: &str) -> Option<PathBuf> {
        let known = matches!(name.len(), 16 | 24 | 32 | 40)
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
        let timeline = name.get(..8)?;
        (known && timeline.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| self.wal_directory().join(timeline).join(format!("{name}.zst")))
    }
}

/// `Ok(None)`: another content is stored under that name.
fn store(object: &Path, content: &[u8]) -> Result<Option<Pushed>, RepositoryError> {
    if let Some(there) = read_object(object)? {
        return Ok((there == content).then_some(Pushed::AlreadyThere));
    }
    let compressed = compress(content).map_err(io_error("compress", object))?;
    if let Some(directory) = object.parent() {
        durable::create_dir_all(directory).map_err(io_error("make", directory))?;
    }
    if durable::write_if_absent(object, &compressed).map_err(io_error("write", object))? {
        return Ok(Some(Pushed::Stored));
    }
    // Somebody else wrote it between the look and the write.
    Ok((read_object(object)?.as_deref() == Some(content)).then_some(Pushed::AlreadyThere))
}

/// A zstd frame with its length and a checksum, so that a damaged object is noticed when it is read.
fn compress(content: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::with_capacity(content.len() / 3), COMPRESSION_LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(content.len() as u64))?;
    encoder.write_all(content)?;
    encoder.finish()
}

fn read_object(object: &Path) -> Result<Option<Vec<u8>>, RepositoryError> {
    let mut compressed = Vec::new();
    match std::fs::File::open(object) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => {
            file.and_then(|mut file| file.read_to_end(&mut compressed)).map_err(io_error("read", object))?
        }
    };
    zstd::decode_all(&compressed[..])
        .map(Some)
        .map_err(|source| RepositoryError::Damaged { path: object.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::ClusterIdentity;
    use crate::segment::tests::segment;

    const BYTES: u32 = 1 << 20;

    async fn repository() -> (tempfile::TempDir, Repository) {
        let dir = tempfile::tempdir().unwrap();
        let cluster =
            ClusterIdentity { system_identifier: 42, segment_bytes: u64::from(BYTES), major_version: 15 };
        let repository = Repository::create(&dir.path().join("repository"), cluster).await.unwrap();
        (dir, repository)
    }

    /// Writes a segment as PostgreSQL would and pushes it.
    async fn push(
        repository: &Repository,
        number: u64,
        system_identifier: u64,
        seed: u8,
    ) -> Result<Pushed, PushError> {
        let header =
            Header { timeline: 1, start: number * u64::from(BYTES), system_identifier, segment_bytes: BYTES };
        let name = Segment { timeline: 1, number }.file_name(u64::from(BYTES));
        let path = repository.root().with_file_name(name);
        durable::write(&path, &segment(header, seed)).unwrap();
        repository.push(&path).await
    }

    #[tokio::test]
    async fn pushing_twice_is_success_and_other_content_is_not() {
        let (_dir, repository) = repository().await;
        assert_eq!(push(&repository, 3, 42, 1).await.unwrap(), Pushed::Stored);
        assert_eq!(push(&repository, 3, 42, 1).await.unwrap(), Pushed::AlreadyThere);
        let error = push(&repository, 3, 42, 2).await.unwrap_err();
        assert!(matches!(error, PushError::Differs(_)), "{error}");
        let to = repository.root().with_file_name("back");
        assert!(repository.fetch("000000010000000000000003", &to).await.unwrap());
        assert_eq!(std::fs::read(to).unwrap()[100], 1, "the first content is kept");
    }

    #[tokio::test]
    async fn another_clusters_segment_is_refused() {
        let (_dir, repository) = repository().await;
        let error = push(&repository, 3, 43, 1).await.unwrap_err();
        assert!(matches!(error, PushError::OtherCluster { theirs: 43, ours: 42, .. }), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_segment_is_refused() {
        let (dir, repository) = repository().await;
        let path = dir.path().join("000000010000000000000004");
        durable::write(&path, b"short").unwrap();
        assert!(matches!(repository.push(&path).await.unwrap_err(), PushError::NotASegment { .. }));
        for name in
            ["passwd", "../../../../etc/passwd", "", "0000000100000000000000zz..", "xxxxxxxxxxxxxxxxxxxxxxxx"]
        {
            let error = repository.push(&dir.path().join(name)).await.unwrap_err();
            assert!(matches!(error, PushError::Name(_)), "{name}: {error}");
            assert!(!repository.fetch(name, &dir.path().join("to")).await.unwrap(), "{name}");
        }
    }

    #[tokio::test]
    async fn a_gap_is_noticed() {
        let (_dir, repository) = repository().await;
        for number in [1, 2, 4] {
            push(&repository, number, 42, 1).await.unwrap();
        }
        let at = |number: u64| Lsn(number * u64::from(BYTES));
        assert_eq!(repository.archived_up_to(1).await.unwrap(), Some(at(5)));
        assert!(repository.has(1, at(1), at(3)).await.unwrap(), "segments 1 and 2");
        assert!(!repository.has(1, at(1), at(5)).await.unwrap(), "3 is missing");
        assert!(repository.has(1, at(4), Lsn(at(5).0 - 7)).await.unwrap());
        assert_eq!(repository.archived_up_to(2).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_damaged_object_is_never_given_out() {
        let (_dir, repository) = repository().await;
        push(&repository, 1, 42, 1).await.unwrap();
        let object = repository.object("000000010000000000000001").unwrap();
        let whole = std::fs::read(&object).unwrap();
        let content = std::fs::read(repository.root().with_file_name("000000010000000000000001")).unwrap();
        let to = repository.root().with_file_name("to");
        let cut = (1..whole.len()).map(|at| whole[..at].to_vec());
        let flipped = (0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            bytes
        });
        for damaged in cut.chain(flipped) {
            durable::write(&object, &damaged).unwrap();
            let fetched = repository.fetch("000000010000000000000001", &to).await;
            // A flip in a reserved bit of the frame may leave the content whole; it must then be the same.
            match fetched {
                Err(RepositoryError::Damaged { .. }) => {}
                Ok(true) => assert_eq!(std::fs::read(&to).unwrap(), content),
                other => panic!("{other:?}"),
            }
        }
    }
}
