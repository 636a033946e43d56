//! AI sessions.

use loomworks_core::ids::{SessionId, SnapshotId, TenantId};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::Time;
use crate::page::Asked;

/// An AI session, as shown to whoever may see it. Its password is shown once, when it is opened.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Session {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: SessionId,
    pub tenant_id: Uuid,
    /// Who works in it.
    pub agent: String,
    /// What for, in words.
    pub purpose: String,
    /// The role it logs in as.
    pub role: String,
    /// `opening`, `open`, `closing` or `closed`.
    pub state: String,
    /// Taken when the session was opened.
    pub snapshot_id: Option<Uuid>,
    pub requested_by: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub closed_at: Option<Time>,
}

const COLUMNS: &str = "id, tenant_id, agent, purpose, role, state, snapshot_id, requested_by, created_at, expires_at, \
                       closed_at";

/// A session that is to be.
#[derive(Debug)]
pub struct New<'a> {
    pub id: SessionId,
    pub tenant: TenantId,
    pub agent: &'a str,
    pub purpose: &'a str,
    pub role: &'a str,
    pub snapshot: SnapshotId,
    pub minutes: i32,
    pub requested_by: &'a str,
}

pub async fn insert(connection: &mut PgConnection, new: &New<'_>) -> sqlx::Result<Session> {
    let sql = format!(
        "INSERT INTO ai_sessions (id, tenant_id, agent, purpose, role, snapshot_id, requested_by, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(mins => $8)) RETURNING {COLUMNS}"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(new.id.0)
        .bind(new.tenant.0)
        .bind(new.agent)
        .bind(new.purpose)
        .bind(new.role)
        .bind(new.snapshot.0)
        .bind(new.requested_by)
        .bind(new.minutes)
        .fetch_one(connection)
        .await
}

pub async fn get(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: SessionId,
) -> sqlx::Result<Option<Session>> {
    let sql = format!("SELECT {COLUMNS} FROM ai_sessions WHERE tenant_id = $1 AND id = $2");
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.0).bind(id.0).fetch_optional(connection).await
}

/// Where a page of sessions begins.
pub type After = (Time, Uuid);

/// The sessions of a tenant, newest first.
pub async fn list(
    connection: &mut PgConnection,
    tenant: TenantId,
    asked: &Asked<After>,
) -> sqlx::Result<Vec<Session>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM ai_sessions WHERE tenant_id = $1
             AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3))
         ORDER BY created_at DESC, id DESC LIMIT $4"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(tenant.0)
        .bind(asked.after.map(|after| after.0))
        .bind(asked.after.map(|after| after.1))
        .bind(asked.rows())
        .fetch_all(connection)
        .await
}

/// Moves a session on in its life. A state it has left already does not come back: `Ok(false)`.
pub async fn set_state(
    connection: &mut PgConnection,
    id: SessionId,
    from: &[&str],
    to: &str,
) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE ai_sessions SET state = $3, closed_at = CASE WHEN $3 = 'closed' THEN now() END
         WHERE id = $1 AND state = ANY($2)",
    )
    .bind(id.0)
    .bind(from)
    .bind(to)
    .execute(connection)
    .await
    .map(|done| done.rows_affected() > 0)
}

/// Sessions whose time is over and that still have a role.
pub async fn expired(connection: &mut PgConnection) -> sqlx::Result<Vec<(TenantId, SessionId)>> {
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "SELECT tenant_id, id FROM ai_sessions WHERE state <> 'closed' AND expires_at < now()
         ORDER BY expires_at LIMIT 100",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(tenant, id)| (TenantId(tenant), SessionId(id))).collect())
}
