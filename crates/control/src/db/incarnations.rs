//! Which database a tenant was served from, and since when.

use loomworks_core::ids::TenantId;
use loomworks_core::lsn::Lsn;
use sqlx::PgConnection;

use super::Time;

/// Notes that a tenant is served from a database from now on. Twice is once.
pub async fn record(connection: &mut PgConnection, tenant: TenantId, oid: i64) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO tenant_incarnations (tenant_id, since, since_lsn, oid)
         SELECT $1, clock_timestamp(), pg_current_wal_insert_lsn(), $2
         WHERE $2 IS DISTINCT FROM (SELECT oid FROM tenant_incarnations WHERE tenant_id = $1
                                    ORDER BY since DESC LIMIT 1)",
    )
    .bind(tenant.0)
    .bind(oid)
    .execute(connection)
    .await
    .map(drop)
}

/// The database that a tenant was served from at a moment. `None`: it was not served yet.
pub async fn at_time(
    connection: &mut PgConnection,
    tenant: TenantId,
    moment: Time,
) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(
        "SELECT oid FROM tenant_incarnations WHERE tenant_id = $1 AND since <= $2 ORDER BY since DESC LIMIT 1",
    )
    .bind(tenant.0)
    .bind(moment)
    .fetch_optional(connection)
    .await
}

/// The same at a position.
pub async fn at_position(
    connection: &mut PgConnection,
    tenant: TenantId,
    position: Lsn,
) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(
        "SELECT oid FROM tenant_incarnations WHERE tenant_id = $1 AND coalesce(since_lsn, '0/0') <= $2::pg_lsn
         ORDER BY since DESC LIMIT 1",
    )
    .bind(tenant.0)
    .bind(position.to_string())
    .fetch_optional(connection)
    .await
}
