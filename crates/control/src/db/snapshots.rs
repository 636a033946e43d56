//! Snapshots.

use loomworks_core::ids::{SnapshotId, TenantId};
use loomworks_core::lsn::Lsn;
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::Time;
use super::changes;
use super::tenants::LIMITS_IN_FORCE;
use crate::page::Asked;

/// A snapshot, as shown to whoever may see it.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Snapshot {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: SnapshotId,
    pub tenant_id: Uuid,
    pub name: String,
    /// `creating`, `ready`, `restoring`, `failed` or `expired`. Only what is `ready` can be restored.
    pub state: String,
    /// `auto`, `manual` or `pre_ai`.
    pub snapshot_type: String,
    /// Restored is everything before this position.
    pub wal_position: Option<String>,
    pub wal_file: Option<String>,
    pub base_backup_id: Option<String>,
    pub size_bytes: Option<i64>,
    pub requested_by: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ready_at: Option<Time>,
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Time,
}

impl Snapshot {
    /// The position, once it has been taken.
    #[must_use]
    pub fn lsn(&self) -> Option<Lsn> {
        self.wal_position.as_deref()?.parse().ok()
    }
}

const COLUMNS: &str = "id, tenant_id, name, state, snapshot_type, wal_position::text, wal_file, base_backup_id, \
                       size_bytes, requested_by, created_at, ready_at, expires_at";

/// Why a snapshot is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotType {
    Auto,
    Manual,
    PreAi,
}

impl SnapshotType {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
            Self::PreAi => "pre_ai",
        }
    }

    /// The least days for which it is kept, if the tenant can go back less: what somebody has asked for outlasts a short
    /// window, what comes by itself does not.
    fn days_min(self) -> i32 {
        match self {
            Self::Auto => 1,
            Self::Manual | Self::PreAi => 30,
        }
    }
}

/// Writes a snapshot down as one to be taken. Twice is once. It is kept as long as the tenant can go back;
/// `platform_days` is how far that is if neither the tenant nor its tier says it.
pub async fn insert(
    connection: &mut PgConnection,
    id: SnapshotId,
    tenant: TenantId,
    name: &str,
    snapshot_type: SnapshotType,
    requested_by: &str,
    platform_days: u16,
) -> sqlx::Result<()> {
    let sql = format!(
        "INSERT INTO snapshots (id, tenant_id, name, snapshot_type, requested_by, expires_at)
         VALUES ($1, $2, $3, $4, $5, now() + make_interval(days => greatest($6, coalesce(
             (SELECT l.recovery_days FROM tenants t CROSS JOIN LATERAL {LIMITS_IN_FORCE} l WHERE t.id = $2), $7))))
         ON CONFLICT (id) DO NOTHING"
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(id.0)
        .bind(tenant.0)
        .bind(name)
        .bind(snapshot_type.as_str())
        .bind(requested_by)
        .bind(snapshot_type.days_min())
        .bind(i32::from(platform_days))
        .execute(connection)
        .await
        .map(drop)
}

pub async fn get(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: SnapshotId,
) -> sqlx::Result<Option<Snapshot>> {
    let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE tenant_id = $1 AND id = $2");
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.0).bind(id.0).fetch_optional(connection).await
}

/// Where a page of snapshots begins.
pub type After = (Time, Uuid);

/// The snapshots of a tenant, newest first.
pub async fn list(
    connection: &mut PgConnection,
    tenant: TenantId,
    asked: &Asked<After>,
) -> sqlx::Result<Vec<Snapshot>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM snapshots WHERE tenant_id = $1
             AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3))
         ORDER BY created_at DESC, id DESC LIMIT $4"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(tenant.0)
        .bind(asked.after.map(|after| after.0))
        .bind(asked.after.map(|after| after.1))
        .bind(asked.rows())
        .fetch_all(connection)
        .await
}

/// The newest snapshot of a tenant that can be restored.
pub async fn newest_ready(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Option<Snapshot>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM snapshots WHERE tenant_id = $1 AND state = 'ready' ORDER BY created_at DESC LIMIT 1"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.0).fetch_optional(connection).await
}

