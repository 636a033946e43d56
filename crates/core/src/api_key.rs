//! The text of an API key: `frt_live_` and 32 characters, of which the last 6 are a checksum.
//!
//! The checksum lets a mistyped or cut key be refused without a look into any store, and lets a scanner for leaked
//! secrets recognise a real one.

use std::fmt;
use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};

/// Which environment a key belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Environment {
    Live,
    Test,
    Dev,
}

impl Environment {
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Live => "frt_live_",
            Self::Test => "frt_test_",
            Self::Dev => "frt_dev_",
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
            Self::Dev => "dev",
        }
    }
}

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM_CHARACTERS: usize = 26;
const CHECKSUM_CHARACTERS: usize = 6;

/// An API key whose form and checksum are right. Whether anybody may use it is not said by that.
#[derive(Clone)]
pub struct ApiKey(SecretString);

/// Text that is no API key. It does not repeat the text, which may be a real key with a slip in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not an API key")]
pub struct NotAnApiKey;

impl ApiKey {
    /// Makes a key out of random bytes, one a character. `random` comes from the caller so that this stays pure;
    /// bytes of 248 and above are taken modulo too, a bias of less than 0.05 bit a character.
    #[must_use]
    pub fn from_random(environment: Environment, random: &[u8; RANDOM_CHARACTERS]) -> Self {
        let body: String = random.iter().map(|byte| ALPHABET[usize::from(*byte) % 62] as char).collect();
        let text = format!("{}{body}", environment.prefix());
        let checksum = checksum(&text);
        Self(SecretString::from(format!("{text}{checksum}")))
    }

    /// What may be shown and stored in the clear to tell keys apart: the prefix and the first 6 characters.
    #[must_use]
    pub fn display_prefix(&self) -> String {
        let text = self.0.expose_secret();
        let body = text.len() - RANDOM_CHARACTERS - CHECKSUM_CHARACTERS;
        text[..body + 6].to_owned()
    }
}

impl ExposeSecret<str> for ApiKey {
    fn expose_secret(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}…)", self.display_prefix())
    }
}

impl FromStr for ApiKey {
    type Err = NotAnApiKey;

    fn from_str(text: &str) -> Result<Self, NotAnApiKey> {
        let prefixes = [Environment::Live, Environment::Test, Environment::Dev].map(Environment::prefix);
        let body = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)).ok_or(NotAnApiKey)?;
        let whole = body.len() == RANDOM_CHARACTERS + CHECKSUM_CHARACTERS;
        if !whole || !body.bytes().all(|b| ALPHABET.contains(&b)) {
            return Err(NotAnApiKey);
        }
        let (signed, sum) = text.split_at(text.len() - CHECKSUM_CHARACTERS);
        if checksum(signed) != sum {
            return Err(NotAnApiKey);
        }
        Ok(Self(SecretString::from(text.to_owned())))
    }
}

/// CRC-32 in base 62: six characters hold it (62^6 > 2^32).
fn checksum(text: &str) -> String {
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut digits = [b'0'; CHECKSUM_CHARACTERS];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    digits.iter().map(|digit| *digit as char).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_has_its_prefix_and_32_characters() {
        let key = ApiKey::from_random(Environment::Live, &[7; 26]);
        assert_eq!(key.expose_secret().len(), "frt_live_".len() + 32);
        assert_eq!(key.display_prefix(), "frt_live_777777");
    }

    #[test]
    fn debug_does_not_show_it() {
        let key = ApiKey::from_random(Environment::Dev, &[9; 26]);
        assert_eq!(format!("{key:?}"), "ApiKey(frt_dev_999999…)");
    }

    proptest! {
        #[test]
        fn a_key_reads_back(random: [u8; 26]) {
            let key = ApiKey::from_random(Environment::Test, &random);
            let read: ApiKey = key.expose_secret().parse().unwrap();
            prop_assert_eq!(read.expose_secret(), key.expose_secret());
        }

        #[test]
        fn one_changed_character_is_noticed(random: [u8; 26], place in 0_usize..32, other in 0_usize..62) {
            let key = ApiKey::from_random(Environment::Live, &random);
            let mut text = key.expose_secret().as_bytes().to_vec();
            let place = "frt_live_".len() + place;
            prop_assume!(text[place] != ALPHABET[other]);
            text[place] = ALPHABET[other];
            prop_assert!(String::from_utf8(text).unwrap().parse::<ApiKey>().is_err());
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<ApiKey>();
        }
    }
}
