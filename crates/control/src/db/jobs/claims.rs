//! Jobs in the hands of workers: claimed with a lease and a fence, kept, changed, given back.
//!
//! Every change a worker makes is a [`Change`] and goes through [`apply`], whose one condition is the fence: a worker
//! that has lost its claim changes nothing.

use loomworks_core::ids::{JobId, TenantId};
use serde::Serialize;
use serde_json::Value;
use sqlx::{FromRow, PgConnection, PgPool};
use uuid::Uuid;

use super::{CHANGES, LEASE_SECONDS};

/// Jobs claimed or changed in one statement. Their ids must fit into one notification of 8000 bytes.
pub const BATCH_MAX: usize = 200;

/// A job in the hands of a worker.
#[derive(Clone, Debug, FromRow)]
pub struct Claim {
    #[sqlx(try_from = "Uuid")]
    pub id: JobId,
    pub tenant_id: Option<Uuid>,
    pub kind: String,
    pub work: Value,
    pub step: Option<Value>,
    pub steps_done: i32,
    pub attempts: i32,
    pub max_attempts: i32,
    pub fence: i64,
    pub requested_by: String,
    /// What the tries of this step said so far.
    pub error: Option<String>,
    pub hint: Option<String>,
    /// Somebody wants it to stop.
    pub cancel_requested: bool,
}

impl Claim {
    #[must_use]
    pub fn tenant(&self) -> Option<TenantId> {
        self.tenant_id.map(TenantId)
    }
}

/// What a worker asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// How many jobs are drawn from `high_priority`, `default` and `low_priority`; what a queue cannot use it gives
    /// to the others.
    pub shares: [i32; 3],
    /// How many jobs of one tenant may run at once.
    pub per_tenant: i32,
    /// How many jobs of no tenant this node may run at once.
    pub of_no_tenant: i32,
}

/// Claims jobs for a node, at most as many as the shares add up to.
pub async fn claim(pool: &PgPool, node: &str, wanted: Wanted) -> sqlx::Result<Vec<Claim>> {
    sqlx::query_as(
        "SELECT id, tenant_id, kind, work, step, steps_done, attempts, max_attempts, fence, requested_by,
             error, hint, cancel_requested_at IS NOT NULL AS cancel_requested
         FROM claim_jobs($1, $2, $3, $4, $5, $6)",
    )
    .bind(node)
    .bind(wanted.shares.iter().sum::<i32>())
    .bind(wanted.shares)
    .bind(LEASE_SECONDS)
    .bind(wanted.per_tenant)
    .bind(wanted.of_no_tenant)
    .fetch_all(pool)
    .await
}

/// Ends the leases of this node's former process. Only the one process that has the node's lock may call it: what
/// its forerunner held is held by nobody.
pub async fn abandon_former(pool: &PgPool, node: &str) -> sqlx::Result<u64> {
    sqlx::query(
        "UPDATE jobs SET lease_until = least(lease_until, now()) WHERE state = 'running' AND node = $1",
    )
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

/// What follows for a job that a worker has in hand.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Outcome {
    /// The claim is kept for another lease, with how far the step has come if that is known.
    Keep { percent: Option<u8> },
    /// It goes on with this step, which has not been tried yet.
    Next { value: Value, percent: u8, words: &'static str },
    /// It is done, with this result.
    Succeeded { value: Value },
    /// The step did not work; another try after `seconds`.
    Again { error: String, hint: Option<String>, seconds: f64 },
    /// It waits for something and has not failed, so this was no try.
    Back { seconds: f64 },
    /// It cannot succeed.
    Failed { error: String, hint: Option<String> },
    /// It was stopped because somebody wanted it to.
    Cancelled,
}

/// An outcome and the claim under which it is written down.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    pub id: JobId,
    pub fence: i64,
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Change {
    #[must_use]
    pub fn new(claim: &Claim, outcome: Outcome) -> Self {
        Self { id: claim.id, fence: claim.fence, outcome }
    }
}

/// What became of a change that was written down. One that was not is of a claim that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRow)]
pub struct Applied {
    #[sqlx(try_from = "Uuid")]
    pub id: JobId,
    pub fence: i64,
    /// Somebody wants the job to stop.
    pub cancel_requested: bool,
}

impl Applied {
    /// Whether this is what became of that change.
    #[must_use]
    pub fn is_of(&self, change: &Change) -> bool {
        self.id == change.id && self.fence == change.fence
    }
}

/// Writes outcomes down, each if its claim still holds.
pub async fn apply(connection: &mut PgConnection, changes: &[Change]) -> sqlx::Result<Vec<Applied>> {
    let changes = serde_json::to_value(changes).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query_as(
        "WITH change AS (
             SELECT * FROM jsonb_to_recordset($1) AS change (id uuid, fence bigint, what text, value jsonb,
                 percent smallint, words text, error text, hint text, seconds double precision)
         ), applied AS (
             UPDATE jobs SET
                 state = CASE what WHEN 'keep' THEN 'running' WHEN 'next' THEN 'running'
                                   WHEN 'again' THEN 'waiting' WHEN 'back' THEN 'waiting' ELSE what END,
                 step = CASE what WHEN 'next' THEN value ELSE step END,
                 steps_done = steps_done + (what = 'next')::int,
                 attempts = CASE what WHEN 'next' THEN 1 WHEN 'back' THEN attempts - 1 ELSE attempts END,
                 percent = CASE what WHEN 'next' THEN change.percent WHEN 'succeeded' THEN 100
                                     WHEN 'keep' THEN coalesce(change.percent, jobs.percent) ELSE jobs.percent END,
                 progress = CASE what WHEN 'next' THEN words WHEN 'succeeded' THEN 'done' WHEN 'failed' THEN 'failed'
                                      WHEN 'cancelled' THEN 'cancelled' ELSE progress END,
                 result = CASE what WHEN 'succeeded' THEN value ELSE result END,
                 error = CASE WHEN what IN ('keep', 'back') THEN jobs.error ELSE change.error END,
                 hint = CASE WHEN what IN ('keep', 'back') THEN jobs.hint ELSE change.hint END,
                 run_at = CASE WHEN what IN ('again', 'back') THEN clock_timestamp() + make_interval(secs => seconds)
                               ELSE run_at END,
                 lease_until = CASE WHEN what IN ('keep', 'next')
                                    THEN clock_timestamp() + make_interval(secs => $2) END,
                 finished_at = CASE WHEN what IN ('succeeded', 'failed', 'cancelled') THEN clock_timestamp() END
             FROM change
             WHERE jobs.id = change.id AND jobs.fence = change.fence AND jobs.state = 'running'
             RETURNING jobs.id, jobs.fence, cancel_requested_at IS NOT NULL AS cancel_requested,
                 what <> 'keep' OR change.percent IS NOT NULL AS seen
         ), told AS (
             SELECT count(pg_notify($3, ids)) FROM (
                 SELECT string_agg(id::text, ' ') AS ids FROM applied WHERE applied.seen) seen
             WHERE ids IS NOT NULL
         )
         SELECT id, fence, cancel_requested FROM applied, told",
    )
    .bind(changes)
    .bind(LEASE_SECONDS)
    .bind(CHANGES)
    .fetch_all(connection)
    .await
}
