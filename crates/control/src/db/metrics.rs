//! What is counted for the metrics.

use sqlx::PgConnection;

/// Unfinished jobs: kind, state, how many.
pub async fn unfinished_jobs(connection: &mut PgConnection) -> sqlx::Result<Vec<(String, String, i64)>> {
    sqlx::query_as(
        "SELECT kind, state, count(*) FROM jobs WHERE state IN ('waiting', 'running') GROUP BY kind, state",
    )
    .fetch_all(connection)
    .await
}

/// Jobs that failed in the last day.
pub async fn failed_jobs(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "SELECT count(*) FROM jobs WHERE state = 'failed' AND finished_at > now() - interval '1 day'",
    )
    .fetch_one(connection)
    .await
}

/// The oldest jobs that wait and are due, and the oldest that run: state, queue, seconds. One that is put back again
/// and again is as old as when it was asked for while it runs.
pub async fn oldest_jobs(connection: &mut PgConnection) -> sqlx::Result<Vec<(String, String, f64)>> {
    sqlx::query_as(
        "SELECT state, queue,
             greatest(extract(epoch FROM now() - min(CASE state WHEN 'waiting' THEN greatest(run_at, created_at) ELSE created_at END)), 0)::float8
         FROM jobs WHERE state = 'waiting' AND run_at <= now() OR state = 'running' GROUP BY state, queue",
    )
    .fetch_all(connection)
    .await
}

/// How full tenants' storage is: level, how many.
pub async fn storage_levels(connection: &mut PgConnection) -> sqlx::Result<Vec<(String, i64)>> {
    sqlx::query_as(
        "SELECT level, count(tenant_id) FROM unnest(ARRAY['ok', 'nearly_full', 'full']) level
         LEFT JOIN tenant_usage ON storage_level = level GROUP BY level",
    )
    .fetch_all(connection)
    .await
}

/// Tenants: state, how many.
pub async fn tenants(connection: &mut PgConnection) -> sqlx::Result<Vec<(String, i64)>> {
    sqlx::query_as("SELECT state, count(*) FROM tenants GROUP BY state").fetch_all(connection).await
}

/// Seconds since the last segment was archived (0: none was yet), and whether the newest try failed.
pub async fn archiver(connection: &mut PgConnection) -> sqlx::Result<(f64, bool)> {
    sqlx::query_as(
        "SELECT coalesce(extract(epoch FROM now() - last_archived_time), 0)::float8,
             coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL)
         FROM pg_stat_archiver",
    )
    .fetch_one(connection)
    .await
}
