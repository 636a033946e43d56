//! The tenants of a fleet migration: who is taken next, and how each ended.

use loomworks_core::ids::{FleetMigrationId, SnapshotId, TenantId};
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use uuid::Uuid;

/// A tenant in the hands of a worker.
#[derive(Clone, Debug, FromRow)]
pub struct Target {
    #[sqlx(try_from = "Uuid")]
    pub tenant_id: TenantId,
    pub subdomain: String,
    pub database_name: String,
    pub app_role: String,
    pub app_password_wrapped: Vec<u8>,
    pub attempt: i32,
    pub snapshot_id: Option<Uuid>,
    pub database_oid: Option<i64>,
    /// The tenant's state.
    pub tenant_state: String,
    /// Held for an exchange, or about to be.
    pub busy: bool,
    /// For how long it has been so, in seconds.
    pub busy_seconds: f64,
}

/// What a worker needs of the tenants in `f`.
const TARGET: &str = "
    SELECT f.tenant_id, t.subdomain, t.database_name, t.app_role, k.app_password_wrapped, f.attempt,
        f.snapshot_id, d.oid AS database_oid, t.state AS tenant_state,
        t.held_by IS NOT NULL OR EXISTS (
            SELECT FROM jobs j WHERE j.tenant_id = t.id AND j.kind IN ('restore', 'swap_back')
            AND j.state IN ('waiting', 'running')) AS busy,
        coalesce(extract(epoch FROM now() - f.busy_since), 0)::float8 AS busy_seconds
    FROM f JOIN tenants t ON t.id = f.tenant_id JOIN tenant_credentials k ON k.tenant_id = f.tenant_id
    LEFT JOIN tenant_databases d ON d.tenant_id = f.tenant_id AND d.role = 'live'";

/// Takes the next tenant of a wave, unless the migration is to rest. `None`: there is none to take now.
pub async fn claim(
    connection: &mut PgConnection,
    id: FleetMigrationId,
    wave: i32,
) -> sqlx::Result<Option<Target>> {
    let sql = format!(
        "WITH f AS (
             UPDATE fleet_migration_tenants SET state = 'running', attempt = attempt + 1
             WHERE migration_id = $1 AND tenant_id = (
                 SELECT tenant_id FROM fleet_migration_tenants
                 WHERE migration_id = $1 AND wave = $2 AND state = 'waiting' AND (retry_at IS NULL OR retry_at <= now())
                 AND EXISTS (
                     SELECT FROM fleet_migrations m WHERE m.id = $1 AND m.state = 'running'
                     AND (m.stop_after_failures = 0 OR m.stop_after_failures + m.failures_accepted > (
                         SELECT count(*) FROM fleet_migration_tenants f WHERE f.migration_id = $1 AND f.state = 'failed')))
                 ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED)
             RETURNING tenant_id, attempt, snapshot_id, busy_since
         ) {TARGET}"
    );
    sqlx::query_as(AssertSqlSafe(sql)).bind(id.0).bind(wave).fetch_optional(connection).await
}

/// The tenants that somebody is noted as working on.
pub async fn under_way(connection: &mut PgConnection, id: FleetMigrationId) -> sqlx::Result<Vec<Target>> {
    let sql = format!(
        "WITH f AS (SELECT * FROM fleet_migration_tenants WHERE migration_id = $1 AND state = 'running')
         {TARGET} ORDER BY f.number LIMIT 1000"
    );
    sqlx::query_as(AssertSqlSafe(sql)).bind(id.0).fetch_all(connection).await
}

/// A tenant to try a migration out on.
pub async fn target(connection: &mut PgConnection, tenant: Uuid) -> sqlx::Result<Target> {
    sqlx::query_as(
        "SELECT t.id AS tenant_id, t.subdomain, t.database_name, t.app_role, k.app_password_wrapped,
             0 AS attempt, NULL::uuid AS snapshot_id, NULL::int8 AS database_oid, t.state AS tenant_state,
             false AS busy, 0::float8 AS busy_seconds
         FROM tenants t JOIN tenant_credentials k ON k.tenant_id = t.id WHERE t.id = $1",
    )
    .bind(tenant)
    .fetch_one(connection)
    .await
}

/// How a try ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// `applied`, `failed` or `skipped`.
    pub state: &'a str,
    pub error: Option<&'a str>,
    pub hint: Option<&'a str>,
    pub sqlstate: Option<&'a str>,
    /// How long it took, if it was watched to its end.
    pub milliseconds: Option<i64>,
}

impl<'a> Ended<'a> {
    #[must_use]
    pub fn of(state: &'a str) -> Self {
        Self { state, error: None, hint: None, sqlstate: None, milliseconds: None }
    }
}

/// Notes how a try ended. `Ok(false)`: it is somebody else's by now.
pub async fn record(
    connection: &mut PgConnection,
    id: FleetMigrationId,
    target: &Target,
    ended: Ended<'_>,
) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE fleet_migration_tenants SET state = $4, error = $5, hint = $6, sqlstate = $7, milliseconds = $8,
             database_oid = $9, finished_at = now(), busy_since = NULL, retry_at = NULL
         WHERE migration_id = $1 AND tenant_id = $2 AND attempt = $3 AND state = 'running'",
    )
    .bind(id.0)
    .bind(target.tenant_id.0)
    .bind(target.attempt)
    .bind(ended.state)
    .bind(ended.error)
    .bind(ended.hint)
    .bind(ended.sqlstate)
    .bind(ended.milliseconds)
    .bind(target.database_oid)
    .execute(connection)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Puts a tenant back that cannot be worked with now.
