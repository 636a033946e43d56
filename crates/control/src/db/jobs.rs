//! The queue as everybody sees it: a row a job.

pub mod claims;

use jiff_sqlx::ToSqlx as _;
use loomworks_core::ids::{JobId, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use uuid::Uuid;

use super::Time;

pub use claims::Claim;

/// The channel on which it is told that a job waits.
pub const CHANNEL: &str = "loomworks_jobs";

/// The channel on which it is told that jobs have changed: their ids, with spaces between them.
pub const CHANGES: &str = "loomworks_job_changes";

/// How long a worker that says nothing keeps its claim.
pub const LEASE_SECONDS: f64 = 10.0;

/// Which jobs are taken first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Queue {
    /// Somebody waits for it.
    HighPriority,
    Default,
    /// Nobody would notice if it came an hour later.
    LowPriority,
}

impl Queue {
    pub const ALL: [Self; 3] = [Self::HighPriority, Self::Default, Self::LowPriority];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HighPriority => "high_priority",
            Self::Default => "default",
            Self::LowPriority => "low_priority",
        }
    }
}

impl TryFrom<String> for Queue {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::ALL.into_iter().find(|queue| queue.as_str() == text).ok_or(text)
    }
}

/// What has become of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Waiting,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl State {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A job, as shown to whoever may see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Job {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: JobId,
    pub tenant_id: Option<Uuid>,
    pub kind: String,
    #[sqlx(try_from = "String")]
    pub queue: Queue,
    /// `waiting`, `running`, `succeeded`, `failed` or `cancelled`.
    pub state: String,
    /// It is to be stopped as soon as it can be.
    pub cancel_requested: bool,
    /// How far it is.
    pub percent: i16,
    /// What it does now, in words.
    pub progress: String,
    /// Tries of the present step.
    pub attempts: i32,
    /// After so many tries of one step it has failed.
    pub max_attempts: i32,
    pub error: Option<String>,
    pub hint: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub result: Option<Value>,
    pub requested_by: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    /// It is not taken before.
    #[schema(value_type = String, format = DateTime)]
    pub run_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Time>,
}

impl Job {
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.state.as_str(), "succeeded" | "failed" | "cancelled")
    }

    /// What a list of jobs is sorted by.
    #[must_use]
    pub fn key(&self) -> Key {
        (self.created_at.to_jiff(), self.id.0)
    }
}

/// The moment a job was made, and its id for those of one moment.
pub type Key = (jiff::Timestamp, Uuid);

const COLUMNS: &str = "id, tenant_id, kind, queue, state, cancel_requested_at IS NOT NULL AS cancel_requested, \
                       percent, progress, attempts, max_attempts, error, hint, result, requested_by, created_at, \
                       run_at, finished_at";

/// A job that is to be.
#[derive(Debug)]
pub struct New<'a> {
    pub kind: &'a str,
    pub tenant: Option<TenantId>,
    pub queue: Queue,
    /// Of the unfinished jobs one a key.
    pub dedup_key: &'a str,
    pub work: Value,
    pub max_attempts: i32,
    pub requested_by: &'a str,
}

/// Enqueues a job in the transaction that wants it. `None`: an unfinished one has the same key.
pub async fn insert(connection: &mut PgConnection, new: New<'_>) -> sqlx::Result<Option<JobId>> {
    let id = JobId::random();
    let inserted = sqlx::query(
        "INSERT INTO jobs (id, tenant_id, kind, queue, dedup_key, work, max_attempts, requested_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
    )
    .bind(id.0)
    .bind(new.tenant.map(|tenant| tenant.0))
    .bind(new.kind)
    .bind(new.queue.as_str())
    .bind(new.dedup_key)
    .bind(new.work)
    .bind(new.max_attempts)
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
    sqlx::query_as(AssertSqlSafe(format!("SELECT {COLUMNS} FROM jobs WHERE id = $1")))
        .bind(id.0)
        .fetch_optional(connection)
        .await
}

/// What a job was asked to do, as its kind reads it.
pub async fn work(connection: &mut PgConnection, id: JobId) -> sqlx::Result<Option<Value>> {
    sqlx::query_scalar("SELECT work FROM jobs WHERE id = $1").bind(id.0).fetch_optional(connection).await
}

/// Which jobs somebody wants to see; what is left out is not asked about.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub state: Option<State>,
    pub kind: Option<String>,
    pub queue: Option<Queue>,
    pub tenant: Option<TenantId>,
}

/// The newest jobs that pass a filter, after (older than) a key.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter,
    after: Option<Key>,
    rows: i64,
) -> sqlx::Result<Vec<Job>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM jobs
         WHERE ($1::text IS NULL OR state = $1) AND ($2::text IS NULL OR kind = $2)
         AND ($3::text IS NULL OR queue = $3) AND ($4::uuid IS NULL OR tenant_id = $4)
         AND ($5::timestamptz IS NULL OR (created_at, id) < ($5, $6))
         ORDER BY created_at DESC, id DESC LIMIT $7"
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(filter.state.map(State::as_str))
        .bind(&filter.kind)
        .bind(filter.queue.map(Queue::as_str))
        .bind(filter.tenant.map(|tenant| tenant.0))
        .bind(after.map(|(at, _)| at.to_sqlx()))
        .bind(after.map(|(_, id)| id))
        .bind(rows)
        .fetch_all(connection)
        .await
}

