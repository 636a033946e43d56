//! The master key: it wraps every stored secret, and lives outside the database it protects.
//!
//! ```text
//! wrapped secret:  "LWK1"  key id (8)  nonce (12)  ciphertext and tag (AES-256-GCM)
//! key file:        32 bytes of the key that wraps, then 32 of each former one, which only opens
//! ```
//!
//! What was wrapped before keys had ids begins with the nonce; it opens too.

pub mod rotation;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use loomworks_core::{ExposeSecret, SecretString, durable};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sqlx::PgConnection;

use crate::credentials::random;
use crate::db::Db;
use crate::db::wrapped;
use crate::error::Error;

const KEY_BYTES: usize = 32;
const MAGIC: &[u8; 4] = b"LWK1";
/// What a wrapped secret begins with: the format and the key.
pub const HEADER_BYTES: usize = MAGIC.len() + KEY_ID_BYTES;
const KEY_ID_BYTES: usize = 8;

/// Tells keys apart and says nothing about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyId([u8; KEY_ID_BYTES]);

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::audit::sealer::hex(&self.0))
    }
}

/// Wraps secrets with one key, wherever that is kept: in this process, or in a service that never hands it out.
pub trait KeyWrapper: Send + Sync {
    fn id(&self) -> KeyId;

    /// Encrypts. `what_for` is bound to the result: it opens only for the same purpose.
    fn wrap(&self, secret: &[u8], what_for: &str) -> Vec<u8>;

    /// Opens what [`Self::wrap`] made for the same purpose. `None`: another key made it, or another purpose.
    fn unwrap(&self, wrapped: &[u8], what_for: &str) -> Option<Vec<u8>>;
}

/// A key that this process knows.
struct LocalKey {
    id: KeyId,
    aead: LessSafeKey,
    bytes: [u8; KEY_BYTES],
}

impl LocalKey {
    fn new(bytes: [u8; KEY_BYTES]) -> Self {
        let parent = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &bytes);
        let id = ring::hmac::sign(&parent, b"loomworks master key id");
        let id = KeyId(id.as_ref()[..KEY_ID_BYTES].try_into().expect("HMAC-SHA-256 gives 32 bytes"));
        let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("AES-256 takes 32 bytes");
        Self { id, aead: LessSafeKey::new(key), bytes }
    }
}

impl KeyWrapper for LocalKey {
    fn id(&self) -> KeyId {
        self.id
    }

    fn wrap(&self, secret: &[u8], what_for: &str) -> Vec<u8> {
        let nonce = random::<NONCE_LEN>();
        let mut sealed = secret.to_vec();
        let aad = Aad::from(what_for.as_bytes());
        self.aead
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .expect("a short secret can be sealed");
        [&nonce[..], &sealed].concat()
    }

    fn unwrap(&self, wrapped: &[u8], what_for: &str) -> Option<Vec<u8>> {
        let (nonce, sealed) = wrapped.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let opened = self.aead.open_in_place(nonce, Aad::from(what_for.as_bytes()), &mut sealed).ok()?;
        Some(opened.to_vec())
    }
}

/// The key that wraps, and those that still open what they wrapped.
pub struct MasterKey {
    file: PathBuf,
    /// The first wraps.
    keys: RwLock<Arc<Vec<LocalKey>>>,
    pepper: OnceLock<[u8; KEY_BYTES]>,
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey")
    }
}

impl MasterKey {
    /// Reads the key file, or makes one if there is none.
    pub fn load_or_create(path: &Path) -> std::io::Result<Self> {
        if !path.exists() {
            durable::write_if_absent(path, &random::<KEY_BYTES>())?;
        }
        Self::load(path)
    }

    /// Reads a key file that somebody else keeps.
    pub fn load(path: &Path) -> std::io::Result<Self> {
        let content = std::fs::read(path)?;
        let (keys, rest) = content.as_chunks::<KEY_BYTES>();
        if keys.is_empty() || !rest.is_empty() {
            return Err(std::io::Error::other("a master key has 32 bytes, as has each former one after it"));
        }
        Ok(Self::from_keys(path, keys))
    }

    fn from_keys(path: &Path, keys: &[[u8; KEY_BYTES]]) -> Self {
        let keys = keys.iter().map(|bytes| LocalKey::new(*bytes)).collect();
        Self { file: path.to_owned(), keys: RwLock::new(Arc::new(keys)), pepper: OnceLock::new() }
    }

    fn keys(&self) -> Arc<Vec<LocalKey>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the keys are kept.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The key that wraps.
    #[must_use]
    pub fn current(&self) -> KeyId {
        self.keys()[0].id
    }

