//! Operators log in with a password: what their sessions can do, and what ends them.

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::platform::{App, Platform};

pub(crate) const PASSWORD: &str = "four words put together";

/// A browser: what it holds, and what its pages send.
pub(crate) struct Browser<'a> {
    platform: &'a Platform,
    http: Client,
    pub(crate) cookie: String,
    csrf: String,
    /// From where it comes, told by the server in front: each test has addresses of its own.
    address: String,
}

impl<'a> Browser<'a> {
    pub(crate) fn new(platform: &'a Platform, address: &str) -> Self {
        let http = Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
        let (cookie, csrf) = Default::default();
        Self { platform, http, cookie, csrf, address: address.to_owned() }
    }

    /// A request without anything but the cookie.
    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, self.platform.url(path));
        request.header("cookie", &self.cookie).header("x-forwarded-for", &self.address)
    }

    /// A request of the console's own pages.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        let request = self.bare(method, path).header("x-loomworks-csrf", &self.csrf);
        let request = request.header("origin", self.platform.url(""));
        let request = if let Some(body) = body { request.json(&body) } else { request };
        request.send().await.expect("an answer")
    }

    pub(crate) async fn status(&self, method: Method, path: &str) -> u16 {
        self.send(method, path, None).await.status().as_u16()
    }

    async fn try_log_in(&self, email: &str, password: &str) -> Response {
        self.send(Method::POST, "/v1/auth/login", Some(json!({ "email": email, "password": password }))).await
    }

    pub(crate) async fn log_in(&mut self, email: &str, password: &str) -> Value {
        let answer = self.try_log_in(email, password).await;
        assert_eq!(answer.status(), 200, "{}", self.platform.url(""));
        self.keep_cookie(&answer);
        let me: Value = answer.json().await.expect("JSON");
        me["csrf_token"].as_str().expect("a token").clone_into(&mut self.csrf);
        me
    }

    /// Keeps a cookie that is set, as browsers do.
    pub(crate) fn keep_cookie(&mut self, answer: &Response) -> String {
        let set = answer.headers().get("set-cookie").expect("a cookie").to_str().expect("text").to_owned();
        set.split(';').next().expect("a pair").clone_into(&mut self.cookie);
        set
    }
}

async fn code(answer: Response) -> String {
    let problem: Value = answer.json().await.expect("a problem");
    problem["code"].as_str().expect("a code").to_owned()
}

pub(crate) fn operator(platform: &Platform, email: &str, permissions: &str) -> String {
    let create = ["operator", "create", email, "--name", "Ann", "--permissions", permissions];
    let made = platform.cli_with_input(&create, &format!("{PASSWORD}\n"));
    made[0]["id"].as_str().expect("an id").to_owned()
}

