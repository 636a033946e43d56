//! Whatever is sent, the answer is a clear refusal or what was asked for, and never a failure of ours.
//!
//! Hostile requests are made from the OpenAPI document, so that a new endpoint is tried as hard as the old ones.

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::access::check_problem;
use crate::platform::{App, Platform};

const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// Texts that have broken programs.
fn hostile_texts() -> Vec<String> {
    [
        "",
        " ",
        "'; DROP TABLE tenants; --",
        "\" OR 1=1 --",
        "$(reboot)",
        "`reboot`",
        "../../etc/passwd",
        "%00",
        "%s%n",
        "{{7*7}}",
        "nul\0",
        "\u{1b}[2J",
        "\u{7f}",
        "\u{85}",
        "a\u{202e}b",
        "\u{feff}acme",
        "а-cyrillic",
        "\u{1f4a9}",
        "ﬁ",
        "İ",
        "\n",
        "\r\n\r\nHTTP/1.1 200",
        "NULL",
        "null",
        "true",
        "-1",
        "1e309",
        "0x10",
        "NaN",
        "9223372036854775808",
        "2026-13-45T99:99:99Z",
        "-009999-01-01T00:00:00Z",
        "+009999-12-30T22:00:00Z",
        NOBODY,
        "postgres",
        "template1",
        "acme",
    ]
    .iter()
    .map(|text| (*text).to_owned())
    .chain(["a".repeat(256), "ä".repeat(10_000), "a".repeat(1_000_000)])
    .collect()
}

/// Values of every type, for a place where one type is right.
fn hostile_values() -> Vec<Value> {
    let deep = (0..100).fold(json!(1), |below, _| json!([below]));
    let mut values = vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1.5),
        json!(1e300),
        json!([]),
        json!({}),
        json!([null]),
        json!([[]]),
        json!({ "$ref": "x" }),
        deep,
    ];
    values.extend(hostile_texts().into_iter().map(Value::String));
    values
}

struct Asker<'a> {
    platform: &'a Platform,
    http: Client,
    key: String,
}

impl Asker<'_> {
    async fn send(&self, method: &Method, path: &str, body: Option<String>) -> Response {
        let mut request = self.http.request(method.clone(), self.platform.url(path)).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        request.send().await.unwrap_or_else(|error| panic!("{method} {path:.200}: {error}"))
    }

    /// Sends it and sees that it is refused as it should be, or was legal.
    async fn check(&self, method: &Method, path: &str, body: Option<String>) -> StatusCode {
        let response = self.send(method, path, body.clone()).await;
        let status = response.status();
        let text = response.text().await.expect("a body");
        let sent = format!("{method} {path:.200} {:.200}", body.unwrap_or_default());
        assert!(
            status.is_success() || status.is_client_error() || status.is_redirection(),
            "{sent}: {status} {text}"
        );
        assert_ne!(status, StatusCode::UNAUTHORIZED, "{sent}: {text}");
        if status.is_client_error() {
            check_problem(&text);
        }
        status
    }
}

/// Follows a reference within the document.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).expect("what it refers to"),
        None => schema,
    }
}

/// A body with the example of each field.
fn example(document: &Value, schema: &Value) -> Value {
    let schema = resolved(document, schema);
    let mut body = json!({});
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let field = resolved(document, field);
        let given = [&field["example"], &field["default"]].into_iter().find(|value| !value.is_null());
        body[name] = given.cloned().unwrap_or_else(|| match field["type"].as_str() {
            Some("string") => json!("x"),
            Some("integer") => json!(1),
            Some("boolean") => json!(false),
            Some("array") => json!([]),
            _ => json!(null),
        });
    }
    body
}

/// The address with every part filled in.
fn filled(path: &str) -> String {
    let path = path.replace("{tenant}", "acme").replace("{operation}", "999999");
    path.split('/')
        .map(|part| if part.starts_with('{') { NOBODY } else { part })
        .collect::<Vec<_>>()
        .join("/")
}

/// What takes minutes, never ends, or would log the test itself out.
fn is_left_out(path: &str) -> bool {
    path.starts_with("/v1/auth/")
        || path.ends_with("/master-key/rotate")
        || path.ends_with("/events")
        || path.ends_with("/doctor")
        || path.ends_with("/backups")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_hostile_request_makes_a_failure_of_ours() {
    let platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let asker = Asker { platform: &platform, http: Client::new(), key: platform.operator_key() };
    let document: Value =
        asker.send(&Method::GET, "/v1/openapi.json", None).await.json().await.expect("the document");
    let before = platform.cli(&["tenant", "show", "acme"]);
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            if is_left_out(path) {
                continue;
            }
            let method: Method = method.to_uppercase().parse().expect("a method");
            try_body(&asker, &document, &method, path, operation).await;
            try_address(&asker, &method, path, operation).await;
        }
    }
    // What is legal may have been done; what was there is there.
    assert_eq!(platform.cli(&["tenant", "show", "acme"])["id"], before["id"]);
    let rows = {
        let mut app = platform.connect_as_app("acme").await;
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM items WHERE value = 'as made'")
            .fetch_one(&mut app)
            .await
    };
    assert_eq!(rows.expect("count"), 1000, "the tenant's rows are as they were");
}