    /// Those that only open.
    #[must_use]
    pub fn former(&self) -> Vec<KeyId> {
        self.keys()[1..].iter().map(|key| key.id).collect()
    }

    /// What API keys are looked up with. It stays when the master key changes: see [`Self::adopt_pepper`].
    #[must_use]
    pub fn pepper(&self) -> &[u8] {
        self.pepper.get_or_init(|| {
            let keys = self.keys();
            let parent = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &keys[0].bytes);
            let pepper = ring::hmac::sign(&parent, b"loomworks api key pepper");
            pepper.as_ref().try_into().expect("HMAC-SHA-256 gives 32 bytes")
        })
    }

    /// Takes the pepper that is stored, wrapped, or stores the one that follows from the first master key. To be
    /// called before [`Self::pepper`] is used.
    pub async fn adopt_pepper(&self, db: &Db) -> Result<(), Error> {
        const NAME: &str = "api key pepper";
        let mut transaction = db.platform.begin().await?;
        if wrapped::platform_secret(&mut transaction, NAME).await?.is_none() {
            let wrapped = self.wrap_for(&mut transaction, &encode(self.pepper()), NAME).await?;
            wrapped::insert_platform_secret(&mut transaction, NAME, &wrapped).await?;
        }
        let damaged = || Error::Internal("the stored pepper of the API keys is damaged".into());
        let wrapped = wrapped::platform_secret(&mut transaction, NAME).await?.ok_or_else(damaged)?;
        transaction.commit().await?;
        let stored = decode(&self.unwrap(&wrapped, NAME)?).ok_or_else(damaged)?;
        let stored: [u8; KEY_BYTES] = stored.try_into().map_err(|_| damaged())?;
        if *self.pepper.get_or_init(|| stored) != stored {
            return Err(Error::Internal("the pepper of the API keys was used before it was read".into()));
        }
        Ok(())
    }

    /// Encrypts a secret that is stored in the caller's transaction. `what_for` is bound to it: the result opens only
    /// for the same purpose.
    ///
    /// A former key is not forgotten before the transaction has ended: what it wrapped is seen until then by nobody.
    pub async fn wrap_for(
        &self,
        connection: &mut PgConnection,
        secret: &SecretString,
        what_for: &str,
    ) -> sqlx::Result<Vec<u8>> {
        wrapped::begin_wrapping(connection).await?;
        Ok(self.wrap(secret, what_for))
    }

    /// Encrypts a secret. What is stored is wrapped with [`Self::wrap_for`].
    #[must_use]
    pub fn wrap(&self, secret: &SecretString, what_for: &str) -> Vec<u8> {
        self.wrap_bytes(secret.expose_secret().as_bytes(), what_for)
    }

    /// Opens what was wrapped for the same purpose.
    pub fn unwrap(&self, wrapped: &[u8], what_for: &str) -> Result<SecretString, Error> {
        let refused =
            || Error::Internal(format!("the secret for {what_for} does not open with this master key"));
        let opened = self.unwrap_bytes(wrapped, what_for).ok_or_else(refused)?;
        String::from_utf8(opened).map(SecretString::from).map_err(|_| refused())
    }

    fn wrap_bytes(&self, secret: &[u8], what_for: &str) -> Vec<u8> {
        let keys = self.keys();
        [&header(keys[0].id)[..], &keys[0].wrap(secret, what_for)].concat()
    }

    fn unwrap_bytes(&self, wrapped: &[u8], what_for: &str) -> Option<Vec<u8>> {
        let keys = self.keys();
        let named = keys.iter().find(|key| wrapped.starts_with(&header(key.id)));
        if let Some(opened) = named.and_then(|key| key.unwrap(&wrapped[HEADER_BYTES..], what_for)) {
            return Some(opened);
        }
        keys.iter().find_map(|key| key.unwrap(wrapped, what_for))
    }

    /// The same secret, wrapped with the present key.
    fn rewrap(&self, wrapped: &[u8], what_for: &str) -> Option<Vec<u8>> {
        Some(self.wrap_bytes(&self.unwrap_bytes(wrapped, what_for)?, what_for))
    }

    /// Makes a new key that wraps from now on, unless that has happened: `from` is the one that wrapped before.
    pub fn renew(&self, from: &str) -> std::io::Result<()> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys[0].id.to_string() != from {
            return Ok(());
        }
        let all: Vec<[u8; KEY_BYTES]> =
            std::iter::once(random()).chain(keys.iter().map(|key| key.bytes)).collect();
        // On disk first: what is wrapped with it must open after a crash.
        durable::write(&self.file, all.as_flattened())?;
        *keys = Arc::new(all.into_iter().map(LocalKey::new).collect());
        Ok(())
    }

    /// Drops all keys but the one that wraps.
    pub fn forget_former(&self) -> std::io::Result<()> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.len() > 1 {
            let bytes = keys[0].bytes;
            durable::write(&self.file, &bytes)?;
            *keys = Arc::new(vec![LocalKey::new(bytes)]);
        }
        Ok(())
    }
}