pub(crate) fn audit(platform: &Platform) -> String {
    platform.management_query(
        "SELECT coalesce(string_agg(actor || ' ' || action || ' ' || detail, E'\\n'), '') FROM audit",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_logs_in_works_and_logs_out() {
    let platform = Platform::start(&App::OneTable);
    operator(&platform, "Ann@Example.com", "read,work,manage");
    let mut ann = Browser::new(&platform, "192.0.2.1");
    assert_eq!(ann.status(Method::GET, "/v1/auth/me").await, 401);
    let me = ann.log_in(" ann@example.COM ", PASSWORD).await;
    assert_eq!(me["operator"]["email"], "ann@example.com");
    assert_eq!(me["permissions"], json!(["read", "work", "manage"]));
    assert!(!me.to_string().contains("argon2"), "{me}");
    let answer = ann.try_log_in("ann@example.com", PASSWORD).await;
    let cookie = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{cookie}");
    assert_eq!(answer.headers()["cache-control"], "no-store");

    // What needs no more than seeing, and what changes something.
    assert_eq!(ann.status(Method::GET, "/v1/tenants").await, 200);
    let made = ann.send(Method::POST, "/v1/tenants", Some(json!({ "subdomain": "acme" }))).await;
    assert_eq!(made.status(), 202, "{}", made.text().await.expect("a body"));
    assert!(audit(&platform).contains("ann@example.com tenant.created"));

    // The same, sent by another site's page: it cannot know the token, or says where it is from.
    let body = json!({ "subdomain": "globex" });
    for (what, request) in [
        ("no token", ann.bare(Method::POST, "/v1/tenants")),
        ("a wrong token", ann.bare(Method::POST, "/v1/tenants").header("x-loomworks-csrf", "AAAA")),
        (
            "another origin",
            ann.bare(Method::POST, "/v1/tenants")
                .header("x-loomworks-csrf", &ann.csrf)
                .header("origin", "https://evil.example"),
        ),
        (
            "no origin to speak of",
            ann.bare(Method::POST, "/v1/tenants")
                .header("x-loomworks-csrf", &ann.csrf)
                .header("origin", "null"),
        ),
        (
            "logging somebody in",
            ann.bare(Method::POST, "/v1/auth/login").header("origin", "https://evil.example"),
        ),
    ] {
        let body = if what == "logging somebody in" {
            json!({ "email": "ann@example.com", "password": PASSWORD })
        } else {
            body.clone()
        };
        let answer = request.json(&body).send().await.expect("an answer");
        assert_eq!(answer.status(), 403, "{what}");
        assert_eq!(code(answer).await, "csrf", "{what}");
    }
    // Another session's token is another token.
    let mut elsewhere = Browser::new(&platform, "192.0.2.2");
    elsewhere.log_in("ann@example.com", PASSWORD).await;
    let mixed = elsewhere.bare(Method::POST, "/v1/tenants").header("x-loomworks-csrf", &ann.csrf).json(&body);
    assert_eq!(mixed.send().await.expect("an answer").status(), 403);
    assert_eq!(platform.cli(&["tenant", "list"]).as_array().expect("tenants").len(), 1);

    assert_eq!(ann.status(Method::POST, "/v1/auth/logout").await, 204);
    assert_eq!(ann.status(Method::GET, "/v1/auth/me").await, 401);
    assert_eq!(elsewhere.status(Method::GET, "/v1/auth/me").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_app_can_plant_no_cookie_over_tls_that_locks_an_operator_out() {
    let platform = Platform::start(&App::OneTable);
    operator(&platform, "ann@example.com", "read");
    let ann = Browser::new(&platform, "192.0.2.1");
    let by_tls = |request: RequestBuilder| request.header("x-forwarded-proto", "https");
    let body = json!({ "email": "ann@example.com", "password": PASSWORD });
    let answer =
        by_tls(ann.bare(Method::POST, "/v1/auth/login").json(&body)).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let set = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert!(set.starts_with("__Host-loomworks_session=") && set.ends_with("; Secure"), "{set}");
    let ours = set.split(';').next().expect("a pair");
    let planted = "loomworks_session=planted; loomworks_session=twice";
    for (cookies, expected) in [(format!("{planted}; {ours}"), 200), (planted.to_owned(), 401)] {
        let ask = Browser { cookie: cookies, ..Browser::new(&platform, "192.0.2.1") };
        let answer = by_tls(ask.bare(Method::GET, "/v1/auth/me")).send().await.expect("an answer");
        assert_eq!(answer.status(), expected, "{}", ask.cookie);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_end_when_they_are_revoked_and_when_the_account_changes() {
    let platform = Platform::start(&App::OneTable);
    let id = operator(&platform, "ann@example.com", "read,work,manage");
    operator(&platform, "bob@example.com", "read");
    let (mut here, mut there) = (Browser::new(&platform, "192.0.2.1"), Browser::new(&platform, "192.0.2.2"));
    let mut bob = Browser::new(&platform, "192.0.2.3");
    here.log_in("ann@example.com", PASSWORD).await;
    let session =
        there.log_in("ann@example.com", PASSWORD).await["session"].as_str().expect("an id").to_owned();
    bob.log_in("bob@example.com", PASSWORD).await;

    // Bob may see, and nothing else, and touches nobody's sessions.
    assert_eq!(bob.status(Method::GET, "/v1/tenants").await, 200);
    assert_eq!(bob.status(Method::GET, "/v1/operators").await, 200);
    assert_eq!(bob.status(Method::POST, &format!("/v1/operators/{id}/disable")).await, 403);
    assert_eq!(bob.status(Method::POST, "/v1/backups").await, 403);
    assert_eq!(bob.status(Method::DELETE, &format!("/v1/auth/sessions/{session}")).await, 404);

    let sessions: Value = here.send(Method::GET, "/v1/auth/sessions", None).await.json().await.expect("JSON");
    let addresses: Vec<_> =
        sessions.as_array().expect("a list").iter().map(|one| &one["client_address"]).collect();
    assert_eq!(addresses, ["192.0.2.2", "192.0.2.1"]);
    assert_eq!(here.status(Method::DELETE, &format!("/v1/auth/sessions/{session}")).await, 204);
    assert_eq!(there.status(Method::GET, "/v1/tenants").await, 401);
    assert_eq!(here.status(Method::GET, "/v1/tenants").await, 200);

    // Another password: who knew the old one is out, everywhere.
    platform.cli_with_input(&["operator", "set-password", &id], "another four words together\n");
    assert_eq!(here.status(Method::GET, "/v1/tenants").await, 401);
    assert_eq!(here.try_log_in("ann@example.com", PASSWORD).await.status(), 401);
    here.log_in("ann@example.com", "another four words together").await;

    // Disabled: out at once, and the right password is like a wrong one. Enabled: in again.
    platform.cli(&["operator", "disable", &id]);
    assert_eq!(here.status(Method::GET, "/v1/tenants").await, 401);
    let disabled = here.try_log_in("ann@example.com", "another four words together").await;
    let (status, text) = (disabled.status(), disabled.text().await.expect("a body"));
    let wrong = here.try_log_in("bob@example.com", "wrong").await;
    assert_eq!(
        (status, without_id(&text)),
        (wrong.status(), without_id(&wrong.text().await.expect("a body")))
    );
    platform.cli(&["operator", "enable", &id]);
    here.log_in("ann@example.com", "another four words together").await;

    // A session that was not used for half an hour, and one that is twelve hours old.
    for column in ["last_seen_at = now() - interval '30 minutes'", "expires_at = now()"] {
        assert_eq!(here.status(Method::GET, "/v1/auth/me").await, 200);
        platform.management_query(&format!(
            "WITH aged AS (UPDATE operator_sessions SET {column} RETURNING 1) SELECT count(*)::text FROM aged"
        ));
        assert_eq!(here.status(Method::GET, "/v1/auth/me").await, 401, "{column}");
        here.log_in("ann@example.com", "another four words together").await;
    }
    // Nothing that a token or a password could be found by is in the database, or in the audit log.
    let audit = audit(&platform);
    for action in [
        "operator.created",
        "operator.logged_in",
        "operator.login_refused",
        "operator.session_revoked",
        "operator.password_changed",
        "operator.disabled",
        "operator.enabled",
    ] {
        assert!(audit.contains(action), "{action} in {audit}");
    }
    let token = here.cookie.strip_prefix("loomworks_session=").expect("the cookie");
    let stored = platform.management_query("SELECT string_agg(s::text, '') FROM operator_sessions s");
    let logs: String = platform.logs().iter().filter_map(|log| std::fs::read_to_string(log).ok()).collect();
    assert!(!logs.is_empty());
    for secret in [token, PASSWORD, "another four words together"] {
        assert!(!audit.contains(secret) && !stored.contains(secret) && !logs.contains(secret));
    }
}

fn without_id(problem: &str) -> Value {
    let mut problem: Value = serde_json::from_str(problem).expect("a problem");
    problem.as_object_mut().expect("an object").remove("request_id");
    problem
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_has_to_wait_longer_and_longer() {
    let platform = Platform::start(&App::OneTable);
    operator(&platform, "ann@example.com", "read");
    // The same for an account that is there, one that is not, and what is no address at all.
    for (n, email) in ["ann@example.com", "nobody@example.com", "no address"].into_iter().enumerate() {
        let eve = Browser::new(&platform, &format!("198.51.100.{n}"));
        let mut answers = Vec::new();
        for _ in 0..5 {
            let answer = eve.try_log_in(email, "a wrong password").await;
            assert_eq!(answer.status(), 401, "{email}");
            answers.push(without_id(&answer.text().await.expect("a body")));
        }
        assert!(answers.iter().all(|answer| answer["code"] == "login_refused"), "{answers:?}");
        // Who is so slow that a second is over by then has to wait longer the next time.
        let mut throttled = eve.try_log_in(email, "a wrong password").await;
        for _ in 0..5 {
            if throttled.status() == 401 {
                throttled = eve.try_log_in(email, "a wrong password").await;
            }
        }
        assert_eq!(throttled.status(), 429, "{email}");
        let seconds = throttled.headers()["retry-after"].to_str().expect("text").parse::<u64>();
        assert!(seconds.is_ok_and(|seconds| (1..=60).contains(&seconds)));
        assert_eq!(code(throttled).await, "rate_limited");
    }
    // From elsewhere the account has to wait just as long, and then the right password gets in.
    let mut ann = Browser::new(&platform, "192.0.2.1");
    for _ in 0..10 {
        let answer = ann.try_log_in("ann@example.com", PASSWORD).await;
        if answer.status() == 200 {
            break;
        }
        assert_eq!(answer.status(), 429);
        let seconds = answer.headers()["retry-after"].to_str().expect("text").parse().expect("a number");
        tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
    }
    ann.log_in("ann@example.com", PASSWORD).await;
    // Whoever tries many accounts is stopped by where he comes from.
    let eve = Browser::new(&platform, "203.0.113.1");
    for n in 0..20 {
        let answer = eve.try_log_in(&format!("somebody{n}@example.com"), "wrong").await;
        assert_eq!(answer.status(), 401, "try {n}");
    }
    assert_eq!(eve.try_log_in("one-more@example.com", "wrong").await.status(), 429);
    assert_eq!(
        Browser::new(&platform, "203.0.113.2").try_log_in("one-more@example.com", "wrong").await.status(),
        401
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_made_with_care() {
    let platform = Platform::start(&App::OneTable);
    let (http, key) = (Client::new(), platform.operator_key());
    let good =
        json!({ "name": "Ann", "email": "ann@example.com", "password": PASSWORD, "permissions": ["read"] });
    let create = async |body: Value| {
        let answer = http.post(platform.url("/v1/operators")).bearer_auth(&key).json(&body).send().await;
        let answer = answer.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    };
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body
    };
    for body in [
        with("name", json!("")),
        with("name", json!("two\nlines")),
        with("name", json!("nul\0")),
        with("email", json!("ann")),
        with("email", json!("аnn@example.com")),
        with("email", json!("a\0@example.com")),
        with("password", json!("elevenchars")),
        with("password", json!("Ann@example.com")),
        with("permissions", json!([])),
        with("permissions", json!(["everything"])),
        with("extra", json!(1)),
    ] {
        let (status, text) = create(body.clone()).await;
        assert_eq!(status, 422, "{body}: {text}");
    }
    assert_eq!(create(good.clone()).await.0, 201);
    let (status, text) = create(with("email", json!("ANN@example.com"))).await;
    assert_eq!(status, 409, "{text}");
    for n in 0..3 {
        assert_eq!(create(with("email", json!(format!("bob{n}@example.com")))).await.0, 201);
    }
    // Page by page, in order; a cursor that was made up is refused.
    let page = async |query: &str| {
        let answer = http.get(platform.url(&format!("/v1/operators?{query}"))).bearer_auth(&key).send().await;
        let answer = answer.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"))
    };
    let (_, first) = page("limit=3").await;
    let (_, rest) = page(&format!("limit=3&cursor={}", first["next_cursor"].as_str().expect("more"))).await;
    let all: Vec<_> =
        [&first, &rest].iter().flat_map(|page| page["items"].as_array().expect("items")).collect();
    let emails: Vec<_> = all.iter().map(|one| one["email"].as_str().expect("an address")).collect();
    assert_eq!(emails, ["ann@example.com", "bob0@example.com", "bob1@example.com", "bob2@example.com"]);
    assert_eq!(rest["next_cursor"], Value::Null);
    for cursor in ["x", "e30", "ImFcdTAwMDBAYi5jIg"] {
        assert_eq!(page(&format!("cursor={cursor}")).await.0, 422, "{cursor}");
    }
    let listed = platform.cli(&["operator", "list"]);
    assert_eq!(listed.as_array().expect("a list").len(), 4);
    assert!(!listed.to_string().contains("argon2"));
}
