//! What tenants use of their limits, and what their databases were told of them.

use loomworks_core::ids::TenantId;
use serde_json::Value;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::Time;
use super::tenants::LIMITS_IN_FORCE;

/// What a tenant's database has to know, as it is noted: which database that is, the limits, and whether it is full.
const WANTED: &str = "jsonb_build_object('database', d.oid, 'max_users', l.max_users,
    'max_ai_operations_daily', l.max_ai_operations_daily, 'max_storage_gb', l.max_storage_gb, 'full', u.storage_level = 'full')";

/// Tenants with a live database, and what is known of it.
fn of_live() -> String {
    format!(
        "tenants t JOIN tenant_databases d ON d.tenant_id = t.id AND d.role = 'live'
         JOIN tenant_usage u ON u.tenant_id = t.id CROSS JOIN LATERAL {LIMITS_IN_FORCE} l"
    )
}

/// A tenant's row, when its database exists and knows its limits.
pub async fn begin(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO tenant_usage (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING")
        .bind(tenant.0)
        .execute(&mut *connection)
        .await?;
    let wanted = wanted(connection, tenant).await?;
    record_applied(connection, tenant, wanted.as_ref()).await
}

/// What a tenant's database has to know now. `None`: it has none.
pub async fn wanted(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Option<Value>> {
    let sql = format!("SELECT {WANTED} FROM {} WHERE t.id = $1", of_live());
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(tenant.0).fetch_optional(connection).await
}

/// Notes it. With another limit the storage is measured anew at once.
pub async fn record_applied(
    connection: &mut PgConnection,
    tenant: TenantId,
    applied: Option<&Value>,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenant_usage SET applied = $2,
             measured_at = CASE WHEN applied -> 'max_storage_gb' <> $2 -> 'max_storage_gb' THEN '-infinity'
                           ELSE measured_at END
         WHERE tenant_id = $1",
    )
    .bind(tenant.0)
    .bind(applied)
    .execute(connection)
    .await
    .map(drop)
}

/// Tenants whose database knows other limits than hold, and that no job is telling. One that failed is tried again
/// after a minute.
pub async fn to_apply(connection: &mut PgConnection) -> sqlx::Result<Vec<TenantId>> {
    let sql = format!(
        "SELECT t.id FROM {} WHERE u.applied IS DISTINCT FROM {WANTED} AND t.held_by IS NULL
         AND t.state IN ('active', 'suspended') AND NOT EXISTS (
             SELECT FROM jobs j WHERE j.tenant_id = t.id AND j.kind = 'apply_limits'
             AND (j.finished_at IS NULL OR (j.state = 'failed' AND j.finished_at > now() - interval '1 minute')))
         ORDER BY t.id LIMIT 100",
        of_live()
    );
    let ids: Vec<Uuid> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(connection).await?;
    Ok(ids.into_iter().map(TenantId).collect())
}

/// Tenants that are served and have no row here yet (made by an older program). Of one that is being destroyed the row
/// is gone for good.
pub async fn add_missing(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO tenant_usage (tenant_id, measured_at)
         SELECT t.id, '-infinity' FROM tenants t JOIN tenant_databases d ON d.tenant_id = t.id AND d.role = 'live'
         WHERE t.state IN ('active', 'suspended') ON CONFLICT DO NOTHING",
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Whether there is a tenant whose storage was measured too long ago.
pub async fn is_measuring_due(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM tenant_usage JOIN tenant_databases USING (tenant_id)
                        WHERE role = 'live' AND measured_at < now() - interval '5 minutes')
             OR EXISTS (SELECT FROM tenant_databases d JOIN tenants t ON t.id = d.tenant_id
                        WHERE role = 'live' AND t.state IN ('active', 'suspended')
                        AND NOT EXISTS (SELECT FROM tenant_usage u WHERE u.tenant_id = d.tenant_id))",
    )
    .fetch_one(connection)
    .await
}

/// A tenant to be measured.
#[derive(Clone, Debug, FromRow)]
pub struct ToMeasure {
    #[sqlx(try_from = "Uuid")]
    pub tenant_id: TenantId,
    pub oid: i64,
    pub storage_level: String,
    pub max_storage_gb: f64,
}

/// Those that were measured longest ago, if it is more than four minutes: what is nearly due goes along.
pub async fn to_measure(connection: &mut PgConnection, at_most: i64) -> sqlx::Result<Vec<ToMeasure>> {
    let sql = format!(
        "SELECT u.tenant_id, d.oid, u.storage_level, l.max_storage_gb FROM {}
         WHERE measured_at < now() - interval '4 minutes' ORDER BY measured_at LIMIT $1",
        of_live()
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(at_most).fetch_all(connection).await
}

/// Notes many measurements in one statement.
pub async fn record_measured(
    connection: &mut PgConnection,
    tenants: &[Uuid],
    bytes: &[i64],
    levels: &[&str],
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenant_usage u SET storage_bytes = m.bytes, storage_level = m.level, measured_at = now()
         FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS m (tenant_id, bytes, level)
         WHERE u.tenant_id = m.tenant_id",
    )
    .bind(tenants)
    .bind(bytes)
    .bind(levels)
    .execute(connection)
    .await
    .map(drop)
}

/// What was found last.
#[derive(Clone, Debug, FromRow)]
pub struct Measured {
    pub storage_bytes: i64,
    pub storage_level: String,
    pub measured_at: Time,
}

pub async fn measured(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Option<Measured>> {
    sqlx::query_as(
        "SELECT storage_bytes, storage_level, measured_at FROM tenant_usage WHERE tenant_id = $1 AND measured_at > '-infinity'",
    )
    .bind(tenant.0)
    .fetch_optional(connection)
    .await
}
