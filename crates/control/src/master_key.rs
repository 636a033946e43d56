//! The master key: it wraps every stored secret and the repository's keys, and lives outside of what it protects.
//!
//! ```text
//! wrapped secret:  "LWK1"  key id (8)  nonce (12)  ciphertext and tag (AES-256-GCM)
//! ```
//!
//! What was wrapped before keys had ids begins with the nonce; it opens too. Where the key is kept is [`kept`]'s.

pub mod kept;
pub mod rotation;
pub mod transit;

use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use loomworks_archive::keys::{KeyFuture, KeyProvider, ProviderError};
use loomworks_core::{ExposeSecret, SecretString};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sqlx::PgConnection;

use crate::credentials::random;
use crate::db::Db;
use crate::db::wrapped;
use crate::error::{Error, chain};

use kept::{Kept, KeyBytes};
pub use kept::{MasterKeyError, Service};

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

/// A key that this process knows.
struct LocalKey {
    id: KeyId,
    aead: LessSafeKey,
    bytes: KeyBytes,
}

impl LocalKey {
    fn new(bytes: KeyBytes) -> Self {
        let parent = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &bytes);
        let id = ring::hmac::sign(&parent, b"loomworks master key id");
        let id = KeyId(id.as_ref()[..KEY_ID_BYTES].try_into().expect("HMAC-SHA-256 gives 32 bytes"));
        let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("AES-256 takes 32 bytes");
        Self { id, aead: LessSafeKey::new(key), bytes }
    }
}

impl LocalKey {
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

/// The key that wraps, and those that still open what they wrapped. Cheap to clone; clones change together.
#[derive(Clone)]
pub struct MasterKey(Arc<Inner>);

struct Inner {
    kept: Kept,
    /// The first wraps.
    keys: RwLock<Arc<Vec<LocalKey>>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    pepper: OnceLock<KeyBytes>,
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey")
    }
}

