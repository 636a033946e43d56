//! Fleet migrations and their tenants.
//!
//! What is written while tenants are migrated is not waited for to reach the disk: the truth is the mark in each
//! tenant's own database, and a row that a crash of the machine takes back is found out again from it.

mod targets;

use loomworks_core::ids::FleetMigrationId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool, PgTransaction};
use uuid::Uuid;

use super::Time;

pub use targets::*;

/// What is to be done, as it was asked for.
#[derive(Clone, Debug, FromRow)]
pub struct Definition {
    #[sqlx(try_from = "Uuid")]
    pub id: FleetMigrationId,
    pub name: String,
    pub sql: String,
    pub selection: Value,
    pub canaries: i32,
    pub wave_size: i32,
    pub concurrency: i32,
    pub snapshot_before: bool,
    pub statement_timeout_seconds: i32,
    pub lock_timeout_seconds: i32,
    pub busy_timeout_seconds: i32,
    pub stop_after_failures: i32,
    pub pause_after_canary: bool,
    pub requested_by: String,
}

/// A fleet migration, as shown to operators.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct FleetMigration {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: FleetMigrationId,
    pub name: String,
    pub sql: String,
    #[schema(value_type = Object)]
    pub selection: Value,
    pub canaries: i32,
    pub wave_size: i32,
    pub concurrency: i32,
    pub snapshot_before: bool,
    pub statement_timeout_seconds: i32,
    pub lock_timeout_seconds: i32,
    pub busy_timeout_seconds: i32,
    pub stop_after_failures: i32,
    pub pause_after_canary: bool,
    /// `running`, `paused`, `stopped` (by failures), `succeeded`, `failed` (with some tenants) or `cancelled`.
    pub state: String,
    /// Why it is in that state, when nobody asked for it.
    pub reason: Option<String>,
    /// Tenants that were selected.
    pub tenants: i64,
    pub waiting: i64,
    pub running: i64,
    pub applied: i64,
    pub failed: i64,
    pub skipped: i64,
    /// How far it is in words: `31 of 1000 tenants, 1 failed`.
    pub progress: String,
    pub requested_by: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Time>,
}

impl FleetMigration {
    /// Whether nothing happens any more unless somebody asks for it.
    #[must_use]
    pub fn rests(&self) -> bool {
        match self.state.as_str() {
            "running" => false,
            // Those that were under way when somebody said so are finished.
            "paused" => self.running == 0,
            "cancelled" => self.running + self.waiting == 0,
            // Only a job that failed for good leaves some `running`.
            _ => true,
        }
    }
}

/// A tenant of a fleet migration.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct MigrationTenant {
    pub tenant_id: Uuid,
    pub subdomain: String,
    /// Its turn.
    pub number: i32,
    /// 0: a canary. Nothing: skipped from the beginning.
    pub wave: Option<i32>,
    /// `waiting`, `running`, `applied`, `failed` or `skipped`.
    pub state: String,
    /// For one that is `applied`: false when a restore has brought the tenant back to before it since.
    #[sqlx(default)]
    pub still_applied: Option<bool>,
    pub error: Option<String>,
    pub hint: Option<String>,
    pub sqlstate: Option<String>,
    pub milliseconds: Option<i64>,
    pub snapshot_id: Option<Uuid>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Time>,
    /// Whether the database it was applied to was replaced since.
    #[serde(skip)]
    pub replaced: bool,
    #[serde(skip)]
    pub database_name: String,
}

/// Which tenants are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// These, in this order.
    pub tenants: Option<Vec<Uuid>>,
    pub tier: Option<String>,
    pub profile: Option<String>,
}

/// A tenant of a plan.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct PlannedTenant {
    pub tenant_id: Uuid,
    pub subdomain: String,
    pub number: i32,
    /// 0: a canary. Nothing: it will be skipped.
    pub wave: Option<i32>,
    /// Why it will be skipped.
    pub skipped: Option<String>,
}

/// How the tenants of a migration stand.
#[derive(Clone, Copy, Debug, FromRow)]
pub struct Counts {
    pub waiting: i64,
    pub running: i64,
    pub applied: i64,
    pub failed: i64,
    pub skipped: i64,
    pub failed_canaries: i64,
}

/// How a migration stands.
#[derive(Clone, Debug, FromRow)]
pub struct Standing {
    pub state: String,
    pub failures_accepted: i32,
}

