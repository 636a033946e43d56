//! The address of a webhook, checked.

use std::net::IpAddr;
use std::str::FromStr;

use reqwest::Url;

/// What an address may have at most, as it is stored.
const CHARACTERS_MAX: usize = 2000;

/// Where a webhook is: `http` or `https`, with a host, without a password or a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookUrl(Url);

/// Why a text is no webhook's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error("a webhook's address has at most {CHARACTERS_MAX} characters")]
    Length,
    #[error("a webhook's address begins with `https://` or `http://` and a host")]
    Scheme,
    #[error("a webhook's address has no spaces or control characters")]
    Characters,
    #[error("a webhook's address has no user name or password in it")]
    UserInfo,
    #[error("a webhook's address has no `#` and what follows")]
    Fragment,
}

impl WebhookUrl {
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// What may be told of it: paths and queries of addresses are often secrets of the receiver's.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// The address, if it names one and not a host.
    #[must_use]
    pub fn literal(&self) -> Option<IpAddr> {
        literal(&self.0)
    }
}

/// However it is written: `0x7f.1` and `2130706433` have become 127.0.0.1 where the URL was read.
pub(super) fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).parse().ok()
}

impl FromStr for WebhookUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        if text.len() > CHARACTERS_MAX {
            return Err(BadUrl::Length);
        }
        // A URL is read with such characters left out: what is stored would not be what was sent.
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(BadUrl::Characters);
        }
        let url = Url::parse(text).map_err(|_| BadUrl::Scheme)?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(BadUrl::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadUrl::UserInfo);
        }
        if url.fragment().is_some() {
            return Err(BadUrl::Fragment);
        }
        if url.as_str().len() > CHARACTERS_MAX {
            return Err(BadUrl::Length);
        }
        Ok(Self(url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_the_web_and_holds_no_password() {
        for text in ["https://example.org/hook?x=1", "http://example.org:8080", "https://[2606:4700::1]/"] {
            assert!(text.parse::<WebhookUrl>().is_ok(), "{text}");
        }
        for (text, expected) in [
            ("", BadUrl::Scheme),
            ("example.org/hook", BadUrl::Scheme),
            ("ftp://example.org/", BadUrl::Scheme),
            ("file:///etc/passwd", BadUrl::Scheme),
            ("gopher://127.0.0.1:6379/_x", BadUrl::Scheme),
            ("https://", BadUrl::Scheme),
            ("https://user@example.org/", BadUrl::UserInfo),
            ("https://user:password@example.org/", BadUrl::UserInfo),
            ("https://example.org/#here", BadUrl::Fragment),
            ("https://example.org/a b", BadUrl::Characters),
            ("https://example.org/\r\nHost: x", BadUrl::Characters),
            ("https://example.org/\0", BadUrl::Characters),
        ] {
            assert_eq!(text.parse::<WebhookUrl>(), Err(expected), "{text:?}");
        }
        // Each `ü` is stored as six characters.
        for path in ["x".repeat(2000), "ü".repeat(500)] {
            assert_eq!(format!("https://example.org/{path}").parse::<WebhookUrl>(), Err(BadUrl::Length));
        }
    }

    #[test]
    fn an_address_is_found_however_it_is_written() {
        for text in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f.0.0.1/",
            "http://2130706433/",
            "http://017700000001/",
        ] {
            let literal = text.parse::<WebhookUrl>().unwrap().literal();
            assert_eq!(literal, Some(IpAddr::from([127, 0, 0, 1])), "{text}");
        }
        assert_eq!("http://[::1]/".parse::<WebhookUrl>().unwrap().literal(), "::1".parse().ok());
        assert_eq!("http://localhost/".parse::<WebhookUrl>().unwrap().literal(), None);
    }
}
