//! A store of objects that fails as a test says: at the k-th operation, before or after it took effect, torn, slow, full.
//!
//! ```ignore
//! let faults = Faults::default();
//! let store = faults.around(Arc::new(InMemory::new()));
//! faults.crash_at(3, Fault::After);   // the third operation is done, nobody hears of it, and nothing works any more
//! faults.heal();                      // as after a restart; the count begins again
//! ```
//!
//! To cut a procedure everywhere, run it once, count [`Faults::operations`], and run it again with a fault at each of
//! them. What is done one operation after the other fails in the same place each time, and so does a seed of
//! [`Faults::random`]. Where several operations run at once, say with [`Faults::only`] which are meant.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What becomes of an operation.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It fails and has done nothing.
    Before,
    /// It is done and fails all the same: the answer was lost, whatever it was.
    After,
    /// A write leaves this many of its bytes under the name and fails, as in a store that is not atomic. An answer to a
    /// read breaks off after this many bytes, a listing after this many objects.
    Torn(usize),
    /// A write leaves half of its bytes under the name and fails. A removal is done and fails.
    Half,
    /// A write leaves a part of its content in the staged file of a directory and fails, as when the process is killed.
    /// For stores in that directory.
    Staged(PathBuf),
    /// It fails for want of space.
    Full,
    /// It fails as S3 has a write fail that met another one, or a removal: nobody is told whether there is an object.
    Conflict,
    /// It takes that long and is done.
    Slow(Duration),
}

/// What a store does wrong all the time, while it says that all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Writes also if there is an object that it must not replace.
    Replaces,
    /// Does not replace it, and says that it has.
    EverybodyWins,
    /// Gives other bytes than were written.
    OtherBytes,
    /// Gives what was there before it was replaced.
    Stale,
    /// Lists nothing.
    Unlisted,
    /// Removes nothing.
    Keeps,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write,
    Read,
    Remove,
    List,
}

/// An operation that somebody asked the store for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub kind: Kind,
    /// The object's name, or that below which is listed.
    pub name: String,
}

/// What goes wrong, and what was asked for. Clones are the same.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

type Counts = Box<dyn Fn(&Operation) -> bool + Send>;

#[derive(Default)]
struct State {
    operations: Vec<Operation>,
    only: Option<Counts>,
    planned: Vec<(Range<u64>, Fault)>,
    /// With which operation the store crashes.
    crash: Option<u64>,
    has_crashed: bool,
    random: Option<Random>,
    space_bytes: Option<usize>,
    lie: Option<Lie>,
}

struct Random {
    state: u64,
    one_in: u64,
    faults: Vec<Fault>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Faults")
            .field("planned", &state.planned)
            .field("lie", &state.lie)
            .finish_non_exhaustive()
    }
}

impl Faults {
    /// A store that does what `objects` does, but for these faults.
    #[must_use]
    pub fn around(&self, objects: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(Faulty { objects, faults: self.clone() })
    }

    /// The operation of that number goes wrong. The first is 1.
    pub fn at(&self, number: u64, fault: Fault) {
        self.during(number..number + 1, fault);
    }

    /// All operations of these numbers go wrong.
    pub fn during(&self, numbers: Range<u64>, fault: Fault) {
        self.state().planned.push((numbers, fault));
    }

    /// The operation of that number goes wrong, and whatever is asked for after it does nothing and fails, what does not
    /// count too.
    pub fn crash_at(&self, number: u64, fault: Fault) {
        self.at(number, fault);
        self.state().crash = Some(number);
    }