/// $1: tenants, $2: tier, $3: profile, $4: canaries, $5: size of a wave.
const SELECTION: &str = "
    WITH selected AS (
        SELECT id, subdomain, state IN ('active', 'suspended') AS takes_part, state,
            row_number() OVER (ORDER BY array_position($1::uuid[], id), subdomain)::int AS number
        FROM tenants
        WHERE ($1::uuid[] IS NULL OR id = ANY($1)) AND ($2::text IS NULL OR tier = $2) AND ($3::text IS NULL OR profile = $3)
    ), ordered AS (
        SELECT *, row_number() OVER (PARTITION BY takes_part ORDER BY number)::int AS turn FROM selected
    ), planned AS (
        SELECT id AS tenant_id, subdomain, number,
            CASE WHEN NOT takes_part THEN NULL WHEN turn <= $4 THEN 0 ELSE 1 + (turn - $4 - 1) / $5 END AS wave,
            CASE WHEN NOT takes_part THEN 'the tenant is ' || state END AS skipped
        FROM ordered
    )";

fn selecting<'q>(
    sql: String,
    selected: &'q Selected,
    canaries: i32,
    wave_size: i32,
) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
    sqlx::query(AssertSqlSafe(sql))
        .bind(&selected.tenants)
        .bind(&selected.tier)
        .bind(&selected.profile)
        .bind(canaries)
        .bind(wave_size)
}

/// The tenants that a migration would have now, in their order.
pub async fn plan(
    connection: &mut PgConnection,
    selected: &Selected,
    canaries: i32,
    wave_size: i32,
) -> sqlx::Result<Vec<PlannedTenant>> {
    let sql = format!("{SELECTION} SELECT * FROM planned ORDER BY number LIMIT 100000");
    let rows = selecting(sql, selected, canaries, wave_size).fetch_all(connection).await?;
    rows.iter().map(PlannedTenant::from_row).collect()
}

/// Writes a migration down with the tenants that there are now. Gives how many of them take part.
pub async fn insert(
    connection: &mut PgConnection,
    new: &Definition,
    selected: &Selected,
) -> sqlx::Result<u64> {
    sqlx::query(
        "INSERT INTO fleet_migrations (id, name, sql, selection, canaries, wave_size, concurrency, snapshot_before,
             statement_timeout_seconds, lock_timeout_seconds, busy_timeout_seconds, stop_after_failures,
             pause_after_canary, requested_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    )
    .bind(new.id.0)
    .bind(&new.name)
    .bind(&new.sql)
    .bind(&new.selection)
    .bind(new.canaries)
    .bind(new.wave_size)
    .bind(new.concurrency)
    .bind(new.snapshot_before)
    .bind(new.statement_timeout_seconds)
    .bind(new.lock_timeout_seconds)
    .bind(new.busy_timeout_seconds)
    .bind(new.stop_after_failures)
    .bind(new.pause_after_canary)
    .bind(&new.requested_by)
    .execute(&mut *connection)
    .await?;
    let sql = format!(
        "{SELECTION} INSERT INTO fleet_migration_tenants (migration_id, tenant_id, number, wave, state, error)
         SELECT $6, tenant_id, number, wave, CASE WHEN skipped IS NULL THEN 'waiting' ELSE 'skipped' END, skipped
         FROM planned"
    );
    selecting(sql, selected, new.canaries, new.wave_size)
        .bind(new.id.0)
        .execute(connection)
        .await
        .map(|done| done.rows_affected())
}

pub async fn definition(
    connection: &mut PgConnection,
    id: FleetMigrationId,
) -> sqlx::Result<Option<Definition>> {
    sqlx::query_as(
        "SELECT id, name, sql, selection, canaries, wave_size, concurrency, snapshot_before, statement_timeout_seconds,
             lock_timeout_seconds, busy_timeout_seconds, stop_after_failures, pause_after_canary, requested_by
         FROM fleet_migrations WHERE id = $1",
    )
    .bind(id.0)
    .fetch_optional(connection)
    .await
}

const SHOWN: &str = "
    SELECT m.*, c.*, format('%s of %s tenants%s', c.applied + c.failed, c.tenants - c.skipped,
        CASE WHEN c.failed > 0 THEN format(', %s failed', c.failed) ELSE '' END) AS progress
    FROM fleet_migrations m, LATERAL (
        SELECT count(*) AS tenants, count(*) FILTER (WHERE state = 'waiting') AS waiting,
            count(*) FILTER (WHERE state = 'running') AS running, count(*) FILTER (WHERE state = 'applied') AS applied,
            count(*) FILTER (WHERE state = 'failed') AS failed, count(*) FILTER (WHERE state = 'skipped') AS skipped
        FROM fleet_migration_tenants WHERE migration_id = m.id) c";

