//! Cookies: read, set, forgotten.

use axum::http::HeaderMap;
use axum::http::header::COOKIE;

/// What a browser that is logged in shows.
pub(crate) const SESSION: &str = "loomworks_session";
/// What a browser carries to the OpenID provider and back.
pub(crate) const OIDC: &str = "loomworks_oidc";
/// The only addresses to which it brings it.
pub(crate) const OIDC_PATH: &str = "/v1/auth/oidc";

/// The value of a cookie. Two of one name are none: one of them was put there by somebody else.
pub(crate) fn read(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut values = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.to_owned()),
        _ => None,
    }
}

/// The cookie of a login. It ends with the browser, if the server does not end it before.
pub(crate) fn session(token: &str, secure: bool) -> String {
    format!("{SESSION}={token}; Path=/; HttpOnly; SameSite=Strict{}", attribute(secure))
}

/// The cookie of somebody who is on his way to the provider. He comes back from another site: hence `Lax`.
pub(crate) fn oidc(value: &str, seconds: u64, secure: bool) -> String {
    let attribute = attribute(secure);
    format!("{OIDC}={value}; Path={OIDC_PATH}; Max-Age={seconds}; HttpOnly; SameSite=Lax{attribute}")
}

pub(crate) fn forgotten(name: &str, path: &str, secure: bool) -> String {
    format!("{name}=; Path={path}; Max-Age=0; HttpOnly; SameSite=Strict{}", attribute(secure))
}

fn attribute(secure: bool) -> &'static str {
    if secure { "; Secure" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (COOKIE, line.parse().expect("a header"))).collect()
    }

    #[test]
    fn a_cookie_is_found_among_others_and_two_are_none() {
        let found = |lines: &[&str]| read(&headers(lines), SESSION);
        assert_eq!(found(&["a=1; loomworks_session=x; b=2"]).as_deref(), Some("x"));
        assert_eq!(found(&["a=1", "loomworks_session=x=y"]).as_deref(), Some("x=y"));
        assert_eq!(found(&["a=1", "xloomworks_session=x"]), None);
        assert_eq!(found(&["loomworks_session"]), None);
        assert_eq!(found(&["loomworks_session=x; loomworks_session=y"]), None);
        assert_eq!(found(&["loomworks_session=x", "loomworks_session=y"]), None);
    }

    #[test]
    fn a_sessions_cookie_is_for_our_own_pages_and_no_script() {
        assert_eq!(session("t", true), "loomworks_session=t; Path=/; HttpOnly; SameSite=Strict; Secure");
        assert_eq!(session("t", false), "loomworks_session=t; Path=/; HttpOnly; SameSite=Strict");
    }
}
