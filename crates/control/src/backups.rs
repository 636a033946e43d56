//! Base backups: asked for and listed.

use loomworks_archive::backup::Backup;
use loomworks_core::ids::JobId;
use serde_json::json;

use crate::World;
use crate::access::Operator;
use crate::error::Error;
use crate::page::{Asked, Page};
use crate::work::backup::TakeBackup;
use crate::work::expire::Expire;
use crate::work::restore_drill::RestoreDrill;
use crate::work::verify_backup::VerifyBackup;
use crate::{audit, jobs};

/// Asks for a base backup, or finds the one that is being taken.
pub async fn run(world: &World, operator: &Operator, full: bool) -> Result<JobId, Error> {
    enqueue(world, operator, &TakeBackup { full }, "backup.requested", json!({ "full": full })).await
}

/// Asks for a backup to be read back.
pub async fn verify(world: &World, operator: &Operator, label: &str) -> Result<JobId, Error> {
    let there = world.repository.backup(label).await?;
    let backup = there.ok_or(Error::NotFound("such backup"))?;
    let work = VerifyBackup { label: backup.label };
    enqueue(world, operator, &work, "backup.verification_requested", json!({ "backup": label })).await
}

/// Asks for a drill, or finds the one that is under way.
pub async fn drill(world: &World, operator: &Operator) -> Result<JobId, Error> {
    enqueue(world, operator, &RestoreDrill {}, "archive.drill_requested", json!({})).await
}

/// Asks for what is out of the recovery window to be removed.
pub async fn expire(world: &World, operator: &Operator) -> Result<JobId, Error> {
    enqueue(world, operator, &Expire {}, "archive.expiry_requested", json!({})).await
}

async fn enqueue<W: jobs::Work>(
    world: &World,
    operator: &Operator,
    work: &W,
    action: &str,
    detail: serde_json::Value,
) -> Result<JobId, Error> {
    let mut scoped = operator.begin(&world.db).await?;
    let job = jobs::enqueue(&mut scoped, work, &operator.actor).await?;
    audit::record(&mut scoped, &operator.actor, action, None, detail).await?;
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