/// Notes where the snapshot is, unless that is noted: the first position is the one that counts. What is changed in the
/// tenant's database is counted anew from there.
pub async fn record_position(
    connection: &mut PgConnection,
    id: SnapshotId,
    position: Lsn,
    wal_file: &str,
    size_bytes: i64,
) -> sqlx::Result<Lsn> {
    let sql = format!(
        "WITH was AS (
             SELECT id, tenant_id, wal_position IS NULL AS is_first FROM snapshots WHERE id = $1 FOR UPDATE
         ), counting AS (
             UPDATE tenant_usage u SET {} FROM was JOIN tenant_databases d ON d.tenant_id = was.tenant_id
             WHERE was.is_first AND d.role = 'live' AND u.tenant_id = was.tenant_id
         )
         UPDATE snapshots s SET wal_position = coalesce(s.wal_position, $2::pg_lsn),
             wal_file = coalesce(s.wal_file, $3), size_bytes = coalesce(s.size_bytes, $4)
         FROM was WHERE s.id = was.id RETURNING s.wal_position::text",
        changes::from_now_on()
    );
    let text: String = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(id.0)
        .bind(position.to_string())
        .bind(wal_file)
        .bind(size_bytes)
        .fetch_one(connection)
        .await?;
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// The archive has all that the snapshot needs: it can be relied on.
pub async fn record_ready(
    connection: &mut PgConnection,
    id: SnapshotId,
    base_backup: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE snapshots SET state = 'ready', ready_at = now(), base_backup_id = $2 WHERE id = $1 AND state = 'creating'",
    )
    .bind(id.0)
    .bind(base_backup)
    .execute(connection)
    .await
    .map(drop)
}

/// One that failed is tried again.
pub async fn record_creating_again(connection: &mut PgConnection, id: SnapshotId) -> sqlx::Result<()> {
    sqlx::query("UPDATE snapshots SET state = 'creating' WHERE id = $1 AND state = 'failed'")
        .bind(id.0)
        .execute(connection)
        .await
        .map(drop)
}

pub async fn record_failed(connection: &mut PgConnection, id: SnapshotId) -> sqlx::Result<()> {
    sqlx::query("UPDATE snapshots SET state = 'failed' WHERE id = $1 AND state = 'creating'")
        .bind(id.0)
        .execute(connection)
        .await
        .map(drop)
}

/// Tenants that are served and have no snapshot of that name of the last 20 hours: what is done once a day may be an hour
/// late, and early the next time.
pub async fn tenants_without(
    connection: &mut PgConnection,
    name: &str,
    rows: i64,
) -> sqlx::Result<Vec<TenantId>> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM tenants t WHERE state = 'active' AND NOT EXISTS (
             SELECT FROM snapshots s WHERE s.tenant_id = t.id AND s.name = $1 AND s.state IN ('creating', 'ready')
                 AND s.created_at > now() - interval '20 hours')
         ORDER BY id LIMIT $2",
    )
    .bind(name)
    .bind(rows)
    .fetch_all(connection)
    .await?;
    Ok(ids.into_iter().map(TenantId).collect())
}

/// Snapshots of that name that have no position yet.
pub async fn without_position(
    connection: &mut PgConnection,
    name: &str,
    rows: i64,
) -> sqlx::Result<Vec<(TenantId, SnapshotId)>> {
    let ids: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "SELECT tenant_id, id FROM snapshots WHERE name = $1 AND state = 'creating' AND wal_position IS NULL
             AND snapshot_type = 'auto' ORDER BY id LIMIT $2",
    )
    .bind(name)
    .bind(rows)
    .fetch_all(connection)
    .await?;
    Ok(ids.into_iter().map(|(tenant, id)| (TenantId(tenant), SnapshotId(id))).collect())
}

/// Snapshots of that name that wait for the archive, with their positions, the oldest first.
pub async fn creating(connection: &mut PgConnection, name: &str) -> sqlx::Result<Vec<(SnapshotId, String)>> {
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "SELECT id, wal_position::text FROM snapshots
         WHERE name = $1 AND state = 'creating' AND wal_position IS NOT NULL AND snapshot_type = 'auto'
         ORDER BY snapshots.wal_position LIMIT 1000",
    )
    .bind(name)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id, position)| (SnapshotId(id), position)).collect())
}

/// Lets snapshots expire whose time is over. The last one of an archived tenant is kept: it is all that there is of it.
pub async fn expire(connection: &mut PgConnection) -> sqlx::Result<u64> {
    sqlx::query(
        "UPDATE snapshots s SET state = 'expired' FROM tenants t
         WHERE t.id = s.tenant_id AND s.state IN ('ready', 'failed') AND s.expires_at < now()
             AND NOT (t.state = 'archived' AND s.id = (
                 SELECT id FROM snapshots WHERE tenant_id = t.id AND state = 'ready'
                 ORDER BY created_at DESC LIMIT 1))",
    )
    .execute(connection)
    .await
    .map(|done| done.rows_affected())
}

/// The positions that must stay restorable.
pub async fn kept_positions(connection: &mut PgConnection) -> sqlx::Result<Vec<Lsn>> {
    let texts: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT wal_position::text FROM snapshots
         WHERE state IN ('creating', 'ready', 'restoring') AND wal_position IS NOT NULL",
    )
    .fetch_all(connection)
    .await?;
    let parsed = texts.iter().map(|text| text.parse());
    parsed
        .collect::<Result<_, _>>()
        .map_err(|error: loomworks_core::lsn::NotAnLsn| sqlx::Error::Decode(Box::new(error)))
}
