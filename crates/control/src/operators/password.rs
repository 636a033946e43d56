//! Passwords: the rule, hashing, checking.
//!
//! argon2id with the parameters that OWASP recommends (19 MiB, two passes, one lane): about 20 milliseconds of a core.
//! Never on the threads that serve, and never more than a few at a time, so that a flood of log-ins can take neither
//! the machine's memory nor its cores.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use loomworks_core::email::Email;
use loomworks_core::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

use crate::credentials::random;
use crate::error::Error;

const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

const CHARACTERS_MIN: usize = 12;
/// Longer than anybody types, short enough that reading it costs nothing.
const BYTES_MAX: usize = 1024;

/// Hashes that are worked out at the same time.
const AT_ONCE: usize = 2;
/// How long a log-in waits for its turn before it is told to come back.
const TURN_MAX: Duration = Duration::from_secs(5);

/// A password that nobody has, hashed: whoever names an unknown account causes the same work as everybody else.
static NOBODYS: LazyLock<String> =
    LazyLock::new(|| hash_now(&random::<32>()).expect("random bytes can be hashed"));

/// Where passwords are hashed and checked.
#[derive(Clone, Debug)]
pub struct Passwords {
    turns: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        // Now, so that not even the first unknown account takes longer than others.
        LazyLock::force(&NOBODYS);
        Self { turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Passwords {
    pub(crate) async fn hash(&self, password: SecretString) -> Result<String, Error> {
        self.take_turn(move || hash_now(password.expose_secret().as_bytes())).await?
    }

    /// Whether it is the password with this hash. Without a hash it is not, after the same work.
    pub(crate) async fn verify(&self, password: SecretString, hash: Option<String>) -> Result<bool, Error> {
        self.take_turn(move || {
            let known = hash.is_some();
            let hash = hash.as_deref().unwrap_or(&NOBODYS);
            let parsed = PasswordHash::new(hash)
                .map_err(|error| Error::Internal(format!("a stored password's hash is damaged: {error}")))?;
            let right = argon2()?.verify_password(password.expose_secret().as_bytes(), &parsed).is_ok();
            Ok(right && known)
        })
        .await?
    }

    async fn take_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let turn = tokio::time::timeout(TURN_MAX, Arc::clone(&self.turns).acquire_owned()).await;
        let turn = turn
            .map_err(|_| Error::Throttled { seconds: 1 })?
            .map_err(|error| Error::Internal(error.to_string()))?;
        let joined = tokio::task::spawn_blocking(move || {
            let done = work();
            // Held until the work is over, also when nobody waits for its end any more.
            drop(turn);
            done
        });
        joined.await.map_err(|error| Error::Internal(error.to_string()))
    }
}

fn argon2() -> Result<Argon2<'static>, Error> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None)
        .map_err(|error| Error::Internal(format!("argon2 refuses its parameters: {error}")))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash_now(password: &[u8]) -> Result<String, Error> {
    let hash: PasswordHash = argon2()?
        .hash_password_with_salt(password, &random::<16>())
        .map_err(|error| Error::Internal(format!("hash a password: {error}")))?;
    Ok(hash.to_string())
}

/// Refuses passwords that are guessed first.
pub(crate) fn check(password: &SecretString, name: &str, email: &Email) -> Result<(), Error> {
    let text = password.expose_secret();
    if text.chars().count() < CHARACTERS_MIN {
        return Err(Error::invalid(format!("a password has at least {CHARACTERS_MIN} characters"))
            .with_hint(
                "four or five words that do not belong together are easy to remember and hard to guess",
            ));
    }
    if text.len() > BYTES_MAX {
        return Err(Error::invalid(format!("a password has at most {BYTES_MAX} bytes")));
    }
    let plain = text.trim().to_lowercase();
    if plain == name.trim().to_lowercase() || plain == email.as_str() || plain == email.local_part() {
        return Err(Error::invalid("a password is not the operator's name or address"));
    }
    let mut characters = text.chars();
    let first = characters.next();
    if characters.all(|character| Some(character) == first) {
        return Err(Error::invalid("a password is more than one character many times"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_right_or_wrong_and_unknown_is_wrong() {
        let passwords = Passwords::default();
        let hash = passwords.hash("correct horse battery".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_ne!(hash, passwords.hash("correct horse battery".into()).await.unwrap(), "each has its salt");
        assert!(passwords.verify("correct horse battery".into(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("correct horse batterY".into(), Some(hash)).await.unwrap());
        assert!(!passwords.verify("correct horse battery".into(), None).await.unwrap());
        assert!(passwords.verify("x".into(), Some("no hash".into())).await.is_err());
    }

    #[test]
    fn passwords_that_are_guessed_first_are_refused() {
        let email: Email = "administrator@example.com".parse().unwrap();
        let check = |password: &str| check(&password.into(), "Ann Administrator", &email);
        for bad in [
            "",
            "short",
            "elevenchars",
            "ANN administrator",
            "Administrator@Example.com",
            "administrator",
            "aaaaaaaaaaaaaaaa",
            &"ab".repeat(600),
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        for good in ["twelve chars", "äöüäöüäöüäöü", &"ab".repeat(500)] {
            assert!(check(good).is_ok(), "{good}");
        }
    }
}
