//! Where objects are kept: a directory, or a bucket that speaks S3.
//!
//! Only what every store can do in the same way is used: whole objects, written at once, read whole or by range. What
//! makes other objects count is written with [`Store::put_new`], which of several writers lets exactly one win;
//! [`probe`] proves that a store honours that.

mod bucket;
pub mod probe;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use loomworks_core::{SecretString, durable};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, PutResult,
};

pub use bucket::Bucket;

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Directory(PathBuf),
    Bucket(Bucket),
}

impl Location {
    /// Reads `s3://bucket/prefix`, `file:///directory` or a directory's path.
    pub fn parse(text: &str, options: BTreeMap<String, SecretString>) -> Result<Self, StoreError> {
        let refused = |why: &str| StoreError::Location { text: text.to_owned(), why: why.to_owned() };
        if let Some(rest) = text.strip_prefix("s3://") {
            let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if name.is_empty() {
                return Err(refused("it names no bucket"));
            }
            let prefix = prefix.trim_matches('/').to_owned();
            return Ok(Self::Bucket(Bucket { name: name.to_owned(), prefix, options }));
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        if path.is_empty() || path.contains("://") {
            return Err(refused("only directories and s3:// are known"));
        }
        Ok(Self::Directory(path.into()))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Bucket(bucket) if bucket.prefix.is_empty() => write!(f, "s3://{}", bucket.name),
            Self::Bucket(bucket) => write!(f, "s3://{}/{}", bucket.name, bucket.prefix),
        }
    }
}

/// What the store answered.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("`{text}` is no place for a repository: {why}")]
    Location { text: String, why: String },
    #[error("{what} `{name}`")]
    Object { what: &'static str, name: String, source: object_store::Error },
    #[error("`{0}` is no name of an object")]
    Name(String),
}

impl StoreError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Location { .. } => Some("give a directory or `s3://bucket/prefix`"),
            Self::Object { source, .. } => bucket::hint(source),
            Self::Name(_) => None,
        }
    }
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Below the repository's root: `wal/00000001/…`.
    pub name: String,
    pub bytes: u64,
    pub modified_at: Timestamp,
}

/// A store of objects. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
    location: Location,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.location)
    }
}

