//! What can be read in two ways is refused, and nothing of it reaches the app.

use crate::wire::get;
use crate::world::World;

/// The second request that a smuggler hopes for.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: globex.localhost\r\n\r\n";

#[tokio::test]
async fn ambiguous_framing_is_refused_and_the_connection_closed() {
    let world = World::new().await;
    let post =
        |lines: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: acme.localhost\r\n{lines}\r\n{body}");
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    let length = SMUGGLED.len();
    let requests = [
        post(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), &chunked),
        post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", &chunked),
        post("Content-Length: 0\r\nContent-Length: 0\r\n", SMUGGLED),
        post(&format!("Content-Length: 0\r\nContent-Length: {length}\r\n"), SMUGGLED),
        post("Content-Length: 0, 0\r\n", SMUGGLED),
        post("Content-Length: +0\r\n", SMUGGLED),
        post("Content-Length: -1\r\n", SMUGGLED),
        post("Content-Length: 0x0\r\n", SMUGGLED),
        post("Content-Length: 1 0\r\n", SMUGGLED),
        post("Content-Length:\r\n", SMUGGLED),
        post("Content-Length : 0\r\n", SMUGGLED),
        post("Content-Length: 18446744073709551616\r\n", SMUGGLED),
        post("Transfer-Encoding: identity\r\n", SMUGGLED),
        post("Transfer-Encoding: gzip, chunked\r\n", &chunked),
        post("Transfer-Encoding: chunked, gzip\r\n", &chunked),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &chunked),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", &chunked),
        post("Transfer-Encoding: xchunked\r\n", &chunked),
        post("Transfer-Encoding: \"chunked\"\r\n", &chunked),
        post("Transfer-Encoding: \x0bchunked\r\n", &chunked),
        post("Transfer-Encoding : chunked\r\n", &chunked),
        post("Transfer-Encoding:\r\n chunked\r\n", &chunked),
        post("X: y\r\n\tfolded\r\n", SMUGGLED),
        post("X: y\rContent-Length: 0\r\n", SMUGGLED),
        post("X: y\nContent-Length: 0\r\n", SMUGGLED),
        post("X: y\0z\r\n", SMUGGLED),
        post("no colon\r\n", SMUGGLED),
        format!("POST / HTTP/1.0\r\nHost: acme.localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
        format!("GET / HTTP/1.1\nHost: acme.localhost\n\n{SMUGGLED}"),
        format!("GET /a b HTTP/1.1\r\nHost: acme.localhost\r\n\r\n{SMUGGLED}"),
        format!("GET / HTTP/1.2\r\nHost: acme.localhost\r\n\r\n{SMUGGLED}"),
        format!("GET / HTTP/0.9\r\nHost: acme.localhost\r\n\r\n{SMUGGLED}"),
        format!("GET /\r\n\r\n{SMUGGLED}"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03\r\n\r\n".to_owned(),
    ];
    for request in &requests {
        let mut client = world.client().await;
        let answer = client.ask(request).await;
        assert_eq!(answer.status, 400, "{request:?}");
        assert!(client.is_closed().await, "{request:?}");
    }
    assert!(world.app.seen().is_empty(), "{:#?}", world.app.seen());
}

#[tokio::test]
async fn doubt_about_a_later_request_does_not_touch_the_earlier_one() {
    let world = World::new().await;
    let doubtful =
        "POST /b HTTP/1.1\r\nHost: acme.localhost\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n";
    let mut client = world.client().await;
    client.send(get("acme.localhost", "/a") + doubtful + SMUGGLED).await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    assert_eq!(client.answer().await.unwrap().status, 400);
    assert!(client.is_closed().await);
    assert_eq!(world.app.only().path, "/a");
}

#[tokio::test]
async fn broken_chunks_are_never_a_whole_body() {
    let world = World::new().await;
    for chunks in [
        "ffffffffffffffffff\r\nx\r\n0\r\n\r\n",
        "-1\r\nx\r\n0\r\n\r\n",
        "0x1\r\nx\r\n0\r\n\r\n",
        "1\r\nxx\r\n0\r\n\r\n",
        "1\nx\n0\n\n",
        "1 1\r\nx\r\n0\r\n\r\n",
        &format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(70_000)),
    ] {
        let head = "POST / HTTP/1.1\r\nHost: acme.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut client = world.client().await;
        client.send(format!("{head}{chunks}")).await;
        let status = client.answer().await.map(|answer| answer.status);
        assert!(matches!(status, None | Some(400)), "{status:?} for {:?}", &chunks[..chunks.len().min(40)]);
        assert!(client.is_closed().await);
    }
    assert!(world.app.seen().is_empty(), "{:#?}", world.app.seen());
}

