//! While a tenant is held its requests wait, and nothing of it is in flight once the hold is acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use loomworks_core::route::RouteState;
use tokio::task::JoinSet;

use crate::forward::upgrade;
use crate::wire::{Wire, get};
use crate::world::World;

#[tokio::test]
async fn a_held_request_waits_and_then_succeeds() {
    let world = World::new().await;
    world.set("acme", RouteState::Held).await;
    assert_eq!(world.gateway.observer.status().held, ["acme".parse().unwrap()]);
    let mut held = world.client().await;
    held.send(get("acme.localhost", "/")).await;
    assert_eq!(world.client().await.ask(get("globex.localhost", "/")).await.status, 200, "others are served");
    assert_eq!(world.app.only().tenant, "globex");
    world.set("acme", RouteState::Serving).await;
    assert_eq!(held.answer().await.unwrap().text(), "hello acme");
}

#[tokio::test]
async fn a_request_released_into_another_database_reaches_that_one() {
    let world = World::new().await;
    world.set("acme", RouteState::Held).await;
    let mut held = world.client().await;
    held.send(get("acme.localhost", "/")).await;
    world.publish("acme", |route| {
        route.state = RouteState::Serving;
        route.database = "db-acme-restored".into();
    });
    assert_eq!(held.answer().await.unwrap().status, 200);
    assert_eq!(world.app.only().header("x-loomworks-database"), ["db-acme-restored"]);
}

#[tokio::test]
async fn a_hold_is_acknowledged_only_when_earlier_requests_have_ended() {
    let world = World::new().await;
    let mut client = world.client().await;
    client.send(get("acme.localhost", "/slow")).await;
    world.app.busy(1).await;
    let held = world.publish("acme", |route| route.state = RouteState::Held);
    world.in_force(held).await;
    for _ in 0..5 {
        // Time in which a gateway that does not wait would have spoken.
        assert_eq!(world.client().await.ask(get("globex.localhost", "/brief")).await.status, 200);
    }
    assert_eq!(world.control.has_acknowledged(&world.gateway.name), Some(1));
    world.app.release_slow();
    assert_eq!(client.answer().await.unwrap().status, 200);
    world.control.acknowledged(&world.gateway.name, held).await;
}

#[tokio::test]
async fn a_client_that_leaves_does_not_keep_a_hold_from_being_acknowledged() {
    let world = World::new().await;
    let mut client = world.client().await;
    client.send(get("acme.localhost", "/slow")).await;
    world.app.busy(1).await;
    let held = world.publish("acme", |route| route.state = RouteState::Held);
    world.in_force(held).await;
    drop(client);
    world.control.acknowledged(&world.gateway.name, held).await;
}

#[tokio::test]
async fn a_hold_cuts_tunnels() {
    let world = World::new().await;
    let mut client = world.client().await;
    assert_eq!(client.ask(upgrade("/upgrade")).await.status, 101);
    world.set("globex", RouteState::Held).await;
    client.send("still").await;
    assert_eq!(client.take(5).await.unwrap(), b"STILL", "another tenant's hold is not ours");
    world.set("acme", RouteState::Held).await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_hold_that_is_not_released_in_time_is_an_answer() {
    let world = World::with_hold_max(Duration::from_millis(20)).await;
    world.set("acme", RouteState::Held).await;
    let request = "GET / HTTP/1.1\r\nHost: acme.localhost\r\nAccept: application/json\r\n\r\n";
    let answer = world.client().await.ask(request).await;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
    assert!(answer.text().contains(r#""code":"held""#), "{}", answer.text());
    assert!(world.app.seen().is_empty());
}

#[tokio::test]
async fn waiting_requests_are_served_while_the_gateway_stops() {
    let mut world = World::new().await;
    world.set("acme", RouteState::Held).await;
    let mut client = world.client().await;
    client.send(get("acme.localhost", "/")).await;
    // The second answer on another connection shows that the gateway has read what came before it.
    assert_eq!(world.client().await.ask(get("globex.localhost", "/")).await.status, 200);
    world.gateway.tell_to_stop();
    world.publish("acme", |route| route.state = RouteState::Serving);
    assert_eq!(client.answer().await.unwrap().text(), "hello acme");
    drop(client);
    world.gateway.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_and_none_slips_through_twenty_holds() {
    let world = World::new().await;
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..50 {
        let (address, stop, answered) = (world.gateway.address, Arc::clone(&stop), Arc::clone(&answered));
        clients.spawn(async move {
            let mut client = Wire::connect(address).await;
            while !stop.load(Ordering::SeqCst) {
                let answer = client.ask(get("acme.localhost", "/brief")).await;
                assert_eq!((answer.status, answer.text()), (200, "hello acme".to_owned()));
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    for _ in 0..20 {
        world.set("acme", RouteState::Held).await;
        world.app.forbid("acme");
        // Whatever could slip through has the time in which another tenant is served.
        let mut other = world.client().await;
        for _ in 0..5 {
            assert_eq!(other.ask(get("globex.localhost", "/brief")).await.status, 200);
        }
        let before = answered.load(Ordering::SeqCst);
        world.app.allow();
        world.publish("acme", |route| route.state = RouteState::Serving);
        while answered.load(Ordering::SeqCst) < before + 50 {
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_eq!(world.app.mistakes(), Vec::<String>::new());
}