impl Store {
    /// Opens the store. A directory is made if it is missing; a bucket is asked nothing yet.
    pub fn open(location: &Location) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Object { what: "open", name: location.to_string(), source };
        match location {
            Location::Directory(path) => {
                durable::create_dir_all(path).map_err(|error| {
                    failed(object_store::Error::Generic { store: "directory", source: error.into() })
                })?;
                let objects = LocalFileSystem::new_with_prefix(path).map_err(failed)?.with_fsync(true);
                Ok(Self::of(Arc::new(objects), "", location.clone()))
            }
            Location::Bucket(bucket) => {
                Ok(Self::of(Arc::new(bucket.open().map_err(failed)?), &bucket.prefix, location.clone()))
            }
        }
    }

    /// A store that is open already: what tests put between to make it fail.
    #[must_use]
    pub fn of(objects: Arc<dyn ObjectStore>, prefix: &str, location: Location) -> Self {
        Self { objects, prefix: prefix.into(), location }
    }

    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The directory that it is in, if it is in one.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match &self.location {
            Location::Directory(path) => Some(path),
            Location::Bucket(_) => None,
        }
    }

    fn path(&self, name: &str) -> Result<ObjectPath, StoreError> {
        let relative = ObjectPath::parse(name).map_err(|_| StoreError::Name(name.to_owned()))?;
        Ok(self.prefix.parts().chain(relative.parts()).collect())
    }

    /// Writes an object unless there is one of that name. `Ok(false)`: there was, and nothing was changed. It may be our
    /// own: a store's answer can be lost.
    pub async fn put_new(&self, name: &str, content: Bytes) -> Result<bool, StoreError> {
        Ok(self.write_new(name, content).await?.is_some())
    }

    async fn write_new(&self, name: &str, content: Bytes) -> Result<Option<PutResult>, StoreError> {
        let path = self.path(name)?;
        let failed = |source| StoreError::Object { what: "write", name: name.to_owned(), source };
        let mut pauses = [50, 100, 200].map(Duration::from_millis).into_iter();
        loop {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.objects.put_opts(&path, content.clone().into(), options).await {
                Ok(written) => return Ok(Some(written)),
                Err(error) if tells_of_one(&error) => return Ok(None),
                // It met another request for the same name, which may have been a removal.
                Err(error @ object_store::Error::AlreadyExists { .. }) => {
                    if self.size(name).await?.is_some() {
                        return Ok(None);
                    }
                    let pause = pauses.next().ok_or_else(|| failed(error))?;
                    tokio::time::sleep(pause).await;
                }
                Err(source) => return Err(failed(source)),
            }
        }
    }

    /// Writes an object, in place of one that is there.
    pub async fn replace(&self, name: &str, content: Bytes) -> Result<(), StoreError> {
        let written = self.objects.put(&self.path(name)?, PutPayload::from_bytes(content)).await;
        written.map(drop).map_err(|source| StoreError::Object {
            what: "write",
            name: name.to_owned(),
            source,
        })
    }

    /// Reads an object. `None`: there is none.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.read(name, None).await
    }

    /// Reads a part of an object; fewer bytes where the object ends. `None`: there is no object.
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let start = range.start;
        match self.read(name, Some(GetRange::Bounded(range))).await {
            // A store refuses a range of which it has no byte, and each says so in its own way.
            Err(_) if self.size(name).await?.is_some_and(|bytes| bytes <= start) => Ok(Some(Bytes::new())),
            read => read,
        }
    }

    async fn read(&self, name: &str, range: Option<GetRange>) -> Result<Option<Bytes>, StoreError> {
        let failed = |source| StoreError::Object { what: "read", name: name.to_owned(), source };
        let options = GetOptions { range, ..GetOptions::default() };
        match self.objects.get_opts(&self.path(name)?, options).await {
            Ok(found) => found.bytes().await.map(Some).map_err(failed),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    /// The bytes of an object. `None`: there is none.
    pub async fn size(&self, name: &str) -> Result<Option<u64>, StoreError> {
        match self.objects.head(&self.path(name)?).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(StoreError::Object { what: "look at", name: name.to_owned(), source }),
        }
    }

    /// All objects below a prefix that ends a part of a name (`wal/00000001`), by name.
    pub async fn list(&self, below: &str) -> Result<Vec<Entry>, StoreError> {
        self.list_after(below, None).await
    }

    /// The objects below a prefix whose names come after one, by name.
    pub async fn list_after(&self, below: &str, after: Option<&str>) -> Result<Vec<Entry>, StoreError> {
        let prefix = self.path(below)?;
        let found = match after {
            Some(name) => self.objects.list_with_offset(Some(&prefix), &self.path(name)?),
            None => self.objects.list(Some(&prefix)),
        };
        let root = self.prefix.as_ref();
        let mut entries: Vec<Entry> = found
            .map_ok(|meta| Entry {
                name: meta.location.as_ref()[root.len()..].trim_start_matches('/').to_owned(),
                bytes: meta.size,
                modified_at: Timestamp::from_second(meta.last_modified.timestamp()).unwrap_or_default(),
            })
            .try_collect()
            .await
            .map_err(|source| StoreError::Object { what: "list", name: below.to_owned(), source })?;
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The names directly below a prefix, without it: the parts that follow. A directory's and an object's alike.
    pub async fn names(&self, below: &str) -> Result<Vec<String>, StoreError> {
        let prefix = self.path(below)?;
        let found = self.objects.list_with_delimiter(Some(&prefix)).await;
        let found =
            found.map_err(|source| StoreError::Object { what: "list", name: below.to_owned(), source })?;
        let objects = found.objects.into_iter().map(|meta| meta.location);
        let last = |path: ObjectPath| path.filename().map(str::to_owned);
        let mut names: Vec<String> =
            found.common_prefixes.into_iter().chain(objects).filter_map(last).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Removes an object. One that is not there is removed already.
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        match self.objects.delete(&self.path(name)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::Object { what: "remove", name: name.to_owned(), source }),
        }
    }

    /// Removes many objects, several at once.
    pub async fn delete_all(&self, names: impl IntoIterator<Item = String>) -> Result<(), StoreError> {
        futures_util::stream::iter(names)
            .map(|name| async move { self.delete(&name).await })
            .buffer_unordered(16)
            .try_collect()
            .await
    }
}

