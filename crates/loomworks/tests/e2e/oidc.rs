//! Operators log in by OpenID Connect, and whoever has found a way around it does not.

mod provider;

use reqwest::{Method, Response, Url};
use serde_json::{Value, json};

use self::provider::{CLIENT_ID, Grant, Provider, SECRET, Signer};
use crate::log_in::{Browser, audit};
use crate::platform::{App, Platform};

/// A platform whose operators come from this provider.
fn platform(provider: &Provider, more: &[(&'static str, &str)]) -> Platform {
    let mut platform = Platform::start(&App::OneTable);
    let secret = platform.data().with_file_name("oidc-secret");
    loomworks_core::durable::write(&secret, format!("{SECRET}\n").as_bytes()).expect("write the secret");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("open it");
    platform.stop();
    platform.environment = vec![
        ("LOOMWORKS_PUBLIC_URL", platform.url("")),
        ("LOOMWORKS_OIDC_ISSUER", provider.issuer().to_owned()),
        ("LOOMWORKS_OIDC_CLIENT_ID", CLIENT_ID.to_owned()),
        ("LOOMWORKS_OIDC_CLIENT_SECRET_FILE", secret.to_string_lossy().into_owned()),
        ("LOOMWORKS_OIDC_ALLOW", "@example.com".to_owned()),
    ];
    platform.environment.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    platform.serve(None);
    platform
}

/// Sends a browser to the provider. Gives where it was sent.
async fn start(browser: &mut Browser<'_>, return_to: &str) -> String {
    let path = format!("/v1/auth/oidc/start?return_to={return_to}");
    let answer = browser.bare(Method::GET, &path).send().await.expect("an answer");
    assert_eq!(answer.status(), 303);
    let set = browser.keep_cookie(&answer);
    assert!(set.contains("; Path=/; Max-Age=600; HttpOnly; SameSite=Lax"), "{set}");
    answer.headers()["location"].to_str().expect("text").to_owned()
}

/// Sends it back.
async fn come_back(browser: &Browser<'_>, query: &[(String, String)]) -> Response {
    let url = Url::parse_with_params("http://localhost/v1/auth/oidc/callback", query).expect("an address");
    let path = format!("{}?{}", url.path(), url.query().unwrap_or_default());
    browser.bare(Method::GET, &path).send().await.expect("an answer")
}

/// The whole way, from an address of its own.
async fn log_in(platform: &Platform, provider: &Provider, grant: Grant) -> Response {
    use std::sync::atomic::{AtomicU8, Ordering};
    static ADDRESS: AtomicU8 = AtomicU8::new(0);
    let address = format!("192.0.2.{}", ADDRESS.fetch_add(1, Ordering::Relaxed));
    let mut browser = Browser::new(platform, &address);
    let location = start(&mut browser, "/").await;
    come_back(&browser, &provider.consent(&location, grant)).await
}

fn make_ann(platform: &Platform) -> String {
    let made = platform.cli(&["operator", "create", "ann@example.com", "--name", "Ann", "--no-password"]);
    made[0]["id"].as_str().expect("an id").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_comes_from_the_provider_and_back_to_where_he_was() {
    let provider = Provider::start().await;
    let platform = platform(&provider, &[]);
    let ann_id = make_ann(&platform);
    for signer in [Signer::Es256, Signer::Rs256] {
        let mut ann = Browser::new(&platform, "192.0.2.1");
        let location = start(&mut ann, "/console/jobs%3Fstate=failed").await;
        let query = provider.consent(&location, Grant { signer, ..Grant::default() });
        let answer = come_back(&ann, &query).await;
        assert_eq!(answer.status(), 303, "{signer:?}");
        assert_eq!(answer.headers()["location"], "/console/jobs?state=failed");
        let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
        assert!(cookies.iter().any(|cookie| cookie.to_str().expect("text").starts_with("loomworks_oidc=; ")));
        let set = ann.keep_cookie(&answer);
        assert!(set.ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{set}");
        let me = ann.bare(Method::GET, "/v1/auth/me").send().await.expect("an answer");
        let me: Value = me.json().await.expect("JSON");
        assert_eq!(me["operator"]["email"], "ann@example.com");
    }
    // It was asked about itself once, for its keys once.
    assert_eq!((provider.asked("metadata"), provider.asked("keys"), provider.asked("token")), (1, 1, 2));

    // Somebody else at the provider has been given Ann's address: the account stays hers. She may get another one.
    let inherited = Grant { claims: json!({ "sub": "somebody else" }), ..Grant::default() };
    assert_eq!(log_in(&platform, &provider, inherited).await.status(), 401);
    let renamed = Grant { claims: json!({ "email": "ann.smith@example.com" }), ..Grant::default() };
    assert_eq!(log_in(&platform, &provider, renamed).await.status(), 303);
    // An operator who knows that it is right lets the account be bound anew.
    platform.cli(&["operator", "enable", &ann_id]);
    let inherited = Grant { claims: json!({ "sub": "somebody else" }), ..Grant::default() };
    assert_eq!(log_in(&platform, &provider, inherited).await.status(), 303);
    assert_eq!(log_in(&platform, &provider, Grant::default()).await.status(), 401);
    // Without a password there is none to guess.
    let body = json!({ "email": "ann@example.com", "password": "" });
    let guess =
        Browser::new(&platform, "192.0.2.9").bare(Method::POST, "/v1/auth/login").json(&body).send().await;
    assert_eq!(guess.expect("an answer").status(), 401);
    let audit = audit(&platform);
    assert!(
        audit.contains("operator.bound_to_provider") && audit.contains("bound to somebody else"),
        "{audit}"
    );
    assert!(!audit.contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_do_not_fit_let_nobody_in() {
    let provider = Provider::start().await;
    let platform = platform(&provider, &[]);
    make_ann(&platform);
    let claims = |claims: Value| Grant { claims, ..Grant::default() };
    let now = loomworks_core::time::now().as_second();
    let tamper = |token: String| {
        let parts: Vec<&str> = token.split('.').collect();
        let payload = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, parts[1]);
        let text = String::from_utf8(payload.expect("base64")).expect("text").replace("ann@", "bob@");
        let payload = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text);
        format!("{}.{payload}.{}", parts[0], parts[2])
    };
    let attacks = [
        ("`nonce`", claims(json!({ "nonce": "of another log-in" }))),
        ("`nonce`", claims(json!({ "nonce": null }))),
        ("`aud`", claims(json!({ "aud": "another client" }))),
        ("`azp`", claims(json!({ "aud": [CLIENT_ID, "another client"] }))),
        ("`azp`", claims(json!({ "azp": "another client" }))),
        ("`iss`", claims(json!({ "iss": "https://evil.example" }))),
        ("`exp`", claims(json!({ "exp": now - 3600 }))),
        ("`nbf`", claims(json!({ "nbf": now + 3600 }))),
        ("`iat`", claims(json!({ "iat": now - 3600 }))),
        ("no verified address", claims(json!({ "email_verified": false }))),
        ("no verified address", claims(json!({ "email_verified": null }))),
        ("no verified address", claims(json!({ "email": null }))),
        ("not among those", claims(json!({ "email": "ann@evil.example" }))),
        ("has no account", claims(json!({ "email": "bob@example.com", "sub": "bob" }))),
        ("not accepted", Grant { signer: Signer::None, ..Grant::default() }),
        ("not accepted", Grant { signer: Signer::PublicKeyAsSecret, ..Grant::default() }),
        ("signature is wrong", Grant { signer: Signer::Stranger, ..Grant::default() }),
        ("does not name", Grant { header: json!({ "kid": "invented" }), ..Grant::default() }),
        ("does not name", Grant { header: json!({ "kid": "rsa" }), ..Grant::default() }),
        ("signature is wrong", Grant { after: tamper, ..Grant::default() }),
        ("no signed JSON web token", Grant { after: |_| "nonsense".into(), ..Grant::default() }),
    ];
    for (reason, grant) in attacks {
        let answer = log_in(&platform, &provider, grant).await;
        assert_eq!(answer.status(), 401, "{reason}");
        assert!(answer.headers().get("set-cookie").is_none(), "{reason}");
        let problem: Value = answer.json().await.expect("a problem");
        assert_eq!(problem["code"], "login_refused");
        // The browser is not told; operators are.
        assert!(!problem.to_string().contains(reason), "{problem}");
        let last = platform.management_query("SELECT detail FROM audit ORDER BY id DESC LIMIT 1");
        assert!(last.contains(reason), "{reason}: {last}");
    }
    // Two tokens named keys that are not there: the provider was not asked again for each.
    assert_eq!(provider.asked("keys"), 1);
    assert_eq!(log_in(&platform, &provider, Grant::default()).await.status(), 303);
    assert_eq!(platform.management_query("SELECT count(*) FROM operator_sessions"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_belong_to_the_browser_that_asked_and_count_once() {
    let provider = Provider::start().await;
    let platform = platform(&provider, &[("LOOMWORKS_OIDC_CREATE", "read")]);
    let mut ann = Browser::new(&platform, "192.0.2.1");
    let location = start(&mut ann, "/").await;
    let query = provider.consent(&location, Grant::default());

    // Another browser, with no cookie, with one of its own, with one that was made up.
    let mut eve = Browser::new(&platform, "192.0.2.2");
    assert_eq!(come_back(&eve, &query).await.status(), 401);
    start(&mut eve, "/").await;
    assert_eq!(come_back(&eve, &query).await.status(), 401);
    eve.cookie = format!("{}x", ann.cookie);
    assert_eq!(come_back(&eve, &query).await.status(), 401);
    // The right browser without a state, or with another.
    for state in [None, Some("")] {
        let mut query = query.clone();
        query.retain(|(name, _)| name != "state");
        query.extend(state.map(|state| ("state".to_owned(), state.to_owned())));
        assert_eq!(come_back(&ann, &query).await.status(), 401, "{state:?}");
    }
    assert_eq!(provider.asked("token"), 0, "no code was spent on them");

    // An account is made for Ann, who has none, with what was said.
    assert_eq!(come_back(&ann, &query).await.status(), 303);
    let accounts = platform.cli(&["operator", "list"]);
    assert_eq!(accounts[0]["email"], "ann@example.com");
    assert_eq!(accounts[0]["permissions"], json!(["read"]));
    assert_eq!(accounts[0]["has_password"], false);
    // The same answer again, and its code with a way that was begun anew: the provider gives nothing twice.
    assert_eq!(come_back(&ann, &query).await.status(), 401);
    assert_eq!(provider.asked("token"), 1);
    let location = start(&mut ann, "/").await;
    let mut replayed = provider.consent(&location, Grant::default());
    replayed[0].1.clone_from(&query[0].1);
    assert_eq!(come_back(&ann, &replayed).await.status(), 401);

    // Somebody who says no, and an answer in the name of another issuer.
    for (name, value) in [("error", "access_denied"), ("iss", "https://evil.example")] {
        let location = start(&mut ann, "/").await;
        let mut query = provider.consent(&location, Grant::default());
        query.push((name.into(), value.into()));
        assert_eq!(come_back(&ann, &query).await.status(), 401, "{name}");
    }
    for evil in [
        "https://evil.example",
        "//evil.example",
        "/%5Cevil.example",
        "/%09/evil.example",
        "evil",
        "/%0d%0aX:%20y",
    ] {
        let path = format!("/v1/auth/oidc/start?return_to={evil}");
        let answer = ann.bare(Method::GET, &path).send().await.expect("an answer");
        assert_eq!(answer.status(), 422, "{evil}");
    }
    // Disabled: the provider's word does not help.
    platform.cli(&["operator", "disable", accounts[0]["id"].as_str().expect("an id")]);
    assert_eq!(log_in(&platform, &provider, Grant::default()).await.status(), 401);
}
