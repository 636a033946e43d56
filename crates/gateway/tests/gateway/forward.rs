//! What the app hears, what the client gets back, and whose fault it is when neither works.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::upstream::BIG_BYTES;
use crate::wire::get;
use crate::world::World;

#[tokio::test]
async fn what_a_client_claims_to_be_never_reaches_the_app() {
    let world = World::new().await;
    let spellings = [
        "X-Loomworks-Tenant",
        "x-loomworks-tenant",
        "X-LOOMWORKS-TENANT",
        "X_Loomworks_Tenant",
        "X-Loomworks_Tenant",
        "X-Loomworks-Database",
        "x_loomworks_database",
        "X-Loomworks-Anything",
        "X-Odoo-dbfilter",
        "X-ODOO-DBFILTER",
        "X_Odoo_dbfilter",
        "X-Odoo-Database",
        "X_Odoo_Database",
        "X-Forwarded-For",
        "X-FORWARDED-HOST",
        "X_Forwarded_Proto",
        "X-Forwarded-Port",
        "Forwarded",
        "FORWARDED",
        "X-Real-IP",
        "X_Real_Ip",
        "X-Request-ID",
        "X_Request_Id",
        "Proxy",
        "Content_Length",
        "Transfer_Encoding",
    ];
    let claims: String =
        spellings.iter().flat_map(|name| [name, name]).map(|n| format!("{n}: spoofed\r\n")).collect();
    let named = "Connection: keep-alive, X-Loomworks-Tenant, X-Loomworks-Database, Host\r\n";
    let request =
        format!("GET /?a=b HTTP/1.1\r\nHost: acme.localhost\r\n{claims}{named}Cookie: session=1\r\n\r\n");
    let answer = world.client().await.ask(request).await;
    assert_eq!(answer.status, 200);

    let seen = world.app.only();
    assert!(!format!("{seen:?}").contains("spoofed"), "{seen:#?}");
    let id = answer.header("x-request-id").unwrap();
    for (name, value) in [
        ("host", "acme.localhost"),
        ("x-loomworks-tenant", "acme"),
        ("x-loomworks-database", "db-acme"),
        ("x-odoo-dbfilter", r"^db\-acme$"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "acme.localhost"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", id),
        ("cookie", "session=1"),
    ] {
        assert_eq!(seen.header(name), [value], "{name}");
    }
    assert_eq!(seen.headers.len(), 9, "and nothing else: {seen:#?}");
}

#[tokio::test]
async fn what_the_app_says_about_its_connection_ends_at_the_gateway() {
    let world = World::new().await;
    let answer = world.client().await.ask(get("acme.localhost", "/hop")).await;
    for name in ["connection", "keep-alive", "x-private"] {
        assert_eq!(answer.all(name), Vec::<&str>::new(), "{}", answer.head);
    }
    assert_eq!(answer.all("x-request-id").len(), 1);
    assert_ne!(answer.header("x-request-id"), Some("the app's own"));
}

#[tokio::test]
async fn large_bodies_pass_in_both_directions() {
    let world = World::new().await;
    let mut client = world.client().await;
    let answer = client.ask(get("acme.localhost", "/big")).await;
    assert_eq!(answer.body.len(), BIG_BYTES);
    assert!(answer.body.iter().all(|byte| *byte == 7));

    let head =
        format!("POST /upload HTTP/1.1\r\nHost: acme.localhost\r\nContent-Length: {BIG_BYTES}\r\n\r\n");
    client.send(head).await;
    client.send(vec![8; BIG_BYTES]).await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    assert_eq!(world.app.seen().last().unwrap().body_bytes, BIG_BYTES);
    assert_eq!(
        client.ask(get("globex.localhost", "/")).await.text(),
        "hello globex",
        "and the connection goes on"
    );
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let world = World::new().await;
    let head =
        "POST /echo HTTP/1.1\r\nHost: acme.localhost\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n";
    let mut client = world.client().await;
    assert_eq!(client.ask(head).await.status, 100);
    assert_eq!(client.ask("hi").await.text(), "hi");
    assert!(world.app.only().header("expect").is_empty());
}

#[tokio::test]
async fn a_websocket_is_carried_both_ways() {
    let world = World::new().await;
    let mut client = world.client().await;
    let answer = client.ask(upgrade("/upgrade")).await;
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(answer.header("sec-websocket-accept"), Some("yes"));
    for word in ["hello", "again"] {
        client.send(word).await;
        assert_eq!(client.take(word.len()).await.unwrap(), word.to_uppercase().as_bytes());
    }
    assert_eq!(world.app.only().header("sec-websocket-key"), ["key"]);
}

#[tokio::test]
async fn an_upgrade_that_the_app_does_not_take_is_an_answer_and_the_end() {
    let world = World::new().await;
    let mut client = world.client().await;
    let answer = client.ask(upgrade("/") + &get("globex.localhost", "/smuggled")).await;
    assert_eq!((answer.status, answer.text()), (200, "hello acme".to_owned()));
    assert!(client.is_closed().await);
    assert_eq!(world.app.only().tenant, "acme");
}

#[tokio::test]
async fn an_app_that_is_down_is_a_bad_gateway_and_only_for_its_tenant() {
    let world = World::new().await;
    let closed = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let generation = world.publish("acme", |route| route.upstream = closed);
    world.in_force(generation).await;
    let mut client = world.client().await;
    let json = "GET / HTTP/1.1\r\nHost: acme.localhost\r\nAccept: application/json\r\n\r\n";
    let answer = client.ask(json).await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains(r#""code":"app_unavailable""#), "{}", answer.text());
    assert!(!answer.text().contains("127.0.0.1"), "it tells nothing about the inside");
    assert_eq!(client.ask(get("globex.localhost", "/")).await.status, 200);
}

#[tokio::test]
async fn only_a_request_that_changes_nothing_is_sent_again() {
    let world = World::new().await;
    // An app that answers the first request on each connection and hangs up at the second, as if it had closed an
    // idle connection while a request was on its way.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let app = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                let _ = stream.read(&mut bytes).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                let _ = stream.read(&mut bytes).await;
            });
        }
    });
    let generation = world.publish("acme", |route| route.upstream = app);
    world.in_force(generation).await;
    let mut client = world.client().await;
    for _ in 0..5 {
        assert_eq!(client.ask(get("acme.localhost", "/")).await.status, 200);
    }
    // By now a connection is idle, or is going to be: a POST gets either a new one or the failure.
    let mut failed = 0;
    for _ in 0..10 {
        assert_eq!(client.ask(get("acme.localhost", "/")).await.status, 200);
        let post = "POST / HTTP/1.1\r\nHost: acme.localhost\r\nContent-Length: 1\r\n\r\nx";
        failed += usize::from(client.ask(post).await.status == 502);
    }
    assert!(failed > 0, "a request that may change something is never sent twice");
    server.abort();
}

#[tokio::test]
async fn a_stopping_gateway_finishes_what_has_begun() {
    let mut world = World::new().await;
    let (mut client, mut idle) = (world.client().await, world.client().await);
    assert_eq!(idle.ask(get("acme.localhost", "/")).await.status, 200);
    client.send(get("acme.localhost", "/slow")).await;
    world.app.busy(1).await;
    world.gateway.tell_to_stop();
    assert!(idle.is_closed().await, "an idle connection is closed at once");
    world.app.release_slow();
    assert_eq!(client.answer().await.unwrap().text(), "hello acme");
    assert!(client.is_closed().await);
    drop((client, idle));
    world.gateway.stopped().await;
}

#[tokio::test]
async fn a_stopping_gateway_ends_its_tunnels() {
    let mut world = World::new().await;
    let mut client = world.client().await;
    assert_eq!(client.ask(upgrade("/upgrade")).await.status, 101);
    world.gateway.tell_to_stop();
    assert!(client.is_closed().await);
    drop(client);
    world.gateway.stopped().await;
}

pub(crate) fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: acme.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: key\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}
