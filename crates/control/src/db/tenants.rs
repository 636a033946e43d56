//! Tenants, their credentials and their databases.

use loomworks_core::ids::{JobId, TenantId};
use loomworks_core::name::Subdomain;
use loomworks_core::tenant::TenantState;
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::{Time, on_constraint};
use crate::error::Error;

/// A tenant, as shown to whoever may see it.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Tenant {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: TenantId,
    pub name: String,
    #[sqlx(try_from = "String")]
    #[schema(value_type = String, example = "acme")]
    pub subdomain: Subdomain,
    pub database_name: String,
    #[sqlx(try_from = "String")]
    #[schema(value_type = String, example = "active")]
    pub state: TenantState,
    pub suspension_reason: Option<String>,
    pub profile: String,
    pub tier: String,
    pub max_users: i32,
    pub max_storage_gb: f64,
    pub max_ai_operations_daily: i32,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
}

/// The names that a tenant's roles have in the cluster.
#[derive(Clone, Debug, FromRow)]
pub struct Names {
    #[sqlx(try_from = "Uuid")]
    pub id: TenantId,
    #[sqlx(try_from = "String")]
    pub subdomain: Subdomain,
    pub database_name: String,
    pub profile: String,
    pub owner_role: String,
    pub app_role: String,
}

/// What an app needs to connect to a tenant's database.
#[derive(Clone, Debug, FromRow)]
pub struct Credentials {
    #[sqlx(try_from = "Uuid")]
    pub tenant_id: TenantId,
    pub database_name: String,
    pub app_role: String,
    pub app_password_wrapped: Vec<u8>,
}

const COLUMNS: &str = "id, name, subdomain, database_name, state, suspension_reason, profile, tier, max_users, \
                       max_storage_gb, max_ai_operations_daily, created_at";

/// The id of the tenant that has this id or this subdomain.
pub async fn find_id(connection: &mut PgConnection, name: &str) -> sqlx::Result<Option<TenantId>> {
    sqlx::query_scalar::<_, Uuid>("SELECT id FROM tenants WHERE id::text = $1 OR subdomain = $1")
        .bind(name)
        .fetch_optional(connection)
        .await
        .map(|id| id.map(TenantId))
}

pub async fn get(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<Tenant> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM tenants WHERE id = $1")))
        .bind(id.0)
        .fetch_one(connection)
        .await
}

pub async fn list(connection: &mut PgConnection) -> sqlx::Result<Vec<Tenant>> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM tenants ORDER BY subdomain LIMIT 10000"
    )))
    .fetch_all(connection)
    .await
}

pub async fn names(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<Names> {
    sqlx::query_as(
        "SELECT id, subdomain, database_name, profile, owner_role, app_role FROM tenants WHERE id = $1",
    )
    .bind(id.0)
    .fetch_one(connection)
    .await
}

/// A tenant that is to be.
#[derive(Debug)]
pub struct New<'a> {
    pub id: TenantId,
    pub name: &'a str,
    pub subdomain: &'a Subdomain,
    pub profile: &'a str,
    pub app_password_wrapped: &'a [u8],
}

pub async fn insert(connection: &mut PgConnection, new: &New<'_>) -> Result<(), Error> {
    let short = new.id.short();
    let inserted = sqlx::query(
        "INSERT INTO tenants (id, name, subdomain, database_name, profile, owner_role, app_role)
         VALUES ($1, $2, $3, $3, $4, $5, $6)",
    )
    .bind(new.id.0)
    .bind(new.name)
    .bind(new.subdomain.as_str())
    .bind(new.profile)
    .bind(format!("lwt_{short}_owner"))
    .bind(format!("lwt_{short}_app"))
    .execute(&mut *connection)
    .await;
    on_constraint(inserted, "tenants_subdomain_key", || {
        Error::conflict(format!("there is a tenant `{}` already", new.subdomain))
    })?;
    sqlx::query("INSERT INTO tenant_credentials (tenant_id, app_password_wrapped) VALUES ($1, $2)")
        .bind(new.id.0)
        .bind(new.app_password_wrapped)
        .execute(connection)
        .await?;
    Ok(())
}

/// The state, locked until the transaction ends so that two changes cannot cross.
pub async fn lock_state(connection: &mut PgConnection, id: TenantId) -> Result<TenantState, Error> {
    let state: String = sqlx::query_scalar("SELECT state FROM tenants WHERE id = $1 FOR UPDATE")
        .bind(id.0)
        .fetch_one(connection)
        .await?;
    state.parse().map_err(Error::Internal)
}

pub async fn set_state(
    connection: &mut PgConnection,
    id: TenantId,
    state: TenantState,
    suspension_reason: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query("UPDATE tenants SET state = $2, suspension_reason = $3, updated_at = now() WHERE id = $1")
        .bind(id.0)
        .bind(state.as_str())
        .bind(suspension_reason)
        .execute(connection)
        .await
        .map(drop)
}

