//! `loomworks demo`: the whole promise, shown on the running platform.
//!
//! It is a client like any other: it uses the API, the gateway and the PostgreSQL port, and nothing that others
//! could not. Each step says what it did, how long it took, and which contents it compared; one comparison that
//! fails makes the exit status 1.

mod agent;
mod contents;
mod journey;
mod report;
mod traffic;
mod visitor;

use std::process::ExitCode;

use crate::client::Client;
use crate::output::Failure;

pub(super) async fn run(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let mut report = report::Report::new(json);
    // A step that could not be carried out ends the journey; what was found until then is still told.
    let ended = journey::run(client, &mut report).await;
    let ok = report.finish()?;
    ended?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
