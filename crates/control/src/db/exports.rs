//! Exports: archives with everything about a tenant.

use loomworks_core::ids::{ExportId, TenantId};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::Time;

/// An export, as shown to whoever may have it.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Export {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: ExportId,
    pub tenant_id: Uuid,
    /// `making`, `ready`, `failed` or `expired`. Only what is `ready` can be downloaded.
    pub state: String,
    /// Of the archive as it is downloaded.
    pub size_bytes: Option<i64>,
    /// SHA-256 of the archive as it is downloaded, hexadecimal.
    pub sha256: Option<String>,
    pub requested_by: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ready_at: Option<Time>,
    /// It is removed then.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Time>,
}

const COLUMNS: &str =
    "id, tenant_id, state, size_bytes, sha256, requested_by, created_at, ready_at, expires_at";

pub async fn insert(
    connection: &mut PgConnection,
    id: ExportId,
    tenant: TenantId,
    requested_by: &str,
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO exports (id, tenant_id, requested_by) VALUES ($1, $2, $3)")
        .bind(id.0)
        .bind(tenant.0)
        .bind(requested_by)
        .execute(connection)
        .await
        .map(drop)
}

pub async fn get(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: ExportId,
) -> sqlx::Result<Option<Export>> {
    let sql = format!("SELECT {COLUMNS} FROM exports WHERE tenant_id = $1 AND id = $2");
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.0).bind(id.0).fetch_optional(connection).await
}

/// A tenant's newest exports.
pub async fn list(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Vec<Export>> {
    let sql =
        format!("SELECT {COLUMNS} FROM exports WHERE tenant_id = $1 ORDER BY created_at DESC, id LIMIT 1000");
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.0).fetch_all(connection).await
}

/// Notes that the archive is complete: from now on it can be downloaded, for `days`.
pub async fn record_ready(
    connection: &mut PgConnection,
    id: ExportId,
    size_bytes: i64,
    sha256: &str,
    days: i32,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE exports SET state = 'ready', size_bytes = $2, sha256 = $3, ready_at = now(),
             expires_at = now() + make_interval(days => $4)
         WHERE id = $1 AND state = 'making'",
    )
    .bind(id.0)
    .bind(size_bytes)
    .bind(sha256)
    .bind(days)
    .execute(connection)
    .await
    .map(drop)
}

/// Moves an export on in its life. A state it has left already does not come back: `Ok(false)`.
pub async fn set_state(
    connection: &mut PgConnection,
    id: ExportId,
    from: &str,
    to: &str,
) -> sqlx::Result<bool> {
    sqlx::query("UPDATE exports SET state = $3 WHERE id = $1 AND state = $2")
        .bind(id.0)
        .bind(from)
        .bind(to)
        .execute(connection)
        .await
        .map(|done| done.rows_affected() == 1)
}

/// Those of these exports that are neither being made nor ready, of tenants that are there.
pub async fn unwanted(
    connection: &mut PgConnection,
    found: &[(TenantId, ExportId)],
) -> sqlx::Result<Vec<(TenantId, ExportId)>> {
    let (tenants, exports): (Vec<Uuid>, Vec<Uuid>) =
        found.iter().map(|(tenant, export)| (tenant.0, export.0)).unzip();
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "SELECT found.tenant, found.export FROM unnest($1::uuid[], $2::uuid[]) AS found (tenant, export)
         JOIN tenants ON tenants.id = found.tenant AND state <> 'destroyed' AND destroying_since IS NULL
         WHERE NOT EXISTS (SELECT FROM exports WHERE exports.id = found.export
             AND exports.tenant_id = found.tenant AND exports.state IN ('making', 'ready'))
         ORDER BY 1, 2 LIMIT 100",
    )
    .bind(tenants)
    .bind(exports)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(tenant, id)| (TenantId(tenant), ExportId(id))).collect())
}

/// Exports whose time is over and that are still there.
pub async fn expired(connection: &mut PgConnection) -> sqlx::Result<Vec<(TenantId, ExportId)>> {
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "SELECT tenant_id, id FROM exports WHERE state = 'ready' AND expires_at < now()
         ORDER BY expires_at LIMIT 100",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(tenant, id)| (TenantId(tenant), ExportId(id))).collect())
}
