//! What tenants use of their limits, and what their databases were told of them.

use loomworks_core::ids::TenantId;
use serde_json::Value;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::Time;
use super::tenants::LIMITS_IN_FORCE;

/// What databases are told besides their tenants' limits: it is this program's and its profiles'.
#[derive(Clone, Debug)]
pub struct Common {
    /// A checksum of what is installed in them.
    pub parts: String,
    /// By profile: where its users are, or null.
    pub users: Value,
}

/// What a tenant's database has to know, as it is noted: which database that is, what is installed in it, the limits, and
/// whether it is full. `$1` and `$2` are [`Common`]'s. Of a profile that is not there, what was told last goes on to hold.
const WANTED: &str = "jsonb_build_object('database', d.oid, 'max_users', l.max_users,
    'max_ai_operations_daily', l.max_ai_operations_daily, 'max_storage_gb', l.max_storage_gb,
    'full', coalesce(u.storage_level = 'full', false), 'parts', $1::text,
    'users', coalesce($2::jsonb -> t.profile, u.applied -> 'users'))";

/// Tenants with a live database, and what is known of it.
fn of_live() -> String {
    format!(
        "tenants t JOIN tenant_databases d ON d.tenant_id = t.id AND d.role = 'live'
         JOIN tenant_usage u ON u.tenant_id = t.id CROSS JOIN LATERAL {LIMITS_IN_FORCE} l"
    )
}

/// Notes what the database of a tenant that is being made was told. Which database that is comes with [`begin`].
pub async fn record_told(connection: &mut PgConnection, tenant: TenantId, told: &Value) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO tenant_usage (tenant_id, applied) VALUES ($1, $2)
         ON CONFLICT (tenant_id) DO UPDATE SET applied = excluded.applied",
    )
    .bind(tenant.0)
    .bind(told)
    .execute(connection)
    .await
    .map(drop)
}

/// A tenant's row, when its database is this one. If the limits are others by now, it will be told. What is changed in it
/// is counted from now on ([`super::changes::begin`]).
pub async fn begin(connection: &mut PgConnection, tenant: TenantId, database: i64) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO tenant_usage (tenant_id) VALUES ($1)
         ON CONFLICT (tenant_id) DO UPDATE SET measured_at = now(),
             applied = tenant_usage.applied || jsonb_build_object('database', $2::int8)",
    )
    .bind(tenant.0)
    .bind(database)
    .execute(connection)
    .await
    .map(drop)
}

/// What a tenant's database has to know now. Of one that is being made, `database` is null.
pub async fn wanted(connection: &mut PgConnection, tenant: TenantId, common: &Common) -> sqlx::Result<Value> {
    let sql = format!(
        "SELECT {WANTED} FROM tenants t LEFT JOIN tenant_databases d ON d.tenant_id = t.id AND d.role = 'live'
         LEFT JOIN tenant_usage u ON u.tenant_id = t.id CROSS JOIN LATERAL {LIMITS_IN_FORCE} l WHERE t.id = $3"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(&common.parts)
        .bind(&common.users)
        .bind(tenant.0)
        .fetch_one(connection)
        .await
}

/// What it was told last.
pub async fn applied(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Option<Value>> {
    let applied: Option<Option<Value>> =
        sqlx::query_scalar("SELECT applied FROM tenant_usage WHERE tenant_id = $1")
            .bind(tenant.0)
            .fetch_optional(connection)
            .await?;
    Ok(applied.flatten())
}

/// Notes it. With another limit the storage is measured anew at once, and what else is used is counted with it.
pub async fn record_applied(
    connection: &mut PgConnection,
    tenant: TenantId,
    applied: &Value,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenant_usage SET applied = $2, writes = NULL,
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
pub async fn to_apply(connection: &mut PgConnection, common: &Common) -> sqlx::Result<Vec<TenantId>> {
    let sql = format!(
        "SELECT t.id FROM {} WHERE u.applied IS DISTINCT FROM {WANTED} AND t.held_by IS NULL
         AND t.state IN ('active', 'suspended') AND NOT EXISTS (
             SELECT FROM jobs j WHERE j.tenant_id = t.id AND j.kind = 'apply_limits'
             AND (j.finished_at IS NULL OR (j.state = 'failed' AND j.finished_at > now() - interval '1 minute')))
         ORDER BY t.id LIMIT 100",
        of_live()
    );
    let ids: Vec<Uuid> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(&common.parts)
        .bind(&common.users)
        .fetch_all(connection)
        .await?;
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
    pub database_name: String,
    pub storage_level: String,
    pub users_level: String,
    pub is_ai_used_up_told: bool,
    pub writes: Option<i64>,
    pub max_storage_gb: f64,
    pub max_users: i32,
    pub max_ai_operations_daily: i32,
}

/// Those that were measured longest ago, if it is more than four minutes: what is nearly due goes along.
pub async fn to_measure(connection: &mut PgConnection, at_most: i64) -> sqlx::Result<Vec<ToMeasure>> {
    let sql = format!(
        "SELECT u.tenant_id, d.oid, t.database_name, u.storage_level, u.users_level, u.writes, l.max_storage_gb,
             l.max_users, l.max_ai_operations_daily,
             coalesce(u.ai_used_up_on = (now() AT TIME ZONE 'UTC')::date, false) AS is_ai_used_up_told
         FROM {}
         WHERE measured_at < now() - interval '4 minutes' ORDER BY measured_at LIMIT $1",
        of_live()
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(at_most).fetch_all(connection).await
}

/// Notes many measurements in one statement. One that could not be made leaves what was known.
///
/// A full database is told so again each time: tables may have been made meanwhile by a transaction that had not ended.
pub async fn record_measured(
    connection: &mut PgConnection,
    tenants: &[Uuid],
    bytes: &[Option<i64>],
    levels: &[&str],
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenant_usage u SET storage_bytes = coalesce(m.bytes, u.storage_bytes), storage_level = m.level,
             measured_at = now(), applied = CASE m.level WHEN 'full' THEN u.applied - 'full' ELSE u.applied END
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

/// Notes that users and AI operations were counted when so many rows had been written.
pub async fn record_counted(
    connection: &mut PgConnection,
    tenant: TenantId,
    users_level: &str,
    is_ai_used_up: bool,
    writes: i64,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenant_usage SET users_level = $2, writes = $4,
             ai_used_up_on = CASE WHEN $3 THEN (now() AT TIME ZONE 'UTC')::date ELSE ai_used_up_on END
         WHERE tenant_id = $1",
    )
    .bind(tenant.0)
    .bind(users_level)
    .bind(is_ai_used_up)
    .bind(writes)
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
