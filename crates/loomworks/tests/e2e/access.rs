//! Every endpoint for every kind of caller, from one table. An endpoint that is not in it fails the test.

use std::collections::BTreeSet;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::log_in::{self, Browser};
use crate::platform::{App, Platform};

/// What an endpoint answers to whom. `tenant` is acme; the other tenant's key is globex's.
pub(crate) struct Row {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) body: Option<Value>,
    other: u16,
    pub(crate) own: u16,
    pub(crate) operator: u16,
    gateway: u16,
    logged_in: u16,
}

fn row(method: Method, path: &'static str, body: Option<Value>, [other, own, operator]: [u16; 3]) -> Row {
    Row { method, path, body, other, own, operator, gateway: 403, logged_in: operator }
}

impl Row {
    /// What a gateway is answered, where that is not that it may not.
    fn gateway(self, gateway: u16) -> Self {
        Self { gateway, ..self }
    }

    /// What an operator is answered who is logged in and asks after the one with a key, where that is something else.
    fn logged_in(self, logged_in: u16) -> Self {
        Self { logged_in, ..self }
    }

    /// Where one goes to become somebody, or to learn how: who asks makes no difference.
    pub(crate) fn is_open(&self) -> bool {
        let open = ["/health/", "/v1/openapi.json", "/v1/auth/login", "/v1/auth/oidc/"];
        open.iter().any(|path| self.path.starts_with(path))
    }

    fn name(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{} {path}", self.method.as_str().to_lowercase())
    }
}

/// What is answered and is in no document: what gateways ask, and the document.
const UNDOCUMENTED: [&str; 3] =
    ["get /v1/internal/routes", "post /v1/internal/gateways", "get /v1/openapi.json"];

