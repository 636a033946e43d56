//! The changes of a tenant's life, each as the columns it sets.

use loomworks_core::ids::{JobId, SessionId, TenantId};
use loomworks_core::tenant::{OwnLimits, TenantState, Tier};
use serde_json::Value;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use uuid::Uuid;

use super::{Date, Time, jobs};

/// What decides which change is possible.
#[derive(Clone, Debug, FromRow)]
pub struct Standing {
    #[sqlx(try_from = "String")]
    pub state: TenantState,
    /// It was suspended when it was archived, and still is.
    pub was_suspended: bool,
    pub suspension_cause: Option<String>,
    pub archived_at: Option<Time>,
    pub archived_until: Option<Time>,
    /// Its database is closed, with a snapshot of all that is in it.
    pub archive_is_complete: bool,
    pub destroying_since: Option<Time>,
}

const STANDING: &str = "SELECT state, suspended_at IS NOT NULL AS was_suspended, suspension_cause, archived_at, \
    archived_until, archive_complete_since IS NOT NULL AS archive_is_complete, destroying_since \
    FROM tenants WHERE id = $1";

/// How a tenant stands, which may change at once.
pub async fn look(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<Standing> {
    sqlx::query_as(STANDING).bind(id.0).fetch_one(connection).await
}

/// How a tenant stands, locked until the transaction ends so that two changes cannot cross.
pub async fn lock(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<Standing> {
    sqlx::query_as(AssertSqlSafe(format!("{STANDING} FOR UPDATE"))).bind(id.0).fetch_one(connection).await
}

/// Why and by whom a tenant is suspended. `cause` is `operator` or `subscription`.
#[derive(Clone, Copy, Debug)]
pub struct Suspension<'a> {
    pub cause: &'a str,
    pub reason: Option<&'a str>,
    pub by: &'a str,
}

/// Suspends. One that is suspended already keeps the moment, and gets the newer reason.
pub async fn suspend(
    connection: &mut PgConnection,
    id: TenantId,
    suspension: Suspension<'_>,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenants SET state = 'suspended', suspension_cause = $2, suspension_reason = $3, suspended_by = $4,
             suspended_at = coalesce(suspended_at, now()), updated_at = now()
         WHERE id = $1",
    )
    .bind(id.0)
    .bind(suspension.cause)
    .bind(suspension.reason)
    .bind(suspension.by)
    .execute(connection)
    .await
    .map(drop)
}

pub async fn resume(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenants SET state = 'active', suspension_cause = NULL, suspension_reason = NULL, suspended_by = NULL,
             suspended_at = NULL, updated_at = now()
         WHERE id = $1",
    )
    .bind(id.0)
    .execute(connection)
    .await
    .map(drop)
}

/// Archives. Why and when it was suspended before stays noted. Archived again, it is kept no longer for it.
pub async fn archive(
    connection: &mut PgConnection,
    id: TenantId,
    reason: Option<&str>,
    by: &str,
    days: i32,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenants SET state = 'archived', archive_reason = $2, archived_by = $3, archived_at = now(),
             archived_until = now() + make_interval(days => $4), archive_complete_since = NULL, updated_at = now()
         WHERE id = $1 AND state <> 'archived'",
    )
    .bind(id.0)
    .bind(reason)
    .bind(by)
    .bind(days)
    .execute(connection)
    .await
    .map(drop)
}

/// Takes back from the archive, as it was.
pub async fn unarchive(connection: &mut PgConnection, id: TenantId, to: TenantState) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenants SET state = $2, archive_reason = NULL, archived_by = NULL, archived_at = NULL,
             archived_until = NULL, archive_complete_since = NULL, updated_at = now()
         WHERE id = $1 AND state = 'archived'",
    )
    .bind(id.0)
    .bind(to.as_str())
    .execute(connection)
    .await
    .map(drop)
}

/// Notes whether an archived tenant's database is closed, with a snapshot of all that is in it.
pub async fn set_archive_complete(
    connection: &mut PgConnection,
    id: TenantId,
    complete: bool,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenants SET archive_complete_since = CASE WHEN $2 THEN coalesce(archive_complete_since, now()) END
         WHERE id = $1 AND state = 'archived'",
    )
    .bind(id.0)
    .bind(complete)
    .execute(connection)
    .await
    .map(drop)
}

/// Archived tenants whose database is not closed, or has no last snapshot, and with which nothing is being done: their
/// job failed, or one that was to take them back did.
pub async fn archived_incompletely(connection: &mut PgConnection) -> sqlx::Result<Vec<TenantId>> {
    let sql = format!(
        "SELECT id FROM tenants WHERE state = 'archived' AND archive_complete_since IS NULL
         AND destroying_since IS NULL AND NOT {} AND NOT {}
         ORDER BY archived_at LIMIT 10",
        is_busy_with("archive"),
        is_busy_with("unarchive")
    );
    ids(connection, sql).await
}

