//! Names that people choose and that end up in host names, databases and roles.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Subdomains that belong to the platform, that PostgreSQL uses as database names, or that programs look up by
/// themselves below any domain (`wpad`, `autodiscover`, `mta-sts`) and believe.
///
/// A tenant's database carries the name of its subdomain, because apps that choose the database by host name
/// (`dbfilter = ^%d$`) expect exactly that.
pub const RESERVED: &[&str] = &[
    "admin",
    "api",
    "app",
    "assets",
    "auth",
    "autoconfig",
    "autodiscover",
    "backup",
    "cdn",
    "console",
    "dashboard",
    "docs",
    "enterpriseenrollment",
    "enterpriseregistration",
    "ftp",
    "gateway",
    "grafana",
    "help",
    "imap",
    "internal",
    "isatap",
    "localhost",
    "login",
    "loomworks",
    "lyncdiscover",
    "mail",
    "mcp",
    "metrics",
    "mta-sts",
    "mx",
    "ns1",
    "ns2",
    "openpgpkey",
    "pop",
    "pop3",
    "postgres",
    "prometheus",
    "root",
    "smtp",
    "static",
    "status",
    "support",
    "template0",
    "template1",
    "test",
    "webmail",
    "wpad",
    "www",
];

/// A tenant's subdomain: lower case, 3 to 63 characters, starts with a letter, then letters, digits, hyphens.
///
/// The rule is the specification's `^[a-z][a-z0-9-]{2,62}$` without [`RESERVED`] names, without a hyphen at the end,
/// which no host name may have (RFC 1123, section 2.1), and without hyphens in the third and fourth place: browsers
/// show `xn--…` as other letters, which may look like another tenant's name (RFC 5891, section 4.2.3.1).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subdomain(String);

/// Why a text is no subdomain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSubdomain {
    #[error("a subdomain has 3 to 63 characters, this one has {0}")]
    Length(usize),
    #[error("a subdomain starts with a lower-case letter")]
    Start,
    #[error("a subdomain has only lower-case letters, digits and hyphens, not {0:?}")]
    Character(char),
    #[error("a subdomain does not end with a hyphen")]
    End,
    #[error(
        "a subdomain has no hyphens in its third and fourth place: names such as `xn--…` are shown as other letters"
    )]
    Encoded,
    #[error("the subdomain `{0}` is reserved")]
    Reserved(String),
}

impl FromStr for Subdomain {
    type Err = BadSubdomain;

    fn from_str(text: &str) -> Result<Self, BadSubdomain> {
        let name = Self::of_the_right_form(text)?;
        if matches!(text.as_bytes(), [_, _, b'-', b'-', ..]) {
            return Err(BadSubdomain::Encoded);
        }
        if RESERVED.binary_search(&text).is_ok() {
            return Err(BadSubdomain::Reserved(text.to_owned()));
        }
        Ok(name)
    }
}

impl Subdomain {
    fn of_the_right_form(text: &str) -> Result<Self, BadSubdomain> {
        let length = text.chars().count();
        if !(3..=63).contains(&length) {
            return Err(BadSubdomain::Length(length));
        }
        if let Some(odd) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return Err(BadSubdomain::Character(odd));
        }
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(BadSubdomain::Start);
        }
        if text.ends_with('-') {
            return Err(BadSubdomain::End);
        }
        Ok(Self(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Subdomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What we have written down ourselves was checked when it was chosen. If fewer names may be chosen since, one tenant
/// whose name is among them must not keep a list or a route table from being read.
impl TryFrom<String> for Subdomain {
    type Error = BadSubdomain;

    fn try_from(text: String) -> Result<Self, BadSubdomain> {
        Self::of_the_right_form(&text)
    }
}

impl fmt::Debug for Subdomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subdomain({})", self.0)
    }
}

impl Serialize for Subdomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Subdomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A name of one line for people: 1 to 255 characters, none of them a control character.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct Label(String);

/// Why a text is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLabel {
    #[error("a name has 1 to 255 characters, this one has {0}")]
    Length(usize),
    #[error("a name has no control characters")]
    Control,
}

impl FromStr for Label {
    type Err = BadLabel;

    fn from_str(text: &str) -> Result<Self, BadLabel> {
        let text = text.trim();
        let length = text.chars().count();
        if !(1..=255).contains(&length) {
            return Err(BadLabel::Length(length));
        }
        if text.chars().any(char::is_control) {
            return Err(BadLabel::Control);
        }
        Ok(Self(text.to_owned()))
    }
}

impl Label {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Label {
    type Error = BadLabel;

    fn try_from(text: String) -> Result<Self, BadLabel> {
        text.parse()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reserved_names_are_sorted_so_that_they_are_found() {
        assert!(RESERVED.is_sorted());
    }

    #[test]
    fn each_broken_rule_is_named() {
        let no = |text: &str| text.parse::<Subdomain>().unwrap_err();
        assert_eq!(no("ab"), BadSubdomain::Length(2));
        assert_eq!(no(&"a".repeat(64)), BadSubdomain::Length(64));
        assert_eq!(no("1acme"), BadSubdomain::Start);
        assert_eq!(no("-acme"), BadSubdomain::Start);
        assert_eq!(no("acme-"), BadSubdomain::End);
        assert_eq!(no("Acme"), BadSubdomain::Character('A'));
        assert_eq!(no("a.cme"), BadSubdomain::Character('.'));
        assert_eq!(no("аcme"), BadSubdomain::Character('а'), "a Cyrillic letter that looks like an a");
        assert_eq!(no("acme\0"), BadSubdomain::Character('\0'));
        for reserved in ["postgres", "wpad", "mta-sts"] {
            assert_eq!(no(reserved), BadSubdomain::Reserved(reserved.into()));
        }
        assert_eq!(
            no("xn--cme-6cd"),
            BadSubdomain::Encoded,
            "browsers show it as `аcme`, with a Cyrillic letter"
        );
        assert_eq!(no("ab--cd"), BadSubdomain::Encoded);
        for fine in ["a--cme", "abc--d", "ab-c-d"] {
            assert!(fine.parse::<Subdomain>().is_ok(), "{fine}");
        }
    }

    #[test]
    fn a_name_that_was_taken_before_it_was_refused_can_be_read() {
        for name in ["ab--cd", "wpad"] {
            assert_eq!(Subdomain::try_from(name.to_owned()).unwrap().as_str(), name);
            assert!(serde_json::from_value::<Subdomain>(name.into()).is_ok());
        }
        assert!(Subdomain::try_from("Acme".to_owned()).is_err());
    }

    #[test]
    fn a_label_is_trimmed_and_of_one_line() {
        assert_eq!("  Acme GmbH ".parse::<Label>().unwrap().as_str(), "Acme GmbH");
        assert_eq!("  ".parse::<Label>(), Err(BadLabel::Length(0)));
        assert_eq!("a\nb".parse::<Label>(), Err(BadLabel::Control));
    }

    proptest! {
        #[test]
        fn what_the_rule_of_the_specification_allows_is_a_subdomain(text in "[a-z][a-z0-9-]{1,61}[a-z0-9]") {
            prop_assume!(RESERVED.binary_search(&text.as_str()).is_err() && &text[2..4.min(text.len())] != "--");
            prop_assert_eq!(text.parse::<Subdomain>().unwrap().to_string(), text);
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<Subdomain>();
            let _ = text.parse::<Label>();
        }
    }
}
