//! Webhooks with real receivers: what arrives, what is tried again, what is refused, and who sees what.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::crashes::survives_every_crash;
use crate::platform::{App, Platform};

/// What a receiver does with the next request. With nothing to do it answers 200.
enum Answer {
    Status(u16),
    Redirect(String),
    /// None, for a long time.
    Silence,
}

#[derive(Clone)]
struct Seen {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).expect("the header").to_str().expect("text")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    /// How many of the signatures are this secret's, computed as the documents say.
    fn signatures(&self, secret: &str) -> (usize, usize) {
        let fields: Vec<&str> = self.header("loomworks-signature").split(',').collect();
        let time = fields[0].strip_prefix("t=").expect("a time first");
        let age = loomworks_core::time::now().as_second() - time.parse::<i64>().expect("seconds");
        assert!((0..300).contains(&age), "signed when it was sent");
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
        let tag = ring::hmac::sign(&key, format!("{time}.{}", self.body).as_bytes());
        let right: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let right = fields.iter().filter(|field| field.strip_prefix("v1=") == Some(&right)).count();
        (right, fields.len() - 1)
    }
}

#[derive(Clone, Default)]
struct Plan {
    seen: Arc<Mutex<Vec<Seen>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

/// An HTTP server that notes what it gets.
struct Receiver {
    address: SocketAddr,
    plan: Plan,
}

impl Receiver {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let (address, plan) = (listener.local_addr().expect("an address"), Plan::default());
        let router = Router::new().fallback(receive).with_state(plan.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, plan }
    }

    fn url(&self) -> String {
        format!("http://{}/hook?token=of-the-receiver", self.address)
    }

    fn next(&self, answer: Answer) {
        self.plan.answers.lock().expect("not poisoned").push_back(answer);
    }

    fn seen(&self) -> Vec<Seen> {
        self.plan.seen.lock().expect("not poisoned").clone()
    }

    /// Waits until it has had that many requests.
    fn wait(&self, platform: &mut Platform, count: usize) -> Vec<Seen> {
        platform.wait_for("requests at the receiver", |_| self.seen().len() >= count);
        self.seen()
    }
}

async fn receive(
    State(plan): State<Plan>,
    method: Method,
    uri: axum::http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = String::from_utf8(body.to_vec()).expect("text");
    plan.seen.lock().expect("not poisoned").push(Seen { method, path: uri.to_string(), headers, body });
    let answer = plan.answers.lock().expect("not poisoned").pop_front();
    match answer.unwrap_or(Answer::Status(200)) {
        // More than anybody would want to read.
        Answer::Status(status) => {
            (StatusCode::from_u16(status).expect("a status"), "x".repeat(100_000)).into_response()
        }
        Answer::Redirect(to) => (StatusCode::TEMPORARY_REDIRECT, [("location", to)]).into_response(),
        Answer::Silence => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            StatusCode::OK.into_response()
        }
    }
}