/// Whether the tenant of the row in `tenants` is not to get another job of a kind now.
pub(super) fn is_busy_with(kind: &str) -> String {
    jobs::are_busy(&format!("jobs.tenant_id = tenants.id AND jobs.kind = '{kind}'"))
}

pub(super) async fn ids(connection: &mut PgConnection, sql: String) -> sqlx::Result<Vec<TenantId>> {
    let ids: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await?;
    Ok(ids.into_iter().map(TenantId).collect())
}

/// From now on a tenant can only be destroyed.
pub async fn begin_destroying(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenants SET destroying_since = coalesce(destroying_since, now()), updated_at = now() WHERE id = $1",
    )
    .bind(id.0)
    .execute(connection)
    .await
    .map(drop)
}

/// Tenants whose end has begun and that no job brings to it.
pub async fn destroying_without_job(connection: &mut PgConnection) -> sqlx::Result<Vec<TenantId>> {
    let sql = format!(
        "SELECT id FROM tenants WHERE destroying_since IS NOT NULL AND state <> 'destroyed' AND NOT {}
         ORDER BY destroying_since LIMIT 10",
        is_busy_with("destroy")
    );
    ids(connection, sql).await
}

/// What an operator changes of a tenant. `None` leaves a field as it is, `Some(None)` empties it.
#[derive(Clone, Debug, Default)]
pub struct Update {
    pub name: Option<String>,
    pub tier: Option<Tier>,
    pub subscription_expires: Option<Option<Date>>,
    pub max_users: Option<Option<i32>>,
    pub max_storage_gb: Option<Option<f64>>,
    pub max_ai_operations_daily: Option<Option<i32>>,
    pub recovery_days: Option<Option<i32>>,
    pub settings: Option<Value>,
}

impl Update {
    /// The limits that are to be set, for a check.
    #[must_use]
    pub fn limits(&self) -> OwnLimits {
        OwnLimits {
            max_users: self.max_users.flatten(),
            max_storage_gb: self.max_storage_gb.flatten(),
            max_ai_operations_daily: self.max_ai_operations_daily.flatten(),
            recovery_days: self.recovery_days.flatten(),
        }
    }
}

pub async fn update(connection: &mut PgConnection, id: TenantId, update: &Update) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenants SET name = coalesce($2, name), tier = coalesce($3, tier), settings = coalesce($4, settings),
             subscription_expires = CASE WHEN $5 THEN $6 ELSE subscription_expires END,
             max_users = CASE WHEN $7 THEN $8 ELSE max_users END,
             max_storage_gb = CASE WHEN $9 THEN $10 ELSE max_storage_gb END,
             max_ai_operations_daily = CASE WHEN $11 THEN $12 ELSE max_ai_operations_daily END,
             recovery_days = CASE WHEN $13 THEN $14 ELSE recovery_days END,
             updated_at = now()
         WHERE id = $1",
    )
    .bind(id.0)
    .bind(update.name.as_deref())
    .bind(update.tier.map(Tier::as_str))
    .bind(update.settings.as_ref())
    .bind(update.subscription_expires.is_some())
    .bind(update.subscription_expires.flatten())
    .bind(update.max_users.is_some())
    .bind(update.max_users.flatten())
    .bind(update.max_storage_gb.is_some())
    .bind(update.max_storage_gb.flatten())
    .bind(update.max_ai_operations_daily.is_some())
    .bind(update.max_ai_operations_daily.flatten())
    .bind(update.recovery_days.is_some())
    .bind(update.recovery_days.flatten())
    .execute(connection)
    .await
    .map(drop)
}

/// Unfinished jobs of a tenant beside one.
pub async fn other_unfinished_jobs(
    connection: &mut PgConnection,
    id: TenantId,
    but: JobId,
) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "SELECT count(*) FROM jobs WHERE tenant_id = $1 AND id <> $2 AND state IN ('waiting', 'running')",
    )
    .bind(id.0)
    .bind(but.0)
    .fetch_one(connection)
    .await
}

/// AI sessions of a tenant that may still have a role.
pub async fn sessions_not_closed(
    connection: &mut PgConnection,
    id: TenantId,
) -> sqlx::Result<Vec<SessionId>> {
    sqlx::query_scalar::<_, Uuid>(
        "SELECT id FROM ai_sessions WHERE tenant_id = $1 AND state <> 'closed' ORDER BY created_at LIMIT 1000",
    )
    .bind(id.0)
    .fetch_all(connection)
    .await
    .map(|ids| ids.into_iter().map(SessionId).collect())
}
