//! One object of archived WAL: a range of the log, split into a stream for each database, each sealed by itself.
//!
//! ```text
//! "LWW2"  salt (16)  length of the sealed header (4, little-endian)
//! header   JSON, zstd, sealed with the shared key
//! streams  zstd, each sealed with its database's key; what all share comes first
//! ```
//!
//! Who restores one database reads the header and two streams. Oids and sizes tell how busy a tenant is, so the header
//! is sealed as well.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::keys::{DatabaseOid, SHARED};
use crate::repository::{Repository, RepositoryError};
use crate::seal::{DataKey, ObjectKey, SALT_BYTES, Salt, random};
use crate::wal::{Carry, Geometry, Range};

const MAGIC: &[u8; 4] = b"LWW2";
const PREAMBLE_BYTES: usize = MAGIC.len() + SALT_BYTES + 4;
/// Level 3 compresses a stream to less than a quarter at some hundred megabytes a second.
const COMPRESSION_LEVEL: i32 = 3;
/// Enough for the preamble, the header and, mostly, the stream of what all share: one read of a restore.
const FIRST_READ_BYTES: u64 = 64 << 10;
/// No stream of a range can be longer: a segment has at most 1 GiB, and a stream adds little.
const STREAM_BYTES_MAX: u64 = 3 << 30;

/// What an object says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// The range that it holds: a whole segment, or a piece of one that is not complete yet.
    pub(crate) range: Range,
    pub(crate) geometry: Geometry,
    /// BLAKE3 of the range's bytes, hexadecimal.
    pub(crate) content: String,
    /// What the range after this one must know.
    pub(crate) carry: Option<Carry>,
    /// When the first and the last of its transactions ended, in microseconds since 2000.
    pub(crate) commits: Option<(i64, i64)>,
    pub(crate) records: u64,
    streams: Vec<Stream>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stream {
    database: DatabaseOid,
    /// From the end of the header.
    offset: u64,
    /// Bytes as it is stored, and before that.
    stored: u64,
    plain: u64,
}

impl Header {
    pub(crate) fn new(range: Range, geometry: Geometry, content: &[u8]) -> Self {
        let content = blake3::hash(content).to_hex().to_string();
        Self { range, geometry, content, carry: None, commits: None, records: 0, streams: Vec::new() }
    }

    /// The databases that it has records of, beside what all share.
    pub(crate) fn databases(&self) -> impl Iterator<Item = DatabaseOid> + '_ {
        self.streams.iter().map(|stream| stream.database).filter(|&oid| oid != SHARED)
    }
}

/// Seals a range's streams into an object.
///
/// Fresh memory costs as much as what is done in it, so that each stream is packed in the same.
pub(crate) fn encode(
    repository: &Repository,
    name: &str,
    mut header: Header,
    streams: &BTreeMap<DatabaseOid, Vec<u8>>,
    keys: &BTreeMap<DatabaseOid, DataKey>,
) -> Vec<u8> {
    let salt: Salt = random();
    let (mut object, mut sealed) = (Vec::new(), Vec::new());
    let mut compressor = zstd::bulk::Compressor::new(COMPRESSION_LEVEL).expect("zstd knows the level");
    let mut pack = |plain: &[u8], packed: &mut Vec<u8>| {
        packed.clear();
        packed.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        compressor.compress_to_buffer(plain, packed).expect("there is room for what does not compress");
    };
    // The order of oids puts what all share first.
    for (&database, stream) in streams {
        pack(stream, &mut sealed);
        stream_key(repository, name, &keys[&database], &salt, database).seal(0, &mut sealed);
        let (offset, stored, plain) = (object.len() as u64, sealed.len() as u64, stream.len() as u64);
        header.streams.push(Stream { database, offset, stored, plain });
        object.extend_from_slice(&sealed);
    }
    let json = serde_json::to_vec(&header).expect("a header is JSON");
    pack(&json, &mut sealed);
    header_key(repository, name, &salt).seal(0, &mut sealed);
    let length = u32::try_from(sealed.len()).expect("a header is short");
    object.splice(..0, [MAGIC, &salt[..], &length.to_le_bytes(), &sealed].concat());
    object
}

