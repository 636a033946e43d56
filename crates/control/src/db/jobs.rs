//! The queue: a row a job, claimed with a lease and a fence.

use loomworks_core::ids::{JobId, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{FromRow, PgConnection, PgPool};
use uuid::Uuid;

use super::Time;

/// The channel on which a waiting job is announced.
pub const CHANNEL: &str = "loomworks_jobs";

/// How long a worker that says nothing keeps its claim.
pub const LEASE_SECONDS: f64 = 15.0;

/// A job, as shown to whoever may see it.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Job {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: JobId,
    pub tenant_id: Option<Uuid>,
    pub kind: String,
    /// `waiting`, `running`, `succeeded` or `failed`.
    pub state: String,
    /// How far it is.
    pub percent: i16,
    /// What it does now, in words.
    pub progress: String,
    pub attempts: i32,
    pub error: Option<String>,
    pub hint: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub result: Option<Value>,
    pub requested_by: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Time>,
}

impl Job {
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.state.as_str(), "succeeded" | "failed")
    }
}

/// A job in the hands of a worker.
#[derive(Clone, Debug, FromRow)]
pub struct Claim {
    #[sqlx(try_from = "Uuid")]
    pub id: JobId,
    pub kind: String,
    pub work: Value,
    pub step: Option<Value>,
    pub steps_done: i32,
    pub attempts: i32,
    pub max_attempts: i32,
    pub fence: i64,
    pub requested_by: String,
}

const COLUMNS: &str = "id, tenant_id, kind, state, percent, progress, attempts, error, hint, result, requested_by, \
                       created_at, finished_at";

/// A job that is to be.
#[derive(Debug)]
pub struct New<'a> {
    pub kind: &'a str,
    pub tenant: Option<TenantId>,
    /// Of the unfinished jobs one a key.
    pub dedup_key: &'a str,
    pub work: Value,
    pub requested_by: &'a str,
}

/// Enqueues a job in the transaction that wants it. `None`: an unfinished one has the same key.
pub async fn insert(connection: &mut PgConnection, new: New<'_>) -> sqlx::Result<Option<JobId>> {
    let id = JobId::random();
    let inserted = sqlx::query(
        "INSERT INTO jobs (id, tenant_id, kind, dedup_key, work, requested_by) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT DO NOTHING",
    )
    .bind(id.0)
    .bind(new.tenant.map(|tenant| tenant.0))
    .bind(new.kind)
    .bind(new.dedup_key)
    .bind(new.work)
    .bind(new.requested_by)
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(None);
    }
    // Delivered when the transaction commits, and not at all when it does not.
    sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(connection).await?;
    Ok(Some(id))
}

/// The unfinished job of a key.
pub async fn unfinished(connection: &mut PgConnection, dedup_key: &str) -> sqlx::Result<Option<JobId>> {
    sqlx::query_scalar::<_, Uuid>(
        "SELECT id FROM jobs WHERE dedup_key = $1 AND state IN ('waiting', 'running')",
    )
    .bind(dedup_key)
    .fetch_optional(connection)
    .await
    .map(|id| id.map(JobId))
}

pub async fn get(connection: &mut PgConnection, id: JobId) -> sqlx::Result<Option<Job>> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM jobs WHERE id = $1")))
        .bind(id.0)
        .fetch_optional(connection)
        .await
}

/// The newest jobs.
pub async fn list(connection: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Job>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs ORDER BY created_at DESC, id LIMIT $1");
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(limit).fetch_all(connection).await
}

/// Takes the job that has waited longest, or one whose worker has fallen silent.
pub async fn claim(pool: &PgPool, node: &str) -> sqlx::Result<Option<Claim>> {
    sqlx::query_as(
        "UPDATE jobs SET state = 'running', fence = fence + 1, attempts = attempts + 1, node = $1,
             lease_until = now() + make_interval(secs => $2)
         WHERE id = (
             SELECT id FROM jobs
             WHERE (state = 'waiting' AND run_at <= now()) OR (state = 'running' AND lease_until < now())
             ORDER BY run_at, created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
         RETURNING id, kind, work, step, steps_done, attempts, max_attempts, fence, requested_by",
    )
    .bind(node)
    .bind(LEASE_SECONDS)
    .fetch_optional(pool)
    .await
}

/// Ends the leases of this node's former process. Only the one process that has the node's lock may call it: what
/// its forerunner held is held by nobody.
pub async fn abandon_former(pool: &PgPool, node: &str) -> sqlx::Result<u64> {
    sqlx::query("UPDATE jobs SET lease_until = '-infinity' WHERE state = 'running' AND node = $1")
        .bind(node)
        .execute(pool)
        .await
        .map(|done| done.rows_affected())
}

/// Gives back what a node's process had claimed, before it ends in good order.
pub async fn give_back(pool: &PgPool, node: &str) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE jobs SET state = 'waiting', attempts = attempts - 1, fence = fence + 1, lease_until = NULL
         WHERE state = 'running' AND node = $1",
    )
    .bind(node)
    .execute(pool)
    .await
    .map(drop)
}

