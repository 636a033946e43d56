//! Who of those whom the provider knows may log in here.

use std::str::FromStr;

use loomworks_core::email::Email;
use serde_json::{Map, Value};

use crate::error::Error;

/// The rules: one of the addresses or domains must fit, if there are any, and everything the provider must say.
#[derive(Clone, Debug)]
pub struct Allowed {
    who: Vec<Who>,
    /// Claims and what must be in them.
    says: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    Address(Email),
    Domain(String),
}

impl Allowed {
    /// Reads `ann@example.com`, `@example.com` and `groups=operators`. No rule at all would let everybody in.
    pub fn new(rules: &[String]) -> Result<Self, Error> {
        let mut allowed = Self { who: Vec::new(), says: Vec::new() };
        for rule in rules.iter().map(|rule| rule.trim()) {
            match rule.split_once('=') {
                Some((claim, value)) if !claim.is_empty() && !value.is_empty() => {
                    allowed.says.push((claim.to_owned(), value.to_owned()));
                }
                Some(_) => return Err(refused(rule)),
                None => allowed.who.push(rule.parse()?),
            }
        }
        if allowed.who.is_empty() && allowed.says.is_empty() {
            return Err(refused(""));
        }
        Ok(allowed)
    }

    /// Whether somebody with this (verified) address, of whom the provider says this, may log in.
    #[must_use]
    pub fn covers(&self, email: &Email, claims: &Map<String, Value>) -> bool {
        let fits = |who: &Who| match who {
            Who::Address(address) => address == email,
            Who::Domain(domain) => domain == email.domain(),
        };
        let says = |(claim, value): &(String, String)| match claims.get(claim) {
            Some(Value::String(said)) => said == value,
            Some(Value::Array(all)) => all.iter().any(|said| said.as_str() == Some(value)),
            _ => false,
        };
        (self.who.is_empty() || self.who.iter().any(fits)) && self.says.iter().all(says)
    }
}

impl FromStr for Who {
    type Err = Error;

    fn from_str(rule: &str) -> Result<Self, Error> {
        match rule.strip_prefix('@') {
            None => rule.parse().map(Self::Address).map_err(|_| refused(rule)),
            // A domain is what may follow somebody's name.
            Some(domain) => format!("somebody@{domain}")
                .parse::<Email>()
                .map(|email| Self::Domain(email.domain().to_owned()))
                .map_err(|_| refused(rule)),
        }
    }
}

fn refused(rule: &str) -> Error {
    Error::invalid(format!("`{rule}` does not say who may log in"))
        .with_hint("write ann@example.com, @example.com or groups=operators")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn covers(rules: &[&str], email: &str, claims: &Value) -> bool {
        let rules: Vec<String> = rules.iter().copied().map(str::to_owned).collect();
        let allowed = Allowed::new(&rules).expect("rules");
        allowed.covers(&email.parse().expect("an address"), claims.as_object().expect("claims"))
    }

    #[test]
    fn one_of_the_addresses_fits_and_everything_is_said() {
        let operators = json!({ "groups": ["staff", "operators"], "hd": "example.com" });
        assert!(covers(&["Ann@Example.com"], "ann@example.com", &json!({})));
        assert!(covers(&["bob@example.com", "@example.com"], "ann@example.com", &json!({})));
        assert!(covers(&["groups=operators"], "ann@elsewhere.org", &operators));
        assert!(covers(&["@example.com", "groups=operators", "hd=example.com"], "a@example.com", &operators));

        assert!(!covers(&["bob@example.com"], "ann@example.com", &json!({})));
        assert!(!covers(&["@example.com"], "ann@sub.example.com", &json!({})));
        assert!(!covers(&["@example.com"], "ann@example.com.evil.org", &json!({})));
        assert!(!covers(&["@example.com", "groups=operators"], "ann@evil.org", &operators));
        assert!(!covers(&["@example.com", "groups=admins"], "ann@example.com", &operators));
        assert!(!covers(&["groups=operators"], "a@example.com", &json!({ "groups": "operators staff" })));
        assert!(!covers(&["groups=true"], "a@example.com", &json!({ "groups": true })));
    }

    #[test]
    fn rules_that_would_say_nothing_are_refused() {
        for rules in [&[][..], &[""], &["ann"], &["@"], &["="], &["groups="], &["=operators"], &["a@b@c"]] {
            let rules: Vec<String> = rules.iter().copied().map(str::to_owned).collect();
            assert!(Allowed::new(&rules).is_err(), "{rules:?}");
        }
    }
}
