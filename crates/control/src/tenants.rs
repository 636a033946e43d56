//! Tenants: made, listed, suspended, resumed.

use loomworks_core::ids::{JobId, TenantId};
use loomworks_core::name::{Label, Subdomain};
use loomworks_core::tenant::{Change, TenantState};
use serde_json::json;

use crate::World;
use crate::access::{Caller, Granted, Operator, listing};
use crate::audit;
use crate::credentials::{app_password_purpose, random_password};
use crate::db::routes;
use crate::db::tenants::{self, New, Tenant};
use crate::error::Error;
use crate::jobs;
use crate::work::provision::Provision;

/// A tenant that somebody wants, checked.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: Label,
    pub subdomain: Subdomain,
    /// An app profile's name; may be left out while there is only one.
    pub profile: Option<String>,
}

/// Writes the tenant down and enqueues its making, in one transaction.
pub async fn create(world: &World, operator: &Operator, wanted: &Wanted) -> Result<(Tenant, JobId), Error> {
    let profile = profile(world, wanted.profile.as_deref())?;
    let id = TenantId::random();
    let wrapped = world.master_key.wrap(&random_password(), &app_password_purpose(id));
    let mut scoped = operator.begin(&world.db).await?;
    let new = New {
        id,
        name: wanted.name.as_str(),
        subdomain: &wanted.subdomain,
        profile,
        app_password_wrapped: &wrapped,
    };
    tenants::insert(&mut scoped, &new).await?;
    let job = jobs::enqueue(&mut scoped, &Provision { tenant: id }, &operator.actor).await?;
    let detail = json!({ "subdomain": wanted.subdomain, "profile": profile });
    audit::record(&mut scoped, &operator.actor, "tenant.created", Some(id), detail).await?;
    let tenant = tenants::get(&mut scoped, id).await?;
    scoped.commit().await?;
    Ok((tenant, job))
}

fn profile<'a>(world: &'a World, wanted: Option<&str>) -> Result<&'a str, Error> {
    let names: Vec<&str> = world.profiles.keys().map(String::as_str).collect();
    let found = match (wanted, &names[..]) {
        (Some(wanted), names) => names.iter().find(|name| **name == wanted).copied(),
        (None, [only]) => Some(*only),
        (None, _) => None,
    };
    found.ok_or_else(|| {
        let error = match wanted {
            Some(wanted) => Error::invalid(format!("there is no app profile `{wanted}`")),
            None => Error::invalid("say which app profile the tenant is for"),
        };
        error.with_hint(format!("there are: {}", names.join(", ")))
    })
}

/// The tenants the caller may see.
pub async fn list(world: &World, caller: &Caller) -> Result<Vec<Tenant>, Error> {
    let mut scoped = listing(&world.db, caller).await?;
    Ok(tenants::list(&mut scoped).await?)
}

pub async fn get(world: &World, granted: &Granted) -> Result<Tenant, Error> {
    let mut scoped = granted.begin(&world.db).await?;
    Ok(tenants::get(&mut scoped, granted.tenant()).await?)
}

/// Stops serving a tenant. The reason is kept with it.
pub async fn suspend(
    world: &World,
    operator: &Operator,
    granted: &Granted,
    reason: &str,
) -> Result<Tenant, Error> {
    if reason.chars().count() > 500 || reason.chars().any(char::is_control) {
        return Err(Error::invalid("a reason has at most 500 characters, none of them a control character"));
    }
    let reason = Some(reason.trim()).filter(|reason| !reason.is_empty());
    change(world, operator, granted, Change::Suspend, reason).await
}

/// Serves a tenant again.
pub async fn resume(world: &World, operator: &Operator, granted: &Granted) -> Result<Tenant, Error> {
    change(world, operator, granted, Change::Resume, None).await
}

async fn change(
    world: &World,
    operator: &Operator,
    granted: &Granted,
    change: Change,
    reason: Option<&str>,
) -> Result<Tenant, Error> {
    let id = granted.tenant();
    let mut scoped = operator.begin(&world.db).await?;
    let before = tenants::lock_state(&mut scoped, id).await?;
    let after = before.after(change).map_err(Error::conflict)?;
    tenants::set_state(&mut scoped, id, after, reason).await?;
    if before != after {
        routes::next_generation(&mut scoped).await?;
    }
    let action = if after == TenantState::Suspended { "tenant.suspended" } else { "tenant.resumed" };
    let detail = json!({ "before": before, "after": after, "reason": reason });
    audit::record(&mut scoped, &operator.actor, action, Some(id), detail).await?;
    let tenant = tenants::get(&mut scoped, id).await?;
    scoped.commit().await?;
    Ok(tenant)
}

/// The tenant if it can be worked with: it has its database.
pub(crate) async fn provisioned(world: &World, granted: &Granted) -> Result<Tenant, Error> {
    let tenant = get(world, granted).await?;
    match tenant.state {
        TenantState::Provisioning => Err(Error::conflict("the tenant is still being made")
            .with_hint("follow its job with `loomworks job follow`")),
        TenantState::Active | TenantState::Suspended => Ok(tenant),
    }
}
