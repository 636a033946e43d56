//! What an object says to whoever has the repository and the master key: for showing that an erased database says nothing
//! any more.
//!
//! Each part is tried with its own key, and with every other one if that is gone: nothing is left unread because the
//! key is looked for in the wrong place.

use crate::backup::names::PACKS;
use crate::backup::pack::{self, Opener};
use crate::keys::{DatabaseOid, SHARED};
use crate::range::Opened;
use crate::repository::{Repository, RepositoryError};
use crate::seal::DataKey;

/// What was read of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readable {
    /// The content of each part that opens, with whose it is; what all share is 0.
    pub parts: Vec<(DatabaseOid, Vec<u8>)>,
    /// Whose parts do not open.
    pub closed: Vec<DatabaseOid>,
}

impl Repository {
    /// Opens all of an object that any key opens. What is not sealed (keys, histories, the identity) has no parts.
    pub async fn readable(&self, name: &str) -> Result<Readable, RepositoryError> {
        let mut readable = Readable::default();
        let Some(object) = self.store.get(name).await? else { return Ok(readable) };
        let keys = self.keys.all().await?;
        match name.split('/').next() {
            Some("wal") if !name.ends_with(".history") => {
                let opened = Opened::whole(self, name, object)?;
                let header = serde_json::to_vec(&opened.header).expect("a header is JSON");
                readable.parts.push((SHARED, header));
                for oid in std::iter::once(SHARED).chain(opened.header.databases()) {
                    let mut found = None;
                    for key in &keys {
                        match opened.stream(self, oid, key).await {
                            Ok(stream) => found = found.or(stream),
                            Err(RepositoryError::Damaged { .. }) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    readable.note(oid, found);
                }
            }
            Some(PACKS) => {
                let oid = name.split('/').nth(1).and_then(|oid| oid.parse().ok()).unwrap_or(SHARED);
                let mut found = None;
                for key in &keys {
                    match self.chunks(key, name, &object).await {
                        Ok(content) => found = found.or(Some(content)),
                        Err(RepositoryError::Damaged { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                readable.note(oid, found);
            }
            Some("backups") => {
                let oid = name.rsplit('/').next().and_then(|last| last.parse().ok()).unwrap_or(SHARED);
                let found = keys.iter().find_map(|key| self.open_object(key, name, &object).ok());
                readable.note(oid, found);
            }
            _ => {}
        }
        Ok(readable)
    }

    /// All chunks of a pack, one after the other.
    async fn chunks(
        &self,
        data_key: &DataKey,
        name: &str,
        object: &[u8],
    ) -> Result<Vec<u8>, RepositoryError> {
        let (salt, chunks) = pack::chunks_of(self, data_key, name, object.len() as u64).await?;
        let key = pack::key(self, data_key, name, &salt);
        let (mut opener, mut content) = (Opener::new(), Vec::new());
        for chunk in chunks {
            let from = chunk.offset as usize;
            let sealed = object.get(from..from + chunk.stored as usize);
            let sealed = sealed.ok_or_else(|| RepositoryError::damaged(name, "it is too short"))?;
            let opened = opener.open(&key, chunk.part, sealed, chunk.plain);
            content.extend_from_slice(opened.map_err(|_| RepositoryError::does_not_open(name))?);
        }
        Ok(content)
    }
}

impl Readable {
    fn note(&mut self, oid: DatabaseOid, content: Option<Vec<u8>>) {
        match content {
            Some(content) => self.parts.push((oid, content)),
            None => self.closed.push(oid),
        }
    }
}
