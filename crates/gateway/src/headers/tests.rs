//! The client may say anything; the app hears what we say.

use loomworks_core::ids::TenantId;
use loomworks_core::route::RouteState;

use super::*;

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let lines =
        lines.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()));
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(name, value);
    }
    headers
}

fn forwarded(lines: &[(&str, &str)]) -> HeaderMap {
    let route = Route {
        tenant: TenantId::random(),
        subdomain: "acme".parse().unwrap(),
        database: "acme-2.old".into(),
        state: RouteState::Serving,
        upstream: ([127, 0, 0, 1], 8069).into(),
    };
    let facts = Facts {
        route: &route,
        host: "acme.localhost:8080",
        client: "::ffff:192.0.2.7".parse().unwrap(),
        request_id: &HeaderValue::from_static("id"),
    };
    let mut headers = headers(lines);
    request(&mut headers, &facts).unwrap();
    headers
}

#[test]
fn the_app_hears_who_and_which_database() {
    let headers = forwarded(&[("host", "ACME.localhost.:8080"), ("cookie", "a=b")]);
    let mut seen: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    seen.sort();
    let expected = [
        "cookie: a=b",
        "host: acme.localhost:8080",
        "x-forwarded-for: 192.0.2.7",
        "x-forwarded-host: acme.localhost:8080",
        "x-forwarded-proto: http",
        "x-loomworks-database: acme-2.old",
        "x-loomworks-tenant: acme",
        r"x-odoo-dbfilter: ^acme\-2\.old$",
        "x-request-id: id",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn what_the_client_claims_about_our_subjects_is_dropped() {
    let names = [
        "X-Loomworks-Tenant",
        "x-loomworks-database",
        "X-LOOMWORKS-ANYTHING",
        "X_Loomworks_Tenant",
        "x-loomworks_tenant",
        "X-Odoo-dbfilter",
        "x_odoo_dbfilter",
        "X-Odoo-Database",
        "X-Odoo_Database",
        "X-Forwarded-For",
        "X-Forwarded-Port",
        "X_Forwarded_For",
        "X-Forwarded-Host",
        "X-Forwarded-Prefix",
        "Forwarded",
        "X-Real-IP",
        "X_Real_IP",
        "X-Request-Id",
        "x_request_id",
        "Content_Length",
        "Transfer_Encoding",
        "Proxy",
        "Expect",
    ];
    for name in names {
        let headers = forwarded(&[(name, "spoofed"), (name, "spoofed again")]);
        assert!(!format!("{headers:?}").contains("spoofed"), "{name}: {headers:?}");
    }
}

#[test]
fn what_is_about_the_connection_ends_with_it() {
    let headers = forwarded(&[
        ("connection", "close, X-Private"),
        ("connection", "x-other,host"),
        ("x-private", "1"),
        ("x-other", "2"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("trailer", "x-t"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("proxy-connection", "keep-alive"),
        ("accept", "*/*"),
    ]);
    let kept: Vec<_> =
        headers.keys().filter(|name| !is_not_the_clients(name.as_str())).map(HeaderName::as_str).collect();
    assert_eq!(kept, ["accept", "host"]);
}

#[test]
fn naming_our_headers_in_connection_does_not_remove_them() {
    let headers = forwarded(&[("connection", "x-loomworks-tenant, x-loomworks-database, x-forwarded-for")]);
    assert_eq!(headers[TENANT], "acme");
    assert_eq!(headers[DATABASE], "acme-2.old");
    assert!(headers.contains_key(FORWARDED_FOR));
}

#[test]
fn only_a_websocket_is_an_upgrade() {
    let wants = |lines: &[(&str, &str)]| wants_websocket(&headers(lines));
    assert!(wants(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]));
    assert!(!wants(&[("connection", "upgrade"), ("upgrade", "h2c")]));
    assert!(!wants(&[("connection", "upgrade"), ("upgrade", "h2c, websocket")]));
    assert!(!wants(&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")]));
    assert!(!wants(&[("upgrade", "websocket")]));
}

#[test]
fn json_is_for_those_who_name_it_before_a_page() {
    for (accept, json) in [
        ("application/json", true),
        ("application/json; q=0.9, text/html", true),
        ("text/html, application/json", false),
        ("*/*", false),
        ("image/png, application/json", true),
        ("", false),
    ] {
        assert_eq!(wants_json(&headers(&[("accept", accept)])), json, "{accept}");
    }
}

#[test]
fn a_host_is_written_in_one_way() {
    for host in ["acme.localhost:80", "ACME.localhost:80", "Acme.LocalHost.:80"] {
        assert_eq!(normal_host(host), "acme.localhost:80");
    }
    assert_eq!(normal_host("ACME.localhost."), "acme.localhost");
}
