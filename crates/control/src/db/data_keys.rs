//! Tenants' wrapped data keys.

use loomworks_core::ids::TenantId;
use sqlx::PgConnection;

pub async fn insert_if_absent(
    connection: &mut PgConnection,
    tenant: TenantId,
    wrapped: &[u8],
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO tenant_data_keys (tenant_id, wrapped) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(tenant.0)
        .bind(wrapped)
        .execute(connection)
        .await
        .map(drop)
}

pub async fn wrapped(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Option<Vec<u8>>> {
    sqlx::query_scalar("SELECT wrapped FROM tenant_data_keys WHERE tenant_id = $1")
        .bind(tenant.0)
        .fetch_optional(connection)
        .await
}

pub async fn delete(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM tenant_data_keys WHERE tenant_id = $1")
        .bind(tenant.0)
        .execute(connection)
        .await
        .map(drop)
}