/// Has the gateways hold the tenant's requests for a job. `Ok(false)`: they are held for another one.
pub async fn hold(connection: &mut PgConnection, id: TenantId, job: JobId) -> sqlx::Result<bool> {
    sqlx::query("UPDATE tenants SET held_by = $2 WHERE id = $1 AND (held_by IS NULL OR held_by = $2)")
        .bind(id.0)
        .bind(job.0)
        .execute(connection)
        .await
        .map(|done| done.rows_affected() == 1)
}

/// Ends the hold of a job. `Ok(false)`: it held nothing.
pub async fn release(connection: &mut PgConnection, job: JobId) -> sqlx::Result<bool> {
    sqlx::query("UPDATE tenants SET held_by = NULL WHERE held_by = $1")
        .bind(job.0)
        .execute(connection)
        .await
        .map(|done| done.rows_affected() > 0)
}

pub async fn credentials(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<Credentials> {
    sqlx::query_as(
        "SELECT tenant_id, database_name, app_role, app_password_wrapped
         FROM tenant_credentials JOIN tenants ON tenants.id = tenant_id WHERE tenant_id = $1",
    )
    .bind(id.0)
    .fetch_one(connection)
    .await
}

/// The credentials of all tenants that an app serves.
pub async fn credentials_of_profile(
    connection: &mut PgConnection,
    profile: &str,
) -> sqlx::Result<Vec<Credentials>> {
    sqlx::query_as(
        "SELECT tenant_id, database_name, app_role, app_password_wrapped
         FROM tenant_credentials JOIN tenants ON tenants.id = tenant_id WHERE profile = $1 ORDER BY database_name",
    )
    .bind(profile)
    .fetch_all(connection)
    .await
}

/// Tenants that are to be made and that no unfinished job makes. One that failed is tried again after a minute: what
/// stood in its way may have been put right.
pub async fn provisioning_without_job(connection: &mut PgConnection) -> sqlx::Result<Vec<TenantId>> {
    sqlx::query_scalar::<_, Uuid>(
        "SELECT id FROM tenants WHERE state = 'provisioning' AND NOT EXISTS (
             SELECT FROM jobs WHERE jobs.tenant_id = tenants.id AND kind = 'provision'
             AND (jobs.state IN ('waiting', 'running') OR jobs.finished_at > now() - interval '1 minute'))
         ORDER BY created_at LIMIT 100",
    )
    .fetch_all(connection)
    .await
    .map(|ids| ids.into_iter().map(TenantId).collect())
}

/// A database that a tenant has, or had.
#[derive(Clone, Debug, FromRow, Serialize, Deserialize, PartialEq, Eq)]
pub struct TenantDatabase {
    pub oid: i64,
    pub name: String,
}

/// The databases that were replaced and are kept, the one that was live last first.
pub async fn former_databases(
    connection: &mut PgConnection,
    id: TenantId,
) -> sqlx::Result<Vec<TenantDatabase>> {
    sqlx::query_as(
        "SELECT oid, name FROM tenant_databases WHERE tenant_id = $1 AND role = 'former'
         ORDER BY former_since DESC LIMIT 100",
    )
    .bind(id.0)
    .fetch_all(connection)
    .await
}

/// Notes which database is served from now on; the one that was becomes a former one, kept for seven days.
pub async fn record_live(
    connection: &mut PgConnection,
    id: TenantId,
    live: &TenantDatabase,
    former_name: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenant_databases SET role = 'former', name = coalesce($3, name), former_since = now(),
             drop_after = now() + interval '7 days'
         WHERE tenant_id = $1 AND role = 'live' AND oid <> $2",
    )
    .bind(id.0)
    .bind(live.oid)
    .bind(former_name)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO tenant_databases (tenant_id, oid, name, role) VALUES ($1, $2, $3, 'live')
         ON CONFLICT (tenant_id, oid) DO UPDATE
         SET name = excluded.name, role = 'live', live_since = now(), former_since = NULL, drop_after = NULL",
    )
    .bind(id.0)
    .bind(live.oid)
    .bind(&live.name)
    .execute(connection)
    .await
    .map(drop)
}

/// Former databases whose time is over, with their tenants.
pub async fn databases_to_drop(
    connection: &mut PgConnection,
) -> sqlx::Result<Vec<(TenantId, TenantDatabase)>> {
    let rows: Vec<(Uuid, i64, String)> = sqlx::query_as(
        "SELECT tenant_id, oid, name FROM tenant_databases WHERE role = 'former' AND drop_after < now()
         ORDER BY drop_after LIMIT 10",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id, oid, name)| (TenantId(id), TenantDatabase { oid, name })).collect())
}

/// Whether a database is still one to drop: it may have become live again since.
pub async fn is_to_be_dropped(connection: &mut PgConnection, id: TenantId, oid: i64) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM tenant_databases
         WHERE tenant_id = $1 AND oid = $2 AND role = 'former' AND drop_after < now())",
    )
    .bind(id.0)
    .bind(oid)
    .fetch_one(connection)
    .await
}

pub async fn record_dropped(connection: &mut PgConnection, id: TenantId, oid: i64) -> sqlx::Result<()> {
    sqlx::query("UPDATE tenant_databases SET role = 'dropped' WHERE tenant_id = $1 AND oid = $2")
        .bind(id.0)
        .bind(oid)
        .execute(connection)
        .await
        .map(drop)
}