const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// 404 for everything of another tenant's, also for what the tenant itself may not do: whoever is answered 403 there has
/// learnt that the other one exists.
pub(crate) fn table() -> Vec<Row> {
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    vec![
        row(get.clone(), "/v1/tenants", None, [200, 200, 200]),
        row(post.clone(), "/v1/tenants", Some(json!({ "subdomain": "x" })), [403, 403, 422]),
        row(get.clone(), "/v1/tenants/{tenant}", None, [404, 200, 200]),
        row(Method::PATCH, "/v1/tenants/{tenant}", Some(json!({ "tier": "pro" })), [404, 403, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/provision", Some(json!({})), [404, 403, 409]),
        row(post.clone(), "/v1/tenants/{tenant}/archive", Some(json!({ "confirm": "" })), [404, 403, 422]),
        row(post.clone(), "/v1/tenants/{tenant}/unarchive", Some(json!({})), [404, 403, 409]),
        row(post.clone(), "/v1/tenants/{tenant}/destroy/plan", Some(json!({})), [404, 403, 200]),
        row(
            post.clone(),
            "/v1/tenants/{tenant}/destroy",
            Some(json!({ "confirm": "acme" })),
            [404, 403, 409],
        ),
        row(get.clone(), "/v1/tenants/{tenant}/erasure", None, [404, 403, 200]),
        row(get.clone(), "/v1/tenants/{tenant}/exports", None, [404, 200, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/exports", Some(json!({})), [404, 202, 409]),
        row(get.clone(), "/v1/tenants/{tenant}/exports/{export}/download", None, [404, 404, 404]),
        row(get.clone(), "/v1/tiers", None, [200, 200, 200]),
        row(
            Method::PUT,
            "/v1/tiers/{tier}",
            Some(json!({ "max_users": 0, "max_storage_gb": 1.0,
            "max_ai_operations_daily": 1 })),
            [403, 403, 422],
        ),
        row(get.clone(), "/v1/tenants/{tenant}/usage", None, [404, 200, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/suspend", Some(json!({})), [404, 403, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/resume", Some(json!({})), [404, 403, 200]),
        row(get.clone(), "/v1/tenants/{tenant}/api-keys", None, [404, 200, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/api-keys", Some(json!({ "name": "" })), [404, 422, 422]),
        row(delete.clone(), "/v1/tenants/{tenant}/api-keys/{key}", None, [404, 404, 404]),
        row(post.clone(), "/v1/tenants/{tenant}/api-keys/{key}/rotate", Some(json!({})), [404, 404, 404]),
        row(get.clone(), "/v1/operator-keys", None, [403, 403, 200]),
        row(post.clone(), "/v1/operator-keys", Some(json!({ "name": "" })), [403, 403, 422]),
        row(delete.clone(), "/v1/operator-keys/{key}", None, [403, 403, 404]),
        row(post.clone(), "/v1/operator-keys/{key}/rotate", Some(json!({})), [403, 403, 404]),
        row(get.clone(), "/v1/tenants/{tenant}/ai-sessions", None, [404, 200, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/ai-sessions", Some(json!({ "agent": "a" })), [404, 201, 201]),
        row(delete.clone(), "/v1/tenants/{tenant}/ai-sessions/{session}", None, [404, 404, 404]),
        row(get.clone(), "/v1/tenants/{tenant}/operations", None, [404, 200, 200]),
        row(get.clone(), "/v1/tenants/{tenant}/operations/{operation}", None, [404, 404, 404]),
        row(
            post.clone(),
            "/v1/tenants/{tenant}/operations/plan-undo",
            Some(json!({ "operations": [] })),
            [404, 422, 422],
        ),
        row(
            post.clone(),
            "/v1/tenants/{tenant}/operations/undo",
            Some(json!({ "operations": [1] })),
            [404, 404, 404],
        ),
        row(get.clone(), "/v1/tenants/{tenant}/snapshots", None, [404, 200, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/snapshots", Some(json!({ "name": "s" })), [404, 202, 202]),
        row(post.clone(), "/v1/tenants/{tenant}/restores/plan", Some(json!({})), [404, 422, 422]),
        row(
            post.clone(),
            "/v1/tenants/{tenant}/restores",
            Some(json!({ "snapshot": NOBODY })),
            [404, 422, 422],
        ),
        row(
            post.clone(),
            "/v1/tenants/{tenant}/restores/swap-back",
            Some(json!({ "confirm": "" })),
            [404, 422, 422],
        ),
        row(post.clone(), "/v1/tenants/{tenant}/credentials/rotate", None, [404, 202, 202]),
        row(get.clone(), "/v1/jobs", None, [200, 200, 200]),
        row(get.clone(), "/v1/jobs/{job}", None, [404, 200, 200]),
        row(get.clone(), "/v1/jobs/{job}/events", None, [404, 200, 200]),
        // It has succeeded.
        row(post.clone(), "/v1/jobs/{job}/retry", None, [404, 409, 409]),
        row(post.clone(), "/v1/jobs/{job}/cancel", None, [404, 409, 409]),
        row(get.clone(), "/v1/backups", None, [403, 403, 200]),
        row(post.clone(), "/v1/backups", None, [403, 403, 202]),
        row(post.clone(), "/v1/backups/{label}/verify", None, [403, 403, 404]),
        row(get.clone(), "/v1/archive", None, [403, 403, 200]),
        row(get.clone(), "/v1/archive/expiry", None, [403, 403, 200]),
        row(post.clone(), "/v1/archive/expiry", None, [403, 403, 202]),
        row(post.clone(), "/v1/archive/drill", None, [403, 403, 202]),
        row(get.clone(), "/v1/tenants/{tenant}/recovery-window", None, [404, 200, 200]),
        row(get.clone(), "/v1/master-key", None, [403, 403, 200]),
        row(post.clone(), "/v1/master-key/rotate", Some(json!({})), [403, 403, 202]),
        row(get.clone(), "/v1/audit", None, [200, 200, 200]),
        row(post.clone(), "/v1/audit/verify", Some(json!({})), [403, 403, 200]),
        row(get.clone(), "/v1/fleet-migrations", None, [403, 403, 200]),
        row(post.clone(), "/v1/fleet-migrations", Some(fleet_migration()), [403, 403, 422]),
        row(post.clone(), "/v1/fleet-migrations/plan", Some(fleet_migration()), [403, 403, 422]),
        row(get.clone(), "/v1/fleet-migrations/{migration}", None, [403, 403, 404]),
        row(get.clone(), "/v1/fleet-migrations/{migration}/tenants", None, [403, 403, 404]),
        row(
            post.clone(),
            "/v1/fleet-migrations/{migration}/resume",
            Some(json!({ "retry_failed": true })),
            [403, 403, 404],
        ),
        row(post.clone(), "/v1/fleet-migrations/{migration}/pause", None, [403, 403, 404]),
        row(post.clone(), "/v1/fleet-migrations/{migration}/cancel", None, [403, 403, 404]),
        row(get.clone(), "/v1/doctor", None, [403, 403, 200]),
        row(get.clone(), "/v1/notifications", None, [200, 200, 200]),
        row(get.clone(), "/v1/tenants/{tenant}/webhooks", None, [404, 200, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/webhooks", Some(json!({ "url": "x" })), [404, 422, 422]),
        row(delete.clone(), "/v1/tenants/{tenant}/webhooks/{webhook}", None, [404, 404, 404]),
        row(post.clone(), "/v1/tenants/{tenant}/webhooks/{webhook}/test", None, [404, 404, 404]),
        row(post.clone(), "/v1/tenants/{tenant}/webhooks/{webhook}/rotate-secret", None, [404, 404, 404]),
        row(get.clone(), "/v1/tenants/{tenant}/webhooks/{webhook}/deliveries", None, [404, 404, 404]),
        row(get.clone(), "/v1/webhooks", None, [403, 403, 200]),
        row(post.clone(), "/v1/webhooks", Some(json!({ "url": "x" })), [403, 403, 422]),
        row(delete.clone(), "/v1/webhooks/{webhook}", None, [403, 403, 404]),
        row(post.clone(), "/v1/webhooks/{webhook}/test", None, [403, 403, 404]),
        row(post.clone(), "/v1/webhooks/{webhook}/rotate-secret", None, [403, 403, 404]),
        row(get.clone(), "/v1/webhooks/{webhook}/deliveries", None, [403, 403, 404]),
        row(get.clone(), "/v1/operators", None, [403, 403, 200]),
        row(post.clone(), "/v1/operators", Some(new_operator()), [403, 403, 422]),
        row(post.clone(), "/v1/operators/{operator}/disable", None, [403, 403, 404]),
        row(post.clone(), "/v1/operators/{operator}/enable", None, [403, 403, 404]),
        row(
            post.clone(),
            "/v1/operators/{operator}/password",
            Some(json!({ "password": "x" })),
            [403, 403, 404],
        ),
        row(post.clone(), "/v1/auth/login", Some(json!({})), [422, 422, 422]),
        row(get.clone(), "/v1/auth/oidc/start", None, [404, 404, 404]),
        row(get.clone(), "/v1/auth/oidc/callback", None, [404, 404, 404]),
        row(get.clone(), "/health/live", None, [204, 204, 204]),
        row(get.clone(), "/health/ready", None, [204, 204, 204]),
        row(get.clone(), "/v1/openapi.json", None, [200, 200, 200]),
        row(get.clone(), "/v1/internal/routes?newer_than=-1", None, [403, 403, 403]).gateway(200),
        row(post.clone(), "/v1/internal/gateways", Some(acknowledgement()), [403, 403, 403]).gateway(204),
        // A key is nobody's account.
        row(get.clone(), "/v1/auth/me", None, [403, 403, 403]).logged_in(200),
        row(get, "/v1/auth/sessions", None, [403, 403, 403]).logged_in(200),
        row(delete, "/v1/auth/sessions/{session}", None, [403, 403, 403]).logged_in(404),
        // Last: it ends the session.
        row(post, "/v1/auth/logout", None, [403, 403, 403]).logged_in(204),
    ]
}

/// One that selects nobody.
fn fleet_migration() -> Value {
    json!({ "name": "n", "sql": "SELECT 1", "selection": { "tenants": [] } })
}

fn acknowledgement() -> Value {
    json!({ "gateway": "of-a-test", "generation": 0 })
}

fn new_operator() -> Value {
    json!({ "name": "Ann", "email": "ann", "password": "x", "permissions": ["read"] })
}

struct Callers {
    http: Client,
    acme: String,
    globex: String,
    revoked: String,
    operator: String,
    gateway: String,
}

/// Two tenants, each with a key; one more that has been revoked.
async fn callers(platform: &Platform) -> Callers {
    for tenant in ["acme", "globex"] {
        platform.cli(&["tenant", "create", tenant, "--wait"]);
    }
    let (http, operator) = (Client::new(), platform.operator_key());
    let make = async |path: &str, body: Value| {
        let made = http
            .post(platform.url(path))
            .bearer_auth(&operator)
            .json(&body)
            .send()
            .await
            .expect("make a key");
        made.json::<Value>().await.expect("JSON")
    };
    let key =
        async |tenant: &str| make(&format!("/v1/tenants/{tenant}/api-keys"), json!({ "name": "test" })).await;
    let gateway = make("/v1/operator-keys", json!({ "name": "test", "scope": "gateway" })).await;
    let text = |key: &Value| key["api_key"].as_str().expect("a key").to_owned();
    let (acme, globex, revoked) = (text(&key("acme").await), text(&key("globex").await), key("acme").await);
    let url = platform.url(&format!("/v1/tenants/acme/api-keys/{}", revoked["id"].as_str().expect("an id")));
    // Used once, so that it is among those that were checked a moment ago.
    assert_eq!(
        http.get(platform.url("/v1/tenants")).bearer_auth(text(&revoked)).send().await.expect("ask").status(),
        200
    );
    assert_eq!(http.delete(url).bearer_auth(&operator).send().await.expect("revoke").status(), 204);
    Callers { acme, globex, revoked: text(&revoked), gateway: text(&gateway), operator, http }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_for_every_caller() {
    let platform = Platform::start(&App::OneTable);
    let callers = callers(&platform).await;
    let job = finished_job(&platform);
    log_in::operator(&platform, "ann@example.com", "read,work,manage");
    let mut browser = Browser::new(&platform, "192.0.2.1");
    browser.log_in("ann@example.com", log_in::PASSWORD).await;

    for row in table() {
        let path = row.path.replace("{tenant}", "acme").replace("{job}", &job).replace("{tier}", "basic");
        let path =
            path.replace("{key}", NOBODY).replace("{session}", NOBODY).replace("{operation}", "999999");
        let path = path
            .replace("{migration}", NOBODY)
            .replace("{webhook}", NOBODY)
            .replace("{export}", NOBODY)
            .replace("{label}", NOBODY)
            .replace("{operator}", NOBODY);
        let bad_key = "frt_live_00000000000000000000000000000000";
        let (refused, gateway) =
            if row.is_open() { (row.operator, row.operator) } else { (401, row.gateway) };
        for (who, key, expected) in [
            ("nobody", None, refused),
            ("somebody with nonsense", Some("nonsense"), refused),
            ("somebody with an invented key", Some(bad_key), refused),
            ("somebody with a revoked key", Some(callers.revoked.as_str()), refused),
            ("another tenant", Some(callers.globex.as_str()), row.other),
            ("the tenant", Some(callers.acme.as_str()), row.own),
            ("an operator", Some(callers.operator.as_str()), row.operator),
            ("a gateway", Some(callers.gateway.as_str()), gateway),
        ] {
            let mut request = callers.http.request(row.method.clone(), platform.url(&path));
            if let Some(key) = key {
                request = request.bearer_auth(key);
            }
            if let Some(body) = &row.body {
                request = request.json(body);
            }
            let response = request.send().await.expect("an answer");
            let (status, text) = (response.status(), response.text().await.expect("a body"));
            assert_eq!(status.as_u16(), expected, "{} {path} for {who}: {text}", row.method);
            if status.is_client_error() {
                check_problem(&text);
            }
        }
        let answer = browser.send(row.method.clone(), &path, row.body.clone()).await;
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        assert_eq!(status.as_u16(), row.logged_in, "{} {path} for somebody logged in: {text}", row.method);
    }
    check_table_is_complete(&platform, &callers).await;
    check_lists_show_no_neighbours(&platform, &callers).await;
}

/// A job of acme's own that has succeeded: its snapshot.
pub(crate) fn finished_job(platform: &Platform) -> String {
    platform.cli(&["snapshot", "create", "acme"]);
    let list = ["job", "list", "--tenant", "acme", "--kind", "snapshot", "--state", "succeeded"];
    platform.cli(&list)["items"][0]["id"].as_str().expect("a job of acme's").to_owned()
}

/// A refusal says what is wrong, to machines and to people.
pub(crate) fn check_problem(text: &str) {
    let problem: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:.200}"));
    for field in ["type", "title", "code", "message", "hint", "request_id"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {problem}");
    }
    assert!(problem["status"].is_u64(), "{problem}");
}

async fn check_table_is_complete(platform: &Platform, callers: &Callers) {
    let document =
        callers.http.get(platform.url("/v1/openapi.json")).send().await.expect("ask for the document");
    let document: Value = document.json().await.expect("JSON");
    let mut documented = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        documented
            .extend(methods.as_object().expect("methods").keys().map(|method| format!("{method} {path}")));
    }
    let undocumented = UNDOCUMENTED.map(str::to_owned);
    assert_eq!(
        documented.into_iter().chain(undocumented).collect::<BTreeSet<_>>(),
        table().iter().map(Row::name).collect(),
        "the document and the table name the same endpoints"
    );
}

async fn check_lists_show_no_neighbours(platform: &Platform, callers: &Callers) {
    for path in ["/v1/tenants", "/v1/jobs"] {
        let answer =
            callers.http.get(platform.url(path)).bearer_auth(&callers.globex).send().await.expect("ask");
        assert_eq!(answer.status(), StatusCode::OK);
        let text = answer.text().await.expect("a body");
        assert!(!text.contains("acme"), "globex sees acme in {path}: {text}");
        let list: Value = serde_json::from_str(&text).expect("a list");
        let items = list.as_array().or_else(|| list["items"].as_array());
        assert!(items.is_some_and(|items| !items.is_empty()), "globex sees its own in {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_a_clear_refusal_and_changes_nothing() {
    let platform = Platform::start(&App::OneTable);
    let (http, key) = (Client::new(), platform.operator_key());
    let bodies = [
        json!({ "subdomain": "Acme" }),
        json!({ "subdomain": "a'; DROP TABLE tenants; --" }),
        json!({ "subdomain": "postgres" }),
        json!({ "subdomain": "а-cyrillic" }),
        json!({ "subdomain": "nul\0" }),
        json!({ "subdomain": "a".repeat(64) }),
        json!({ "subdomain": 7 }),
        json!({ "subdomain": null }),
        json!({}),
        json!([]),
        json!({ "subdomain": "acme", "extra": 1 }),
        json!({ "subdomain": "acme", "name": "two\nlines" }),
        json!({ "subdomain": "acme", "profile": "none" }),
    ];
    for body in bodies {
        let answer =
            http.post(platform.url("/v1/tenants")).bearer_auth(&key).json(&body).send().await.expect("ask");
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        assert!(status.is_client_error(), "{body}: {status} {text}");
    }
    for text in ["", "{", "\u{feff}{}", &"[".repeat(100_000)] {
        let request = http
            .post(platform.url("/v1/tenants"))
            .bearer_auth(&key)
            .header("content-type", "application/json");
        let answer = request.body(text.to_owned()).send().await.expect("ask");
        assert!(answer.status().is_client_error(), "{text:.20}: {}", answer.status());
    }
    for path in [
        "/v1/tenants/%00",
        "/v1/tenants/'%20OR%201=1",
        "/v1/jobs/x",
        "/v1/jobs?limit=x",
        "/v1/nowhere",
        "/v1/tenants/a/b/c",
    ] {
        let answer = http.get(platform.url(path)).bearer_auth(&key).send().await.expect("ask");
        assert!(answer.status().is_client_error(), "{path}: {}", answer.status());
    }
    assert_eq!(platform.cli(&["tenant", "list"]), json!([]));
    let hint = platform.try_cli(&["tenant", "create", "Acme"]);
    assert_eq!(hint.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&hint.stderr).contains("hint"), "{hint:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_reaches_no_other_database_and_cannot_harm_its_own_from_outside() {
    let platform = Platform::start(&App::OneTable);
    for tenant in ["acme", "globex"] {
        platform.cli(&["tenant", "create", tenant, "--wait"]);
    }
    let opened = platform.cli(&["ai-session", "open", "acme", "--agent", "intruder"]);
    let options = opened["connection_string"].as_str().expect("a connection string");
    let options: PgConnectOptions = options.parse().expect("connect options");
    let options = options.ssl_mode(PgSslMode::Disable);
    for database in ["globex", "loomworks_mgmt", "postgres", "template1", "template0"] {
        assert!(options.clone().database(database).connect().await.is_err(), "{database} lets it in");
    }
    for role in ["postgres", "loomworks_platform", "loomworks_api", "loomworks_undo"] {
        assert!(options.clone().username(role).connect().await.is_err(), "it comes in as {role}");
    }
    let mut agent = options.connect().await.expect("its own database");
    let refused = [
        "DROP DATABASE acme",
        "ALTER DATABASE acme RENAME TO mine",
        "ALTER DATABASE acme CONNECTION LIMIT 0",
        "ALTER DATABASE acme SET search_path = nowhere",
        "CREATE DATABASE mine",
        "CREATE ROLE mine",
        "ALTER ROLE loomworks_undo PASSWORD 'x'",
        "SET ROLE postgres",
        "SET SESSION AUTHORIZATION postgres",
        "SET session_replication_role = replica",
        "COPY items TO '/tmp/items'",
        "COPY items FROM PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_switch_wal()",
        "SELECT * FROM loomworks.operation",
        "DELETE FROM loomworks.operation",
    ];
    for statement in refused {
        assert!(sqlx::query(statement).execute(&mut agent).await.is_err(), "{statement}");
    }
    // Closed, it is out at once, and the string is worth nothing.
    let session = opened["id"].as_str().expect("an id");
    platform.cli(&["ai-session", "close", "acme", session]);
    assert!(sqlx::query("SELECT 1").execute(&mut agent).await.is_err());
}
