//! Restores: planned, asked for, taken back.

use jiff::Timestamp;
use loomworks_archive::restore::{self, RestorePlan, Target};
use loomworks_core::ids::{JobId, SnapshotId};
use loomworks_core::time;
use serde_json::json;

use crate::World;
use crate::access::Granted;
use crate::db::{incarnations, tenants as rows};
use crate::error::Error;
use crate::work::exchange::SwapBack;
use crate::work::restore::Restore;
use crate::{archive, audit, jobs, snapshots, tenants};

/// The moment somebody wants back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Snapshot(SnapshotId),
    Time(Timestamp),
}

/// How the moment would be brought back. Changes nothing.
pub async fn plan(world: &World, granted: &Granted, wanted: Wanted) -> Result<RestorePlan, Error> {
    let tenant = tenants::provisioned(world, granted).await?;
    plan_for(world, granted, &tenant, wanted).await
}

async fn plan_for(
    world: &World,
    granted: &Granted,
    tenant: &rows::Tenant,
    wanted: Wanted,
) -> Result<RestorePlan, Error> {
    let target = match wanted {
        Wanted::Time(time) if time < tenant.created_at.to_jiff() => {
            let message = format!("tenant `{}` did not exist at {time}", tenant.subdomain);
            return Err(
                Error::invalid(message).with_hint(format!("it was made at {}", tenant.created_at.to_jiff()))
            );
        }
        Wanted::Time(time) => Target::Time(time),
        Wanted::Snapshot(id) => {
            let snapshot = snapshots::get(world, granted, id).await?;
            let ready = snapshot.state == "ready";
            let position = snapshot.lsn().filter(|_| ready).ok_or_else(|| {
                Error::conflict(format!("snapshot `{}` is {}", snapshot.name, snapshot.state))
                    .with_hint("only a snapshot that is ready can be restored")
            })?;
            Target::Lsn(position)
        }
    };
    let database = database_at(world, granted, tenant, target).await?;
    let catalog = archive::catalog(world).await?;
    Ok(restore::plan(&catalog, database, target, time::now())?)
}

/// The database that the tenant was served from then: a restore made another one the live one.
pub(crate) async fn database_at(
    world: &World,
    granted: &Granted,
    tenant: &rows::Tenant,
    target: Target,
) -> Result<u32, Error> {
    let mut scoped = granted.begin(&world.db).await?;
    let oid = match target {
        Target::Lsn(position) => incarnations::at_position(&mut scoped, granted.tenant(), position).await?,
        Target::Time(time) => incarnations::at_time(&mut scoped, granted.tenant(), time.into()).await?,
    };
    oid.and_then(|oid| u32::try_from(oid).ok()).ok_or_else(|| {
        Error::invalid(format!("tenant `{}` was not served yet at that moment", tenant.subdomain))
            .with_hint("choose a later moment")
    })
}

/// Asks for a restore in place. `confirm` names the tenant, so that nobody restores the wrong one by a slip.
pub async fn request(
    world: &World,
    granted: &Granted,
    wanted: Wanted,
    confirm: &str,
) -> Result<(RestorePlan, JobId), Error> {
    let tenant = tenants::provisioned(world, granted).await?;
    check_confirmation(&tenant, confirm)?;
    let plan = plan_for(world, granted, &tenant, wanted).await?;
    let work = Restore { tenant: granted.tenant(), plan: plan.clone() };
    let detail = json!({ "target": plan.target, "base_backup": plan.backup.label });
    let job = enqueue_exchange(world, granted, &work, "tenant.restore_requested", detail).await?;
    Ok((plan, job))
}

/// Asks for the database that was live before the last exchange to be live again.
pub async fn swap_back(world: &World, granted: &Granted, confirm: &str) -> Result<JobId, Error> {
    let tenant = tenants::provisioned(world, granted).await?;
    check_confirmation(&tenant, confirm)?;
    let mut scoped = granted.begin(&world.db).await?;
    let former = rows::former_databases(&mut scoped, granted.tenant()).await?;
    drop(scoped);
    let Some(candidate) = former.into_iter().next() else {
        return Err(Error::conflict("the tenant has no former database")
            .with_hint("there is one for seven days after a restore"));
    };
    let detail = json!({ "candidate": candidate });
    let work = SwapBack { tenant: granted.tenant(), candidate };
    enqueue_exchange(world, granted, &work, "tenant.swap_back_requested", detail).await
}

fn check_confirmation(tenant: &rows::Tenant, confirm: &str) -> Result<(), Error> {
    if confirm == tenant.subdomain.as_str() {
        return Ok(());
    }
    Err(Error::invalid("this replaces the tenant's database and must be confirmed")
        .with_hint(format!("send \"confirm\": \"{}\"", tenant.subdomain)))
}

/// Enqueues a job that exchanges databases; refuses while another one of the tenant is unfinished.
async fn enqueue_exchange<W: jobs::Work>(
    world: &World,
    granted: &Granted,
    work: &W,
    action: &str,
    detail: serde_json::Value,
) -> Result<JobId, Error> {
    let mut scoped = granted.begin(&world.db).await?;
    let under_way = "another exchange of this tenant's databases is under way";
    let job = jobs::enqueue_alone(&mut scoped, work, &granted.actor, under_way).await?;
    audit::record(&mut scoped, &granted.actor, action, Some(granted.tenant()), detail).await?;
    scoped.commit().await?;
    Ok(job)
}
