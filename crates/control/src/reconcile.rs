//! Comparing what is wanted with what is, and enqueueing what is missing.
//!
//! A reconciler looks at everything each time and takes no input, so the way back after a crash is the way it always
//! goes. It changes nothing itself.

use std::time::{Duration, Instant};

use loomworks_core::schedule::Daily;
use loomworks_core::time;
use tokio::sync::watch;
use tracing::warn;

use crate::World;
use crate::archive;
use crate::db::{
    credentials, exports, jobs as job_rows, lifecycle, notifications, sessions, templates, tenants, usage,
    webhooks,
};
use crate::error::{Error, chain};
use crate::jobs;
use crate::subscriptions;
use crate::work::ai_session::CloseSession;
use crate::work::archive::Archive;
use crate::work::backup::TakeBackup;
use crate::work::deliver_webhook::DeliverWebhook;
use crate::work::destroy::Destroy;
use crate::work::drop_former::DropFormer;
use crate::work::export::{self, RemoveExport};
use crate::work::fan_out::FanOut;
use crate::work::limits::{self, ApplyLimits, MeasureUsage};
use crate::work::pool::{self, FillPool, TidyTemplates};
use crate::work::provision::Provision;
use crate::work::rotate_credentials::RotateCredentials;
use crate::work::subscription::ApplySubscription;
use crate::work::template;

const EVERY: Duration = Duration::from_secs(2);