async fn try_body(asker: &Asker<'_>, document: &Value, method: &Method, path: &str, operation: &Value) {
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    let address = filled(path);
    if schema.is_null() {
        if method == Method::POST {
            asker.check(method, &address, Some("{".into())).await;
        }
        return;
    }
    let good = example(document, schema);
    for (name, _) in good.as_object().expect("an object").clone() {
        for value in hostile_values() {
            let mut body = good.clone();
            body[&name] = value.clone();
            let status = asker.check(method, &address, Some(body.to_string())).await;
            let controls = |text: &str| text.contains('\0') || text.contains('\u{1b}');
            if value.as_str().is_some_and(controls) {
                assert!(status.is_client_error(), "{method} {path}: `{name}` with {value} was taken");
            }
        }
        let twice = format!("{{\"{name}\":1,\"{name}\":1}}");
        assert_eq!(asker.check(method, &address, Some(twice)).await, StatusCode::UNPROCESSABLE_ENTITY);
    }
    let mut unknown = good.clone();
    unknown["no such field"] = json!(1);
    assert!(asker.check(method, &address, Some(unknown.to_string())).await.is_client_error(), "{path}");
    for text in ["", "{", "nul", "\u{feff}{}", "{}{}", &"[".repeat(100_000), "[]", "null", "1", "\"x\""] {
        let status = asker.check(method, &address, Some(text.to_owned())).await;
        assert!(status.is_client_error(), "{method} {path}: {text:.20} was taken");
    }
    let large = asker.check(method, &address, Some(" ".repeat(1024 * 1024 + 1))).await;
    assert_eq!(large, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
    let request = asker.http.request(method.clone(), asker.platform.url(&address)).bearer_auth(&asker.key);
    let other = request.header("content-type", "text/plain").body("{}").send().await.expect("ask");
    assert_eq!(other.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{path}");
}

async fn try_address(asker: &Asker<'_>, method: &Method, path: &str, operation: &Value) {
    if path.starts_with("/health/") {
        return;
    }
    let body = || (method == Method::POST && operation["requestBody"].is_object()).then(|| "{}".to_owned());
    let odd = [
        "%00",
        "%ff",
        "%252e%252e",
        "..%2f",
        "'%20OR%201=1",
        "-1",
        "99999999999999999999",
        "%F0%9F%92%A9",
        "x",
    ];
    if path.contains('{') {
        for text in odd {
            let parts = path.split('/').map(|part| if part.starts_with('{') { text } else { part });
            let status = asker.check(method, &parts.collect::<Vec<_>>().join("/"), body()).await;
            assert!(status.is_client_error(), "{method} {path} with {text}: {status}");
        }
    }
    let query = format!("{}?no-such-parameter=1", filled(path));
    assert_eq!(asker.check(method, &query, body()).await, StatusCode::BAD_REQUEST, "{method} {path}");
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    for name in parameters
        .filter(|parameter| parameter["in"] == "query")
        .filter_map(|parameter| parameter["name"].as_str())
    {
        // Cursors of other lists, and of none.
        let cursors = [
            "e30",
            "MA",
            "WzFd",
            "bnVsbA",
            "WyItMDA5OTk5LTAxLTAyVDAxOjU5OjU5WiIsIjAwMDAwMDAwLTAwMDAtNDAwMC04MDAwLTAwMDAwMDAwMDAwMCJd",
        ];
        for text in odd.iter().chain(&["", "0", "1e9", "%1b", "9223372036854775807"]).chain(&cursors) {
            asker.check(method, &format!("{}?{name}={text}", filled(path)), body()).await;
        }
        let twice = format!("{}?{name}=1&{name}=1", filled(path));
        assert!(asker.check(method, &twice, body()).await.is_client_error(), "{method} {path}: {name} twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_twice_is_done_once_and_who_asks_too_often_is_told() {
    let platform = Platform::start(&App::OneTable);
    let (http, key) = (Client::new(), platform.operator_key());
    let ask = async |idempotency_key: &str, name: &str| {
        let request =
            http.post(platform.url("/v1/operator-keys")).bearer_auth(&key).json(&json!({ "name": name }));
        request.header("idempotency-key", idempotency_key).send().await.expect("ask")
    };
    let first = ask("one", "test").await;
    assert_eq!(first.status(), 201);
    assert!(first.headers().contains_key("ratelimit") && first.headers().contains_key("ratelimit-policy"));
    let first: Value = first.json().await.expect("JSON");
    let second = ask("one", "test").await;
    assert_eq!(
        (second.status(), second.headers()["idempotency-replayed"].as_bytes()),
        (StatusCode::CREATED, &b"true"[..])
    );
    assert_eq!(second.json::<Value>().await.expect("JSON"), first);
    let other = ask("one", "another").await;
    assert_eq!(other.status(), 422);
    assert_eq!(other.json::<Value>().await.expect("JSON")["code"], "idempotency_key_reused");
    assert_eq!(ask("", "test").await.status(), 400);
    assert_eq!(ask(&"k".repeat(256), "test").await.status(), 400);
    // Ten at once: one is carried out, the others wait their turn or hear its answer.
    let statuses = futures(10, async || ask("two", "burst").await.status()).await;
    assert!(statuses.iter().all(|status| [201, 409].contains(&status.as_u16())), "{statuses:?}");
    let keys = platform.cli(&["key", "list", "--platform"]);
    let named = |name: &str| keys.as_array().expect("keys").iter().filter(|key| key["name"] == name).count();
    assert_eq!((named("test"), named("another"), named("burst")), (1, 0, 1));
    // The request's id is ours, whatever the client says.
    let mine =
        http.get(platform.url("/v1/tenants")).header("x-request-id", "mine").send().await.expect("ask");
    assert_ne!(mine.headers()["x-request-id"], "mine");
}

async fn futures<T>(count: usize, one: impl AsyncFn() -> T) -> Vec<T> {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::Poll;
    let mut running: Vec<Pin<Box<dyn Future<Output = T> + '_>>> =
        (0..count).map(|_| Box::pin(one()) as _).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|context| {
        running.retain_mut(|future| match future.as_mut().poll(context) {
            Poll::Ready(value) => {
                done.push(value);
                false
            }
            Poll::Pending => true,
        });
        if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done
}
