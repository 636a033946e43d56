//! Where the master key is kept: in a file, in the environment, or wrapped by a service that never hands its own key out.
//!
//! ```text
//! file:        32 bytes of the key that wraps, then 32 of each former one
//! environment: the same, each as base64, with commas between
//! service:     the same 32 bytes each, encrypted together by the service, in `<data>/master.key.wrapped` and, so that
//!              nothing but the repository is needed after a disaster, in the repository as `master-key.json`
//! ```
//!
//! A service is asked once at the start, and not for each secret: what is stored can be read and written while it does
//! not answer.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use loomworks_archive::store::{Store, StoreError};
use loomworks_core::{ExposeSecret, SecretString, durable};
use serde::{Deserialize, Serialize};

use super::transit::{Transit, TransitError};
use crate::credentials::random;

pub(super) const KEY_BYTES: usize = 32;
pub(super) type KeyBytes = [u8; KEY_BYTES];

/// The object of the repository.
pub const OBJECT: &str = "master-key.json";
const WHAT_FOR: &str = "loomworks master key";
const VERSION: u32 = 1;

/// Why the master key cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    #[error("read the master key `{path}`")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("write the master key `{path}`")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{0} holds no master key: a key has 32 bytes, as has each former one after it")]
    Malformed(String),
    #[error("the master key is given from outside, where this program cannot change it")]
    Given,
    #[error(transparent)]
    Service(#[from] TransitError),
    #[error("keep the wrapped master key in the repository")]
    Store(#[from] StoreError),
    #[error("the wrapped master key is neither in the data directory nor in the repository")]
    Missing,
    #[error("{0} holds no wrapped master key")]
    Damaged(String),
}

impl MasterKeyError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Read { .. } | Self::Missing => Some("see docs/operate/key-management.md"),
            Self::Write { .. } => {
                Some("who keeps the file elsewhere puts a new key in front of the former one there")
            }
            Self::Malformed(_) => Some("bring it back from its copy, see docs/operate/key-management.md"),
            Self::Given => Some(
                "put a new key in front of the present one in LOOMWORKS_MASTER_KEY, start again, and rotate then",
            ),
            Self::Service(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Damaged(_) => {
                Some("remove it: the other of the two, in the data directory and the repository, is taken")
            }
        }
    }
}

pub(super) enum Kept {
    File(PathBuf),
    /// Outside, where this program cannot change it.
    Given,
    Service(Box<Service>),
}

impl Kept {
    /// Keeps these keys in the place of those that are kept.
    pub(super) async fn keep(&self, keys: &[KeyBytes]) -> Result<(), MasterKeyError> {
        match self {
            Self::File(path) => write(path, keys.as_flattened()),
            Self::Given => Err(MasterKeyError::Given),
            Self::Service(service) => service.keep(keys).await,
        }
    }

    /// The keys as they are kept now. `None`: nothing has changed.
    pub(super) async fn read_again(&self) -> Result<Option<Vec<KeyBytes>>, MasterKeyError> {
        match self {
            Self::File(path) => read_file(path).map(Some),
            Self::Given => Ok(None),
            Self::Service(service) => service.read_again().await,
        }
    }
}

/// Makes a key file if there is none.
pub(super) fn make_file(path: &Path) -> Result<(), MasterKeyError> {
    if path.exists() {
        return Ok(());
    }
    let made = durable::write_if_absent(path, &random::<KEY_BYTES>());
    made.map(drop).map_err(|source| MasterKeyError::Write { path: path.to_owned(), source })
}

pub(super) fn read_file(path: &Path) -> Result<Vec<KeyBytes>, MasterKeyError> {
    let content =
        std::fs::read(path).map_err(|source| MasterKeyError::Read { path: path.to_owned(), source })?;
    split(&content).ok_or_else(|| MasterKeyError::Malformed(format!("`{}`", path.display())))
}

pub(super) fn read_text(text: &SecretString) -> Result<Vec<KeyBytes>, MasterKeyError> {
    let keys = text.expose_secret().split(',').map(|key| BASE64.decode(key.trim()).ok()?.try_into().ok());
    keys.collect::<Option<_>>().ok_or_else(|| MasterKeyError::Malformed("LOOMWORKS_MASTER_KEY".into()))
}

fn write(path: &Path, content: &[u8]) -> Result<(), MasterKeyError> {
    durable::write(path, content).map_err(|source| MasterKeyError::Write { path: path.to_owned(), source })
}

fn split(content: &[u8]) -> Option<Vec<KeyBytes>> {
    let (keys, rest) = content.as_chunks::<KEY_BYTES>();
    (!keys.is_empty() && rest.is_empty()).then(|| keys.to_vec())
}

/// The keys as they lie somewhere, encrypted by a service.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Wrapped {
    version: u32,
    /// By which key of the service, for people.
    key: String,
    wrapped: String,
}