fn header_key(repository: &Repository, name: &str, salt: &Salt) -> ObjectKey {
    repository.keys.shared().object(salt, &repository.identity(name, "header"))
}

fn stream_key(
    repository: &Repository,
    name: &str,
    key: &DataKey,
    salt: &Salt,
    database: DatabaseOid,
) -> ObjectKey {
    key.object(salt, &repository.identity(name, &format!("stream {database}")))
}

/// The beginning of an object: its header, and where its streams begin.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    name: String,
    pub(crate) header: Header,
    salt: Salt,
    body: u64,
    /// What was read of the object so far, from its first byte.
    head: Bytes,
}

impl Opened {
    /// Opens an object of which the first bytes are there. `Ok(Err(n))`: it takes `n` bytes.
    fn parse(
        repository: &Repository,
        name: &str,
        head: &Bytes,
    ) -> Result<Result<Self, u64>, RepositoryError> {
        let damaged = |why: &str| RepositoryError::damaged(name, why);
        let preamble = head.get(..PREAMBLE_BYTES).ok_or_else(|| damaged("it is too short"))?;
        let (magic, rest) = preamble.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(damaged("it is no archived WAL"));
        }
        let (salt, length) = rest.split_at(SALT_BYTES);
        let salt: Salt = salt.try_into().expect("it was cut to that length");
        let length = u32::from_le_bytes(length.try_into().expect("four bytes are left")) as usize;
        let end = PREAMBLE_BYTES + length;
        let Some(sealed) = head.get(PREAMBLE_BYTES..end) else { return Ok(Err(end as u64)) };
        let mut sealed = sealed.to_vec();
        let opened = header_key(repository, name, &salt).open(0, &mut sealed);
        let opened = opened.map_err(|_| RepositoryError::does_not_open(name))?;
        let json = zstd::decode_all(opened).map_err(|error| RepositoryError::damaged(name, error))?;
        let header = serde_json::from_slice(&json).map_err(|error| RepositoryError::damaged(name, error))?;
        Ok(Ok(Self { name: name.to_owned(), header, salt, body: end as u64, head: head.clone() }))
    }

    /// Opens an object that is there whole.
    pub(crate) fn whole(repository: &Repository, name: &str, object: Bytes) -> Result<Self, RepositoryError> {
        Self::parse(repository, name, &object)?.map_err(|_| RepositoryError::damaged(name, "it is too short"))
    }

    /// Reads an object's header. `None`: there is no such object.
    pub(crate) async fn read(repository: &Repository, name: &str) -> Result<Option<Self>, RepositoryError> {
        let mut bytes = FIRST_READ_BYTES;
        loop {
            let Some(head) = repository.store.get_range(name, 0..bytes).await? else { return Ok(None) };
            match Self::parse(repository, name, &head)? {
                Ok(opened) => return Ok(Some(opened)),
                Err(needed) if needed > bytes => bytes = needed,
                Err(_) => return Err(RepositoryError::damaged(name, "it is too short")),
            }
        }
    }

    /// Reads an object's header, if the object is all there. `None`: there is none, or only a part of one, as a store
    /// leaves it that is not atomic.
    pub(crate) async fn read_whole(
        repository: &Repository,
        name: &str,
    ) -> Result<Option<Self>, RepositoryError> {
        let read = async {
            let Some(opened) = Self::read(repository, name).await? else { return Ok(None) };
            let streams = opened.header.streams.iter();
            let bytes = opened.body + streams.map(|stream| stream.stored).sum::<u64>();
            match repository.store.size(name).await? {
                Some(there) if there != bytes => Err(RepositoryError::damaged(name, "it is too short")),
                _ => Ok(Some(opened)),
            }
        };
        match read.await {
            Err(error @ RepositoryError::Damaged { .. }) => {
                tracing::error!(%error, "it is stored again");
                Ok(None)
            }
            read => read,
        }
    }

    /// Opens every stream of an object that is there whole, in the order of their databases.
    pub(crate) fn streams_of_whole(
        &self,
        repository: &Repository,
        keys: &BTreeMap<DatabaseOid, DataKey>,
    ) -> Result<Vec<Vec<u8>>, RepositoryError> {
        let streams = self.header.streams.iter();
        let missing = || RepositoryError::damaged(&self.name, "it is too short");
        streams
            .map(|stream| {
                let key = if stream.database == SHARED {
                    repository.keys.shared()
                } else {
                    &keys[&stream.database]
                };
                let (from, to) = self.place(stream)?;
                let sealed = self.head.get(from..to).ok_or_else(missing)?;
                self.open(repository, stream, key, sealed)
            })
            .collect()
    }

    /// Whether an object that is there whole gives back just these streams. They are opened one after another in `memory`,
    /// whatever that held.
    pub(crate) fn holds(
        &self,
        repository: &Repository,
        keys: &BTreeMap<DatabaseOid, DataKey>,
        streams: &BTreeMap<DatabaseOid, Vec<u8>>,
        memory: &mut Vec<u8>,
    ) -> Result<bool, RepositoryError> {
        let databases = self.header.streams.iter().map(|stream| stream.database);
        if !databases.eq(streams.keys().copied()) {
            return Ok(false);
        }
        let mut opener =
            zstd::bulk::Decompressor::new().map_err(|error| RepositoryError::damaged(&self.name, error))?;
        let mut sealed = Vec::new();
        for (stream, expected) in self.header.streams.iter().zip(streams.values()) {
            let (from, to) = self.place(stream)?;
            let Some(stored) = self.head.get(from..to) else { return Ok(false) };
            sealed.clear();
            sealed.extend_from_slice(stored);
            let key =
                stream_key(repository, &self.name, &keys[&stream.database], &self.salt, stream.database);
            let Ok(opened) = key.open(0, &mut sealed) else { return Ok(false) };
            memory.clear();
            memory.reserve(expected.len());
            let unpacked = opener.decompress_to_buffer(opened, memory);
            if unpacked.is_err() || stream.plain != expected.len() as u64 || memory != expected {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where a stream is in its object.
    fn place(&self, stream: &Stream) -> Result<(usize, usize), RepositoryError> {
        let wrong = || RepositoryError::damaged(&self.name, "its header is wrong");
        if stream.plain > STREAM_BYTES_MAX || stream.stored > STREAM_BYTES_MAX || stream.offset > 1 << 40 {
            return Err(wrong());
        }
        let begin = self.body + stream.offset;
        let range = usize::try_from(begin).ok().zip(usize::try_from(begin + stream.stored).ok());
        range.ok_or_else(wrong)
    }

    fn open(
        &self,
        repository: &Repository,
        stream: &Stream,
        key: &DataKey,
        sealed: &[u8],
    ) -> Result<Vec<u8>, RepositoryError> {
        let key = stream_key(repository, &self.name, key, &self.salt, stream.database);
        let mut sealed = sealed.to_vec();
        let opened = key.open(0, &mut sealed).map_err(|_| RepositoryError::does_not_open(&self.name))?;
        let plain = usize::try_from(stream.plain).unwrap_or(usize::MAX);
        zstd::bulk::decompress(opened, plain).map_err(|error| RepositoryError::damaged(&self.name, error))
    }

    /// Reads a stream. `None`: the range has no records of that database.
    pub(crate) async fn stream(
        &self,
        repository: &Repository,
        database: DatabaseOid,
        key: &DataKey,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let Some(stream) = self.header.streams.iter().find(|stream| stream.database == database) else {
            return Ok(None);
        };
        let (from, to) = self.place(stream)?;
        if let Some(sealed) = self.head.get(from..to) {
            return self.open(repository, stream, key, sealed).map(Some);
        }
        let read = repository.store.get_range(&self.name, from as u64..to as u64).await?;
        let sealed = read.ok_or_else(|| RepositoryError::Gone { name: self.name.clone() })?;
        self.open(repository, stream, key, &sealed).map(Some)
    }
}
