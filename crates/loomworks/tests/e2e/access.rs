//! Every endpoint for every kind of caller, from one table. An endpoint that is not in it fails the test.

use std::collections::BTreeSet;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::platform::{App, Platform};

/// What an endpoint answers to whom. `tenant` is acme; the other tenant's key is globex's.
struct Row {
    method: Method,
    path: &'static str,
    body: Option<Value>,
    other: u16,
    own: u16,
    operator: u16,
}

fn row(method: Method, path: &'static str, body: Option<Value>, [other, own, operator]: [u16; 3]) -> Row {
    Row { method, path, body, other, own, operator }
}

const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// 404 for another tenant's things, never 403: the two could be told apart.
fn table() -> Vec<Row> {
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    vec![
        row(get.clone(), "/v1/tenants", None, [200, 200, 200]),
        row(post.clone(), "/v1/tenants", Some(json!({ "subdomain": "x" })), [403, 403, 422]),
        row(get.clone(), "/v1/tenants/{tenant}", None, [404, 200, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/suspend", Some(json!({})), [403, 403, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/resume", Some(json!({})), [403, 403, 200]),
        row(get.clone(), "/v1/tenants/{tenant}/api-keys", None, [403, 403, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/api-keys", Some(json!({ "name": "" })), [403, 403, 422]),
        row(delete.clone(), "/v1/tenants/{tenant}/api-keys/{key}", None, [403, 403, 404]),
        row(get.clone(), "/v1/tenants/{tenant}/ai-sessions", None, [404, 200, 200]),
        row(post.clone(), "/v1/tenants/{tenant}/ai-sessions", Some(json!({ "agent": "a" })), [404, 201, 201]),
        row(delete, "/v1/tenants/{tenant}/ai-sessions/{session}", None, [404, 404, 404]),
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
        row(get.clone(), "/v1/jobs", None, [200, 200, 200]),
        row(get.clone(), "/v1/jobs/{job}", None, [404, 200, 200]),
        row(get.clone(), "/v1/backups", None, [403, 403, 200]),
        row(post, "/v1/backups", None, [403, 403, 202]),
        row(get.clone(), "/v1/doctor", None, [403, 403, 200]),
        row(get.clone(), "/health/live", None, [204, 204, 204]),
        row(get, "/health/ready", None, [204, 204, 204]),
    ]
}

struct Callers {
    http: Client,
    acme: String,
    globex: String,
    revoked: String,
    operator: String,
}

/// Two tenants, each with a key; one more that has been revoked.
async fn callers(platform: &Platform) -> Callers {
    for tenant in ["acme", "globex"] {
        platform.cli(&["tenant", "create", tenant, "--wait"]);
    }
    let (http, operator) = (Client::new(), platform.operator_key());
    let key = async |tenant: &str| {
        let url = platform.url(&format!("/v1/tenants/{tenant}/api-keys"));
        let made = http
            .post(url)
            .bearer_auth(&operator)
            .json(&json!({ "name": "test" }))
            .send()
            .await
            .expect("make a key");
        made.json::<Value>().await.expect("JSON")
    };
    let text = |key: &Value| key["api_key"].as_str().expect("a key").to_owned();
    let (acme, globex, revoked) = (text(&key("acme").await), text(&key("globex").await), key("acme").await);
    let url = platform.url(&format!("/v1/tenants/acme/api-keys/{}", revoked["id"].as_str().expect("an id")));
    // Used once, so that it is among those that were checked a moment ago.
    assert_eq!(
        http.get(platform.url("/v1/tenants")).bearer_auth(text(&revoked)).send().await.expect("ask").status(),
        200
    );
    assert_eq!(http.delete(url).bearer_auth(&operator).send().await.expect("revoke").status(), 204);
    Callers { acme, globex, revoked: text(&revoked), operator, http }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_for_every_caller() {
    let platform = Platform::start(&App::OneTable);
    let callers = callers(&platform).await;
    let jobs = platform.cli(&["job", "list"]);
    let acme = platform.cli(&["tenant", "show", "acme"])["id"].clone();
    let jobs = jobs.as_array().expect("jobs");
    let job = jobs.iter().find(|job| job["tenant_id"] == acme).expect("a job of acme's")["id"].clone();
    let job = job.as_str().expect("an id");

    for row in table() {
        let path = row.path.replace("{tenant}", "acme").replace("{job}", job);
        let path =
            path.replace("{key}", NOBODY).replace("{session}", NOBODY).replace("{operation}", "999999");
        let open = row.path.starts_with("/health/");
        let bad_key = "frt_live_00000000000000000000000000000000";
        let refused = if open { 204 } else { 401 };
        for (who, key, expected) in [
            ("nobody", None, refused),
            ("somebody with nonsense", Some("nonsense"), refused),
            ("somebody with an invented key", Some(bad_key), refused),
            ("somebody with a revoked key", Some(callers.revoked.as_str()), refused),
            ("another tenant", Some(callers.globex.as_str()), row.other),
            ("the tenant", Some(callers.acme.as_str()), row.own),
            ("an operator", Some(callers.operator.as_str()), row.operator),
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
                let problem: Value = serde_json::from_str(&text).expect("a problem");
                assert!(problem["code"].is_string() && problem["request_id"].is_string(), "{problem}");
            }
        }
    }
    check_table_is_complete(&platform, &callers).await;
    check_lists_show_no_neighbours(&platform, &callers).await;
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
    let row_name = |row: &Row| format!("{} {}", row.method.as_str().to_lowercase(), row.path);
    assert_eq!(
        documented,
        table().iter().map(row_name).collect(),
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
        let items: Vec<Value> = serde_json::from_str(&text).expect("a list");
        assert!(!items.is_empty(), "globex sees its own in {path}");
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
