//! Template databases, and copies of them that wait for tenants.

use loomworks_core::ids::TenantId;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use super::jobs::are_busy;

/// Where a template is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateState {
    /// Nobody has asked for it yet.
    Missing,
    Building,
    Ready,
    Failed,
}

pub async fn state(connection: &mut PgConnection, name: &str) -> sqlx::Result<TemplateState> {
    let state: Option<String> = sqlx::query_scalar("SELECT state FROM templates WHERE name = $1")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    Ok(match state.as_deref() {
        None => TemplateState::Missing,
        Some("ready") => TemplateState::Ready,
        Some("failed") => TemplateState::Failed,
        Some(_) => TemplateState::Building,
    })
}

/// Notes that it is being built, in the transaction that enqueues the job.
pub async fn begin(connection: &mut PgConnection, name: &str, profile: &str) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO templates (name, profile) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET state = 'building' WHERE templates.state <> 'ready'",
    )
    .bind(name)
    .bind(profile)
    .execute(connection)
    .await
    .map(drop)
}

/// The write from which on it is copied.
pub async fn set_ready(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::query("UPDATE templates SET state = 'ready', ready_at = now() WHERE name = $1")
        .bind(name)
        .execute(connection)
        .await
        .map(drop)
}

pub async fn set_failed(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::query("UPDATE templates SET state = 'failed' WHERE name = $1 AND state = 'building'")
        .bind(name)
        .execute(connection)
        .await
        .map(drop)
}

pub async fn forget(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM templates WHERE name = $1").bind(name).execute(connection).await.map(drop)
}

/// Why the last job with this key failed, and what to do.
pub async fn why_failed(
    connection: &mut PgConnection,
    dedup_key: &str,
) -> sqlx::Result<Option<(String, Option<String>)>> {
    sqlx::query_as(
        "SELECT coalesce(error, ''), hint FROM jobs WHERE dedup_key = $1 AND finished_at IS NOT NULL
         ORDER BY finished_at DESC LIMIT 1",
    )
    .bind(dedup_key)
    .fetch_optional(connection)
    .await
}

/// Whether a job with this key is unfinished, or has failed and is not to be tried again yet.
pub async fn is_busy(connection: &mut PgConnection, dedup_key: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT {}", are_busy("dedup_key = $1"))))
        .bind(dedup_key)
        .fetch_one(connection)
        .await
}

/// Whether a tenant is being made that somebody has just asked for.
pub async fn is_somebody_waiting(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM jobs WHERE kind = 'provision' AND finished_at IS NULL
         AND created_at > now() - interval '5 seconds')",
    )
    .fetch_one(connection)
    .await
}

/// A copy that waits, or that a tenant is getting.
#[derive(Clone, Debug, FromRow)]
pub struct PoolDatabase {
    pub name: String,
    pub template: String,
    pub state: String,
    pub oid: Option<i64>,
}

/// Copies of a template that are ready or being made.
pub async fn waiting(connection: &mut PgConnection, template: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "SELECT count(*) FROM pool_databases WHERE template = $1 AND state IN ('making', 'ready')",
    )
    .bind(template)
    .fetch_one(connection)
    .await
}

/// Notes a copy before it is made, so that none is without a row.
pub async fn begin_copy(connection: &mut PgConnection, name: &str, template: &str) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO pool_databases (name, template) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(name)
        .bind(template)
        .execute(connection)
        .await
        .map(drop)
}

/// The write from which on tenants may get it. `Ok(false)`: it is no longer wanted.
pub async fn copy_is_ready(connection: &mut PgConnection, name: &str, oid: u32) -> sqlx::Result<bool> {
    sqlx::query("UPDATE pool_databases SET state = 'ready', oid = $2 WHERE name = $1 AND state = 'making'")
        .bind(name)
        .bind(i64::from(oid))
        .execute(connection)
        .await
        .map(|done| done.rows_affected() == 1)
}

/// Gives a tenant the copy that it has claimed already, or one that is ready. Two tenants never get the same.
pub async fn claim(
    connection: &mut PgConnection,
    tenant: TenantId,
    template: &str,
) -> sqlx::Result<Option<PoolDatabase>> {
    if let Some(claimed) = claimed(connection, tenant).await? {
        return Ok(Some(claimed));
    }
    sqlx::query_as(
        "UPDATE pool_databases SET state = 'claimed', tenant_id = $1
         WHERE name = (SELECT name FROM pool_databases WHERE template = $2 AND state = 'ready'
                       ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
         AND EXISTS (SELECT FROM tenants WHERE id = $1 AND destroying_since IS NULL)
         RETURNING name, template, state, oid",
    )
    .bind(tenant.0)
    .bind(template)
    .fetch_optional(connection)
    .await
}

/// The copy that a tenant is getting.
pub async fn claimed(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Option<PoolDatabase>> {
    sqlx::query_as("SELECT name, template, state, oid FROM pool_databases WHERE tenant_id = $1")
        .bind(tenant.0)
        .fetch_optional(connection)
        .await
}

/// Ends a claim: the database is the tenant's.
pub async fn forget_claim(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM pool_databases WHERE tenant_id = $1")
        .bind(tenant.0)
        .execute(connection)
        .await
        .map(drop)
}

/// Gives a copy up that nobody has claimed. Its database may be dropped after that.
pub async fn forget_copy(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM pool_databases WHERE name = $1 AND state <> 'claimed'")
        .bind(name)
        .execute(connection)
        .await
        .map(drop)
}

pub async fn all_copies(connection: &mut PgConnection) -> sqlx::Result<Vec<PoolDatabase>> {
    sqlx::query_as("SELECT name, template, state, oid FROM pool_databases ORDER BY name")
        .fetch_all(connection)
        .await
}

/// The names of the templates that are noted.
pub async fn all(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar("SELECT name FROM templates ORDER BY name").fetch_all(connection).await
}

/// The app's first user of a tenant, while he is still to be made.
#[derive(Clone, Debug, FromRow)]
pub struct WantedAdmin {
    pub login: String,
    pub password_wrapped: Vec<u8>,
}

pub async fn want_admin(
    connection: &mut PgConnection,
    tenant: TenantId,
    login: &str,
    password_wrapped: &[u8],
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO tenant_admins (tenant_id, login, password_wrapped) VALUES ($1, $2, $3)")
        .bind(tenant.0)
        .bind(login)
        .bind(password_wrapped)
        .execute(connection)
        .await
        .map(drop)
}

pub async fn wanted_admin(
    connection: &mut PgConnection,
    tenant: TenantId,
) -> sqlx::Result<Option<WantedAdmin>> {
    sqlx::query_as(
        "SELECT login, password_wrapped FROM tenant_admins WHERE tenant_id = $1 AND made_at IS NULL",
    )
    .bind(tenant.0)
    .fetch_optional(connection)
    .await
}

/// He is made: nobody needs to know his password any more.
pub async fn admin_is_made(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<()> {
    sqlx::query("UPDATE tenant_admins SET password_wrapped = NULL, made_at = now() WHERE tenant_id = $1 AND made_at IS NULL")
        .bind(tenant.0)
        .execute(connection)
        .await
        .map(drop)
}
