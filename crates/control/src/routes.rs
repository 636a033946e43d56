//! The gateways' route tables.

use std::time::Duration;

use loomworks_core::route::{Acknowledgement, Route, RouteState, RouteTable};
use sqlx::postgres::PgListener;

use crate::World;
use crate::access::Gateway;
use crate::db::routes::{self, CHANNEL};
use crate::error::Error;

/// How long a gateway's question is kept open when there is nothing new.
const LONG_POLL: Duration = Duration::from_secs(20);

/// The present table, if it is newer than `generation`; waits some time for one.
pub async fn newer_than(world: &World, _: Gateway, generation: i64) -> Result<Option<RouteTable>, Error> {
    // Listening first: what changes after the look is heard.
    let mut listener = PgListener::connect_with(&world.db.platform).await?;
    listener.listen(CHANNEL).await?;
    let deadline = tokio::time::Instant::now() + LONG_POLL;
    loop {
        let table = table(world).await?;
        if table.generation > generation {
            return Ok(Some(table));
        }
        match tokio::time::timeout_at(deadline, listener.recv()).await {
            Ok(notified) => drop(notified?),
            Err(_) => return Ok(None),
        }
    }
}

/// The table and its generation, read at one moment.
async fn table(world: &World) -> Result<RouteTable, Error> {
    let mut transaction =
        world.db.platform.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let generation = routes::generation(&mut transaction).await?;
    let rows = routes::rows(&mut transaction).await?;
    let route = |row: routes::Row| {
        let state = match (row.suspended, row.held) {
            (true, _) => RouteState::Suspended,
            (false, true) => RouteState::Held,
            (false, false) => RouteState::Serving,
        };
        // A tenant whose profile this process was not given cannot be served, and is not.
        let upstream = world.profiles.get(&row.profile)?.upstream;
        Some(Route { tenant: row.id, subdomain: row.subdomain, database: row.database_name, state, upstream })
    };
    Ok(RouteTable { generation, routes: rows.into_iter().filter_map(route).collect() })
}

/// Notes that a gateway has taken a table and drained what it holds.
pub async fn acknowledge(world: &World, _: Gateway, acknowledgement: &Acknowledgement) -> Result<(), Error> {
    if !(1..=200).contains(&acknowledgement.gateway.len()) {
        return Err(Error::invalid("a gateway's name has 1 to 200 bytes"));
    }
    let mut transaction = world.db.platform.begin().await?;
    routes::acknowledge(&mut transaction, &acknowledgement.gateway, acknowledgement.generation).await?;
    Ok(transaction.commit().await?)
}

/// Forgets the gateways that an earlier process of this node ran: nobody need wait for them.
pub async fn forget_gateways(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    Ok(routes::forget(&mut mgmt, &world.node).await?)
}