#[tokio::test]
async fn a_chunked_body_is_framed_anew_and_ends_the_connection() {
    let world = World::new().await;
    let request = "POST /echo HTTP/1.1\r\nHost: acme.localhost\r\nTransfer-Encoding: chunked\r\nTrailer: X-Loomworks-Tenant\r\n\r\n\
                   5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nX-Loomworks-Tenant: globex\r\n\r\n";
    let mut client = world.client().await;
    let answer = client.ask(format!("{request}{SMUGGLED}")).await;
    assert_eq!((answer.status, answer.text()), (200, "hello!".to_owned()));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.is_closed().await);
    let seen = world.app.only();
    assert_eq!((seen.tenant.as_str(), seen.body_bytes), ("acme", 6));
}

#[tokio::test]
async fn a_get_with_a_body_arrives_with_it() {
    let world = World::new().await;
    let chunked = "GET /echo HTTP/1.1\r\nHost: acme.localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    assert_eq!(world.client().await.ask(chunked).await.text(), "hi");
    let sized = "GET /echo HTTP/1.1\r\nHost: acme.localhost\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(world.client().await.ask(sized).await.text(), "hi");
}

#[tokio::test]
async fn methods_and_targets_for_proxies_are_refused() {
    let world = World::new().await;
    for (request, status) in [
        ("CONNECT acme.localhost:80 HTTP/1.1\r\nHost: acme.localhost:80\r\n\r\n", 405),
        ("TRACE / HTTP/1.1\r\nHost: acme.localhost\r\n\r\n", 405),
        ("OPTIONS * HTTP/1.1\r\nHost: acme.localhost\r\n\r\n", 400),
        ("GET acme.localhost HTTP/1.1\r\nHost: acme.localhost\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: acme.localhost\r\nExpect: 200-maybe\r\n\r\n", 417),
    ] {
        let mut client = world.client().await;
        let answer = client.ask(format!("{request}{SMUGGLED}")).await;
        assert_eq!(answer.status, status, "{request:?}");
        assert!(client.is_closed().await, "{request:?}");
    }
    assert!(world.app.seen().is_empty());
}

#[tokio::test]
async fn heads_without_measure_are_refused() {
    let world = World::new().await;
    let long = "a".repeat(70_000);
    let many: String = (0..1000).map(|n| format!("X-{n}: 1\r\n")).collect();
    for request in [
        get("acme.localhost", &format!("/{long}")),
        format!("GET / HTTP/1.1\r\nHost: acme.localhost\r\nX: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: acme.localhost\r\n{many}\r\n"),
        format!("{long}\r\n\r\n"),
    ] {
        let mut client = world.client().await;
        let answer = client.ask(&request).await;
        assert!([400, 414, 431].contains(&answer.status), "{} for {}", answer.status, &request[..60]);
        assert!(client.is_closed().await);
    }
    assert!(world.app.seen().is_empty());
}

#[tokio::test]
async fn an_offer_of_http2_is_not_taken_and_ends_the_connection() {
    let world = World::new().await;
    let request = "GET / HTTP/1.1\r\nHost: acme.localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                   HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let mut client = world.client().await;
    let answer = client.ask(format!("{request}{SMUGGLED}")).await;
    assert_eq!(answer.status, 200);
    assert!(client.is_closed().await);
    let seen = world.app.only();
    for name in ["upgrade", "http2-settings", "connection"] {
        assert!(seen.header(name).is_empty(), "{seen:#?}");
    }
}

#[tokio::test]
async fn a_client_that_sends_a_byte_at_a_time_keeps_nobody_waiting() {
    let world = World::new().await;
    let (mut slow, mut quick) = (world.client().await, world.client().await);
    for byte in get("acme.localhost", "/slowly").bytes() {
        slow.send([byte]).await;
        assert_eq!(quick.ask(get("globex.localhost", "/")).await.status, 200);
    }
    assert_eq!(slow.answer().await.unwrap().text(), "hello acme");
}
