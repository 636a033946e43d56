//! Tenants that end: archived, taken back, destroyed.

use loomworks_core::ids::JobId;
use loomworks_core::tenant::{Change, TenantState, retention_allows};
use loomworks_core::time;
use loomworks_postgres::{databases, roles};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::World;
use crate::access::{Granted, Operator};
use crate::db::erasure::{self as rows, TableRows};
use crate::db::lifecycle::{self, Standing};
use crate::db::tenants::{self as tenant_rows, Tenant, TenantDatabase};
use crate::error::Error;
use crate::jobs::{self, Work};
use crate::tenants::{checked_reason, state_after};
use crate::work::archive::{Archive, Unarchive};
use crate::work::destroy::{self, Destroy};
use crate::{audit, erasure};

/// Asks for a tenant to be archived. `confirm` names it, so that nobody archives the wrong one by a slip.
pub async fn archive(
    world: &World,
    operator: &Operator,
    granted: &Granted,
    confirm: &str,
    reason: &str,
) -> Result<JobId, Error> {
    let reason = checked_reason(reason)?;
    let asked = Asked { confirm: Some(confirm), change: Change::Archive, action: "tenant.archive_requested" };
    let work = Archive { tenant: granted.tenant(), reason: reason.map(str::to_owned) };
    ask(world, operator, granted, asked, &work, json!({ "reason": reason }), |_| Ok(())).await
}

/// Asks for a tenant to be taken back from the archive.
pub async fn unarchive(world: &World, operator: &Operator, granted: &Granted) -> Result<JobId, Error> {
    // Whether it will be suspended is decided by what it was; both are the same question here.
    let change = Change::Unarchive { suspended: false };
    let asked = Asked { confirm: None, change, action: "tenant.unarchive_requested" };
    let work = Unarchive { tenant: granted.tenant() };
    ask(world, operator, granted, asked, &work, json!({}), |standing| match standing.state {
        TenantState::Archived => Ok(()),
        _ => Err(Error::conflict("the tenant is not archived")),
    })
    .await
}

/// Asks for a tenant to be destroyed. Before its retention ends an operator says for a second time that he means it.
pub async fn destroy(
    world: &World,
    operator: &Operator,
    granted: &Granted,
    confirm: &str,
    before_retention_ends: bool,
) -> Result<JobId, Error> {
    let asked = Asked { confirm: Some(confirm), change: Change::Destroy, action: "tenant.destroy_requested" };
    let work = Destroy { tenant: granted.tenant(), before_retention_ends };
    let detail = json!({ "before_retention_ends": before_retention_ends });
    ask(world, operator, granted, asked, &work, detail, |standing| {
        retention_over(standing, before_retention_ends)
    })
    .await
}

pub(crate) fn retention_over(standing: &Standing, before_it_ends: bool) -> Result<(), Error> {
    // Begun is begun: a destruction that stopped goes on without being asked for again.
    let until = match standing.destroying_since {
        Some(_) => None,
        None => standing.archived_until.map(|until| until.to_jiff()),
    };
    retention_allows(until, time::now(), before_it_ends).map_err(|retained| {
        Error::conflict(retained)
            .with_hint("send \"before_retention_ends\": true to destroy it now all the same")
    })
}

/// What is asked of a tenant's life.
struct Asked<'a> {
    confirm: Option<&'a str>,
    change: Change,
    action: &'a str,
}

/// Enqueues a job that changes a tenant's life, if its state allows it and nothing of the kind is under way.
async fn ask<W: Work>(
    world: &World,
    operator: &Operator,
    granted: &Granted,
    asked: Asked<'_>,
    work: &W,
    detail: Value,
    allowed: impl FnOnce(&Standing) -> Result<(), Error>,
) -> Result<JobId, Error> {
    let id = granted.tenant();
    let mut scoped = operator.begin(&world.db).await?;
    let standing = lifecycle::lock(&mut scoped, id).await?;
    let subdomain = tenant_rows::names(&mut scoped, id).await?.subdomain;
    if asked.confirm.is_some_and(|confirm| confirm != subdomain.as_str()) {
        return Err(Error::invalid("this ends the tenant's service and must be confirmed")
            .with_hint(format!("send \"confirm\": \"{subdomain}\"")));
    }
    state_after(&standing, asked.change)?;
    allowed(&standing)?;
    let under_way = "something else is being done with this tenant";
    let job = jobs::enqueue_alone(&mut scoped, work, &operator.actor, under_way).await?;
    audit::record(&mut scoped, &operator.actor, asked.action, Some(id), detail).await?;
    scoped.commit().await?;
    Ok(job)
}

/// A database that would be dropped.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DatabaseToDrop {
    pub name: String,
    pub size_bytes: i64,
}

/// What destroying a tenant would do.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DestroyPlan {
    pub tenant: Tenant,
    /// Whether it can be destroyed now without a second confirmation.
    pub allowed: bool,
    /// Why not.
    pub refused_because: Option<String>,
    /// They would be dropped, one after the other.
    pub databases: Vec<DatabaseToDrop>,
    /// They would be dropped.
    pub roles: Vec<String>,
    /// Rows that would be deleted from the management database.
    pub rows: Vec<TableRows>,
    /// What would stay.
    pub kept: Vec<String>,
}

/// What destroying a tenant would do. Changes nothing.
pub async fn destroy_plan(world: &World, _: &Operator, granted: &Granted) -> Result<DestroyPlan, Error> {
    let id = granted.tenant();
    let mut mgmt = rows::connect(&world.cluster).await?;
    let tenant = tenant_rows::get(&mut mgmt, id).await?;
    let standing = lifecycle::lock(&mut mgmt, id).await?;
    let refused =
        state_after(&standing, Change::Destroy).and_then(|_| retention_over(&standing, false)).err();
    let mut admin = world.cluster.connect("postgres").await?;
    let mut databases = Vec::new();
    for TenantDatabase { name, .. } in destroy::databases(&mut mgmt, world, id).await? {
        let size_bytes = databases::size_bytes(&mut admin, &name).await?;
        databases.push(DatabaseToDrop { name, size_bytes });
    }
    let mut rows = rows::count(&mut mgmt, id).await?;
    rows.retain(|count| count.table != rows::KEPT);
    Ok(DestroyPlan {
        tenant,
        allowed: refused.is_none(),
        refused_because: refused.map(|error| error.to_string()),
        databases,
        roles: roles::beginning_with(&mut admin, &erasure::prefix(id)).await?,
        rows,
        kept: vec![
            "the audit log of what was done with the tenant".into(),
            "its id and its subdomain, which another tenant may then have".into(),
            "backups and WAL of the management database, until they expire; those of the tenant's own databases cannot be \
             read without the keys that are deleted".into(),
        ],
    })
}
