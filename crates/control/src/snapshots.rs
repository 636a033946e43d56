//! Snapshots: asked for and listed.

use loomworks_core::ids::{JobId, SnapshotId};
use loomworks_core::name::Label;
use serde_json::json;

use crate::World;
use crate::access::{Granted, Scoped};
use crate::db::snapshots::{self, Snapshot, SnapshotType};
use crate::error::Error;
use crate::page::{Asked, Page};
use crate::work::snapshot::TakeSnapshot;
use crate::{audit, jobs, tenants};

/// Asks for a snapshot of the tenant as it is now.
pub async fn create(world: &World, granted: &Granted, name: &Label) -> Result<(Snapshot, JobId), Error> {
    tenants::provisioned(world, granted).await?;
    let mut scoped = granted.begin(&world.db).await?;
    let (snapshot, job) = request(world, &mut scoped, granted, name.as_str(), SnapshotType::Manual).await?;
    scoped.commit().await?;
    Ok((snapshot, job))
}

/// Writes a snapshot and its job down in the caller's transaction.
pub(crate) async fn request(
    world: &World,
    scoped: &mut Scoped,
    granted: &Granted,
    name: &str,
    snapshot_type: SnapshotType,
) -> Result<(Snapshot, JobId), Error> {
    let (id, tenant) = (SnapshotId::random(), granted.tenant());
    let platform_days = world.policy.recovery_days;
    snapshots::insert(scoped, id, tenant, name, snapshot_type, &granted.actor, platform_days).await?;
    let job = jobs::enqueue(scoped, &TakeSnapshot { tenant, snapshot: id }, &granted.actor).await?;
    let detail = json!({ "snapshot": id, "type": snapshot_type.as_str() });
    audit::record(scoped, &granted.actor, "snapshot.requested", Some(tenant), detail).await?;
    let snapshot = snapshots::get(scoped, tenant, id).await?.ok_or(Error::NotFound("such snapshot"))?;
    Ok((snapshot, job))
}

/// A tenant's snapshots, newest first.
pub async fn list(
    world: &World,
    granted: &Granted,
    asked: &Asked<snapshots::After>,
) -> Result<Page<Snapshot>, Error> {
    let mut scoped = granted.begin(&world.db).await?;
    let rows = snapshots::list(&mut scoped, granted.tenant(), asked).await?;
    Ok(asked.page(rows, |snapshot| (snapshot.created_at, snapshot.id.0)))
}

pub async fn get(world: &World, granted: &Granted, id: SnapshotId) -> Result<Snapshot, Error> {
    let mut scoped = granted.begin(&world.db).await?;
    snapshots::get(&mut scoped, granted.tenant(), id).await?.ok_or(Error::NotFound("such snapshot"))
}