impl Wrapped {
    fn read(content: &[u8], place: impl FnOnce() -> String) -> Result<Self, MasterKeyError> {
        let read: Option<Self> = serde_json::from_slice(content).ok();
        read.filter(|read| read.version == VERSION).ok_or_else(|| MasterKeyError::Damaged(place()))
    }

    fn json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("it is JSON")
    }
}

/// A service that wraps the master key, and where the result is.
pub struct Service {
    transit: Transit,
    repository: Store,
    /// Beside the data, if this process has it.
    file: Option<PathBuf>,
    /// A key file from before there was a service, whose keys it takes over.
    former_file: Option<PathBuf>,
    /// What the repository holds, as far as this process knows.
    seen: Mutex<Option<Wrapped>>,
}

impl Service {
    /// For a process that has only the repository.
    #[must_use]
    pub fn new(transit: Transit, repository: Store) -> Self {
        Self { transit, repository, file: None, former_file: None, seen: Mutex::default() }
    }

    /// For the process that has the data directory. A master key that was kept in it as a file is taken over.
    #[must_use]
    pub fn beside(self, directory: &Path) -> Self {
        let (file, former_file) = (directory.join("master.key.wrapped"), directory.join("master.key"));
        Self { file: Some(file), former_file: Some(former_file), ..self }
    }

    pub(super) async fn open(&self, make: bool) -> Result<Vec<KeyBytes>, MasterKeyError> {
        let (here, there) = (self.in_file()?, self.in_repository().await?);
        let keys = match (&here, &there) {
            (Some(here), Some(there)) if here != there => {
                merge(self.unwrap(here).await?, self.unwrap(there).await?)
            }
            (Some(one), _) | (None, Some(one)) => self.unwrap(one).await?,
            (None, None) if make => match self.former_file.as_ref().filter(|path| path.exists()) {
                Some(path) => read_file(path)?,
                None => vec![random()],
            },
            (None, None) => return Err(MasterKeyError::Missing),
        };
        // Whoever has the data directory puts right what a crash between the two has left.
        if there.is_none() || (self.file.is_some() && here != there) {
            self.keep(&keys).await?;
        } else {
            self.note(there);
        }
        Ok(keys)
    }

    /// In the repository first: whoever has nothing else must open what is wrapped with the new key.
    async fn keep(&self, keys: &[KeyBytes]) -> Result<(), MasterKeyError> {
        let wrapped = self.transit.encrypt(keys.as_flattened(), WHAT_FOR).await?;
        let wrapped = Wrapped { version: VERSION, key: self.transit.key().to_owned(), wrapped };
        self.repository.replace(OBJECT, Bytes::from(wrapped.json())).await?;
        if let Some(file) = &self.file {
            write(file, &wrapped.json())?;
        }
        self.note(Some(wrapped));
        Ok(())
    }

    async fn read_again(&self) -> Result<Option<Vec<KeyBytes>>, MasterKeyError> {
        let there = self.in_repository().await?.ok_or(MasterKeyError::Missing)?;
        if self.seen().as_ref() == Some(&there) {
            return Ok(None);
        }
        let keys = self.unwrap(&there).await?;
        self.note(Some(there));
        Ok(Some(keys))
    }

    fn in_file(&self) -> Result<Option<Wrapped>, MasterKeyError> {
        let Some(path) = &self.file else { return Ok(None) };
        match std::fs::read(path) {
            Ok(content) => Wrapped::read(&content, || format!("`{}`", path.display())).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(MasterKeyError::Read { path: path.clone(), source }),
        }
    }

    async fn in_repository(&self) -> Result<Option<Wrapped>, MasterKeyError> {
        let Some(content) = self.repository.get(OBJECT).await? else { return Ok(None) };
        let place = || format!("`{OBJECT}` in `{}`", self.repository.location());
        Wrapped::read(&content, place).map(Some)
    }

    async fn unwrap(&self, wrapped: &Wrapped) -> Result<Vec<KeyBytes>, MasterKeyError> {
        let content = self.transit.decrypt(&wrapped.wrapped, WHAT_FOR).await?;
        split(&content).ok_or_else(|| MasterKeyError::Damaged("what the service has opened".into()))
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Option<Wrapped>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, wrapped: Option<Wrapped>) {
        *self.seen() = wrapped;
    }
}

/// The keys of two places of which one was changed and the other not, because the process died in between. The one that
/// has all of the other's is the newer one where a key was made, and the older one where a key was forgotten: that is then
/// done again. What only one has may wrap something, so nothing is dropped here.
fn merge(here: Vec<KeyBytes>, there: Vec<KeyBytes>) -> Vec<KeyBytes> {
    if here.iter().all(|key| there.contains(key)) {
        return there;
    }
    let more: Vec<KeyBytes> = there.into_iter().filter(|key| !here.contains(key)).collect();
    [here, more].concat()
}

#[cfg(test)]
mod tests;
