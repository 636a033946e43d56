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

/// Jobs that failed in the last day, and the seconds for which the job that is due longest has waited.
pub async fn job_troubles(connection: &mut PgConnection) -> sqlx::Result<(i64, f64)> {
    sqlx::query_as(
        "SELECT (SELECT count(*) FROM jobs WHERE state = 'failed' AND finished_at > now() - interval '1 day'),
             coalesce((SELECT extract(epoch FROM now() - min(run_at)) FROM jobs
                       WHERE state = 'waiting' AND run_at <= now()), 0)::float8",
    )
    .fetch_one(connection)
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
