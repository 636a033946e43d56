//! Dropping databases so that everybody else can breathe.
//!
//! PostgreSQL forces a checkpoint for each: it writes all that has changed to disk, of all tenants. So one is dropped at
//! a time on the whole platform, and then nobody drops another for a moment.

use std::time::Duration;

use loomworks_postgres::{closing, databases};

use crate::World;
use crate::jobs::StepError;

/// Between two databases that are dropped.
const REST: Duration = Duration::from_secs(1);

/// When to ask again whose turn it is.
pub(super) const POLL: Duration = Duration::from_millis(200);

/// Drops a database, or finds that it is gone. `Ok(false)`: another one is being dropped.
///
/// By number: a name can have come to mean another database.
pub(super) async fn drop_in_turn(world: &World, oid: i64) -> Result<bool, StepError> {
    let mut admin = world.cluster.connect("postgres").await?;
    if closing::name_of(&mut admin, oid).await?.is_none() {
        return Ok(true);
    }
    if !closing::take_turn(&mut admin, "drop a database").await? {
        return Ok(false);
    }
    if let Some(name) = closing::name_of(&mut admin, oid).await? {
        databases::drop_database(&mut admin, &name).await?;
        // The turn ends with the connection: it is kept for the rest.
        tokio::time::sleep(REST).await;
    }
    Ok(true)
}
