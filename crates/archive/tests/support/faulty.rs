//! A store that dies in the middle of a write.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// How a write ends when the store dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Nothing was written.
    Before,
    /// A part of it was written, under its name.
    Torn,
    /// All of it was written, and nobody was told.
    After,
}

#[derive(Debug, Default)]
pub struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    writes: u32,
    /// At which write the store dies.
    at: Option<(u32, Death)>,
    dead: bool,
}

impl Faults {
    /// Lets the store die at the write after so many.
    pub fn die(&self, after: u32, death: Death) {
        *self.0.lock().unwrap() = State { writes: 0, at: Some((after, death)), dead: false };
    }

    /// Lets it live again, and says whether it had died.
    pub fn revive(&self) -> bool {
        std::mem::take(&mut *self.0.lock().unwrap()).dead
    }

    /// How many writes there were since it was revived.
    pub fn writes(&self) -> u32 {
        self.0.lock().unwrap().writes
    }

    fn write(&self) -> Result<Option<Death>> {
        let mut state = self.0.lock().unwrap();
        if state.dead {
            return Err(dead());
        }
        state.writes += 1;
        match state.at {
            Some((after, death)) if state.writes > after => {
                state.dead = true;
                Ok(Some(death))
            }
            _ => Ok(None),
        }
    }

    fn read(&self) -> Result<()> {
        if self.0.lock().unwrap().dead { Err(dead()) } else { Ok(()) }
    }
}

fn dead() -> Error {
    Error::Generic { store: "faulty", source: "the store is dead".into() }
}

pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<Faults>,
}

impl Faulty {
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match self.faults.write()? {
            None => self.inner.put_opts(location, payload, options).await,
            Some(Death::Before) => Err(dead()),
            Some(Death::Torn) => {
                let whole: Vec<u8> = payload.iter().flatten().copied().collect();
                let half = Bytes::from(whole[..whole.len() / 2].to_vec());
                self.inner.put_opts(location, half.into(), options).await?;
                Err(dead())
            }
            Some(Death::After) => {
                self.inner.put_opts(location, payload, options).await?;
                Err(dead())
            }
        }
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "multipart".into(), implementer: "faulty".into() })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.faults.read()?;
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.faults.read()?;
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, faults) = (self.inner.clone(), self.faults.clone());
        let one = move |location: Result<Path>| {
            let (inner, faults) = (inner.clone(), faults.clone());
            async move {
                let location = location?;
                let death = faults.write()?;
                if death != Some(Death::Before) {
                    let mut deleted = inner.delete_stream(stream::iter([Ok(location.clone())]).boxed());
                    while let Some(deleted) = deleted.next().await {
                        deleted?;
                    }
                }
                if death.is_some() { Err(dead()) } else { Ok(location) }
            }
        };
        locations.then(one).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.faults.read() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.faults.read()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
