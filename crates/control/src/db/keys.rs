//! API keys.

use loomworks_core::ids::{ApiKeyId, TenantId};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool};
use uuid::Uuid;

use super::Time;
use crate::page::Asked;

/// The channel on which the id of a key that was changed is told, by a trigger on the table.
pub const CHANNEL: &str = "loomworks_keys";

/// A key, as shown: everything but the key.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct KeyInfo {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: ApiKeyId,
    pub tenant_id: Option<Uuid>,
    /// `operator`, `gateway`, `tenant_admin` or `tenant_user`.
    pub scope: String,
    /// What of the scope's rights it has: `read`, `work`, `manage`.
    pub permissions: Vec<String>,
    /// `live`, `test` or `dev`.
    pub environment: String,
    pub name: String,
    /// The beginning of the key, to tell keys apart.
    pub prefix: String,
    pub created_by: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Time>,
    /// To the minute.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_used_at: Option<Time>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked_at: Option<Time>,
    /// The key that this one was made to replace.
    pub replaces: Option<Uuid>,
}

const COLUMNS: &str = "id, tenant_id, scope, permissions, environment, name, prefix, created_by, created_at, \
                       expires_at, last_used_at, revoked_at, replaces";

/// What is needed to check a key.
#[derive(Clone, Debug, FromRow)]
pub struct Stored {
    #[sqlx(try_from = "Uuid")]
    pub id: ApiKeyId,
    pub tenant_id: Option<Uuid>,
    pub scope: String,
    pub permissions: Vec<String>,
    pub name: String,
    pub hash: String,
    /// How long it is good for. Nothing: for ever.
    pub seconds_left: Option<f64>,
}

/// A key that is to be.
#[derive(Debug)]
pub struct New<'a> {
    pub tenant: Option<TenantId>,
    pub scope: &'a str,
    pub permissions: &'a [&'a str],
    pub environment: &'a str,
    pub name: &'a str,
    pub prefix: &'a str,
    pub hash: &'a str,
    pub mac: &'a [u8],
    pub created_by: &'a str,
    pub expires_at: Option<Time>,
    pub replaces: Option<ApiKeyId>,
}

pub async fn insert(connection: &mut PgConnection, new: &New<'_>) -> sqlx::Result<KeyInfo> {
    let sql = format!(
        "INSERT INTO api_keys (id, tenant_id, scope, permissions, environment, name, prefix, hash, mac, created_by,
             expires_at, replaces)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING {COLUMNS}"
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(Uuid::new_v4())
        .bind(new.tenant.map(|tenant| tenant.0))
        .bind(new.scope)
        .bind(new.permissions)
        .bind(new.environment)
        .bind(new.name)
        .bind(new.prefix)
        .bind(new.hash)
        .bind(new.mac)
        .bind(new.created_by)
        .bind(new.expires_at)
        .bind(new.replaces.map(|id| id.0))
        .fetch_one(connection)
        .await
}

/// The key with this keyed checksum, if it is good now.
pub async fn find(pool: &PgPool, mac: &[u8]) -> sqlx::Result<Option<Stored>> {
    sqlx::query_as(
        "SELECT id, tenant_id, scope, permissions, name, hash,
             extract(epoch FROM expires_at - clock_timestamp())::float8 AS seconds_left
         FROM api_keys
         WHERE mac = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())",
    )
    .bind(mac)
    .fetch_optional(pool)
    .await
}

/// Where a page of keys begins.
pub type After = (Time, Uuid);

/// The keys of a tenant, or the platform's own, newest first.
pub async fn list(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    asked: &Asked<After>,
) -> sqlx::Result<Vec<KeyInfo>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM api_keys WHERE tenant_id IS NOT DISTINCT FROM $1
             AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3))
         ORDER BY created_at DESC, id DESC LIMIT $4"
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(tenant.map(|tenant| tenant.0))
        .bind(asked.after.map(|after| after.0))
        .bind(asked.after.map(|after| after.1))
        .bind(asked.rows())
        .fetch_all(connection)
        .await
}

/// One key of a tenant, or of the platform's own.
pub async fn get(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    id: ApiKeyId,
) -> sqlx::Result<Option<KeyInfo>> {
    let sql = format!("SELECT {COLUMNS} FROM api_keys WHERE tenant_id IS NOT DISTINCT FROM $1 AND id = $2");
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(tenant.map(|tenant| tenant.0))
        .bind(id.0)
        .fetch_optional(connection)
        .await
}

/// `Ok(false)`: there is no such key, or it was revoked before.
pub async fn revoke(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    id: ApiKeyId,
) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE api_keys SET revoked_at = now()
         WHERE tenant_id IS NOT DISTINCT FROM $1 AND id = $2 AND revoked_at IS NULL",
    )
    .bind(tenant.map(|tenant| tenant.0))
    .bind(id.0)
    .execute(connection)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Lets a key that is good end after some minutes, or when it would have ended anyway. `Ok(false)`: it is not good
/// any more. Whoever does the same at the same time waits here, and then finds that.
pub async fn expire_in(connection: &mut PgConnection, id: ApiKeyId, minutes: i32) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE api_keys SET expires_at = least(expires_at, now() + make_interval(mins => $2))
         WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())",
    )
    .bind(id.0)
    .bind(minutes)
    .execute(connection)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Notes that these keys were used just now.
pub async fn record_use(pool: &PgPool, ids: &[Uuid]) -> sqlx::Result<()> {
    sqlx::query("UPDATE api_keys SET last_used_at = now() WHERE id = ANY($1)")
        .bind(ids)
        .execute(pool)
        .await
        .map(drop)
}

/// Takes keys that end within so many days and of which nobody was told, and notes that somebody is: those that were
/// made for longer than that and that no other key replaces.
pub async fn take_ending(connection: &mut PgConnection, days: i32, rows: i64) -> sqlx::Result<Vec<KeyInfo>> {
    let sql = format!(
        "UPDATE api_keys SET end_told_at = now() WHERE id IN (
             SELECT id FROM api_keys k
             WHERE end_told_at IS NULL AND revoked_at IS NULL AND expires_at > now()
             AND expires_at < now() + make_interval(days => $1)
             AND expires_at > created_at + make_interval(days => $1)
             AND NOT EXISTS (SELECT FROM api_keys newer WHERE newer.replaces = k.id)
             ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)
         RETURNING {COLUMNS}"
    );
    sqlx::query_as(AssertSqlSafe(sql)).bind(days).bind(rows).fetch_all(connection).await
}

/// Revokes the platform's keys of this scope and name; says which ones.
pub async fn revoke_platform_keys(
    connection: &mut PgConnection,
    scope: &str,
    name: &str,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar(
        "UPDATE api_keys SET revoked_at = now()
         WHERE tenant_id IS NULL AND scope = $1 AND name = $2 AND revoked_at IS NULL RETURNING id",
    )
    .bind(scope)
    .bind(name)
    .fetch_all(connection)
    .await
}