async fn call(
    platform: &Platform,
    key: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> (u16, Value) {
    let mut request = reqwest::Client::new().request(method, platform.url(path)).bearer_auth(key);
    if let Some(body) = body {
        request = request.json(body);
    }
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    (status, serde_json::from_str(&response.text().await.expect("a body")).unwrap_or_default())
}

async fn get(platform: &Platform, key: &str, path: &str) -> (u16, Value) {
    call(platform, key, Method::GET, path, None).await
}

async fn post(platform: &Platform, key: &str, path: &str, body: &Value) -> (u16, Value) {
    call(platform, key, Method::POST, path, Some(body)).await
}

async fn tenants_key(platform: &Platform, tenant: &str) -> String {
    let path = format!("/v1/tenants/{tenant}/api-keys");
    let (status, made) = post(platform, &platform.operator_key(), &path, &json!({ "name": "test" })).await;
    assert_eq!(status, 201, "{made}");
    text(&made["api_key"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a text, not {value}")).to_owned()
}

/// Raises a notification as a part of the platform would.
async fn tell(platform: &Platform, tenant: Option<&str>, event: &str) {
    let tenant = tenant
        .map_or("NULL".to_owned(), |tenant| format!("(SELECT id FROM tenants WHERE subdomain = '{tenant}')"));
    let sql = format!(
        "INSERT INTO notifications (tenant_id, event, severity, message, detail)
         VALUES ({tenant}, '{event}', 'warning', 'told', '{{\"n\": 1}}')"
    );
    platform.sql(&sql).await;
}

/// Everything in the management database that is text, but for what is wrapped.
async fn everything_stored(platform: &Platform) -> String {
    let mut all = String::new();
    for table in ["jobs", "audit", "notifications", "webhooks", "webhook_deliveries"] {
        all += &platform.sql(&format!("SELECT to_jsonb(t) FROM {table} t")).await;
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_arrive_signed_where_they_belong_and_again_when_they_were_not_taken() {
    let mut platform = Platform::start(&App::OneTable);
    for tenant in ["acme", "globex"] {
        platform.cli(&["tenant", "create", tenant, "--wait"]);
    }
    let (acme, globex) = (tenants_key(&platform, "acme").await, tenants_key(&platform, "globex").await);
    let (of_acme, of_globex, of_platform) =
        (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    let wanted =
        json!({ "url": of_acme.url(), "events": ["quota.*", "job.failed"], "description": "acme's" });
    let (status, hook) = post(&platform, &acme, "/v1/tenants/acme/webhooks", &wanted).await;
    assert_eq!(status, 201, "{hook}");
    let (id, secret) = (text(&hook["id"]), text(&hook["secret"]));
    assert!(secret.starts_with("whsec_") && secret.len() == 6 + 43, "256 bits");
    let wanted = json!({ "url": of_globex.url() });
    assert_eq!(post(&platform, &globex, "/v1/tenants/globex/webhooks", &wanted).await.0, 201);
    let platforms = platform.cli(&["webhook", "add", &of_platform.url()]);

    // Refused once, taken at the second attempt: the same delivery, signed anew.
    of_acme.next(Answer::Status(500));
    tell(&platform, Some("acme"), "quota.storage_full").await;
    tell(&platform, Some("acme"), "tenant.suspended").await;
    tell(&platform, None, "fleet_migration.ended").await;
    let seen = of_acme.wait(&mut platform, 2);
    for request in &seen {
        assert_eq!((&request.method, request.path.as_str()), (&Method::POST, "/hook?token=of-the-receiver"));
        assert_eq!(request.header("content-type"), "application/json");
        assert_eq!(request.header("user-agent"), concat!("Loomworks/", env!("CARGO_PKG_VERSION")));
        assert_eq!(request.header("loomworks-event"), "quota.storage_full");
        assert_eq!(request.signatures(&secret), (1, 1));
        assert_eq!(request.signatures(&text(&platforms["secret"])), (0, 1));
    }
    assert_eq!(seen[0].header("loomworks-delivery"), seen[1].header("loomworks-delivery"));
    assert_eq!(seen[0].body, seen[1].body);
    let body = seen[0].json();
    assert_eq!((&body["event"], &body["severity"]), (&json!("quota.storage_full"), &json!("warning")));
    assert_eq!((&body["tenant"]["subdomain"], &body["message"]), (&json!("acme"), &json!("told")));
    assert_eq!(body["data"], json!({ "n": 1 }));
    assert!(body["occurred_at"].is_string() && body["id"].is_i64(), "{body}");

    let mut events: Vec<String> =
        of_platform.wait(&mut platform, 3).iter().map(|seen| text(&seen.json()["event"])).collect();
    events.sort();
    assert_eq!(events, ["fleet_migration.ended", "quota.storage_full", "tenant.suspended"]);
    assert!(of_globex.seen().is_empty(), "globex gets nothing of acme's and nothing of the operators'");

    // Each sees its own.
    let deliveries = format!("/v1/tenants/acme/webhooks/{id}/deliveries");
    let path = deliveries.clone();
    let mut shown = Value::Null;
    for _ in 0..600 {
        shown = get(&platform, &acme, &path).await.1;
        if shown["items"][0]["state"] == "delivered" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let item = &shown["items"][0];
    assert_eq!(
        (&item["state"], &item["attempts"], &item["http_status"]),
        (&json!("delivered"), &json!(2), &json!(200))
    );
    assert_eq!(item["id"], seen[0].header("loomworks-delivery"));
    assert_eq!(shown["items"].as_array().map(Vec::len), Some(1), "{shown}");
    for path in [&deliveries, &format!("/v1/tenants/globex/webhooks/{id}/deliveries")] {
        assert_eq!(get(&platform, &globex, path).await.0, 404, "{path}");
    }
    let told = async |key: &str, query: &str| {
        let (status, page) = get(&platform, key, &format!("/v1/notifications{query}")).await;
        let events =
            page["items"].as_array().map(|items| items.iter().map(|item| text(&item["event"])).collect());
        (status, events.unwrap_or_else(Vec::new))
    };
    assert_eq!(told(&acme, "").await, (200, vec!["tenant.suspended".into(), "quota.storage_full".into()]));
    assert_eq!(told(&acme, "?event=quota.*").await, (200, vec!["quota.storage_full".into()]));
    assert_eq!(told(&acme, "?severity=critical").await, (200, vec![]));
    assert_eq!(told(&globex, "").await, (200, vec![]));
    assert_eq!(told(&globex, "?tenant=acme").await.0, 404);
    assert_eq!(told(&platform.operator_key(), "?tenant=acme").await.1.len(), 2);
    assert_eq!(told(&platform.operator_key(), "?event=fleet_migration.ended").await.1.len(), 1);
    assert_eq!(told(&acme, "?event=x").await.0, 422);
    let first = get(&platform, &acme, "/v1/notifications?limit=1").await.1;
    let cursor = text(&first["next_cursor"]);
    let second = get(&platform, &acme, &format!("/v1/notifications?limit=1&cursor={cursor}")).await.1;
    assert_eq!(
        (&second["items"][0]["event"], &second["next_cursor"]),
        (&json!("quota.storage_full"), &Value::Null)
    );

    // Two secrets sign while one takes over.
    let rotate = format!("/v1/tenants/acme/webhooks/{id}/rotate-secret");
    let (status, rotated) = post(&platform, &acme, &rotate, &json!({})).await;
    assert_eq!(status, 201, "{rotated}");
    let new = text(&rotated["secret"]);
    platform.cli(&["webhook", "test", "--tenant", "acme", &id]);
    let test = of_acme.seen().pop().expect("a test");
    assert_eq!((test.header("loomworks-event"), &test.json()["id"]), ("webhook.test", &Value::Null));
    assert_eq!((test.signatures(&secret), test.signatures(&new)), ((1, 2), (1, 2)));
    platform.sql("UPDATE webhook_secrets SET ends_at = now() WHERE ends_at IS NOT NULL").await;
    platform.cli(&["webhook", "test", "--tenant", "acme", &id]);
    let test = of_acme.seen().pop().expect("a test");
    assert_eq!((test.signatures(&secret), test.signatures(&new)), ((0, 1), (1, 1)));

    // The secrets were shown once: they are in no later answer, no row, no log, and the address is in no log either.
    let mut later = everything_stored(&platform).await;
    for path in ["/v1/tenants/acme/webhooks", &deliveries, "/v1/jobs?limit=1000", "/v1/notifications"] {
        later += &get(&platform, &acme, path).await.1.to_string();
    }
    later += &platform.cli(&["webhook", "list"]).to_string();
    for log in platform.logs() {
        let log = std::fs::read_to_string(log).expect("a log");
        assert!(!log.contains("of-the-receiver"), "the address is in a log");
        later += &log;
    }
    for secret in [secret, new, text(&platforms["secret"])] {
        assert!(!later.contains(&secret["whsec_".len()..]), "a secret is where it should not be");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_receiver_must_not_do_fails_the_attempt_and_what_is_removed_is_not_sent() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let (receiver, elsewhere) = (Receiver::start().await, Receiver::start().await);
    let hook =
        platform.cli(&["webhook", "add", "--tenant", "acme", &receiver.url(), "--event", "job.failed"]);
    let id = text(&hook["id"]);
    let test = ["webhook", "test", "--tenant", "acme", &id];
    let last = |platform: &Platform| {
        platform.cli(&["webhook", "deliveries", "--tenant", "acme", &id])["items"][0].clone()
    };

    receiver.next(Answer::Redirect(elsewhere.url()));
    assert!(!platform.try_cli(&test).status.success());
    let redirected = last(&platform);
    assert_eq!((&redirected["state"], &redirected["http_status"]), (&json!("failed"), &json!(307)));
    assert!(elsewhere.seen().is_empty(), "redirects are not followed");

    receiver.next(Answer::Silence);
    assert!(!platform.try_cli(&test).status.success());
    let silent = last(&platform);
    assert_eq!((&silent["state"], &silent["attempts"]), (&json!("failed"), &json!(1)));
    assert!(text(&silent["error"]).contains("no answer within"), "{silent}");

    // Nobody listens there any more.
    let gone = loomworks_testkit::free_port();
    let dead = platform.cli(&[
        "webhook",
        "add",
        "--tenant",
        "acme",
        &format!("http://127.0.0.1:{gone}/secret-path"),
    ]);
    let dead = text(&dead["id"]);
    let refused = platform.try_cli(&["webhook", "test", "--tenant", "acme", &dead]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("did not arrive") && !said.contains("secret-path"), "{said}");
    platform.cli(&["webhook", "remove", "--tenant", "acme", &dead, "--yes"]);

    // Removed while a delivery waits for its next attempt.
    receiver.next(Answer::Status(500));
    let before = receiver.seen().len();
    tell(&platform, Some("acme"), "job.failed").await;
    receiver.wait(&mut platform, before + 1);
    platform.wait_for("the attempt to be noted", |platform| last(platform)["attempts"] == 1);
    assert_eq!(last(&platform)["state"], "waiting");
    assert!(!platform.try_cli(&["webhook", "remove", "--tenant", "acme", &id]).status.success(), "it asks");
    platform.cli(&["webhook", "remove", "--tenant", "acme", &id, "--yes"]);
    // One that comes later arrives, so what waited had its turn.
    platform.cli(&["webhook", "add", &elsewhere.url()]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    tell(&platform, Some("acme"), "job.failed").await;
    elsewhere.wait(&mut platform, 1);
    assert_eq!(receiver.seen().len(), before + 1, "what was removed gets nothing");
    assert_eq!(
        platform.sql("SELECT count(*) FROM webhook_deliveries WHERE tenant_id IS NOT NULL").await,
        "0"
    );
    assert_eq!(platform.sql("SELECT count(*) FROM jobs WHERE state = 'failed'").await, "0");

    // What is refused at the door.
    let key = platform.operator_key();
    for body in [
        json!({ "url": "ftp://example.org/" }),
        json!({ "url": "https://user:password@example.org/" }),
        json!({ "url": "https://example.org/#x" }),
        json!({ "url": format!("https://example.org/{}", "x".repeat(2000)) }),
        json!({ "url": "https://example.org/", "events": [] }),
        json!({ "url": "https://example.org/", "events": ["nothing.*"] }),
        json!({ "url": "https://example.org/", "events": ["job.failed\0"] }),
        json!({ "url": "https://example.org/", "description": "two\nlines" }),
        json!({ "url": "https://example.org/", "secret": "mine" }),
    ] {
        let (status, problem) = post(&platform, &key, "/v1/tenants/acme/webhooks", &body).await;
        assert_eq!(status, 422, "{body}: {problem}");
    }
    for _ in 0..10 {
        platform.cli(&["webhook", "add", "--tenant", "acme", &receiver.url()]);
    }
    let body = json!({ "url": receiver.url() });
    assert_eq!(post(&platform, &key, "/v1/tenants/acme/webhooks", &body).await.0, 409, "ten are enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_are_not_public_are_refused_unless_the_platform_was_told_otherwise() {
    let mut platform = Platform::start(&App::OneTable);
    let receiver = Receiver::start().await;
    let port = receiver.address.port();
    let allowed = text(&platform.cli(&["webhook", "add", &receiver.url()])["id"]);
    platform.cli(&["webhook", "test", &allowed]);
    assert_eq!(receiver.seen().len(), 1);

    platform.stop();
    platform.guarded = true;
    platform.serve(None);
    for host in
        ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"]
    {
        let refused = platform.try_cli(&["webhook", "add", &format!("http://{host}:{port}/")]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("is not a public address"), "{host}: {said}");
    }
    let by_name = text(&platform.cli(&["webhook", "add", &format!("http://localhost:{port}/")])["id"]);
    for (id, reason) in [(&allowed, "is not a public address"), (&by_name, "has no public address")] {
        assert!(!platform.try_cli(&["webhook", "test", id]).status.success());
        let last = platform.cli(&["webhook", "deliveries", id])["items"][0].clone();
        assert!(text(&last["error"]).contains(reason), "{last}");
    }
    assert_eq!(receiver.seen().len(), 1, "nothing has arrived");
}

#[tokio::test(flavor = "multi_thread")]
async fn bringing_a_notification_to_a_webhook_survives_a_crash_at_every_step() {
    let mut platform = Platform::start(&App::OneTable);
    let receiver = Receiver::start().await;
    let hook = text(&platform.cli(&["webhook", "add", &receiver.url()])["id"]);

    let start = async |platform: &Platform, _: &str| {
        receiver.plan.seen.lock().expect("not poisoned").clear();
        let path = format!("/v1/webhooks/{hook}/test");
        text(&post(platform, &platform.operator_key(), &path, &json!({})).await.1["job"])
    };
    let check = async |platform: &Platform, name: &str| {
        let last = platform.cli(&["webhook", "deliveries", &hook])["items"][0].clone();
        assert_eq!((&last["state"], &last["attempts"]), (&json!("delivered"), &json!(1)), "{name}: {last}");
        let seen = receiver.seen();
        assert!((1..=2).contains(&seen.len()), "{name}: {} requests", seen.len());
        assert!(seen.iter().all(|request| request.header("loomworks-delivery") == last["id"]), "{name}");
    };
    let places = survives_every_crash(&mut platform, "deliver_webhook", start, check).await;
    assert_eq!(places, 2, "every step was cut");

    // The fan-out too: cut after its work, it finds that nothing is left to do.
    platform.stop();
    receiver.plan.seen.lock().expect("not poisoned").clear();
    platform.serve(Some("fan_out/0/before-save"));
    tell(&platform, None, "fleet_migration.ended").await;
    platform.wait_for("the crash", |platform| platform.has_died());
    platform.kill();
    platform.serve(None);
    receiver.wait(&mut platform, 1);
    platform.wait_for("all jobs to end", |platform| {
        let jobs = platform.cli(&["job", "list"]);
        jobs["items"].as_array().expect("jobs").iter().all(|job| job["state"] == "succeeded")
    });
    let sent = "SELECT count(*) FROM webhook_deliveries WHERE event = 'fleet_migration.ended'";
    assert_eq!(platform.sql(sent).await, "1");
    let mut ids: Vec<String> =
        receiver.seen().iter().map(|seen| seen.header("loomworks-delivery").to_owned()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 1);
}
