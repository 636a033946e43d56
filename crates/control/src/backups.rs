//! Base backups: asked for and listed.

use loomworks_archive::backup::Backup;
use loomworks_core::ids::JobId;
use serde_json::json;

use crate::World;
use crate::access::Operator;
use crate::error::Error;
use crate::page::{Asked, Page};
use crate::work::backup::TakeBackup;
use crate::{audit, jobs};

/// Asks for a base backup, or finds the one that is being taken.
pub async fn run(world: &World, operator: &Operator, full: bool) -> Result<JobId, Error> {
    let mut scoped = operator.begin(&world.db).await?;
    let job = jobs::enqueue(&mut scoped, &TakeBackup { full }, &operator.actor).await?;
    audit::record(&mut scoped, &operator.actor, "backup.requested", None, json!({ "job": job, "full": full })).await?;
    scoped.commit().await?;
    Ok(job)
}

/// The backups in the repository, oldest first. A page begins after a backup's label.
pub async fn list(world: &World, _: &Operator, asked: &Asked<String>) -> Result<Page<Backup>, Error> {
    let all = world.repository.backups().await?;
    let begin = match &asked.after {
        Some(label) => {
            all.iter().position(|backup| backup.label == *label).map_or(all.len(), |place| place + 1)
        }
        None => 0,
    };
    let rows = usize::try_from(asked.rows()).unwrap_or(usize::MAX);
    Ok(asked.page(all.into_iter().skip(begin).take(rows).collect(), |backup| backup.label.clone()))
}
