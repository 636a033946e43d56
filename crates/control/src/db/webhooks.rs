//! Webhooks, their secrets, and what became of each delivery.

use loomworks_core::ids::{DeliveryId, TenantId, WebhookId};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use uuid::Uuid;

use super::{Time, on_constraint};
use crate::error::Error;

/// A webhook, as shown: everything but its secret.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Webhook {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: WebhookId,
    /// Nothing: the platform's.
    pub tenant_id: Option<Uuid>,
    pub url: String,
    /// `*`, names, or beginnings of names such as `quota.*`.
    pub events: Vec<String>,
    pub description: String,
    /// `active`, `failing` (the last attempts failed) or `disabled` (nothing is sent any more).
    pub state: String,
    /// Attempts that failed since one succeeded.
    pub failures: i32,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub failing_since: Option<Time>,
    pub requested_by: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
}

const COLUMNS: &str =
    "id, tenant_id, url, events, description, state, failures, failing_since, requested_by, created_at";

/// A webhook that is to be.
#[derive(Debug)]
pub struct New<'a> {
    pub id: WebhookId,
    pub tenant: Option<TenantId>,
    pub url: &'a str,
    pub events: &'a [String],
    pub description: &'a str,
    pub requested_by: &'a str,
}

pub async fn insert(connection: &mut PgConnection, new: &New<'_>) -> sqlx::Result<Webhook> {
    let sql = format!(
        "INSERT INTO webhooks (id, tenant_id, url, events, description, requested_by) VALUES ($1, $2, $3, $4, $5, $6)
         RETURNING {COLUMNS}"
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(new.id.0)
        .bind(new.tenant.map(|tenant| tenant.0))
        .bind(new.url)
        .bind(new.events)
        .bind(new.description)
        .bind(new.requested_by)
        .fetch_one(connection)
        .await
}

/// The webhooks of a tenant, or the platform's own, oldest first. There are few: their number is limited.
pub async fn list(connection: &mut PgConnection, tenant: Option<TenantId>) -> sqlx::Result<Vec<Webhook>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM webhooks WHERE tenant_id IS NOT DISTINCT FROM $1 ORDER BY created_at, id LIMIT 1000"
    );
    sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.map(|tenant| tenant.0)).fetch_all(connection).await
}

pub async fn get(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    id: WebhookId,
) -> sqlx::Result<Option<Webhook>> {
    let sql = format!("SELECT {COLUMNS} FROM webhooks WHERE tenant_id IS NOT DISTINCT FROM $1 AND id = $2");
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(tenant.map(|tenant| tenant.0))
        .bind(id.0)
        .fetch_optional(connection)
        .await
}

/// Removes a webhook with its secrets and deliveries. `None`: there is none.
pub async fn delete(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    id: WebhookId,
) -> sqlx::Result<Option<Webhook>> {
    let sql = format!(
        "DELETE FROM webhooks WHERE tenant_id IS NOT DISTINCT FROM $1 AND id = $2 RETURNING {COLUMNS}"
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(tenant.map(|tenant| tenant.0))
        .bind(id.0)
        .fetch_optional(connection)
        .await
}

/// Stores the new present secret of a webhook, as wrapped with the master key.
pub async fn insert_secret(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    webhook: WebhookId,
    wrapped: &[u8],
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO webhook_secrets (id, webhook_id, tenant_id, secret_wrapped) VALUES ($1, $2, $3, $4)",
    )
    .bind(Uuid::new_v4())
    .bind(webhook.0)
    .bind(tenant.map(|tenant| tenant.0))
    .bind(wrapped)
    .execute(connection)
    .await
    .map(drop)
}

/// Lets the present secret of a webhook end after `hours`, forgets those that have ended, and says how many are left.
pub async fn end_secrets(connection: &mut PgConnection, webhook: WebhookId, hours: i32) -> sqlx::Result<i64> {
    sqlx::query("DELETE FROM webhook_secrets WHERE webhook_id = $1 AND ends_at < now()")
        .bind(webhook.0)
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "UPDATE webhook_secrets SET ends_at = now() + make_interval(hours => $2)
         WHERE webhook_id = $1 AND ends_at IS NULL",
    )
    .bind(webhook.0)
    .bind(hours)
    .execute(&mut *connection)
    .await?;
    sqlx::query_scalar("SELECT count(*) FROM webhook_secrets WHERE webhook_id = $1")
        .bind(webhook.0)
        .fetch_one(connection)
        .await
}

/// The wrapped secrets with which a webhook's deliveries are signed now, newest first.
pub async fn secrets(connection: &mut PgConnection, webhook: WebhookId) -> sqlx::Result<Vec<Vec<u8>>> {
    sqlx::query_scalar(
        "SELECT secret_wrapped FROM webhook_secrets WHERE webhook_id = $1 AND (ends_at IS NULL OR ends_at > now())
         ORDER BY created_at DESC, id LIMIT 10",
    )
    .bind(webhook.0)
    .fetch_all(connection)
    .await
}

