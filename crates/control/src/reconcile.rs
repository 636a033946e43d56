//! Comparing what is wanted with what is, and enqueueing what is missing.
//!
//! A reconciler looks at everything each time and takes no input, so the way back after a crash is the way it always
//! goes. It changes nothing itself.

use std::time::Duration;

use loomworks_core::schedule::Daily;
use loomworks_core::time;
use tokio::sync::watch;
use tracing::warn;

use crate::World;
use crate::db::{jobs as job_rows, sessions, tenants};
use crate::error::{Error, chain};
use crate::jobs;
use crate::work::ai_session::CloseSession;
use crate::work::backup::TakeBackup;
use crate::work::drop_former::DropFormer;
use crate::work::provision::Provision;

const EVERY: Duration = Duration::from_secs(2);

/// Who asked, for jobs that nobody asked for.
const ACTOR: &str = "loomworks";

/// What a process may enqueue: what its roles carry out.
#[derive(Clone, Copy, Debug)]
pub struct Duties {
    pub tenants: bool,
    pub backups: bool,
}

/// Looks every two seconds until `stop` becomes true.
pub async fn run(world: World, duties: Duties, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        if duties.tenants {
            for result in
                [unmade_tenants(&world).await, expired_sessions(&world).await, old_databases(&world).await]
            {
                report(result);
            }
        }
        if duties.backups {
            report(due_backup(&world).await);
        }
        let _ = tokio::time::timeout(EVERY, stop.wait_for(|stop| *stop)).await;
    }
}

fn report(result: Result<(), Error>) {
    if let Err(error) = result {
        warn!(error = chain(&error), "a reconciler could not look; it will again");
    }
}

async fn unmade_tenants(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    for tenant in tenants::provisioning_without_job(&mut mgmt).await? {
        jobs::enqueue(&mut mgmt, &Provision { tenant }, ACTOR).await?;
    }
    Ok(())
}

async fn expired_sessions(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    for (tenant, session) in sessions::expired(&mut mgmt).await? {
        jobs::enqueue(&mut mgmt, &CloseSession { tenant, session }, ACTOR).await?;
    }
    Ok(())
}

async fn old_databases(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    for (tenant, database) in tenants::databases_to_drop(&mut mgmt).await? {
        jobs::enqueue(&mut mgmt, &DropFormer { tenant, database }, ACTOR).await?;
    }
    Ok(())
}

/// Once a day, and at once where there is none: without a base backup nothing can be restored.
async fn due_backup(world: &World) -> Result<(), Error> {
    let newest = world.repository.backups().await?.last().map(|backup| backup.finished_at);
    if Daily::default().is_due(newest, time::now()) {
        let mut mgmt = world.db.platform.acquire().await?;
        // A job that failed is not asked for again every two seconds, but an hour later.
        if job_rows::failed_within_hour(&mut mgmt, "backup").await? {
            return Ok(());
        }
        jobs::enqueue(&mut mgmt, &TakeBackup {}, ACTOR).await?;
    }
    Ok(())
}