pub async fn put_back(
    connection: &mut PgConnection,
    id: FleetMigrationId,
    target: &Target,
    why: &str,
    seconds: f64,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE fleet_migration_tenants SET state = 'waiting', busy_since = coalesce(busy_since, now()), error = $4,
             retry_at = now() + make_interval(secs => $5)
         WHERE migration_id = $1 AND tenant_id = $2 AND attempt = $3 AND state = 'running'",
    )
    .bind(id.0)
    .bind(target.tenant_id.0)
    .bind(target.attempt)
    .bind(why)
    .bind(seconds)
    .execute(connection)
    .await
    .map(drop)
}

/// Notes which snapshot is the tenant's before the migration.
pub async fn record_snapshot(
    connection: &mut PgConnection,
    id: FleetMigrationId,
    tenant: TenantId,
    snapshot: SnapshotId,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE fleet_migration_tenants SET snapshot_id = $3 WHERE migration_id = $1 AND tenant_id = $2",
    )
    .bind(id.0)
    .bind(tenant.0)
    .bind(snapshot.0)
    .execute(connection)
    .await
    .map(drop)
}

/// Snapshots of a migration that are not yet in the archive, with their positions.
pub async fn open_snapshots(
    connection: &mut PgConnection,
    id: FleetMigrationId,
) -> sqlx::Result<Vec<(Uuid, String)>> {
    sqlx::query_as(
        "SELECT s.id, s.wal_position::text FROM snapshots s JOIN fleet_migration_tenants f ON f.snapshot_id = s.id
         WHERE f.migration_id = $1 AND s.state = 'creating' AND s.wal_position IS NOT NULL
         ORDER BY s.wal_position LIMIT 1000",
    )
    .bind(id.0)
    .fetch_all(connection)
    .await
}

/// Snapshots without a position of tenants whose try has ended: they were cut off between the two.
pub async fn unmarked_snapshots(
    connection: &mut PgConnection,
    id: FleetMigrationId,
) -> sqlx::Result<Vec<(TenantId, SnapshotId)>> {
    unready_snapshots(
        connection,
        id,
        "s.wal_position IS NULL AND f.state IN ('applied', 'failed', 'skipped')",
    )
    .await
}

/// Snapshots that are not ready of tenants that failed.
pub async fn snapshots_of_failed(
    connection: &mut PgConnection,
    id: FleetMigrationId,
) -> sqlx::Result<Vec<(TenantId, SnapshotId)>> {
    unready_snapshots(connection, id, "f.state = 'failed'").await
}

async fn unready_snapshots(
    connection: &mut PgConnection,
    id: FleetMigrationId,
    which: &str,
) -> sqlx::Result<Vec<(TenantId, SnapshotId)>> {
    let sql = format!(
        "SELECT s.tenant_id, s.id FROM snapshots s JOIN fleet_migration_tenants f ON f.snapshot_id = s.id
         WHERE f.migration_id = $1 AND s.state = 'creating' AND {which} ORDER BY f.number LIMIT 100000"
    );
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(AssertSqlSafe(sql)).bind(id.0).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(tenant, snapshot)| (TenantId(tenant), SnapshotId(snapshot))).collect())
}

/// Puts those back that were worked on by a process that is no more. `Ok(0)`: there are none.
pub async fn take_back(connection: &mut PgConnection, id: FleetMigrationId) -> sqlx::Result<u64> {
    sqlx::query(
        "UPDATE fleet_migration_tenants SET state = 'waiting', attempt = attempt + 1
         WHERE migration_id = $1 AND state = 'running'",
    )
    .bind(id.0)
    .execute(connection)
    .await
    .map(|done| done.rows_affected())
}

/// Gives up finding out what came of those that somebody worked on.
pub async fn fail_running(
    connection: &mut PgConnection,
    id: FleetMigrationId,
    why: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE fleet_migration_tenants SET state = 'failed', error = $2, attempt = attempt + 1, finished_at = now()
         WHERE migration_id = $1 AND state = 'running'",
    )
    .bind(id.0)
    .bind(why)
    .execute(connection)
    .await
    .map(drop)
}

/// Goes on in spite of the failures so far, trying the failed tenants again if that is wanted.
pub async fn go_on(
    connection: &mut PgConnection,
    id: FleetMigrationId,
    retry_failed: bool,
) -> sqlx::Result<u64> {
    let mut again = 0;
    if retry_failed {
        // With a new snapshot: the tenant has gone on since.
        again = sqlx::query(
            "UPDATE fleet_migration_tenants SET state = 'waiting', error = NULL, hint = NULL, sqlstate = NULL,
                 milliseconds = NULL, snapshot_id = NULL, finished_at = NULL, busy_since = NULL, retry_at = NULL
             WHERE migration_id = $1 AND state = 'failed'",
        )
        .bind(id.0)
        .execute(&mut *connection)
        .await?
        .rows_affected();
    }
    sqlx::query(
        "UPDATE fleet_migrations SET state = 'running', reason = NULL, finished_at = NULL, failures_accepted = (
             SELECT count(*) FROM fleet_migration_tenants WHERE migration_id = $1 AND state = 'failed')
         WHERE id = $1",
    )
    .bind(id.0)
    .execute(connection)
    .await?;
    Ok(again)
}

/// Those that still wait will not be migrated.
pub async fn skip_waiting(
    connection: &mut PgConnection,
    id: FleetMigrationId,
    why: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE fleet_migration_tenants SET state = 'skipped', error = $2, finished_at = now()
         WHERE migration_id = $1 AND state = 'waiting'",
    )
    .bind(id.0)
    .bind(why)
    .execute(connection)
    .await
    .map(drop)
}