/// A delivery, as shown.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Delivery {
    /// What the receiver is told in `Loomworks-Delivery`.
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: DeliveryId,
    /// The list's order.
    #[serde(skip)]
    pub number: i64,
    /// Nothing: a test.
    pub notification_id: Option<i64>,
    pub event: String,
    /// `waiting`, `delivered` or `failed`.
    pub state: String,
    pub attempts: i32,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_attempt_at: Option<Time>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_attempt_at: Option<Time>,
    /// What the receiver answered at the last attempt.
    pub http_status: Option<i32>,
    /// How long the last attempt took.
    pub duration_ms: Option<i32>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Time>,
}

/// Up to `rows` deliveries of a webhook, newest first, from the one after `after` on.
pub async fn deliveries(
    connection: &mut PgConnection,
    webhook: WebhookId,
    after: Option<i64>,
    rows: i64,
) -> sqlx::Result<Vec<Delivery>> {
    sqlx::query_as(
        "SELECT id, number, notification_id, event, state, attempts, next_attempt_at, last_attempt_at, http_status,
             duration_ms, error, created_at, finished_at
         FROM webhook_deliveries WHERE webhook_id = $1 AND ($2::bigint IS NULL OR number < $2)
         ORDER BY number DESC LIMIT $3",
    )
    .bind(webhook.0)
    .bind(after)
    .bind(rows)
    .fetch_all(connection)
    .await
}

/// Writes down a test of one webhook, unless one is under way.
pub async fn insert_test(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    webhook: WebhookId,
    event: &str,
    body: &str,
) -> Result<DeliveryId, Error> {
    let id = DeliveryId::random();
    let inserted = sqlx::query(
        "INSERT INTO webhook_deliveries (id, webhook_id, tenant_id, event, body) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(id.0)
    .bind(webhook.0)
    .bind(tenant.map(|tenant| tenant.0))
    .bind(event)
    .bind(body)
    .execute(connection)
    .await;
    on_constraint(inserted, "webhook_deliveries_one_test", || {
        Error::conflict("a test of this webhook is under way").with_hint("look at its deliveries")
    })?;
    Ok(id)
}

/// A notification as its receivers are to get it.
#[derive(Debug)]
pub struct ToFanOut<'a> {
    pub notification: i64,
    pub tenant: Option<TenantId>,
    pub event: &'a str,
    pub body: &'a str,
    /// The webhook that the notification is about: it is not told about itself.
    pub about: Option<WebhookId>,
}

/// Writes down a delivery for each webhook that wants a notification, and says which, with whose they are.
///
/// Whoever registered later than the notification was raised does not get it.
pub async fn fan_out(
    connection: &mut PgConnection,
    new: &ToFanOut<'_>,
) -> sqlx::Result<Vec<(DeliveryId, Option<TenantId>)>> {
    let rows: Vec<(Uuid, Option<Uuid>)> = sqlx::query_as(
        "INSERT INTO webhook_deliveries (id, webhook_id, tenant_id, about_tenant, notification_id, event, body)
         SELECT gen_random_uuid(), w.id, w.tenant_id, $2, n.id, $3, $4
         FROM notifications n JOIN webhooks w ON w.created_at <= n.at
         WHERE n.id = $1 AND (w.tenant_id IS NULL OR w.tenant_id = $2) AND w.state <> 'disabled'
         AND w.id IS DISTINCT FROM $5
         AND EXISTS (SELECT FROM unnest(w.events) pattern WHERE pattern = $3
                     OR (pattern LIKE '%*' AND starts_with($3, rtrim(pattern, '*'))))
         FOR KEY SHARE OF w
         ON CONFLICT (webhook_id, notification_id) DO NOTHING RETURNING id, tenant_id",
    )
    .bind(new.notification)
    .bind(new.tenant.map(|tenant| tenant.0))
    .bind(new.event)
    .bind(new.body)
    .bind(new.about.map(|webhook| webhook.0))
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id, tenant)| (DeliveryId(id), tenant.map(TenantId))).collect())
}

/// Deliveries that are due and that no job carries.
pub async fn due(connection: &mut PgConnection) -> sqlx::Result<Vec<(DeliveryId, Option<TenantId>)>> {
    let rows: Vec<(Uuid, Option<Uuid>)> = sqlx::query_as(
        "SELECT d.id, d.tenant_id FROM webhook_deliveries d
         WHERE d.state = 'waiting' AND d.next_attempt_at <= now()
         AND NOT EXISTS (SELECT FROM jobs j WHERE j.dedup_key = 'deliver_webhook ' || d.id
                         AND j.state IN ('waiting', 'running'))
         ORDER BY d.next_attempt_at LIMIT 500",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id, tenant)| (DeliveryId(id), tenant.map(TenantId))).collect())
}

/// What is needed to carry a delivery out.
#[derive(Clone, Debug, FromRow)]
pub struct ToSend {
    #[sqlx(try_from = "Uuid")]
    pub webhook_id: WebhookId,
    pub url: String,
    pub event: String,
    pub body: String,
    pub attempts: i32,
    /// Tried once and not again, also if the webhook is disabled.
    pub is_test: bool,
    pub is_disabled: bool,
}

/// A delivery that is due. `None`: it is not, or not there any more.
pub async fn to_send(connection: &mut PgConnection, id: DeliveryId) -> sqlx::Result<Option<ToSend>> {
    sqlx::query_as(
        "SELECT d.webhook_id, w.url, d.event, d.body, d.attempts, d.notification_id IS NULL AS is_test,
             w.state = 'disabled' AS is_disabled
         FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id
         WHERE d.id = $1 AND d.state = 'waiting' AND d.next_attempt_at <= now()",
    )
    .bind(id.0)
    .fetch_optional(connection)
    .await
}

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which one of the delivery it was, from 1.
    pub attempt: i32,
    pub http_status: Option<i32>,
    pub duration_ms: i32,
    /// Why it failed. Nothing: it did not.
    pub error: Option<String>,
}