/// Keeps a claim. `Ok(false)`: it is lost, somebody else has the job.
pub async fn renew(pool: &PgPool, claim: &Claim) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE jobs SET lease_until = now() + make_interval(secs => $3) WHERE id = $1 AND fence = $2",
    )
    .bind(claim.id.0)
    .bind(claim.fence)
    .bind(LEASE_SECONDS)
    .execute(pool)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Where a job goes on.
#[derive(Debug)]
pub struct Saved<'a> {
    pub step: &'a Value,
    pub percent: u8,
    pub progress: &'a str,
}

/// Saves the next step. `Ok(false)`: the claim is lost and nothing was saved.
pub async fn save_step(pool: &PgPool, claim: &Claim, saved: &Saved<'_>) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE jobs SET step = $3, steps_done = steps_done + 1, percent = $4, progress = $5, attempts = 1, error = NULL, hint = NULL,
             lease_until = now() + make_interval(secs => $6)
         WHERE id = $1 AND fence = $2 AND state = 'running'",
    )
    .bind(claim.id.0)
    .bind(claim.fence)
    .bind(saved.step)
    .bind(i16::from(saved.percent))
    .bind(saved.progress)
    .bind(LEASE_SECONDS)
    .execute(pool)
    .await
    .map(|done| done.rows_affected() == 1)
}

pub async fn succeed(pool: &PgPool, claim: &Claim, result: &Value) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE jobs SET state = 'succeeded', percent = 100, progress = 'done', result = $3, error = NULL,
             hint = NULL, finished_at = now(), lease_until = NULL
         WHERE id = $1 AND fence = $2 AND state = 'running'",
    )
    .bind(claim.id.0)
    .bind(claim.fence)
    .bind(result)
    .execute(pool)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Why a step did not work.
#[derive(Debug)]
pub struct Failure<'a> {
    pub error: &'a str,
    pub hint: Option<&'a str>,
}

/// Puts a job back for another try after `seconds`.
pub async fn retry_later(
    pool: &PgPool,
    claim: &Claim,
    failure: &Failure<'_>,
    seconds: f64,
) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE jobs SET state = 'waiting', error = $3, hint = $4, run_at = now() + make_interval(secs => $5),
             lease_until = NULL
         WHERE id = $1 AND fence = $2 AND state = 'running'",
    )
    .bind(claim.id.0)
    .bind(claim.fence)
    .bind(failure.error)
    .bind(failure.hint)
    .bind(seconds)
    .execute(pool)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Puts a job back that waits for something. It has not failed, so this is no try.
pub async fn put_back(pool: &PgPool, claim: &Claim, seconds: f64) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE jobs SET state = 'waiting', attempts = attempts - 1, run_at = now() + make_interval(secs => $3),
             lease_until = NULL
         WHERE id = $1 AND fence = $2 AND state = 'running'",
    )
    .bind(claim.id.0)
    .bind(claim.fence)
    .bind(seconds)
    .execute(pool)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Ends a job that cannot succeed, in the transaction that cleans up after it.
pub async fn fail(connection: &mut PgConnection, claim: &Claim, failure: &Failure<'_>) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE jobs SET state = 'failed', progress = 'failed', error = $3, hint = $4, finished_at = now(),
             lease_until = NULL
         WHERE id = $1 AND fence = $2 AND state = 'running'",
    )
    .bind(claim.id.0)
    .bind(claim.fence)
    .bind(failure.error)
    .bind(failure.hint)
    .execute(connection)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Whether a job of a kind failed a short while ago.
pub async fn failed_within_hour(connection: &mut PgConnection, kind: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM jobs
         WHERE kind = $1 AND state = 'failed' AND finished_at > now() - interval '1 hour')",
    )
    .bind(kind)
    .fetch_one(connection)
    .await
}

/// How many jobs failed in the last day, and how many are unfinished.
pub async fn counts(connection: &mut PgConnection) -> sqlx::Result<(i64, i64)> {
    sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 'failed' AND finished_at > now() - interval '1 day'),
             count(*) FILTER (WHERE state IN ('waiting', 'running')) FROM jobs",
    )
    .fetch_one(connection)
    .await
}
