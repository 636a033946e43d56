//! Restores: planned, asked for, taken back.

use jiff::Timestamp;
use loomworks_archive::restore::{self, RestorePlan, Target};
use loomworks_core::ids::{JobId, SnapshotId};
use loomworks_core::lsn::Lsn;
use loomworks_core::time;
use loomworks_undo::OperationId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::World;
use crate::access::Granted;
use crate::db::{incarnations, tenants as rows};
use crate::error::Error;
use crate::work::exchange::SwapBack;
use crate::work::restore::Restore;
use crate::{archive, audit, jobs, operations, recovery, snapshots, tenants};

/// The moment somebody wants back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Snapshot(SnapshotId),
    Time(Timestamp),
    /// Just before the record at this position.
    Position(Lsn),
    /// Just before an agent's operation.
    Before(OperationId),
}

/// What is done with what was brought back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It takes the place of the live database, which is kept for seven days.
    #[default]
    InPlace,
    /// It lies beside the live database for a day, to be looked at.
    Look,
}

/// A restore that somebody wants.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    pub wanted: Wanted,
    pub mode: Mode,
    /// Whose past it is, if not the tenant's own: the tenant becomes a copy of another one.
    pub source: Option<&'a Granted>,
}

/// How the moment would be brought back. Changes nothing.
pub async fn plan(world: &World, granted: &Granted, asked: &Asked<'_>) -> Result<(RestorePlan, u64), Error> {
    tenants::provisioned(world, granted).await?;
    let source = asked.source.unwrap_or(granted);
    let tenant = tenants::provisioned(world, source).await?;
    let plan = plan_for(world, source, &tenant, asked.wanted).await?;
    let seconds = archive::estimate(world, source, &plan).await?;
    Ok((plan, seconds))
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
        Wanted::Time(time) => {
            archive::check_kept(world, tenant, time)?;
            Target::Time(time)
        }
        Wanted::Position(position) => Target::Lsn(position),
        Wanted::Before(operation) => {
            let operation = operations::show(world, granted, operation, 0).await?.operation;
            archive::check_kept(world, tenant, operation.at)?;
            Target::Lsn(operation.lsn)
        }
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
    if let Wanted::Position(position) = wanted
        && let Some(moment) = recovery::reached_by(&catalog.backups, position)
    {
        archive::check_kept(world, tenant, moment)?;
    }
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
    asked: &Asked<'_>,
    confirm: &str,
) -> Result<(RestorePlan, u64, JobId), Error> {
    let tenant = tenants::provisioned(world, granted).await?;
    if asked.mode == Mode::InPlace {
        check_confirmation(&tenant, confirm)?;
    }
    let (plan, seconds) = plan(world, granted, asked).await?;
    let source = asked.source.map(Granted::tenant).filter(|source| *source != granted.tenant());
    let look = asked.mode == Mode::Look;
    let work = Restore { tenant: granted.tenant(), plan: plan.clone(), source, look };
    let detail = json!({
        "target": plan.target, "base_backup": plan.backup.label, "database": plan.database, "mode": asked.mode,
        "source": source,
    });
    let job = enqueue_exchange(world, granted, &work, "tenant.restore_requested", detail).await?;
    Ok((plan, seconds, job))
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