/// Writes down how an attempt went and when the next one is (`retry_seconds`; nothing: there is none). `None`: that
/// was written down already, or the delivery is gone.
pub async fn record_attempt(
    connection: &mut PgConnection,
    id: DeliveryId,
    outcome: &Outcome,
    retry_seconds: Option<f64>,
) -> sqlx::Result<Option<WebhookId>> {
    let webhook: Option<Uuid> = sqlx::query_scalar(
        "UPDATE webhook_deliveries SET attempts = $2, last_attempt_at = now(), http_status = $3, duration_ms = $4,
             error = $5, next_attempt_at = now() + make_interval(secs => $6),
             state = CASE WHEN $5 IS NULL THEN 'delivered' WHEN $6 IS NULL THEN 'failed' ELSE 'waiting' END,
             finished_at = CASE WHEN $6 IS NULL THEN now() END
         WHERE id = $1 AND state = 'waiting' AND attempts = $2 - 1 RETURNING webhook_id",
    )
    .bind(id.0)
    .bind(outcome.attempt)
    .bind(outcome.http_status)
    .bind(outcome.duration_ms)
    .bind(&outcome.error)
    .bind(retry_seconds)
    .fetch_optional(connection)
    .await?;
    Ok(webhook.map(WebhookId))
}

/// Ends a delivery without another attempt.
pub async fn abandon(connection: &mut PgConnection, id: DeliveryId, error: &str) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE webhook_deliveries SET state = 'failed', error = $2, next_attempt_at = NULL, finished_at = now()
         WHERE id = $1 AND state = 'waiting'",
    )
    .bind(id.0)
    .bind(error)
    .execute(connection)
    .await
    .map(drop)
}

/// A webhook has answered as it should: it is (again) in use.
pub async fn record_success(connection: &mut PgConnection, id: WebhookId) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE webhooks SET state = 'active', failures = 0, failing_since = NULL
         WHERE id = $1 AND (state <> 'active' OR failures > 0)",
    )
    .bind(id.0)
    .execute(connection)
    .await
    .map(drop)
}

/// Removes up to `rows` deliveries that ended `days` days ago or earlier; says how many.
pub async fn remove_old(connection: &mut PgConnection, days: i32, rows: i64) -> sqlx::Result<u64> {
    sqlx::query(
        "DELETE FROM webhook_deliveries WHERE id IN (
             SELECT id FROM webhook_deliveries WHERE finished_at < now() - make_interval(days => $1)
             ORDER BY finished_at LIMIT $2)",
    )
    .bind(days)
    .bind(rows)
    .execute(connection)
    .await
    .map(|done| done.rows_affected())
}

/// Counts an attempt that failed. `Some`: with it the webhook has become disabled, since nothing has arrived for
/// `patience_days`.
pub async fn record_failure(
    connection: &mut PgConnection,
    id: WebhookId,
    failing_after: i32,
    patience_days: i32,
) -> sqlx::Result<Option<Webhook>> {
    let sql = format!(
        "UPDATE webhooks SET failures = failures + 1, failing_since = coalesce(failing_since, now()),
             state = CASE WHEN failures + 1 >= $2 THEN 'failing' ELSE state END
         WHERE id = $1 AND state <> 'disabled' RETURNING {COLUMNS}"
    );
    sqlx::query(AssertSqlSafe(sql)).bind(id.0).bind(failing_after).execute(&mut *connection).await?;
    let sql = format!(
        "UPDATE webhooks SET state = 'disabled'
         WHERE id = $1 AND state = 'failing' AND failing_since < now() - make_interval(days => $2) RETURNING {COLUMNS}"
    );
    let disabled: Option<Webhook> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(id.0)
        .bind(patience_days)
        .fetch_optional(&mut *connection)
        .await?;
    if disabled.is_some() {
        sqlx::query(
            "UPDATE webhook_deliveries SET state = 'failed', error = 'the webhook was disabled',
                 next_attempt_at = NULL, finished_at = now()
             WHERE webhook_id = $1 AND state = 'waiting' AND notification_id IS NOT NULL",
        )
        .bind(id.0)
        .execute(connection)
        .await?;
    }
    Ok(disabled)
}
