//! Cookies: read, set, forgotten.
//!
//! A tenant's app on a subdomain can set a cookie for all of the domain, and so for us. Over TLS ours begin with
//! `__Host-`: such a name is taken by browsers from the very host alone that it is sent to, over TLS, for the path `/`.

use axum::http::HeaderMap;
use axum::http::header::COOKIE;

/// What a browser that is logged in shows. It ends with the browser, if the server does not end it before.
pub(crate) const SESSION: Cookie = Cookie { name: "loomworks_session", same_site: "Strict" };
/// What a browser carries to the OpenID provider and back. It comes back from another site: hence `Lax`.
pub(crate) const OIDC: Cookie = Cookie { name: "loomworks_oidc", same_site: "Lax" };

/// One of ours, for our own pages and no script.
pub(crate) struct Cookie {
    pub(crate) name: &'static str,
    same_site: &'static str,
}

impl Cookie {
    /// Its value. Two of one name are none: one of them was put there by somebody else.
    pub(crate) fn read(&self, headers: &HeaderMap, secure: bool) -> Option<String> {
        let name = self.full_name(secure);
        let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
        let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut values = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
        match (values.next(), values.next()) {
            (Some(value), None) => Some(value.to_owned()),
            _ => None,
        }
    }

    pub(crate) fn set(&self, value: &str, secure: bool) -> String {
        self.text(value, "", secure)
    }

    /// The same for so many seconds.
    pub(crate) fn set_for(&self, value: &str, seconds: u64, secure: bool) -> String {
        self.text(value, &format!("; Max-Age={seconds}"), secure)
    }

    pub(crate) fn forgotten(&self, secure: bool) -> String {
        self.text("", "; Max-Age=0", secure)
    }

    fn text(&self, value: &str, lasts: &str, secure: bool) -> String {
        let (name, same_site) = (self.full_name(secure), self.same_site);
        let attribute = if secure { "; Secure" } else { "" };
        format!("{name}={value}; Path=/{lasts}; HttpOnly; SameSite={same_site}{attribute}")
    }

    fn full_name(&self, secure: bool) -> String {
        format!("{}{}", if secure { "__Host-" } else { "" }, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (COOKIE, line.parse().expect("a header"))).collect()
    }

    #[test]
    fn a_cookie_is_found_among_others_and_two_are_none() {
        let found = |lines: &[&str]| SESSION.read(&headers(lines), false);
        assert_eq!(found(&["a=1; loomworks_session=x; b=2"]).as_deref(), Some("x"));
        assert_eq!(found(&["a=1", "loomworks_session=x=y"]).as_deref(), Some("x=y"));
        assert_eq!(found(&["a=1", "xloomworks_session=x"]), None);
        assert_eq!(found(&["loomworks_session"]), None);
        assert_eq!(found(&["loomworks_session=x; loomworks_session=y"]), None);
        assert_eq!(found(&["loomworks_session=x", "loomworks_session=y"]), None);
    }

    #[test]
    fn over_tls_nobody_can_put_another_beside_it() {
        let found = |lines: &[&str]| SESSION.read(&headers(lines), true);
        assert_eq!(
            found(&["loomworks_session=evil; __Host-loomworks_session=x; loomworks_session=evil"]).as_deref(),
            Some("x")
        );
        assert_eq!(found(&["loomworks_session=evil"]), None);
    }

    #[test]
    fn a_cookie_is_for_our_own_pages_and_no_script() {
        assert_eq!(
            SESSION.set("t", true),
            "__Host-loomworks_session=t; Path=/; HttpOnly; SameSite=Strict; Secure"
        );
        assert_eq!(SESSION.set("t", false), "loomworks_session=t; Path=/; HttpOnly; SameSite=Strict");
        assert_eq!(
            OIDC.set_for("t", 600, true),
            "__Host-loomworks_oidc=t; Path=/; Max-Age=600; HttpOnly; SameSite=Lax; Secure"
        );
        assert_eq!(OIDC.forgotten(false), "loomworks_oidc=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax");
    }
}
