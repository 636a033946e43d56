//! The operation log of a tenant, and undo.
//!
//! Applying an undo is one transaction in the tenant's database; it needs no job, because it cannot be half done.

use loomworks_undo::{Filter, Mode, Operation, OperationDetail, OperationId, Outcome, Plan, UNDO_ROLE};
use serde_json::json;
use sqlx::{ConnectOptions, PgConnection};

use crate::World;
use crate::access::Granted;
use crate::error::Error;
use crate::{audit, tenants};

/// Operations, newest first.
pub async fn list(world: &World, granted: &Granted, filter: &Filter) -> Result<Vec<Operation>, Error> {
    let mut connection = connect(world, granted).await?;
    Ok(loomworks_undo::list(&mut connection, filter).await?)
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
async fn connect(world: &World, granted: &Granted) -> Result<PgConnection, Error> {
    tenants::provisioned(world, granted).await?;
    let names = tenants::names(world, granted).await?;
    world.cluster.local(UNDO_ROLE, &names.database_name).connect().await.map_err(Error::TenantDatabase)
}