/// Whether a write failed because there is an object. S3 answers 412 then; its 409 says only that somebody else is at it.
fn tells_of_one(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::Precondition { .. } => true,
        object_store::Error::AlreadyExists { source, .. } => {
            source.is::<object_store::Error>() || source.is::<std::io::Error>()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Location::Directory(dir.path().join("r"))).unwrap();
        (dir, store)
    }

    #[test]
    fn locations_are_read_and_shown() {
        let parse = |text: &str| Location::parse(text, BTreeMap::new()).map(|location| location.to_string());
        assert_eq!(parse("s3://b/a/c/").unwrap(), "s3://b/a/c");
        assert_eq!(parse("s3://b").unwrap(), "s3://b");
        assert_eq!(parse("file:///srv/r").unwrap(), "/srv/r");
        assert_eq!(parse("/srv/r").unwrap(), "/srv/r");
        for text in ["", "s3://", "s3:///x", "gs://b", "http://h/x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn objects_are_written_once_read_by_range_listed_and_removed() {
        let (_dir, store) = store();
        assert!(store.put_new("a/b/one", Bytes::from_static(b"0123456789")).await.unwrap());
        assert!(!store.put_new("a/b/one", Bytes::from_static(b"other")).await.unwrap());
        store.put_new("a/two", Bytes::from_static(b"x")).await.unwrap();
        store.put_new("ab/three", Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(store.get("a/b/one").await.unwrap().unwrap(), "0123456789");
        assert_eq!(store.get_range("a/b/one", 2..5).await.unwrap().unwrap(), "234");
        assert_eq!(store.get_range("a/b/one", 8..50).await.unwrap().unwrap(), "89");
        assert_eq!(store.get_range("a/b/one", 10..50).await.unwrap().unwrap(), "");
        assert_eq!(store.get("a/none").await.unwrap(), None);
        assert_eq!(store.size("a/b/one").await.unwrap(), Some(10));
        let names = |entries: Vec<Entry>| entries.into_iter().map(|e| e.name).collect::<Vec<_>>();
        assert_eq!(names(store.list("a").await.unwrap()), ["a/b/one", "a/two"]);
        assert_eq!(names(store.list_after("a", Some("a/b/one")).await.unwrap()), ["a/two"]);
        assert_eq!(store.names("a").await.unwrap(), ["b", "two"]);
        store.replace("a/two", Bytes::from_static(b"yy")).await.unwrap();
        assert_eq!(store.get("a/two").await.unwrap().unwrap(), "yy");
        store.delete("a/two").await.unwrap();
        store.delete("a/two").await.unwrap();
        assert_eq!(names(store.list("a").await.unwrap()), ["a/b/one"]);
    }

    #[tokio::test]
    async fn names_cannot_leave_the_repository() {
        let (_dir, store) = store();
        for name in ["../x", "a/../../x", "a//b", "/../x"] {
            assert!(matches!(store.get(name).await, Err(StoreError::Name(_)) | Ok(None)), "{name}");
            let written = store.put_new(name, Bytes::new()).await;
            assert!(matches!(written, Err(StoreError::Name(_))), "{name}: {written:?}");
        }
    }
}
