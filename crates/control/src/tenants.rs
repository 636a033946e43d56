//! Tenants: written down, made, listed, changed, suspended, resumed. How they end is in [`crate::retirement`].

use std::collections::BTreeSet;

use loomworks_core::ids::{JobId, TenantId};
use loomworks_core::name::{Label, Subdomain};
use loomworks_core::tenant::{Change, TenantState};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::World;
use crate::access::{Caller, Granted, Operator, Scoped, listing};
use crate::audit::{self, sealer::hex};
use crate::credentials::{app_password_purpose, random_password};
use crate::db::lifecycle::{self, Standing, Suspension, Update};
use crate::db::routes;
use crate::db::tenants::{self, Filter, ListKey, New, Tenant};
use crate::error::Error;
use crate::jobs;
use crate::notifications::{self, Notice};
use crate::page::{Asked, Page};
use crate::work::provision::{NewAdmin, Provision, want_admin};
use crate::work::subscription::ApplySubscription;

/// What a tenant's settings may take, written as JSON.
pub const SETTINGS_BYTES_MAX: usize = 16 * 1024;

/// A tenant that somebody wants, checked.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: Label,
    pub subdomain: Subdomain,
    /// An app profile's name; may be left out while there is only one.
    pub profile: Option<String>,
    /// How the app's first user logs in; `admin` if left out.
    pub admin_login: Option<String>,
    /// Only write it down; it is made when somebody provisions it.
    pub draft: bool,
    /// Tier, limits and so on, where they are not to be the defaults.
    pub fields: Update,
}

/// A tenant that is being made, or the draft of one.
pub struct Created {
    pub tenant: Tenant,
    /// Nothing: it is a draft.
    pub job: Option<JobId>,
    /// The app's first user, if the profile makes one. His password is told this once.
    pub admin: Option<NewAdmin>,
}

/// Writes the tenant down and, unless it is a draft, enqueues its making, in one transaction.
pub async fn create(world: &World, operator: &Operator, wanted: &Wanted) -> Result<Created, Error> {
    let profile = profile(world, wanted.profile.as_deref())?;
    check(&wanted.fields)?;
    let id = TenantId::random();
    let mut scoped = operator.begin(&world.db).await?;
    let (password, purpose) = (random_password(), app_password_purpose(id));
    let wrapped = world.master_key.wrap_for(&mut scoped, &password, &purpose).await?;
    let new = New {
        id,
        name: wanted.name.as_str(),
        subdomain: &wanted.subdomain,
        profile,
        app_password_wrapped: &wrapped,
    };
    tenants::insert(&mut scoped, &new).await?;
    let admin = want_admin(world, &mut scoped, id, profile, wanted.admin_login.as_deref()).await?;
    lifecycle::update(&mut scoped, id, &wanted.fields).await?;
    let job = if wanted.draft {
        tenants::set_state(&mut scoped, id, TenantState::Draft, None).await?;
        None
    } else {
        Some(jobs::enqueue(&mut scoped, &Provision { tenant: id }, &operator.actor).await?)
    };
    let tenant = tenants::get(&mut scoped, id).await?;
    let detail = json!({ "subdomain": wanted.subdomain, "profile": profile, "draft": wanted.draft,
        "after": changeable(&tenant) });
    audit::record(&mut scoped, &operator.actor, "tenant.created", Some(id), detail).await?;
    record_settings(&mut scoped, operator, &json!({}), &tenant).await?;
    scoped.commit().await?;
    Ok(Created { tenant, job, admin })
}

