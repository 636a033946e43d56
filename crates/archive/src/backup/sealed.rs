//! Whole objects: compressed, sealed with one key and bound to their name.
//!
//! `"LWO1", salt (16 bytes), sealed part 0 of the content compressed with zstd`.

use bytes::Bytes;

use crate::repository::{Repository, RepositoryError};
use crate::seal::{DataKey, SALT_BYTES, Salt, random};

const MAGIC: &[u8; 4] = b"LWO1";
const LEVEL: i32 = 3;
const PART: &str = "object";

impl Repository {
    pub(crate) fn seal_object(&self, key: &DataKey, name: &str, content: &[u8]) -> Bytes {
        let salt: Salt = random();
        let mut sealed = zstd::bulk::compress(content, LEVEL).expect("memory is compressed into memory");
        key.object(&salt, &self.identity(name, PART)).seal(0, &mut sealed);
        let mut object = Vec::with_capacity(MAGIC.len() + SALT_BYTES + sealed.len());
        object.extend_from_slice(MAGIC);
        object.extend_from_slice(&salt);
        object.extend_from_slice(&sealed);
        object.into()
    }

    pub(crate) fn open_object(
        &self,
        key: &DataKey,
        name: &str,
        object: &[u8],
    ) -> Result<Vec<u8>, RepositoryError> {
        let head = object.strip_prefix(MAGIC).and_then(|rest| rest.split_first_chunk());
        let Some((salt, sealed)) = head else {
            return Err(RepositoryError::damaged(name, "it does not begin as an object of this kind does"));
        };
        let mut sealed = sealed.to_vec();
        let opened = key.object(salt, &self.identity(name, PART)).open(0, &mut sealed);
        let opened = opened.map_err(|_| RepositoryError::does_not_open(name))?;
        zstd::stream::decode_all(opened).map_err(|error| RepositoryError::damaged(name, error))
    }

    /// Reads a whole object. `None`: there is none.
    pub(crate) async fn read_sealed(
        &self,
        key: &DataKey,
        name: &str,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        match self.store.get(name).await? {
            Some(object) => self.open_object(key, name, &object).map(Some),
            None => Ok(None),
        }
    }
}
