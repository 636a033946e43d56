//! How much was changed in tenants' databases since their last snapshots, by PostgreSQL's own counters.
//!
//! The management database is in the cluster whose counters these are, so one statement looks at all tenants.

use loomworks_core::ids::TenantId;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::Time;

/// Rows inserted, updated and deleted so far in the database `d.oid`, as whoever did it has told the server: when its
/// transaction has ended, and at most some seconds later.
pub(super) const COUNTED: &str = "(pg_stat_get_db_tuples_inserted(d.oid::oid) \
    + pg_stat_get_db_tuples_updated(d.oid::oid) + pg_stat_get_db_tuples_deleted(d.oid::oid))";

/// What is assigned to count from now on, in the database `d`.
pub(super) fn from_now_on() -> String {
    format!("changes_oid = d.oid, changes_rows = {COUNTED}, changes_since = clock_timestamp()")
}

/// Where counting began for a tenant, and where its live database's counter is.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Seen {
    #[sqlx(try_from = "Uuid")]
    pub tenant_id: TenantId,
    pub database_name: String,
    pub oid: i64,
    pub counted: i64,
    pub changes_oid: Option<i64>,
    pub changes_rows: Option<i64>,
    pub changes_since: Option<Time>,
}

/// Tenants of whom something is to be done.
///
/// Nobody counts yet in the database that they have now, its counter has begun anew, or it is further by so many rows and
/// there is no snapshot of the last minutes, nor one being taken.
pub async fn look(connection: &mut PgConnection, rows: i64, minutes: i32) -> sqlx::Result<Vec<Seen>> {
    let sql = format!(
        "SELECT u.tenant_id, t.database_name, d.oid, c.counted, u.changes_oid, u.changes_rows, u.changes_since
         FROM tenants t JOIN tenant_databases d ON d.tenant_id = t.id AND d.role = 'live'
         JOIN tenant_usage u ON u.tenant_id = t.id CROSS JOIN LATERAL (SELECT {COUNTED} AS counted) c
         WHERE t.state IN ('active', 'suspended') AND t.held_by IS NULL AND (
             u.changes_oid IS DISTINCT FROM d.oid OR c.counted < u.changes_rows
             OR (c.counted - u.changes_rows >= $1 AND NOT {}))
         ORDER BY u.changes_since NULLS FIRST, u.tenant_id LIMIT 1000",
        has_recent_snapshot("u.tenant_id", 2)
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(rows).bind(minutes).fetch_all(connection).await
}

/// One that failed counts too, so that it is not tried again and again.
fn has_recent_snapshot(tenant: &str, minutes: u8) -> String {
    format!(
        "EXISTS (SELECT FROM snapshots s WHERE s.tenant_id = {tenant}
             AND (s.state = 'creating' OR s.created_at > now() - make_interval(mins => ${minutes})))"
    )
}

/// Counts from now on, in the database that each has now.
pub async fn begin(connection: &mut PgConnection, tenants: &[TenantId]) -> sqlx::Result<()> {
    let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
    let sql = format!(
        "UPDATE tenant_usage u SET {} FROM tenant_databases d
         WHERE u.tenant_id = ANY($1) AND d.tenant_id = u.tenant_id AND d.role = 'live'",
        from_now_on()
    );
    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&ids).execute(connection).await.map(drop)
}

/// Leaves rows out that are the platform's own, unless somebody has moved the beginning meanwhile.
pub async fn leave_out(
    connection: &mut PgConnection,
    seen: &Seen,
    rows: i64,
    up_to: Time,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenant_usage SET changes_rows = changes_rows + $4, changes_since = $5
         WHERE tenant_id = $1 AND changes_oid = $2 AND changes_rows = $3",
    )
    .bind(seen.tenant_id.0)
    .bind(seen.changes_oid)
    .bind(seen.changes_rows)
    .bind(rows)
    .bind(up_to)
    .execute(connection)
    .await
    .map(drop)
}

/// Whether it is still as it was seen, with no snapshot since; locked until the transaction ends. Who comes second finds
/// the snapshot of who came first.
pub async fn is_still(connection: &mut PgConnection, seen: &Seen, minutes: i32) -> sqlx::Result<bool> {
    let locked: Option<(i64, i64)> =
        sqlx::query_as("SELECT changes_oid, changes_rows FROM tenant_usage WHERE tenant_id = $1 FOR UPDATE")
            .bind(seen.tenant_id.0)
            .fetch_optional(&mut *connection)
            .await?;
    if locked != seen.changes_oid.zip(seen.changes_rows) {
        return Ok(false);
    }
    let sql = format!("SELECT NOT {}", has_recent_snapshot("$1", 2));
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(seen.tenant_id.0)
        .bind(minutes)
        .fetch_one(connection)
        .await
}
