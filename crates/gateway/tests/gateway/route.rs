//! A request reaches the tenant that its own Host names, or nobody.

use loomworks_core::route::RouteState;

use crate::wire::get;
use crate::world::World;

#[tokio::test]
async fn two_tenants_on_one_connection_are_told_apart() {
    let world = World::new().await;
    let mut client = world.client().await;
    for tenant in ["acme", "globex", "acme", "acme", "globex"] {
        let answer = client.ask(get(&format!("{tenant}.localhost"), "/")).await;
        assert_eq!((answer.status, answer.text()), (200, format!("hello {tenant}")));
    }
    let tenants: Vec<_> = world.app.seen().into_iter().map(|seen| seen.tenant).collect();
    assert_eq!(tenants, ["acme", "globex", "acme", "acme", "globex"]);
}

#[tokio::test]
async fn two_tenants_in_one_pipeline_are_told_apart() {
    let world = World::new().await;
    let mut client = world.client().await;
    client.send(get("acme.localhost", "/") + &get("globex.localhost", "/")).await;
    assert_eq!(client.answer().await.unwrap().text(), "hello acme");
    assert_eq!(client.answer().await.unwrap().text(), "hello globex");
}

#[tokio::test]
async fn every_spelling_of_an_address_is_the_same_address_to_the_app() {
    let world = World::new().await;
    for host in ["acme.localhost:8080", "ACME.LocalHost:8080", "acme.localhost.:8080"] {
        assert_eq!(world.client().await.ask(get(host, "/")).await.status, 200, "{host}");
    }
    let absolute = "GET http://acme.localhost:8080/path?q=1 HTTP/1.1\r\nHost: acme.localhost:8080\r\n\r\n";
    assert_eq!(world.client().await.ask(absolute).await.status, 200);
    for seen in world.app.seen() {
        assert_eq!(seen.header("host"), ["acme.localhost:8080"]);
    }
}

#[tokio::test]
async fn whoever_is_not_a_tenant_gets_the_same_answer() {
    let world = World::new().await;
    let label = "a".repeat(64);
    let hosts = [
        "localhost",
        "www.localhost",
        "initech.localhost",
        "a.acme.localhost",
        "acme.localhost.evil.example",
        "acmelocalhost",
        "acme",
        "127.0.0.1",
        "[::1]",
        "acme..localhost",
        ".acme.localhost",
        "acme.localhost..",
        "acme.localhost:",
        "acme.localhost:x",
        "acme.localhost:99999",
        "acme.localhost:80:80",
        "acme.localhost:+80",
        "ac_me.localhost",
        "-acme.localhost",
        "acme-.localhost",
        "user@acme.localhost",
        "acme.localhost/",
        "acme.localhost?x",
        "acme%2elocalhost",
        "acme.localhost,globex.localhost",
        "acme.localhost globex.localhost",
        "acm\u{e9}.localhost",
        "xn--acm-epa.localhost",
        &format!("{label}.localhost"),
        &format!("{}.localhost", "a.".repeat(150)),
        "",
    ];
    let expected = world.client().await.ask(get("nobody.localhost", "/")).await;
    assert_eq!(expected.status, 404);
    for host in hosts {
        let answer = world.client().await.ask(get(host, "/")).await;
        assert_eq!((answer.status, answer.text()), (404, expected.text()), "{host}");
    }
    assert!(world.app.seen().is_empty());
}

#[tokio::test]
async fn a_request_that_names_no_host_or_two_is_refused() {
    let world = World::new().await;
    for head in [
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nHost: acme.localhost\r\nHost: acme.localhost\r\n",
        "GET / HTTP/1.1\r\nHost: acme.localhost\r\nHost: globex.localhost\r\n",
        "GET / HTTP/1.1\r\nHost : acme.localhost\r\n",
        "GET / HTTP/1.1\r\nX: y\r\n Host: acme.localhost\r\n",
        "GET / HTTP/1.1\r\nHost: acme.local\0host\r\n",
        "GET http://globex.localhost/ HTTP/1.1\r\nHost: acme.localhost\r\n",
        "GET http://acme.localhost:81/ HTTP/1.1\r\nHost: acme.localhost\r\n",
        "GET http://user@acme.localhost/ HTTP/1.1\r\nHost: acme.localhost\r\n",
        "GET https://acme.localhost/ HTTP/1.1\r\nHost: acme.localhost\r\n",
        "GET http://acme.localhost/ HTTP/1.1\r\n",
    ] {
        let mut client = world.client().await;
        let answer = client.ask(format!("{head}\r\n")).await;
        assert_eq!(answer.status, 400, "{head:?}");
        assert!(client.is_closed().await, "{head:?}");
    }
    assert!(world.app.seen().is_empty());
}

#[tokio::test]
async fn programs_are_answered_in_json_and_people_with_a_page() {
    let world = World::new().await;
    let json = "GET / HTTP/1.1\r\nHost: nobody.localhost\r\nAccept: application/json\r\n\r\n";
    let answer = world.client().await.ask(json).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["code"], "unknown_address");
    let answer = world.client().await.ask(get("nobody.localhost", "/")).await;
    assert!(answer.header("content-type").unwrap().starts_with("text/html"));
    assert!(answer.header("x-request-id").is_some());
}

#[tokio::test]
async fn a_suspended_tenant_says_so() {
    let world = World::new().await;
    world.set("acme", RouteState::Suspended).await;
    let request = "GET / HTTP/1.1\r\nHost: acme.localhost\r\nAccept: application/json\r\n\r\n";
    let answer = world.client().await.ask(request).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains(r#""code":"suspended""#), "{}", answer.text());
    assert_eq!(world.client().await.ask(get("globex.localhost", "/")).await.status, 200);
    assert_eq!(world.app.only().tenant, "globex");
}
