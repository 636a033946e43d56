//! Base backups: asked for and listed.

use loomworks_archive::backup::Backup;
use loomworks_core::ids::JobId;
use serde_json::json;

use crate::World;
use crate::access::Operator;
use crate::error::Error;
use crate::work::backup::TakeBackup;
use crate::{audit, jobs};

/// Asks for a base backup, or finds the one that is being taken.
pub async fn run(world: &World, operator: &Operator) -> Result<JobId, Error> {
    let mut scoped = operator.begin(&world.db).await?;
    let job = jobs::enqueue(&mut scoped, &TakeBackup {}, &operator.actor).await?;
    audit::record(&mut scoped, &operator.actor, "backup.requested", None, json!({ "job": job })).await?;
    scoped.commit().await?;
    Ok(job)
}

/// The backups in the repository, oldest first.
pub async fn list(world: &World, _: &Operator) -> Result<Vec<Backup>, Error> {
    Ok(world.repository.backups().await?)
}