/// A job that somebody changes from outside, locked until he has.
#[derive(Debug, FromRow)]
pub struct Locked {
    #[sqlx(try_from = "Uuid")]
    pub id: JobId,
    pub tenant_id: Option<Uuid>,
    pub kind: String,
    pub state: String,
    pub dedup_key: String,
    pub work: Value,
    pub step: Option<Value>,
    pub requested_by: String,
}

/// Locks a job.
pub async fn lock(connection: &mut PgConnection, id: JobId) -> sqlx::Result<Option<Locked>> {
    sqlx::query_as(
        "SELECT id, tenant_id, kind, state, dedup_key, work, step, requested_by FROM jobs WHERE id = $1 FOR UPDATE",
    )
    .bind(id.0)
    .fetch_optional(connection)
    .await
}

/// Ends a job that waits. Its fence rises, so that nobody's former claim counts.
pub async fn cancel_waiting(connection: &mut PgConnection, id: JobId) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE jobs SET state = 'cancelled', progress = 'cancelled', finished_at = now(), fence = fence + 1,
             cancel_requested_at = coalesce(cancel_requested_at, now()) WHERE id = $1 AND state = 'waiting'",
    )
    .bind(id.0)
    .execute(&mut *connection)
    .await?;
    tell_changed(connection, id).await
}

/// Asks the worker of a running job to stop it.
pub async fn request_cancel(connection: &mut PgConnection, id: JobId) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, now()) WHERE id = $1 AND state = 'running'",
    )
    .bind(id.0)
    .execute(&mut *connection)
    .await?;
    tell_changed(connection, id).await
}

/// Lets a job that has ended wait again at `step`, with all its tries. An unfinished one with the same dedup key
/// violates `jobs_one_unfinished`.
pub async fn retry(connection: &mut PgConnection, id: JobId, step: &Value) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE jobs SET state = 'waiting', step = $2, attempts = 0, progress = 'waiting', error = NULL, hint = NULL,
             run_at = now(), finished_at = NULL, cancel_requested_at = NULL
         WHERE id = $1 AND state IN ('failed', 'cancelled')",
    )
    .bind(id.0)
    .bind(step)
    .execute(&mut *connection)
    .await?;
    sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(&mut *connection).await?;
    tell_changed(connection, id).await
}

async fn tell_changed(connection: &mut PgConnection, id: JobId) -> sqlx::Result<()> {
    sqlx::query("SELECT pg_notify($1, $2)")
        .bind(CHANGES)
        .bind(id.to_string())
        .execute(connection)
        .await
        .map(drop)
}

/// The condition that nobody should enqueue another of these jobs now: one is unfinished, or some ended without success.
/// A minute after the first the next is due, after each further one twice as late, at most about an hour: what stood in
/// the way may have been put right, and people are told each time.
pub(super) fn are_busy(which: &str) -> String {
    format!(
        "(EXISTS (SELECT FROM jobs WHERE {which} AND jobs.state IN ('waiting', 'running'))
          OR EXISTS (SELECT FROM jobs WHERE {which} AND jobs.state IN ('failed', 'cancelled')
              AND jobs.finished_at > now() - interval '1 day'
              HAVING max(jobs.finished_at) > now() - interval '1 minute' * 2 ^ least(count(*) - 1, 6)))"
    )
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

/// Removes up to `rows` jobs that ended `days` days ago or earlier; says how many.
pub async fn remove_finished(connection: &mut PgConnection, days: i32, rows: i64) -> sqlx::Result<u64> {
    sqlx::query(
        "DELETE FROM jobs WHERE id IN (
             SELECT id FROM jobs WHERE finished_at < now() - make_interval(days => $1)
             ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(days)
    .bind(rows)
    .execute(connection)
    .await
    .map(|done| done.rows_affected())
}

/// How many jobs of each tenant wait in each queue.
pub async fn waiting(pool: &sqlx::PgPool) -> sqlx::Result<Vec<(Option<TenantId>, Queue, i64)>> {
    let rows: Vec<(Option<Uuid>, String, i64)> = sqlx::query_as(
        "SELECT tenant_id, queue, count(*) FROM jobs WHERE state = 'waiting' GROUP BY tenant_id, queue LIMIT 10000",
    )
    .fetch_all(pool)
    .await?;
    let known = |(tenant, queue, count): (Option<Uuid>, String, i64)| {
        Some((tenant.map(TenantId), Queue::try_from(queue).ok()?, count))
    };
    Ok(rows.into_iter().filter_map(known).collect())
}

/// The unfinished jobs of a kind: their work, and the step that is saved.
pub async fn unfinished_of_kind(
    connection: &mut PgConnection,
    kind: &str,
) -> sqlx::Result<Vec<(Value, Option<Value>)>> {
    sqlx::query_as("SELECT work, step FROM jobs WHERE kind = $1 AND state IN ('waiting', 'running')")
        .bind(kind)
        .fetch_all(connection)
        .await
}
