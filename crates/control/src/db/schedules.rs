//! Schedules: what is done again and again.

use jiff_sqlx::ToSqlx as _;
use loomworks_core::ids::{JobId, TenantId};
use serde_json::Value;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::Time;

/// A schedule as it is to be.
#[derive(Debug)]
pub struct Schedule<'a> {
    pub name: &'a str,
    pub tenant: Option<TenantId>,
    pub timing: &'a str,
    pub kind: &'a str,
    pub queue: &'a str,
    pub work: Value,
    pub next_run_at: jiff::Timestamp,
}

/// Writes a schedule down. Its next run stays as it was, unless its timing is another now.
pub async fn ensure(connection: &mut PgConnection, schedule: &Schedule<'_>) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO schedules AS former (name, tenant_id, timing, kind, queue, work, next_run_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (name) DO UPDATE SET tenant_id = excluded.tenant_id, timing = excluded.timing,
             kind = excluded.kind, queue = excluded.queue, work = excluded.work,
             next_run_at = CASE WHEN former.timing = excluded.timing THEN former.next_run_at
                                ELSE excluded.next_run_at END
         WHERE (former.tenant_id, former.timing, former.kind, former.queue, former.work)
             IS DISTINCT FROM (excluded.tenant_id, excluded.timing, excluded.kind, excluded.queue, excluded.work)",
    )
    .bind(schedule.name)
    .bind(schedule.tenant.map(|tenant| tenant.0))
    .bind(schedule.timing)
    .bind(schedule.kind)
    .bind(schedule.queue)
    .bind(&schedule.work)
    .bind(schedule.next_run_at.to_sqlx())
    .execute(connection)
    .await
    .map(drop)
}

/// `Ok(false)`: there is no such schedule.
pub async fn remove(connection: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    sqlx::query("DELETE FROM schedules WHERE name = $1")
        .bind(name)
        .execute(connection)
        .await
        .map(|done| done.rows_affected() == 1)
}

/// `Ok(false)`: there is no such schedule.
pub async fn enable(connection: &mut PgConnection, name: &str, enabled: bool) -> sqlx::Result<bool> {
    sqlx::query("UPDATE schedules SET enabled = $2 WHERE name = $1")
        .bind(name)
        .bind(enabled)
        .execute(connection)
        .await
        .map(|done| done.rows_affected() == 1)
}

/// Makes this transaction the one that looks at the schedules. `Ok(false)`: another process is at it.
pub async fn lead(connection: &mut PgConnection) -> sqlx::Result<bool> {
    // A leader that is stopped in the middle loses its transaction, and another one leads.
    sqlx::query("SET LOCAL idle_in_transaction_session_timeout = '10s'").execute(&mut *connection).await?;
    sqlx::query_scalar("SELECT pg_try_advisory_xact_lock(hashtextextended('loomworks: schedules', 0))")
        .fetch_one(connection)
        .await
}

/// A run that is due.
#[derive(Debug, FromRow)]
pub struct Due {
    pub name: String,
    pub tenant_id: Option<Uuid>,
    pub timing: String,
    pub kind: String,
    #[sqlx(try_from = "String")]
    pub queue: super::jobs::Queue,
    pub work: Value,
    pub next_run_at: Time,
    /// The job of the last run has not ended.
    pub unfinished: bool,
}

/// The runs that are due now.
pub async fn due(connection: &mut PgConnection) -> sqlx::Result<Vec<Due>> {
    sqlx::query_as(
        "SELECT name, tenant_id, timing, kind, queue, work, next_run_at, EXISTS (
             SELECT FROM jobs WHERE jobs.id = last_job AND state IN ('waiting', 'running')) AS unfinished
         FROM schedules WHERE enabled AND next_run_at <= now() ORDER BY next_run_at LIMIT 1000 FOR UPDATE",
    )
    .fetch_all(connection)
    .await
}

/// Notes when it is next due and, if there was one, the job of this run.
pub async fn record_run(
    connection: &mut PgConnection,
    name: &str,
    next: Option<jiff::Timestamp>,
    job: Option<JobId>,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE schedules SET next_run_at = coalesce($2, 'infinity'), last_job = coalesce($3, last_job),
             last_run_at = CASE WHEN $3 IS NULL THEN last_run_at ELSE now() END WHERE name = $1",
    )
    .bind(name)
    .bind(next.map(|next| next.to_sqlx()))
    .bind(job.map(|job| job.0))
    .execute(connection)
    .await
    .map(drop)
}
