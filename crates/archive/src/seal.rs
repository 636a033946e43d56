//! Sealing: what is encrypted with which key, and bound to what.
//!
//! Every object has a key of its own, derived by HKDF-SHA-256 (RFC 5869) from the data key, a salt that is made at random
//! for each object that is written, and the object's identity: its place in the repository. So
//!
//! - a nonce, which counts the object's parts, can never be used twice with one key, however often a step is repeated;
//! - an object that was put in another's place, or a part in another part's, does not open.
//!
//! Parts are sealed with AES-256-GCM. A part is `ciphertext, tag (16 bytes)`.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

/// Bytes that a part grows by.
pub const TAG_BYTES: usize = 16;
pub const SALT_BYTES: usize = 16;
const KEY_BYTES: usize = 32;

/// What one object's parts are sealed with, unique to each object that is written.
pub type Salt = [u8; SALT_BYTES];

/// It did not open: damaged, of another object, or sealed with another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not open: it is damaged, in another's place, or of another key")]
pub struct DoesNotOpen;

/// A key for the data of one database, or of what the cluster's databases share.
#[derive(Clone)]
pub struct DataKey([u8; KEY_BYTES]);

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey")
    }
}

impl DataKey {
    #[must_use]
    pub fn random() -> Self {
        Self(random())
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key of one object. `identity`: its place in the repository, and what in it.
    #[must_use]
    pub fn object(&self, salt: &Salt, identity: &str) -> ObjectKey {
        struct Bytes32;
        impl ring::hkdf::KeyType for Bytes32 {
            fn len(&self) -> usize {
                KEY_BYTES
            }
        }
        let parent = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, salt).extract(&self.0);
        let mut bytes = [0; KEY_BYTES];
        let info = [b"loomworks object ", identity.as_bytes()];
        let derived = parent.expand(&info, Bytes32).and_then(|okm| okm.fill(&mut bytes));
        derived.expect("HKDF gives 32 bytes");
        let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("AES-256 takes 32 bytes");
        ObjectKey(LessSafeKey::new(key))
    }

    /// What tells equal content of this database apart from everything else, and says nothing to who has not the key.
    #[must_use]
    pub fn fingerprint_key(&self) -> [u8; 32] {
        let parent = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.0);
        let tag = ring::hmac::sign(&parent, b"loomworks fingerprint");
        tag.as_ref().try_into().expect("HMAC-SHA-256 gives 32 bytes")
    }
}

/// The key of one object.
pub struct ObjectKey(LessSafeKey);

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectKey")
    }
}

impl ObjectKey {
    /// Seals a part in place and appends its tag. Each number of an object is used once.
    pub fn seal(&self, part: u64, content: &mut Vec<u8>) {
        let sealed = self.0.seal_in_place_append_tag(nonce(part), Aad::empty(), content);
        sealed.expect("a part is shorter than AES-GCM's limit of 64 GiB");
    }

    /// Opens a part in place and gives its content.
    pub fn open<'a>(&self, part: u64, sealed: &'a mut [u8]) -> Result<&'a [u8], DoesNotOpen> {
        let opened = self.0.open_in_place(nonce(part), Aad::empty(), sealed);
        opened.map(|content| &*content).map_err(|_| DoesNotOpen)
    }
}

fn nonce(part: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[4..].copy_from_slice(&part.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Random bytes.
///
/// # Panics
/// When the operating system gives none: nothing may be sealed then.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_opens_in_its_place_only() {
        let (key, salt) = (DataKey::random(), random());
        let mut sealed = b"content".to_vec();
        key.object(&salt, "wal/1").seal(3, &mut sealed);
        let open = |key: &DataKey, salt: &Salt, identity: &str, part: u64, mut sealed: Vec<u8>| {
            key.object(salt, identity).open(part, &mut sealed).map(<[u8]>::to_vec)
        };
        assert_eq!(open(&key, &salt, "wal/1", 3, sealed.clone()).unwrap(), b"content");
        assert_eq!(open(&DataKey::random(), &salt, "wal/1", 3, sealed.clone()), Err(DoesNotOpen));
        assert_eq!(open(&key, &random(), "wal/1", 3, sealed.clone()), Err(DoesNotOpen));
        assert_eq!(open(&key, &salt, "wal/2", 3, sealed.clone()), Err(DoesNotOpen));
        assert_eq!(open(&key, &salt, "wal/1", 4, sealed.clone()), Err(DoesNotOpen));
        for byte in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[byte] ^= 1;
            assert_eq!(open(&key, &salt, "wal/1", 3, damaged), Err(DoesNotOpen));
            assert_eq!(open(&key, &salt, "wal/1", 3, sealed[..byte].to_vec()), Err(DoesNotOpen));
        }
    }

    #[test]
    fn keys_are_not_printed() {
        let key = DataKey::from_bytes(&[0x41; 32]).unwrap();
        assert_eq!(format!("{key:?} {:?}", key.object(&[0; 16], "x")), "DataKey ObjectKey");
    }
}
