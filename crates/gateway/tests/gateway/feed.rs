//! The gateway serves with or without its control plane.

use crate::wire::{Wire, get};
use crate::world::{World, route};

#[tokio::test]
async fn a_change_is_taken_and_kept() {
    let world = World::new().await;
    assert_eq!(world.client().await.ask(get("initech.localhost", "/")).await.status, 404);
    let generation = world.control.publish(|table| table.routes.push(route("initech", world.app.address)));
    world.control.acknowledged(&world.gateway.name, generation).await;
    assert_eq!(world.client().await.ask(get("initech.localhost", "/")).await.text(), "hello initech");
    let kept = std::fs::read_to_string(world.routes_file()).unwrap();
    assert!(kept.contains("initech"));
}

#[tokio::test]
async fn without_a_control_plane_the_gateway_and_one_that_restarts_go_on_serving() {
    let world = World::new().await;
    world.control.stop();
    assert_eq!(world.client().await.ask(get("acme.localhost", "/")).await.status, 200);
    let restarted = world.another_gateway().await;
    assert_eq!(restarted.observer.status().generation, 1);
    assert_eq!(restarted.observer.status().routes, 2);
    assert_eq!(
        Wire::connect(restarted.address).await.ask(get("globex.localhost", "/")).await.text(),
        "hello globex"
    );

    world.control.come_back().await;
    let generation = world.control.publish(|table| table.routes.truncate(1));
    world.control.acknowledged(&world.gateway.name, generation).await;
    world.control.acknowledged(&restarted.name, generation).await;
    assert_eq!(world.client().await.ask(get("globex.localhost", "/")).await.status, 404);
}

#[tokio::test]
async fn a_broken_file_is_ignored_and_replaced() {
    let world = World::new().await;
    loomworks_core::durable::write(&world.routes_file(), br#"{"generation": 99, "routes": [{"#).unwrap();
    let restarted = world.another_gateway().await;
    world.control.acknowledged(&restarted.name, 1).await;
    assert_eq!(Wire::connect(restarted.address).await.ask(get("acme.localhost", "/")).await.status, 200);
    serde_json::from_slice::<serde_json::Value>(&std::fs::read(world.routes_file()).unwrap()).unwrap();
}

#[tokio::test]
async fn an_older_table_is_refused() {
    let world = World::new().await;
    loomworks_core::durable::write(&world.routes_file(), br#"{"generation": 99, "routes": []}"#).unwrap();
    let restarted = world.another_gateway().await;
    world.control.acknowledged(&restarted.name, 99).await;
    assert_eq!(restarted.observer.status().generation, 99);
}
