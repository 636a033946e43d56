//! What somebody shows to be known by: an API key, or the token of a login.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, COOKIE};
use loomworks_control::access::Caller;
use loomworks_control::operators::logins;
use loomworks_control::{Error, World, keys};
use loomworks_core::{ExposeSecret, SecretString};

use crate::api::auth;
use crate::limits::Asker;

/// What came with a request. In its extensions, if it was good.
#[derive(Clone)]
pub(crate) enum Credential {
    Key(SecretString),
    /// What a browser has kept.
    Login(SecretString),
}

impl Credential {
    /// A key goes before a cookie. Who logs in does not act as whoever was logged in before.
    pub(crate) fn shown(headers: &HeaderMap, path: &str, world: &World) -> Option<Self> {
        if let Some(value) = headers.get(AUTHORIZATION) {
            return value.to_str().ok().and_then(bearer).map(|key| Self::Key(key.into()));
        }
        if !headers.contains_key(COOKIE) || path == auth::LOGIN {
            return None;
        }
        auth::session(headers, world).map(|token| Self::Login(token.into()))
    }

    /// Who holds it, if that was found out a moment ago.
    pub(crate) fn recognise(&self, world: &World) -> Option<Caller> {
        match self {
            Self::Key(key) => keys::recognise(world, key.expose_secret()),
            Self::Login(_) => None,
        }
    }

    /// Who holds it.
    pub(crate) async fn holder(&self, world: &World) -> Result<Caller, Error> {
        match self {
            Self::Key(key) => keys::authenticate(world, key.expose_secret()).await,
            Self::Login(token) => logins::authenticate(world, token).await,
        }
    }

    fn text(&self) -> &str {
        let (Self::Key(text) | Self::Login(text)) = self;
        text.expose_secret()
    }
}

/// The scheme's name is written in any case (RFC 9110, section 11.1).
fn bearer(text: &str) -> Option<&str> {
    let (scheme, key) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Beyond so many, one is forgotten for each that is new.
const GOOD_MAX: usize = 50_000;

/// Credentials that were good when they were last looked up, and who uses up an allowance with them.
///
/// They are counted by who holds them: whoever floods us from the same address, without anything good, does not use up
/// what their holders may ask. One that is found to be good no more is forgotten.
pub(crate) struct Good {
    /// By a hash with a secret of this process. Two that collide would be counted as one.
    holders: Mutex<HashMap<u64, Option<Asker>>>,
    secret: RandomState,
}

impl Default for Good {
    fn default() -> Self {
        Self { holders: Mutex::default(), secret: RandomState::new() }
    }
}

impl Good {
    /// Who is counted: nobody, if it is a gateway's.
    pub(crate) fn asker(&self, credential: &Credential) -> Option<Option<Asker>> {
        self.lock().get(&self.hash(credential)).copied()
    }

    pub(crate) fn note(&self, credential: &Credential, asker: Option<Asker>) {
        let (hash, mut holders) = (self.hash(credential), self.lock());
        if holders.len() >= GOOD_MAX && !holders.contains_key(&hash) {
            // Any one: it costs its holder one request of his address's.
            let any = holders.keys().next().copied();
            any.and_then(|any| holders.remove(&any));
        }
        holders.insert(hash, asker);
    }

    pub(crate) fn forget(&self, credential: &Credential) {
        self.lock().remove(&self.hash(credential));
    }

    fn hash(&self, credential: &Credential) -> u64 {
        self.secret.hash_one(credential.text())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Option<Asker>>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_after_its_scheme() {
        assert_eq!(bearer("Bearer x"), Some("x"));
        assert_eq!(bearer("bearer  x "), Some("x"));
        for text in ["Bearer", "Basic x", "x", ""] {
            assert_eq!(bearer(text), None, "{text}");
        }
    }

    #[test]
    fn what_was_good_is_known_until_it_is_not() {
        let good = Good::default();
        let (one, other) = (Credential::Login("a".into()), Credential::Login("b".into()));
        assert_eq!(good.asker(&one), None);
        good.note(&one, None);
        assert_eq!((good.asker(&one), good.asker(&other)), (Some(None), None));
        good.forget(&one);
        assert_eq!(good.asker(&one), None);
        for n in 0..=GOOD_MAX {
            good.note(&Credential::Login(n.to_string().into()), None);
        }
        assert_eq!(good.lock().len(), GOOD_MAX);
    }
}
