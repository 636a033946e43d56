//! Somebody on his way to the provider and back: what his browser carries, signed, and can use once.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};

use crate::credentials::{MasterKey, random};
use crate::error::Error;
use crate::operators::logins::derived_key;

/// How long somebody may take at the provider.
pub const COOKIE_LASTS: Duration = Duration::from_secs(600);

/// Answers that are remembered as used. More in ten minutes are refused rather than forgotten.
const USED_MAX: usize = 100_000;

/// Where to go after the log-in: a path on our own site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReturnTo(String);

impl ReturnTo {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ReturnTo {
    fn default() -> Self {
        Self("/".to_owned())
    }
}

impl FromStr for ReturnTo {
    type Err = Error;

    /// Browsers take `//host` and `/\host` for other sites, and drop tabs and line ends before they look.
    fn from_str(text: &str) -> Result<Self, Error> {
        let good = text.len() <= 2000
            && text.starts_with('/')
            && !text.starts_with("//")
            && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        if good {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid("`return_to` is no path of this site")
            .with_hint("it begins with one `/`, and has no backslash, space or host in it"))
    }
}

impl TryFrom<String> for ReturnTo {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<ReturnTo> for String {
    fn from(return_to: ReturnTo) -> Self {
        return_to.0
    }
}

/// What is remembered about one way, in the browser only.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Flow {
    /// Comes back in the address: the answer belongs to this browser.
    pub(super) state: String,
    /// Comes back in the token: the token was made for this way.
    pub(super) nonce: String,
    /// Goes with the code: the code is worth nothing to whoever has only seen it.
    pub(super) verifier: String,
    pub(super) return_to: ReturnTo,
    ends_at: Timestamp,
}

impl Flow {
    pub(super) fn random(return_to: ReturnTo, now: Timestamp) -> Self {
        let text = || URL_SAFE_NO_PAD.encode(random::<32>());
        Self { state: text(), nonce: text(), verifier: text(), return_to, ends_at: now + COOKIE_LASTS }
    }

    /// What the provider is told of the verifier.
    pub(super) fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, self.verifier.as_bytes()))
    }
}

/// Signs ways, and remembers which came to their end.
#[derive(Clone)]
pub(super) struct Flows {
    key: hmac::Key,
    used: Arc<Mutex<HashMap<String, Timestamp>>>,
}

impl Flows {
    pub(super) fn new(master_key: &MasterKey) -> Self {
        Self { key: derived_key(master_key, "loomworks openid connect cookie"), used: Arc::default() }
    }

    /// As a cookie's value.
    pub(super) fn seal(&self, flow: &Flow) -> String {
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(flow).unwrap_or_default());
        let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&self.key, body.as_bytes()));
        format!("{body}.{tag}")
    }

    /// What [`Self::seal`] made, unless its time is over.
    pub(super) fn open(&self, cookie: &str, now: Timestamp) -> Option<Flow> {
        let (body, tag) = cookie.split_once('.')?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.key, body.as_bytes(), &tag).ok()?;
        let flow: Flow = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()?;
        (now < flow.ends_at).then_some(flow)
    }

    /// `false`: somebody came to the end of this way before.
    pub(super) fn use_up(&self, flow: &Flow, now: Timestamp) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, ends_at| now < *ends_at);
        used.len() < USED_MAX && used.insert(flow.state.clone(), flow.ends_at).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flows() -> Flows {
        let directory = tempfile::tempdir().unwrap();
        Flows::new(&MasterKey::load_or_create(&directory.path().join("master.key")).unwrap())
    }

    #[test]
    fn a_way_comes_back_as_it_went_for_ten_minutes_and_once() {
        let (flows, now) = (flows(), Timestamp::UNIX_EPOCH);
        let cookie = flows.seal(&Flow::random("/jobs".parse().unwrap(), now));
        let flow = flows.open(&cookie, now + COOKIE_LASTS - Duration::from_secs(1)).expect("it is ours");
        assert_eq!(flow.return_to.as_str(), "/jobs");
        assert!(flows.open(&cookie, now + COOKIE_LASTS).is_none(), "too late");
        assert!(flows.use_up(&flow, now));
        assert!(!flows.use_up(&flow, now), "twice");
    }

    #[test]
    fn what_we_did_not_sign_is_not_opened() {
        let (flows, now) = (flows(), Timestamp::UNIX_EPOCH);
        let cookie = flows.seal(&Flow::random(ReturnTo::default(), now));
        let (body, tag) = cookie.split_once('.').unwrap();
        let another = self::flows().seal(&Flow::random(ReturnTo::default(), now));
        for bad in ["", ".", body, &format!("{body}."), &format!("{tag}.{body}"), &another] {
            assert!(flows.open(bad, now).is_none(), "{bad}");
        }
        let (_, anothers_tag) = another.split_once('.').unwrap();
        assert!(flows.open(&format!("{body}.{anothers_tag}"), now).is_none());
    }

    #[test]
    fn one_returns_to_our_own_site_only() {
        for good in ["/", "/console/jobs?state=failed#top", "/a//b", "/%5cexample.com", "/?next=https://a.b"]
        {
            assert_eq!(good.parse::<ReturnTo>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "console",
            "https://evil.example",
            "//evil.example",
            "/\\evil.example",
            "/\t/evil.example",
            "/\n/evil.example",
            "/a\r\nSet-Cookie: x=y",
            "javascript:alert(1)",
            "/ä",
            "/a b",
            "\\\\evil.example",
        ] {
            assert!(bad.parse::<ReturnTo>().is_err(), "{bad:?}");
        }
    }
}