    /// Whether [`Self::crash_at`] has come to pass.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.state().has_crashed
    }

    /// One in so many operations goes wrong in one of these ways, by the seed.
    pub fn random(&self, seed: u64, one_in: u64, faults: &[Fault]) {
        assert!(one_in > 0 && !faults.is_empty(), "something must go wrong");
        self.state().random = Some(Random { state: seed, one_in, faults: faults.to_vec() });
    }

    /// Writes fail when they would take more than this many bytes from now on.
    pub fn space(&self, bytes: usize) {
        self.state().space_bytes = Some(bytes);
    }

    pub fn lie(&self, lie: Lie) {
        self.state().lie = Some(lie);
    }

    /// Only these operations are counted and go wrong.
    pub fn only(&self, counts: impl Fn(&Operation) -> bool + Send + 'static) {
        self.state().only = Some(Box::new(counts));
    }

    /// What was asked for since the beginning or [`Self::heal`], and counts.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        self.state().operations.clone()
    }

    /// Nothing goes wrong from now on, and the count begins again.
    pub fn heal(&self) {
        *self.state() = State::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lies(&self, lie: Lie) -> bool {
        self.state().lie == Some(lie)
    }

    /// Counts an operation and says what becomes of it.
    fn meet(&self, kind: Kind, name: &Path, bytes: usize) -> Option<Fault> {
        let mut state = self.state();
        let operation = Operation { kind, name: name.to_string() };
        let counts = state.only.as_ref().is_none_or(|counts| counts(&operation));
        if counts {
            state.operations.push(operation);
        }
        if state.has_crashed {
            return Some(Fault::Before);
        }
        if !counts {
            return None;
        }
        let number = state.operations.len() as u64;
        state.has_crashed = state.crash == Some(number);
        if let Some((_, fault)) = state.planned.iter().find(|(numbers, _)| numbers.contains(&number)) {
            return Some(fault.clone());
        }
        if let Some(left) = &mut state.space_bytes {
            match left.checked_sub(bytes) {
                Some(rest) => *left = rest,
                None => return Some(Fault::Full),
            }
        }
        state.random.as_mut().and_then(Random::next)
    }
}

impl Random {
    fn next(&mut self) -> Option<Fault> {
        if !self.draw().is_multiple_of(self.one_in) {
            return None;
        }
        let which = self.draw() % self.faults.len() as u64;
        Some(self.faults[usize::try_from(which).expect("less than there are")].clone())
    }

    /// Source: `SplitMix64`, <https://prng.di.unimi.it/splitmix64.c>, in the public domain.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[derive(Clone, Debug)]
struct Faulty {
    objects: Arc<dyn ObjectStore>,
    faults: Faults,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.objects)
    }
}

fn failed() -> Error {
    Error::Generic { store: "faulty", source: "it failed as the test wanted it".into() }
}

fn full() -> Error {
    Error::Generic { store: "faulty", source: std::io::Error::from(std::io::ErrorKind::StorageFull).into() }
}

impl Faulty {
    async fn write(&self, location: &Path, content: PutPayload, options: PutOptions) -> Result<PutResult> {
        let create = options.mode == PutMode::Create;
        if create && self.faults.lies(Lie::Replaces) {
            return self.objects.put(location, content).await;
        }
        if !create && self.faults.lies(Lie::Stale) && self.objects.head(location).await.is_ok() {
            return Ok(PutResult { e_tag: None, version: None, extensions: Default::default() });
        }
        match self.objects.put_opts(location, content, options).await {
            Err(Error::AlreadyExists { .. }) if self.faults.lies(Lie::EverybodyWins) => {
                Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
            }
            written => written,
        }
    }