impl MasterKey {
    /// Reads the key file, or makes one if there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, MasterKeyError> {
        kept::make_file(path)?;
        Self::load(path)
    }

    /// Reads a key file that somebody else keeps.
    pub fn load(path: &Path) -> Result<Self, MasterKeyError> {
        Ok(Self::of(Kept::File(path.to_owned()), &kept::read_file(path)?))
    }

    /// Takes the key from the environment: 32 bytes as base64, and behind a comma each former one, which only opens.
    pub fn given(text: &SecretString) -> Result<Self, MasterKeyError> {
        Ok(Self::of(Kept::Given, &kept::read_text(text)?))
    }

    /// Has a service open the key that it has wrapped; with `make` one is made if there is none.
    pub async fn from_service(service: Service, make: bool) -> Result<Self, MasterKeyError> {
        let keys = service.open(make).await?;
        Ok(Self::of(Kept::Service(Box::new(service)), &keys))
    }

    fn of(kept: Kept, keys: &[KeyBytes]) -> Self {
        let keys = RwLock::new(Arc::new(keys.iter().map(|bytes| LocalKey::new(*bytes)).collect()));
        Self(Arc::new(Inner { kept, keys, changing: tokio::sync::Mutex::default(), pepper: OnceLock::new() }))
    }

    fn keys(&self) -> Arc<Vec<LocalKey>> {
        self.0.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn take(&self, keys: Vec<KeyBytes>) {
        let keys = Arc::new(keys.into_iter().map(LocalKey::new).collect());
        *self.0.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// The file that it is kept in, if it is kept in one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match &self.0.kept {
            Kept::File(path) => Some(path),
            Kept::Given | Kept::Service(_) => None,
        }
    }

    /// Whether another key can be made, or has been put in front of the former one by whoever keeps it.
    #[must_use]
    pub fn can_change(&self) -> bool {
        !matches!(self.0.kept, Kept::Given) || self.keys().len() > 1
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
        self.0.pepper.get_or_init(|| {
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
        let stored: KeyBytes = stored.try_into().map_err(|_| damaged())?;
        if *self.0.pepper.get_or_init(|| stored) != stored {
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

    /// Makes a new key that wraps from now on, unless that has happened: `from` is the one that wrapped before. Whoever
    /// keeps the key outside of this program has put the new one in front of the former one himself.
    pub async fn renew(&self, from: &str) -> Result<(), MasterKeyError> {
        let _changing = self.0.changing.lock().await;
        let keys = self.keys();
        if keys[0].id.to_string() != from || (matches!(self.0.kept, Kept::Given) && keys.len() > 1) {
            return Ok(());
        }
        let all: Vec<KeyBytes> = std::iter::once(random()).chain(keys.iter().map(|key| key.bytes)).collect();
        // Kept first: what is wrapped with it must open after a crash.
        self.0.kept.keep(&all).await?;
        self.take(all);
        Ok(())
    }

    /// Drops all keys but the one that wraps.
    pub async fn forget_former(&self) -> Result<(), MasterKeyError> {
        let _changing = self.0.changing.lock().await;
        let keys = self.keys();
        if keys.len() > 1 {
            let only = vec![keys[0].bytes];
            if !matches!(self.0.kept, Kept::Given) {
                self.0.kept.keep(&only).await?;
            }
            self.take(only);
        }
        Ok(())
    }

    /// Takes the keys as another process has left them.
    async fn read_again(&self) -> Result<(), MasterKeyError> {
        let _changing = self.0.changing.lock().await;
        if let Some(keys) = self.0.kept.read_again().await? {
            self.take(keys);
        }
        Ok(())
    }
}

/// The repository's keys are wrapped as every other secret is.
impl KeyProvider for MasterKey {
    fn wrap<'a>(&'a self, secret: &'a [u8], what_for: &'a str) -> KeyFuture<'a> {
        let wrapped = self.wrap_bytes(secret, what_for);
        Box::pin(async { Ok(wrapped) })
    }

    fn unwrap<'a>(&'a self, wrapped: &'a [u8], what_for: &'a str) -> KeyFuture<'a> {
        let opened = self.unwrap_bytes(wrapped, what_for).ok_or(ProviderError::OtherKey);
        Box::pin(async { opened })
    }

    fn is_current(&self, wrapped: &[u8]) -> bool {
        wrapped.starts_with(&header(self.current()))
    }

    fn refresh(&self) -> KeyFuture<'_, ()> {
        let unreachable = |error: MasterKeyError| ProviderError::Unreachable(chain(&error));
        Box::pin(async move { self.read_again().await.map_err(unreachable) })
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
        MasterKey::of(Kept::Given, &[[byte; 32]])
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

    #[tokio::test]
    async fn the_key_is_made_once_and_renewed_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let first = MasterKey::load_or_create(&path).unwrap();
        let wrapped = first.wrap(&SecretString::from("x"), "y");
        let from = first.current().to_string();
        assert_eq!(MasterKey::load_or_create(&path).unwrap().current(), first.current());
        assert_eq!(format!("{first:?}"), "MasterKey");

        let pepper = first.pepper().to_vec();
        first.renew(&from).await.unwrap();
        let renewed = first.current();
        // Asked for again, as after a crash.
        first.renew(&from).await.unwrap();
        let read = MasterKey::load_or_create(&path).unwrap();
        assert_eq!((first.current(), read.current()), (renewed, renewed));
        assert_eq!(read.former().len(), 1);
        assert!(read.unwrap(&wrapped, "y").is_ok(), "both are valid meanwhile");
        assert_eq!(first.pepper(), pepper, "the pepper stays");

        let moved = read.rewrap(&wrapped, "y").unwrap();
        read.forget_former().await.unwrap();
        let read = MasterKey::load_or_create(&path).unwrap();
        assert!(read.unwrap(&wrapped, "y").is_err() && read.unwrap(&moved, "y").is_ok());
        assert_eq!(std::fs::read(&path).unwrap().len(), 32);
    }

    #[test]
    fn half_a_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        for bytes in [0, 31, 33, 63] {
            loomworks_core::durable::write(&path, &vec![7; bytes]).unwrap();
            assert!(MasterKey::load_or_create(&path).is_err(), "{bytes} bytes");
        }
    }
}
