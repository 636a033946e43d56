//! Every endpoint for callers with less than all rights: a tenant's user, an operator who may only read, a key that has
//! expired. What they are answered follows from what those with all rights are (the table in `access.rs`).

use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::access::{Row, check_problem, finished_job, table};
use crate::platform::{App, Platform};

const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// What of a tenant's needs `manage`, which a tenant's user has not.
fn needs_manage(row: &Row) -> bool {
    let path = row.path.strip_prefix("/v1/tenants/{tenant}/").unwrap_or_default();
    let managed = ["api-keys", "webhooks", "credentials", "restores", "export", "settings"];
    let listed = row.method == Method::GET && path == "exports";
    managed.iter().any(|of| path.starts_with(of)) && !row.path.ends_with("/restores/plan") && !listed
}

/// What is asked by POST and changes nothing.
fn only_reads(row: &Row) -> bool {
    let asks = ["/operations/plan-undo", "/restores/plan", "/destroy/plan", "/audit/verify"];
    (row.method == Method::GET && !needs_manage(row) && row.path != "/v1/webhooks")
        && !row.path.starts_with("/v1/webhooks/")
        || asks.iter().any(|path| row.path.ends_with(path))
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_fewer_rights_may_do_less_everywhere() {
    let platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let job = finished_job(&platform);
    let (http, operator) = (Client::new(), platform.operator_key());
    let make = async |path: &str, body: Value| {
        let made =
            http.post(platform.url(path)).bearer_auth(&operator).json(&body).send().await.expect("make");
        let made: Value = made.json().await.expect("JSON");
        made["api_key"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
    };
    let keys = "/v1/tenants/acme/api-keys";
    let user = make(keys, json!({ "name": "test", "scope": "tenant_user" })).await;
    let reader = make("/v1/operator-keys", json!({ "name": "test", "permissions": ["read"] })).await;
    let soon = jiff::Timestamp::from_second(loomworks_core::time::now().as_second() + 5)
        .expect("a time")
        .to_string();
    let expired = make(keys, json!({ "name": "test", "expires_at": soon })).await;
    let ask = async |key: &str, method: &Method, path: &str, body: Option<&Value>| {
        let request = http.request(method.clone(), platform.url(path)).bearer_auth(key);
        let request = if let Some(body) = body { request.json(body) } else { request };
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    };
    // Checked a moment before it expires, so that a process that believes it is the one that refuses it.
    assert_eq!(ask(&expired, &Method::GET, "/v1/tenants", None).await.0, 200);
    while ask(&expired, &Method::GET, "/v1/tenants", None).await.0 != 401 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }

    for row in table() {
        // Sessions are operators' own, whatever they may do.
        if row.is_open() || row.path.starts_with("/v1/auth/") {
            continue;
        }
        let path =
            row.path.replace("{tenant}", "acme").replace("{operation}", "999999").replace("{job}", &job);
        let path: Vec<_> =
            path.split('/').map(|part| if part.starts_with('{') { NOBODY } else { part }).collect();
        let path = path.join("/");
        let of_user = if needs_manage(&row) { 403 } else { row.own };
        let of_reader = if only_reads(&row) { row.operator } else { 403 };
        for (who, key, expected) in [
            ("the tenant's user", &user, of_user),
            ("an operator who may only read", &reader, of_reader),
            ("somebody with an expired key", &expired, 401),
        ] {
            let (status, text) = ask(key, &row.method, &path, row.body.as_ref()).await;
            assert_eq!(status, expected, "{} {path} for {who}: {text}", row.method);
            if (400..500).contains(&status) {
                check_problem(&text);
            }
        }
    }
}
