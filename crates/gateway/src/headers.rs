//! What leaves the gateway: pure changes to header maps.
//!
//! Towards the app, everything that speaks about the connection, the tenant or the client's address is written here
//! and nowhere else. Whatever the client said on those subjects is dropped first, in any spelling.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use loomworks_core::route::Route;

/// Tells the app whose request it is, by the name that people know.
const TENANT: HeaderName = HeaderName::from_static("x-loomworks-tenant");
/// Tells the app which database to use.
const DATABASE: HeaderName = HeaderName::from_static("x-loomworks-database");
/// Tells an Odoo with the `dbfilter_from_header` module the same as a pattern.
const ODOO_DBFILTER: HeaderName = HeaderName::from_static("x-odoo-dbfilter");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers that are about one connection and end with it (RFC 9110, section 7.6.1), and two that clients send by
/// mistake: `Proxy-Connection`, and `Proxy`, which CGI programs take for their own setting.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What the client may not say: it is ours to say.
const OURS: [&str; 5] = ["forwarded", "x-odoo-database", "x-odoo-dbfilter", "x-real-ip", "x-request-id"];
const OURS_BEGIN_WITH: [&str; 2] = ["x-forwarded-", "x-loomworks-"];

/// What the app is told about one request.
pub(crate) struct Facts<'a> {
    pub(crate) route: &'a Route,
    /// The host as [`normal_host`] writes it.
    pub(crate) host: &'a str,
    pub(crate) client: IpAddr,
    pub(crate) request_id: &'a HeaderValue,
}

/// Makes the client's headers the gateway's. `None` when a fact cannot be written as a header, which only a route with
/// control characters in its database's name can cause.
#[must_use]
pub(crate) fn request(headers: &mut HeaderMap, facts: &Facts<'_>) -> Option<()> {
    drop_hop_by_hop(headers);
    drop_where(headers, is_not_the_clients);
    // The gateway itself asks the client to go on, at the moment the app reads the body.
    headers.remove(header::EXPECT);

    let text = |text: &str| HeaderValue::from_str(text).ok();
    headers.insert(header::HOST, text(facts.host)?);
    headers.insert(TENANT, text(facts.route.subdomain.as_str())?);
    headers.insert(DATABASE, text(&facts.route.database)?);
    headers.insert(ODOO_DBFILTER, text(&format!("^{}$", escape_pattern(&facts.route.database)))?);
    headers.insert(FORWARDED_FOR, text(&facts.client.to_canonical().to_string())?);
    headers.insert(FORWARDED_HOST, text(facts.host)?);
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    headers.insert(REQUEST_ID, facts.request_id.clone());
    Some(())
}

/// Makes the app's headers the gateway's.
pub(crate) fn response(headers: &mut HeaderMap) {
    drop_hop_by_hop(headers);
}

/// Tells the client the name of its request, under which the logs know it.
pub(crate) fn response_id(headers: &mut HeaderMap, request_id: &HeaderValue) {
    headers.insert(REQUEST_ID, request_id.clone());
}

/// Says again, in our words, that this connection becomes a WebSocket.
pub(crate) fn upgrade_to_websocket(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Whether the client asks for a WebSocket and for nothing else. No other protocol is passed on; one that would be,
/// HTTP/2 above all, could carry requests past this gateway.
pub(crate) fn wants_websocket(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let only = protocols.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    only && protocols.next().is_none() && tokens(headers, &header::CONNECTION).any(|token| token == "upgrade")
}

/// Whether the client would rather read JSON than a page.
pub(crate) fn wants_json(headers: &HeaderMap) -> bool {
    let kinds = |token: String| token.split(';').next().unwrap_or_default().trim().to_owned();
    let accepted = tokens(headers, &header::ACCEPT).map(kinds);
    accepted.into_iter().find_map(|kind| match kind.as_str() {
        "application/json" => Some(true),
        "text/html" => Some(false),
        _ => None,
    }) == Some(true)
}

/// A host as everybody behind the gateway sees it: lower case, without a trailing dot.
pub(crate) fn normal_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.split_once(':') {
        Some((name, port)) => format!("{}:{port}", name.strip_suffix('.').unwrap_or(name)),
        None => host.strip_suffix('.').map(str::to_owned).unwrap_or(host),
    }
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<String> = tokens(headers, &header::CONNECTION).collect();
    for name in named.iter().map(String::as_str).chain(HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// What a client may not say. A name with an underscore is dropped whatever it is: frameworks that hand headers to
/// programs as variables (CGI, WSGI) cannot tell `X_Loomworks_Tenant` from `X-Loomworks-Tenant`, nor `Content_Length`
/// from the real one.
fn is_not_the_clients(name: &str) -> bool {
    name.contains('_') || OURS.contains(&name) || OURS_BEGIN_WITH.iter().any(|start| name.starts_with(start))
}

fn drop_where(headers: &mut HeaderMap, unwanted: fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The members of a list header, in lower case, over all its lines.
fn tokens(headers: &HeaderMap, name: &HeaderName) -> impl Iterator<Item = String> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|token| token.trim().to_ascii_lowercase())
}

/// A pattern that matches exactly this text.
fn escape_pattern(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if !(c.is_alphanumeric() || c == '_') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod tests;