/// What a secret begins with that was wrapped with this key.
fn header(id: KeyId) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..MAGIC.len()].copy_from_slice(MAGIC);
    header[MAGIC.len()..].copy_from_slice(&id.0);
    header
}

fn encode(bytes: &[u8]) -> SecretString {
    use base64::Engine as _;
    SecretString::from(base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn decode(text: &SecretString) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text.expose_secret()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> MasterKey {
        MasterKey::from_keys(Path::new("/nowhere"), &[[byte; 32]])
    }

    #[test]
    fn a_secret_opens_for_its_purpose_and_with_its_key_only() {
        let wrapped = key(1).wrap(&SecretString::from("hunter2"), "tenant a");
        assert!(!wrapped.windows(7).any(|window| window == b"hunter2"));
        assert_eq!(key(1).unwrap(&wrapped, "tenant a").unwrap().expose_secret(), "hunter2");
        assert!(key(1).unwrap(&wrapped, "tenant b").is_err());
        assert!(key(2).unwrap(&wrapped, "tenant a").is_err());
        for cut in 0..wrapped.len() {
            assert!(key(1).unwrap(&wrapped[..cut], "tenant a").is_err());
        }
    }

    #[test]
    fn what_was_wrapped_before_keys_had_ids_opens() {
        let old = LocalKey::new([1; 32]).wrap(b"hunter2", "tenant a");
        assert_eq!(key(1).unwrap(&old, "tenant a").unwrap().expose_secret(), "hunter2");
        let new = key(1).rewrap(&old, "tenant a").unwrap();
        assert!(new.starts_with(&header(key(1).current())));
        assert_eq!(key(1).unwrap(&new, "tenant a").unwrap().expose_secret(), "hunter2");
    }

    #[test]
    fn the_key_is_made_once_and_renewed_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let first = MasterKey::load_or_create(&path).unwrap();
        let wrapped = first.wrap(&SecretString::from("x"), "y");
        let from = first.current().to_string();
        assert_eq!(MasterKey::load_or_create(&path).unwrap().current(), first.current());
        assert_eq!(format!("{first:?}"), "MasterKey");

        let pepper = first.pepper().to_vec();
        first.renew(&from).unwrap();
        let renewed = first.current();
        // Asked for again, as after a crash.
        first.renew(&from).unwrap();
        let read = MasterKey::load_or_create(&path).unwrap();
        assert_eq!((first.current(), read.current()), (renewed, renewed));
        assert_eq!(read.former().len(), 1);
        assert!(read.unwrap(&wrapped, "y").is_ok(), "both are valid meanwhile");
        assert_eq!(first.pepper(), pepper, "the pepper stays");

        let moved = read.rewrap(&wrapped, "y").unwrap();
        read.forget_former().unwrap();
        let read = MasterKey::load_or_create(&path).unwrap();
        assert!(read.unwrap(&wrapped, "y").is_err() && read.unwrap(&moved, "y").is_ok());
        assert_eq!(std::fs::read(&path).unwrap().len(), 32);
    }

    #[test]
    fn half_a_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        for bytes in [0, 31, 33, 63] {
            durable::write(&path, &vec![7; bytes]).unwrap();
            assert!(MasterKey::load_or_create(&path).is_err(), "{bytes} bytes");
        }
    }
}

impl loomworks_archive::keys::KeyProvider for MasterKey {
    fn wrap<'a>(&'a self, secret: &'a [u8], what_for: &'a str) -> loomworks_archive::keys::KeyFuture<'a> {
        Box::pin(async move {
            let key = &self.keys()[0];
            Ok([&MAGIC[..], &key.id.0, &key.wrap(secret, what_for)].concat())
        })
    }

    fn unwrap<'a>(&'a self, wrapped: &'a [u8], what_for: &'a str) -> loomworks_archive::keys::KeyFuture<'a> {
        Box::pin(async move {
            let sealed = wrapped.get(HEADER_BYTES..).unwrap_or_default();
            let opened = self.keys().iter().find_map(|key| key.unwrap(sealed, what_for));
            opened.ok_or(loomworks_archive::keys::ProviderError::OtherKey)
        })
    }
}