/// What costs a connection to the cluster is looked at every half minute.
const ROUNDS_OF_TIDYING: u64 = 15;

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
    let mut fresh_until = None;
    for round in 0_u64.. {
        if *stop.borrow() {
            return;
        }
        if duties.tenants {
            for result in [
                unmade_tenants(&world).await,
                expired_sessions(&world).await,
                old_databases(&world).await,
                old_credentials(&world).await,
                templates_and_pools(&world).await,
                known_limits(&world).await,
            ] {
                report(result);
            }
            if round % ROUNDS_OF_TIDYING == ROUNDS_OF_TIDYING - 1 {
                report(left_over_templates(&world).await);
                report(left_over_exports(&world).await);
            }
            report(fresh_notifications(&world).await);
            report(due_deliveries(&world).await);
            report(due_subscriptions(&world).await);
            report(unfinished_ends(&world).await);
            report(incomplete_archives(&world).await);
            report(old_exports(&world).await);
        }
        if duties.backups {
            report(due_backup(&world, &mut fresh_until).await);
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

/// Each profile has its template, and as many copies of it waiting as it should.
async fn templates_and_pools(world: &World) -> Result<(), Error> {
    use templates::TemplateState;
    let mut mgmt = world.db.platform.acquire().await?;
    for profile in world.profiles.values() {
        let name = world.template(profile);
        match templates::state(&mut mgmt, &name).await? {
            TemplateState::Building => {}
            TemplateState::Missing | TemplateState::Failed => {
                if !templates::is_busy(&mut mgmt, &template::dedup_key(&name)).await? {
                    template::request(&mut mgmt, &profile.name, &name, ACTOR).await?;
                }
            }
            TemplateState::Ready => {
                let wanted = i64::from(world.pool_of(profile));
                if templates::waiting(&mut mgmt, &name).await? < wanted
                    && !templates::is_busy(&mut mgmt, &pool::dedup_key(&profile.name)).await?
                {
                    jobs::enqueue(&mut mgmt, &FillPool { profile: profile.name.clone() }, ACTOR).await?;
                }
            }
        }
    }
    Ok(())
}

/// Each tenant's database knows its limits, and how large it is is known.
async fn known_limits(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    for tenant in usage::to_apply(&mut mgmt, &limits::common(world)).await? {
        jobs::enqueue(&mut mgmt, &ApplyLimits { tenant }, ACTOR).await?;
    }
    if usage::is_measuring_due(&mut mgmt).await?
        && !job_rows::failed_within_hour(&mut mgmt, "measure_usage").await?
    {
        jobs::enqueue(&mut mgmt, &MeasureUsage {}, ACTOR).await?;
    }
    Ok(())
}

async fn left_over_templates(world: &World) -> Result<(), Error> {
    if !pool::left_over(world).await?.is_empty() {
        let mut mgmt = world.db.platform.acquire().await?;
        jobs::enqueue(&mut mgmt, &TidyTemplates {}, ACTOR).await?;
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

/// Rotations at a time, so that thousands that are due on one day do not fill the queue.
const ROTATIONS_AT_ONCE: i64 = 20;

async fn old_credentials(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    let lifetime = world.credential_policy.lifetime.as_secs_f64();
    for tenant in credentials::due(&mut mgmt, lifetime, ROTATIONS_AT_ONCE).await? {
        jobs::enqueue(&mut mgmt, &RotateCredentials { tenant }, ACTOR).await?;
    }
    Ok(())
}

async fn due_subscriptions(world: &World) -> Result<(), Error> {
    for tenant in subscriptions::tenants_with_something_due(world).await? {
        let mut mgmt = world.db.platform.acquire().await?;
        jobs::enqueue(&mut mgmt, &ApplySubscription { tenant }, ACTOR).await?;
    }
    Ok(())
}

async fn fresh_notifications(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    if notifications::any_fresh(&mut mgmt).await? {
        jobs::enqueue(&mut mgmt, &FanOut {}, ACTOR).await?;
    }
    Ok(())
}

/// Destructions that have begun and stopped: nothing is left half destroyed.
async fn unfinished_ends(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    for tenant in lifecycle::destroying_without_job(&mut mgmt).await? {
        // It was confirmed when it was begun.
        let work = Destroy { tenant, before_retention_ends: false };
        jobs::enqueue(&mut mgmt, &work, ACTOR).await?;
    }
    Ok(())
}

/// Archived tenants whose database is not closed or has no last snapshot.
async fn incomplete_archives(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    for tenant in lifecycle::archived_incompletely(&mut mgmt).await? {
        jobs::enqueue(&mut mgmt, &Archive { tenant, reason: None }, ACTOR).await?;
    }
    Ok(())
}

/// Also the way to another attempt: a delivery that failed has no job until it is due again.
async fn due_deliveries(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    for (delivery, tenant) in webhooks::due(&mut mgmt).await? {
        jobs::enqueue(&mut mgmt, &DeliverWebhook { delivery, tenant }, ACTOR).await?;
    }
    Ok(())
}

async fn old_exports(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    if job_rows::failed_within_hour(&mut mgmt, "remove_export").await? {
        return Ok(());
    }
    for (tenant, export) in exports::expired(&mut mgmt).await? {
        jobs::enqueue(&mut mgmt, &RemoveExport { tenant, export }, ACTOR).await?;
    }
    Ok(())
}

/// Files of exports that failed, and of those whose removal did: what was collected can be read by whoever reads the
/// disk.
async fn left_over_exports(world: &World) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    if job_rows::failed_within_hour(&mut mgmt, "remove_export").await? {
        return Ok(());
    }
    for (tenant, export) in export::left_over(world, &mut mgmt).await? {
        jobs::enqueue(&mut mgmt, &RemoveExport { tenant, export }, ACTOR).await?;
    }
    Ok(())
}

/// Once a day, and at once where there is none: without a base backup nothing can be restored.
///
/// Where there was one a moment ago the repository, which may be far away, is read once a minute.
async fn due_backup(world: &World, fresh_until: &mut Option<Instant>) -> Result<(), Error> {
    if fresh_until.is_some_and(|until| Instant::now() < until) {
        return Ok(());
    }
    let catalog = archive::catalog(world).await?;
    // A new timeline begins with a backup: what is restored from an older one does not come onto it.
    let newest = catalog.backups.last().filter(|backup| backup.timeline == catalog.timeline);
    if Daily::default().is_due(newest.map(|backup| backup.finished_at), time::now()) {
        let mut mgmt = world.db.platform.acquire().await?;
        // A job that failed is not asked for again every two seconds, but an hour later.
        if job_rows::failed_within_hour(&mut mgmt, "backup").await? {
            return Ok(());
        }
        jobs::enqueue(&mut mgmt, &TakeBackup { full: false }, ACTOR).await?;
    } else {
        *fresh_until = Some(Instant::now() + Duration::from_secs(60));
    }
    Ok(())
}
