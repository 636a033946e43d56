//! The queue under worker processes that are killed, stopped and poisoned at random moments.
//!
//! ```text
//! cargo test -p loomworks-control --test stress     the short form, which must hold
//! bench/run queue [--quick]                         the long one, with numbers
//! ```
//!
//! Without arguments it is the test; it starts itself again as `worker`.
#![allow(clippy::print_stdout, reason = "what it measures is its output")]

mod kinds;
mod measure;
mod run;
#[path = "../support/world.rs"]
mod world;

use std::path::Path;

use loomworks_control::accelerator::Accelerator;
use loomworks_control::jobs::{self, Slots};
use loomworks_core::SecretString;
use loomworks_postgres::{Cluster, Installation};
use tokio::sync::watch;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match words[..] {
        ["worker", directory, port, node, slots, redis] => {
            runtime.block_on(worker(directory, port, node, slots, redis));
        }
        ["bench"] => runtime.block_on(measure::all(run::Size::FULL)),
        ["bench", "--quick"] => runtime.block_on(measure::all(run::Size::QUICK)),
        // What `cargo test` hands to every test program: a list is asked for, or other tests by name.
        _ if words.contains(&"--list") => {}
        _ if words.iter().any(|word| !word.starts_with('-') && !"stress".contains(word)) => {}
        _ => runtime.block_on(run::test()),
    }
}

/// Carries jobs out until it is ended.
async fn worker(directory: &str, port: &str, node: &str, slots: &str, redis: &str) {
    let directory = Path::new(directory);
    let cluster = Cluster {
        installation: Installation::find(None).await.expect("PostgreSQL"),
        directory: directory.join("data"),
        socket_directory: directory.to_owned(),
        port: port.parse().expect("a port"),
    };
    let accelerator = match redis {
        "-" => Accelerator::default(),
        url => Accelerator::new(&SecretString::from(url), 50).expect("an address"),
    };
    let slots = slots.parse().expect("a number");
    let slots = Slots { in_process: slots, per_tenant: 8 };
    let db = world::connect(&cluster);
    let world =
        world::world(&cluster, db, &directory.join(node), node, kinds::kinds(), slots, accelerator).await;
    let (_never, stop) = watch::channel(false);
    jobs::runner::run(world, stop).await;
}