/// Has a draft made.
pub async fn provision(
    world: &World,
    operator: &Operator,
    granted: &Granted,
) -> Result<(Tenant, JobId), Error> {
    let id = granted.tenant();
    let mut scoped = operator.begin(&world.db).await?;
    let before = lifecycle::lock(&mut scoped, id).await?;
    let after = state_after(&before, Change::Provision)?;
    // What its draft said about the app may have become wrong since.
    profile(world, Some(&tenants::get(&mut scoped, id).await?.profile))?;
    if before.state != after {
        tenants::set_state(&mut scoped, id, after, None).await?;
        let detail = json!({ "before": before.state, "after": after });
        audit::record(&mut scoped, &operator.actor, "tenant.provision_requested", Some(id), detail).await?;
    }
    let job = jobs::enqueue(&mut scoped, &Provision { tenant: id }, &operator.actor).await?;
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
pub async fn list(
    world: &World,
    caller: &Caller,
    filter: &Filter,
    asked: &Asked<ListKey>,
) -> Result<Page<Tenant>, Error> {
    if filter.text.as_deref().is_some_and(|text| text.len() > 255 || text.contains(char::is_control)) {
        return Err(Error::invalid("what is searched for has at most 255 bytes, no control character"));
    }
    let mut scoped = listing(&world.db, caller).await?;
    let rows = tenants::list(&mut scoped, filter, asked.after.as_ref(), asked.rows()).await?;
    Ok(asked.page(rows, |tenant| (tenant.subdomain.to_string(), tenant.id.0)))
}

pub async fn get(world: &World, granted: &Granted) -> Result<Tenant, Error> {
    let mut scoped = granted.begin(&world.db).await?;
    Ok(tenants::get(&mut scoped, granted.tenant()).await?)
}

/// Changes what an operator may change of a tenant. What it had and what it has now is audited.
pub async fn update(
    world: &World,
    operator: &Operator,
    granted: &Granted,
    update: &Update,
) -> Result<Tenant, Error> {
    check(update)?;
    let id = granted.tenant();
    let mut scoped = operator.begin(&world.db).await?;
    lifecycle::lock(&mut scoped, id).await?;
    let before = tenants::get(&mut scoped, id).await?;
    lifecycle::update(&mut scoped, id, update).await?;
    let after = tenants::get(&mut scoped, id).await?;
    if before.subscription_expires.map(|date| date.to_jiff())
        != after.subscription_expires.map(|date| date.to_jiff())
    {
        jobs::enqueue(&mut scoped, &ApplySubscription { tenant: id }, &operator.actor).await?;
    }
    let detail = json!({ "before": changeable(&before), "after": changeable(&after) });
    audit::record(&mut scoped, &operator.actor, "tenant.updated", Some(id), detail).await?;
    record_settings(&mut scoped, operator, &before.settings, &after).await?;
    scoped.commit().await?;
    Ok(after)
}

fn check(update: &Update) -> Result<(), Error> {
    update.limits().check().map_err(Error::invalid)?;
    let Some(settings) = &update.settings else { return Ok(()) };
    let text = settings.to_string();
    if !settings.is_object() || text.len() > SETTINGS_BYTES_MAX || text.contains("\\u0000") {
        return Err(Error::invalid(format!(
            "settings are a JSON object of at most {SETTINGS_BYTES_MAX} bytes, without NUL characters"
        )));
    }
    Ok(())
}

/// The names of the settings that differ.
fn changed_settings<'a>(before: &'a Value, after: &'a Value) -> Vec<&'a str> {
    let names = |settings: &'a Value| settings.as_object().into_iter().flat_map(|object| object.keys());
    let all: BTreeSet<&str> = names(before).chain(names(after)).map(String::as_str).collect();
    all.into_iter().filter(|name| before.get(name) != after.get(name)).collect()
}

/// A line of its own, of no tenant: the tenant's people read the lines that are about it, and settings are not for
/// them. It has no values either: the log is kept for ever, also when the tenant and what was in them are to be gone.
async fn record_settings(
    scoped: &mut Scoped,
    operator: &Operator,
    before: &Value,
    after: &Tenant,
) -> Result<(), Error> {
    if *before == after.settings {
        return Ok(());
    }
    let sha256 = |settings: &Value| hex(digest(&SHA256, settings.to_string().as_bytes()).as_ref());
    let detail = json!({ "tenant": after.id, "changed": changed_settings(before, &after.settings),
        "before_sha256": sha256(before), "after_sha256": sha256(&after.settings) });
    Ok(audit::record(scoped, &operator.actor, "tenant.settings_changed", None, detail).await?)
}

/// What [`update`] can change but settings, for the audit log.
fn changeable(tenant: &Tenant) -> Value {
    json!({
        "name": tenant.name,
        "tier": tenant.tier,
        "subscription_expires": tenant.subscription_expires.map(|date| date.to_jiff()),
        "max_users": tenant.own_max_users,
        "max_storage_gb": tenant.own_max_storage_gb,
        "max_ai_operations_daily": tenant.own_max_ai_operations_daily,
        "recovery_days": tenant.own_recovery_days,
    })
}

/// Stops serving a tenant. The reason is kept with it.
pub async fn suspend(
    world: &World,
    operator: &Operator,
    granted: &Granted,
    reason: &str,
) -> Result<Tenant, Error> {
    let reason = checked_reason(reason)?;
    let id = granted.tenant();
    let mut scoped = operator.begin(&world.db).await?;
    let before = lifecycle::lock(&mut scoped, id).await?;
    let after = state_after(&before, Change::Suspend)?;
    let suspension = Suspension { cause: "operator", reason, by: &operator.actor };
    lifecycle::suspend(&mut scoped, id, suspension).await?;
    if before.state != after {
        routes::next_generation(&mut scoped).await?;
    }
    let detail = json!({ "before": before.state, "after": after, "reason": reason });
    audit::record(&mut scoped, &operator.actor, "tenant.suspended", Some(id), detail.clone()).await?;
    if before.state != after {
        let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let notice = Notice::info("tenant.suspended", format!("the tenant is suspended{why}"), detail);
        notifications::raise(&mut scoped, Some(id), &notice).await?;
    }
    let tenant = tenants::get(&mut scoped, id).await?;
    scoped.commit().await?;
    Ok(tenant)
}

/// Serves a tenant again.
pub async fn resume(world: &World, operator: &Operator, granted: &Granted) -> Result<Tenant, Error> {
    let id = granted.tenant();
    let mut scoped = operator.begin(&world.db).await?;
    let before = lifecycle::lock(&mut scoped, id).await?;
    let after = state_after(&before, Change::Resume)?;
    lifecycle::resume(&mut scoped, id).await?;
    if before.state != after {
        routes::next_generation(&mut scoped).await?;
    }
    let detail = json!({ "before": before.state, "after": after });
    audit::record(&mut scoped, &operator.actor, "tenant.resumed", Some(id), detail.clone()).await?;
    if before.state != after {
        let notice = Notice::info("tenant.resumed", "the tenant is served again".to_owned(), detail);
        notifications::raise(&mut scoped, Some(id), &notice).await?;
    }
    let tenant = tenants::get(&mut scoped, id).await?;
    scoped.commit().await?;
    Ok(tenant)
}

/// The state after a change, or why it cannot be made.
pub(crate) fn state_after(standing: &Standing, change: Change) -> Result<TenantState, Error> {
    if standing.destroying_since.is_some() && change != Change::Destroy {
        return Err(Error::conflict("the tenant is being destroyed"));
    }
    standing.state.after(change).map_err(Error::conflict)
}

/// A reason that somebody gives, trimmed. `None`: none.
pub(crate) fn checked_reason(reason: &str) -> Result<Option<&str>, Error> {
    if reason.chars().count() > 500 || reason.chars().any(char::is_control) {
        return Err(Error::invalid("a reason has at most 500 characters, none of them a control character"));
    }
    Ok(Some(reason.trim()).filter(|reason| !reason.is_empty()))
}

/// The tenant if it can be worked with: it has its database, and is not archived.
pub(crate) async fn provisioned(world: &World, granted: &Granted) -> Result<Tenant, Error> {
    let tenant = get(world, granted).await?;
    match tenant.state {
        TenantState::Active | TenantState::Suspended => Ok(tenant),
        TenantState::Draft => Err(Error::conflict("the tenant is a draft: it has no database yet")
            .with_hint("`loomworks tenant provision` makes it")),
        TenantState::Provisioning => Err(Error::conflict("the tenant is still being made")
            .with_hint("follow its job with `loomworks job follow`")),
        TenantState::Archived => Err(Error::conflict("the tenant is archived")
            .with_hint("`loomworks tenant unarchive` takes it back while its data is kept")),
        TenantState::Destroyed => Err(Error::NotFound("such tenant")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_settings_the_names_that_differ_are_told_and_no_value() {
        let (before, after) = (json!({ "a": 1, "b": "x", "c": {} }), json!({ "a": 1, "b": "y", "d": null }));
        assert_eq!(changed_settings(&before, &after), ["b", "c", "d"]);
        assert_eq!(changed_settings(&Value::Null, &json!({})), [""; 0]);
    }
}
