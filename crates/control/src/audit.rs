//! Who did what. Rows can be added and read, by nobody changed.

use loomworks_core::ids::TenantId;
use serde_json::Value;
use sqlx::PgConnection;

/// Writes a line in the transaction that does the thing, so that neither is there without the other.
pub async fn record(
    connection: &mut PgConnection,
    actor: &str,
    action: &str,
    tenant: Option<TenantId>,
    detail: Value,
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO audit (actor, action, tenant_id, detail) VALUES ($1, $2, $3, $4)")
        .bind(actor)
        .bind(action)
        .bind(tenant.map(|tenant| tenant.0))
        .bind(detail)
        .execute(connection)
        .await
        .map(drop)
}
