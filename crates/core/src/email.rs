//! E-mail addresses, as the names of accounts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address in the one form in which it is stored and compared: lower case, ASCII.
///
/// Mail servers may tell `Ann@` from `ann@`; two accounts that differ in nothing else would only help somebody who
/// wants to be taken for another. Look-alikes from other alphabets are refused for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Email(String);

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an e-mail address such as ann@example.com")]
pub struct BadEmail(String);

impl Email {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is before the `@`.
    #[must_use]
    pub fn local_part(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(local, _)| local)
    }

    /// What is behind it.
    #[must_use]
    pub fn domain(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(_, domain)| domain)
    }
}

impl FromStr for Email {
    type Err = BadEmail;

    fn from_str(text: &str) -> Result<Self, BadEmail> {
        let email = text.trim().to_ascii_lowercase();
        let good = email
            .split_once('@')
            .is_some_and(|(local, domain)| email.len() <= 254 && is_local_part(local) && is_domain(domain));
        // Shown back shortened: it may be anything, of any length.
        if good { Ok(Self(email)) } else { Err(BadEmail(text.chars().take(60).collect())) }
    }
}

fn is_local_part(text: &str) -> bool {
    let is_atom = |atom: &str| {
        !atom.is_empty()
            && atom.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~-".contains(&byte))
    };
    text.len() <= 64 && text.split('.').all(is_atom)
}

/// Whether this is the name of a host: labels of letters, digits and inner hyphens.
fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.split('.').all(is_label)
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Email {
    type Error = BadEmail;

    fn try_from(text: String) -> Result<Self, BadEmail> {
        text.parse()
    }
}

impl From<Email> for String {
    fn from(email: Email) -> Self {
        email.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_one_form() {
        for text in ["ann@example.com", " Ann@Example.COM\n", "ANN@EXAMPLE.com"] {
            assert_eq!(text.parse::<Email>().unwrap().as_str(), "ann@example.com", "{text:?}");
        }
        let email: Email = "ann.b+ops@mail.example.com".parse().unwrap();
        assert_eq!((email.local_part(), email.domain()), ("ann.b+ops", "mail.example.com"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let long = format!("{}@example.com", "a".repeat(65));
        for text in [
            "",
            "ann",
            "@example.com",
            "ann@",
            "ann@@example.com",
            "ann@exa mple.com",
            "ann@-example.com",
            "ann@example..com",
            ".ann@example.com",
            "a\0nn@example.com",
            "ann\r\nbcc@example.com",
            "аnn@example.com",
            "ann@exаmple.com",
            "\"ann\"@example.com",
            &long,
        ] {
            assert!(text.parse::<Email>().is_err(), "{text:?}");
        }
    }
}
