//! Notifications.

use loomworks_core::ids::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::Time;
use crate::notifications::Notice;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

pub async fn insert(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    notice: &Notice,
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO notifications (tenant_id, event, severity, message, detail) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(tenant.map(|tenant| tenant.0))
    .bind(notice.event)
    .bind(notice.severity.as_str())
    .bind(&notice.message)
    .bind(&notice.detail)
    .execute(connection)
    .await
    .map(drop)
}

/// Removes up to `rows` notifications of `days` days ago or earlier; says how many.
pub async fn remove_old(connection: &mut PgConnection, days: i32, rows: i64) -> sqlx::Result<u64> {
    sqlx::query(
        "DELETE FROM notifications WHERE id IN (
             SELECT id FROM notifications WHERE at < now() - make_interval(days => $1) ORDER BY at LIMIT $2)",
    )
    .bind(days)
    .bind(rows)
    .execute(connection)
    .await
    .map(|done| done.rows_affected())
}

/// Something that people were told.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Notification {
    pub id: i64,
    /// Nothing: for operators.
    pub tenant_id: Option<Uuid>,
    #[schema(value_type = String, format = DateTime)]
    pub at: Time,
    #[schema(example = "quota.storage_nearly_full")]
    pub event: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// One sentence for people.
    pub message: String,
    /// For machines.
    #[schema(value_type = Object)]
    pub detail: Value,
}

/// Which notifications are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    pub tenant: Option<TenantId>,
    pub severity: Option<Severity>,
    /// `*`, a name, or the beginning of names, as in `quota.*`.
    pub event: Option<&'a str>,
}

/// Up to `rows` notifications, newest first, from the one after `after` on.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter<'_>,
    after: Option<i64>,
    rows: i64,
) -> sqlx::Result<Vec<Notification>> {
    sqlx::query_as(
        "SELECT id, tenant_id, at, event, severity, message, detail FROM notifications
         WHERE ($1::uuid IS NULL OR tenant_id = $1) AND ($2::text IS NULL OR severity = $2)
         AND ($3::text IS NULL OR event = $3 OR ($3 LIKE '%*' AND starts_with(event, rtrim($3, '*'))))
         AND ($4::bigint IS NULL OR id < $4) ORDER BY id DESC LIMIT $5",
    )
    .bind(filter.tenant.map(|tenant| tenant.0))
    .bind(filter.severity.map(Severity::as_str))
    .bind(filter.event)
    .bind(after)
    .bind(rows)
    .fetch_all(connection)
    .await
}

/// A notification whose deliveries are not written down yet.
#[derive(Clone, Debug, FromRow)]
pub struct Fresh {
    #[sqlx(flatten)]
    pub notification: Notification,
    /// Nothing: it is for operators, or its tenant has gone.
    pub subdomain: Option<String>,
}

/// Takes notifications that are not fanned out, oldest first, for the rest of the transaction. Those that somebody
/// else has in hand are left to him.
pub async fn take_fresh(connection: &mut PgConnection, rows: i64) -> sqlx::Result<Vec<Fresh>> {
    sqlx::query_as(
        "SELECT n.id, n.tenant_id, n.at, n.event, n.severity, n.message, n.detail, t.subdomain
         FROM notifications n LEFT JOIN tenants t ON t.id = n.tenant_id
         WHERE n.fanned_out_at IS NULL ORDER BY n.id LIMIT $1 FOR UPDATE OF n SKIP LOCKED",
    )
    .bind(rows)
    .fetch_all(connection)
    .await
}

/// Says that their deliveries are written down.
pub async fn set_fanned_out(connection: &mut PgConnection, ids: &[i64]) -> sqlx::Result<()> {
    sqlx::query("UPDATE notifications SET fanned_out_at = now() WHERE id = ANY($1)")
        .bind(ids)
        .execute(connection)
        .await
        .map(drop)
}

/// Whether there are notifications that are not fanned out.
pub async fn any_fresh(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM notifications WHERE fanned_out_at IS NULL)")
        .fetch_one(connection)
        .await
}
