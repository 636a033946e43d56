//! The database that is to take the live one's place: what was recovered on the side, brought into the live cluster.
//!
//! Its files are moved where that can be; otherwise `pg_dump` reads it and `pg_restore` writes it.

use loomworks_core::ids::{JobId, TenantId};
use loomworks_postgres::moving::{self, Frozen, Landing};
use loomworks_postgres::{copy, databases};
use sqlx::PgConnection;
use tracing::info;

use super::side::Side;
use crate::World;
use crate::db::tenants::{self, TenantDatabase};
use crate::error::Error;
use crate::jobs::StepError;
use crate::work::provision::names;

/// The name of a restored database until it is exchanged.
fn name_of(tenant: TenantId, job: JobId) -> String {
    format!("lwt_{}_new_{}", tenant.short(), job.short())
}

/// The name of the database whose place the recovered files take, to be copied from there.
fn landing_of(tenant: TenantId, job: JobId) -> String {
    format!("lwt_{}_landing_{}", tenant.short(), job.short())
}

/// The landing's name from when its files are exchanged: it is used once.
fn landed_of(tenant: TenantId, job: JobId) -> String {
    format!("lwt_{}_landed_{}", tenant.short(), job.short())
}

/// Makes the landing, unless it is there. Worth doing while other things are waited for.
pub(super) async fn prepare(world: &World, tenant: TenantId, job: JobId) -> Result<u32, Error> {
    let name = landing_of(tenant, job);
    let mut admin = world.cluster.connect("postgres").await?;
    if let Some(oid) = databases::oid(&mut admin, &name).await? {
        return Ok(oid);
    }
    let oid = moving::next_oid(&mut admin).await?;
    note(world, tenant, &name, oid).await?;
    moving::make_landing(&mut admin, Landing { name: &name, oid }).await?;
    Ok(oid)
}

/// Whether the recovered database's files can be moved; otherwise it is dumped and loaded. `name` is what it is called on
/// the side.
pub(super) async fn can_move(
    world: &World,
    tenant: TenantId,
    side: &Side,
    name: &str,
) -> Result<bool, StepError> {
    let names = names(world, tenant).await?;
    let mut recovered = side.cluster.connect(name).await?;
    let mut admin = world.cluster.connect("postgres").await?;
    let obstacle = moving::obstacle(&mut recovered, &mut admin, &names.owner_role).await?;
    if let Some(obstacle) = obstacle {
        info!(%tenant, obstacle, "the database is dumped and loaded");
    }
    Ok(obstacle.is_none())
}

/// Freezes the recovered database. `None`: it cannot be, and is dumped and loaded.
pub(super) async fn freeze(side: &Side, name: &str) -> Result<Option<Frozen>, StepError> {
    let mut recovered = side.cluster.connect(name).await?;
    Ok(moving::freeze(&mut recovered).await?)
}

/// Moves the frozen files into the live cluster. Begun anew each time, as [`load`] is.
pub(super) async fn bring_files(
    world: &World,
    tenant: TenantId,
    job: JobId,
    side: &Side,
    frozen: &Frozen,
) -> Result<TenantDatabase, StepError> {
    let names = names(world, tenant).await?;
    let name = name_of(tenant, job);
    let mut admin = world.cluster.connect("postgres").await?;
    let landed = landed_of(tenant, job);
    for before in [&name, &landed] {
        databases::drop_database(&mut admin, before).await?;
    }
    let oid = prepare(world, tenant, job).await?;
    databases::rename(&mut admin, &landing_of(tenant, job), &landed).await?;
    let landing = Landing { name: &landed, oid };
    moving::land(&side.cluster, frozen, &world.cluster, landing).await?;
    let oid = moving::next_oid(&mut admin).await?;
    let candidate = note(world, tenant, &name, oid).await?;
    moving::settle(&mut admin, frozen, landing, &name, oid).await?;
    let mut inside = world.cluster.connect(&name).await?;
    databases::close_public_schema(&mut inside, &names.owner_role).await?;
    // By whatever program it was written then, it is guarded as this one guards.
    loomworks_undo::install(&mut inside, &names.owner_role).await.map_err(Error::from)?;
    databases::open_to(&mut admin, &name, &names.owner_role).await?;
    databases::admit_everybody_granted(&mut admin, &name).await?;
    Ok(candidate)
}

/// Loads what was dumped into a database of its own. Begun anew each time: a copy that was cut off cannot be gone on
/// with.
pub(super) async fn load(
    world: &World,
    tenant: TenantId,
    job: JobId,
    side: &Side,
) -> Result<TenantDatabase, StepError> {
    let names = names(world, tenant).await?;
    let name = name_of(tenant, job);
    let mut admin = world.cluster.connect("postgres").await?;
    databases::drop_database(&mut admin, &name).await?;
    // Closed until all that guards a tenant's database is in place in it.
    databases::ensure_closed(&mut admin, &name).await?;
    let oid = databases::oid(&mut admin, &name).await?;
    let oid = oid.ok_or_else(|| Error::Internal(format!("database `{name}` is gone")))?;
    let candidate = note(world, tenant, &name, oid).await?;
    copy::load(&world.cluster, &name, &side.dump, &names.owner_role, loomworks_undo::SCHEMA).await?;
    let mut inside = world.cluster.connect(&name).await?;
    databases::close_public_schema(&mut inside, &names.owner_role).await?;
    loomworks_undo::rehome(&mut inside, &names.owner_role).await.map_err(Error::from)?;
    sqlx::query("ANALYZE").execute(&mut inside).await.map_err(Error::TenantDatabase)?;
    databases::open_to(&mut admin, &name, &names.owner_role).await?;
    Ok(candidate)
}

/// Notes a database before it has any of the tenant's data: what is archived of it goes when the tenant does.
async fn note(world: &World, tenant: TenantId, name: &str, oid: u32) -> Result<TenantDatabase, Error> {
    let database = TenantDatabase { oid: i64::from(oid), name: name.to_owned() };
    let mut mgmt = world.db.platform.acquire().await?;
    tenants::record_found(&mut mgmt, tenant, &database).await?;
    Ok(database)
}

/// Drops what was only on the way.
pub(super) async fn drop_landing(
    admin: &mut PgConnection,
    tenant: TenantId,
    job: JobId,
) -> Result<(), Error> {
    for name in [landing_of(tenant, job), landed_of(tenant, job)] {
        databases::drop_database(admin, &name).await?;
    }
    Ok(())
}

/// Drops what a restore has brought and not exchanged.
pub(super) async fn drop_all(admin: &mut PgConnection, tenant: TenantId, job: JobId) -> Result<(), Error> {
    databases::drop_database(admin, &name_of(tenant, job)).await?;
    drop_landing(admin, tenant, job).await
}