    async fn remove(&self, location: Path) -> Result<Path> {
        let done = async {
            match self.faults.lies(Lie::Keeps) {
                true => Ok(()),
                false => self.objects.delete(&location).await,
            }
        };
        match self.faults.meet(Kind::Remove, &location, 0) {
            None => done.await?,
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                done.await?;
            }
            Some(Fault::After | Fault::Half) => {
                let _ = done.await;
                return Err(failed());
            }
            Some(_) => return Err(failed()),
        }
        Ok(location)
    }

    fn listed(
        &self,
        below: Option<&Path>,
        list: impl FnOnce() -> BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let entries = if self.faults.lies(Lie::Unlisted) { stream::empty().boxed() } else { list() };
        match self.faults.meet(Kind::List, &below.cloned().unwrap_or_default(), 0) {
            None => entries,
            Some(Fault::Slow(time)) => {
                let pause = stream::once(tokio::time::sleep(time));
                pause.filter_map(|()| std::future::ready(None)).chain(entries).boxed()
            }
            Some(Fault::Torn(count)) => entries.take(count).chain(stream::iter([Err(failed())])).boxed(),
            Some(_) => stream::iter([Err(failed())]).boxed(),
        }
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, content: PutPayload, options: PutOptions) -> Result<PutResult> {
        match self.faults.meet(Kind::Write, location, content.content_length()) {
            None => self.write(location, content, options).await,
            Some(Fault::Before) => Err(failed()),
            Some(Fault::After) => {
                let _ = self.write(location, content, options).await;
                Err(failed())
            }
            Some(fault @ (Fault::Torn(_) | Fault::Half)) => {
                let bytes = if let Fault::Torn(bytes) = fault { bytes } else { content.content_length() / 2 };
                let torn = joined(&content, bytes);
                let _ = self.write(location, torn.into(), options).await;
                Err(failed())
            }
            Some(Fault::Staged(directory)) => {
                let staged = directory.join(format!("{location}#1"));
                let half = joined(&content, content.content_length() / 2);
                loomworks_core::durable::create_dir_all(staged.parent().expect("it is below"))
                    .expect("a directory");
                loomworks_core::durable::write(&staged, &half).expect("a staged file");
                Err(failed())
            }
            Some(Fault::Full) => Err(full()),
            Some(Fault::Conflict) => {
                Err(Error::AlreadyExists { path: location.to_string(), source: "409 Conflict".into() })
            }
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                self.write(location, content, options).await
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        match self.faults.meet(Kind::Write, location, 0) {
            None => self.objects.put_multipart_opts(location, options).await,
            Some(_) => Err(failed()),
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let torn = match self.faults.meet(Kind::Read, location, 0) {
            None => None,
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                None
            }
            Some(Fault::Torn(bytes)) if !options.head => Some(bytes),
            Some(_) => return Err(failed()),
        };
        let head = options.head;
        let found = match self.objects.get_opts(location, options).await {
            Err(_) if torn.is_some() => return Err(failed()),
            found => found?,
        };
        let other = self.faults.lies(Lie::OtherBytes);
        if head || (torn.is_none() && !other) {
            return Ok(found);
        }
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
        let mut content = found.bytes().await?.to_vec();
        if let (true, Some(first)) = (other, content.first_mut()) {
            *first ^= 1;
        }
        let end = torn.map(|bytes| {
            content.truncate(bytes);
            Err(failed())
        });
        let parts = stream::iter(std::iter::once(Ok(Bytes::from(content))).chain(end)).boxed();
        Ok(GetResult { payload: GetResultPayload::Stream(parts), meta, range, attributes, extensions })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .and_then(move |location| {
                let store = store.clone();
                async move { store.remove(location).await }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, || self.objects.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, || self.objects.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        match self.faults.meet(Kind::List, &prefix.cloned().unwrap_or_default(), 0) {
            None => {}
            Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
            Some(_) => return Err(failed()),
        }
        match self.faults.lies(Lie::Unlisted) {
            true => Ok(ListResult {
                common_prefixes: Vec::new(),
                objects: Vec::new(),
                extensions: Default::default(),
            }),
            false => self.objects.list_with_delimiter(prefix).await,
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        match self.faults.meet(Kind::Write, to, 0) {
            None => self.objects.copy_opts(from, to, options).await,
            Some(_) => Err(failed()),
        }
    }
}

fn joined(content: &PutPayload, bytes: usize) -> Bytes {
    let mut joined = content.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>();
    joined.truncate(bytes);
    joined.into()
}
