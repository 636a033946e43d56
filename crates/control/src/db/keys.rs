//! API keys.

use loomworks_core::ids::{ApiKeyId, TenantId};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection, PgPool};
use uuid::Uuid;

use super::Time;

/// A key, as shown: everything but the key.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct KeyInfo {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: ApiKeyId,
    pub tenant_id: Option<Uuid>,
    /// `operator`, `gateway` or `tenant_admin`.
    pub scope: String,
    pub name: String,
    pub prefix: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked_at: Option<Time>,
}

/// What is needed to check a key.
#[derive(Clone, Debug, FromRow)]
pub struct Stored {
    #[sqlx(try_from = "Uuid")]
    pub id: ApiKeyId,
    pub tenant_id: Option<Uuid>,
    pub scope: String,
    pub name: String,
    pub hash: String,
}

/// A key that is to be.
#[derive(Debug)]
pub struct New<'a> {
    pub tenant: Option<TenantId>,
    pub scope: &'a str,
    pub name: &'a str,
    pub prefix: &'a str,
    pub hash: &'a str,
    pub mac: &'a [u8],
}

pub async fn insert(connection: &mut PgConnection, new: &New<'_>) -> sqlx::Result<KeyInfo> {
    sqlx::query_as(
        "INSERT INTO api_keys (id, tenant_id, scope, name, prefix, hash, mac) VALUES ($1, $2, $3, $4, $5, $6, $7)
         RETURNING id, tenant_id, scope, name, prefix, created_at, revoked_at",
    )
    .bind(Uuid::new_v4())
    .bind(new.tenant.map(|tenant| tenant.0))
    .bind(new.scope)
    .bind(new.name)
    .bind(new.prefix)
    .bind(new.hash)
    .bind(new.mac)
    .fetch_one(connection)
    .await
}

/// The key with this keyed checksum, unless it was revoked.
pub async fn find(pool: &PgPool, mac: &[u8]) -> sqlx::Result<Option<Stored>> {
    sqlx::query_as(
        "SELECT id, tenant_id, scope, name, hash FROM api_keys WHERE mac = $1 AND revoked_at IS NULL",
    )
    .bind(mac)
    .fetch_optional(pool)
    .await
}

pub async fn list(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Vec<KeyInfo>> {
    sqlx::query_as(
        "SELECT id, tenant_id, scope, name, prefix, created_at, revoked_at FROM api_keys WHERE tenant_id = $1
         ORDER BY created_at DESC, id LIMIT 1000",
    )
    .bind(tenant.0)
    .fetch_all(connection)
    .await
}

/// `Ok(false)`: the tenant has no such key.
pub async fn revoke(connection: &mut PgConnection, tenant: TenantId, id: ApiKeyId) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE tenant_id = $1 AND id = $2",
    )
    .bind(tenant.0)
    .bind(id.0)
    .execute(connection)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Revokes the platform's keys of this scope and name.
pub async fn revoke_platform_keys(
    connection: &mut PgConnection,
    scope: &str,
    name: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE api_keys SET revoked_at = now()
         WHERE tenant_id IS NULL AND scope = $1 AND name = $2 AND revoked_at IS NULL",
    )
    .bind(scope)
    .bind(name)
    .execute(connection)
    .await
    .map(drop)
}
