//! The operation log of a tenant, and undo.
//!
//! Applying an undo is one transaction in the tenant's database; it needs no job, because it cannot be half done.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use loomworks_postgres::Cluster;
use loomworks_undo::{Filter, Mode, Operation, OperationDetail, OperationId, Outcome, Plan, UNDO_ROLE};
use serde_json::json;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Postgres};

use crate::World;
use crate::access::Granted;
use crate::error::Error;
use crate::page::{Asked, Page};
use crate::{audit, tenants};

/// Operations, newest first; of the session that logs in as this role, if one is named.
pub async fn list(
    world: &World,
    granted: &Granted,
    session: Option<String>,
    asked: &Asked<i64>,
) -> Result<Page<Operation>, Error> {
    let filter = Filter { session, before: asked.after.map(OperationId), limit: asked.rows() };
    let mut connection = connect(world, granted).await?;
    let rows = loomworks_undo::list(&mut connection, &filter).await?;
    Ok(asked.page(rows, |operation| operation.id.0))
}

/// One operation with at most `rows_max` of the rows it changed.
pub async fn show(
    world: &World,
    granted: &Granted,
    id: OperationId,
    rows_max: i64,
) -> Result<OperationDetail, Error> {
    let mut connection = connect(world, granted).await?;
    let found = loomworks_undo::show(&mut connection, id, rows_max).await?;
    found.ok_or(Error::NotFound("such operation"))
}

/// What an undo would do. Changes nothing.
pub async fn plan(world: &World, granted: &Granted, ids: &[OperationId], mode: Mode) -> Result<Plan, Error> {
    let mut connection = connect(world, granted).await?;
    Ok(loomworks_undo::plan(&mut connection, ids, mode).await?)
}

/// Takes operations back.
pub async fn undo(
    world: &World,
    granted: &Granted,
    ids: &[OperationId],
    mode: Mode,
) -> Result<Outcome, Error> {
    // Two databases cannot commit at once. That it was asked for is written first, so that no undo is without a line;
    // whether it was done is in the tenant's own log.
    let mut scoped = granted.begin(&world.db).await?;
    let detail = json!({ "operations": ids, "mode": mode });
    audit::record(&mut scoped, &granted.actor, "operations.undo_requested", Some(granted.tenant()), detail)
        .await?;
    scoped.commit().await?;
    let mut connection = connect(world, granted).await?;
    Ok(loomworks_undo::undo(&mut connection, ids, mode, &granted.actor).await?)
}

/// A connection as the undo engine: no superuser, because it runs what is in the tenant's database.
async fn connect(world: &World, granted: &Granted) -> Result<PoolConnection<Postgres>, Error> {
    let tenant = tenants::provisioned(world, granted).await?;
    let pool = world.log_connections.of(&world.cluster, &tenant.database_name);
    pool.acquire().await.map_err(Error::TenantDatabase)
}

/// Connections to tenants' logs that were used a moment ago: whoever looks at an operation undoes it next, and a
/// server process that knows its catalogue does that in half the time.
#[derive(Default)]
pub struct LogConnections(Mutex<HashMap<String, (PgPool, Instant)>>);

/// Tenants whose connections are kept.
const TENANTS_MAX: usize = 64;

impl LogConnections {
    fn of(&self, cluster: &Cluster, database: &str) -> PgPool {
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((pool, used)) = pools.get_mut(database) {
            *used = now;
            return pool.clone();
        }
        if pools.len() >= TENANTS_MAX {
            let longest_ago = pools.iter().min_by_key(|(_, (_, used))| *used).map(|(name, _)| name.clone());
            // A pool that somebody still has a connection of lives as long as that.
            longest_ago.and_then(|name| pools.remove(&name));
        }
        // Those that an exchange has ended are noticed by the test before each use.
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .idle_timeout(Duration::from_secs(30))
            .connect_lazy_with(cluster.confined(UNDO_ROLE, database));
        pools.insert(database.to_owned(), (pool.clone(), now));
        pool
    }
}