pub async fn get(
    connection: &mut PgConnection,
    id: FleetMigrationId,
) -> sqlx::Result<Option<FleetMigration>> {
    sqlx::query_as(AssertSqlSafe(format!("{SHOWN} WHERE m.id = $1")))
        .bind(id.0)
        .fetch_optional(connection)
        .await
}

/// The newest migrations, those after a place in the list.
pub async fn list(
    connection: &mut PgConnection,
    after: Option<(jiff::Timestamp, Uuid)>,
    rows: i64,
) -> sqlx::Result<Vec<FleetMigration>> {
    use jiff_sqlx::ToSqlx;
    let sql = format!(
        "{SHOWN} WHERE $1::timestamptz IS NULL OR (created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT $3"
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(after.map(|(at, _)| at.to_sqlx()))
        .bind(after.map(|(_, id)| id))
        .bind(rows)
        .fetch_all(connection)
        .await
}

/// The tenants of a migration in their order, those after a number, of one state or of all.
pub async fn tenants(
    connection: &mut PgConnection,
    id: FleetMigrationId,
    state: Option<&str>,
    after: Option<i32>,
    rows: i64,
) -> sqlx::Result<Vec<MigrationTenant>> {
    sqlx::query_as(
        "SELECT f.tenant_id, t.subdomain, f.number, f.wave, f.state, f.error, f.hint, f.sqlstate, f.milliseconds,
             f.snapshot_id, f.finished_at, t.database_name,
             coalesce(f.state = 'applied' AND f.database_oid <> d.oid, false) AS replaced
         FROM fleet_migration_tenants f JOIN tenants t ON t.id = f.tenant_id
         LEFT JOIN tenant_databases d ON d.tenant_id = f.tenant_id AND d.role = 'live'
         WHERE f.migration_id = $1 AND ($2::text IS NULL OR f.state = $2) AND f.number > coalesce($3, 0)
         ORDER BY f.number LIMIT $4",
    )
    .bind(id.0)
    .bind(state)
    .bind(after)
    .bind(rows)
    .fetch_all(connection)
    .await
}

/// How a migration stands, locked until the transaction ends so that two changes cannot cross.
pub async fn lock(connection: &mut PgConnection, id: FleetMigrationId) -> sqlx::Result<Option<Standing>> {
    sqlx::query_as("SELECT state, failures_accepted FROM fleet_migrations WHERE id = $1 FOR UPDATE")
        .bind(id.0)
        .fetch_optional(connection)
        .await
}

pub async fn set_state(
    connection: &mut PgConnection,
    id: FleetMigrationId,
    state: &str,
    reason: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE fleet_migrations SET state = $2, reason = $3,
             finished_at = CASE WHEN $2 IN ('succeeded', 'failed', 'cancelled') THEN now() END
         WHERE id = $1",
    )
    .bind(id.0)
    .bind(state)
    .bind(reason)
    .execute(connection)
    .await
    .map(drop)
}

pub async fn counts(connection: &mut PgConnection, id: FleetMigrationId) -> sqlx::Result<Counts> {
    sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'running') AS running,
             count(*) FILTER (WHERE state = 'applied') AS applied, count(*) FILTER (WHERE state = 'failed') AS failed,
             count(*) FILTER (WHERE state = 'skipped') AS skipped,
             count(*) FILTER (WHERE state = 'failed' AND wave = 0) AS failed_canaries
         FROM fleet_migration_tenants WHERE migration_id = $1",
    )
    .bind(id.0)
    .fetch_one(connection)
    .await
}

/// The first wave in which somebody waits, and the last one there is.
pub async fn waves(
    connection: &mut PgConnection,
    id: FleetMigrationId,
) -> sqlx::Result<(Option<i32>, Option<i32>)> {
    sqlx::query_as(
        "SELECT min(wave) FILTER (WHERE state = 'waiting'), max(wave) FROM fleet_migration_tenants WHERE migration_id = $1",
    )
    .bind(id.0)
    .fetch_one(connection)
    .await
}

/// What a wave still has to do: those whose turn it is now or later, and those that somebody works on.
pub async fn left(
    connection: &mut PgConnection,
    id: FleetMigrationId,
    wave: i32,
) -> sqlx::Result<(i64, i64)> {
    sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 'waiting'), count(*) FILTER (WHERE state = 'running')
         FROM fleet_migration_tenants WHERE migration_id = $1 AND wave = $2",
    )
    .bind(id.0)
    .bind(wave)
    .fetch_one(connection)
    .await
}

/// A transaction that need not have reached the disk when it ends.
pub async fn begin(pool: &PgPool) -> sqlx::Result<PgTransaction<'static>> {
    pool.begin_with("BEGIN; SET LOCAL synchronous_commit = off").await
}
