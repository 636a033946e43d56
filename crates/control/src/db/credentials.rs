//! Tenants' credentials while they are exchanged for others.

use loomworks_core::ids::TenantId;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

/// How a tenant's credentials stand.
#[derive(Clone, Debug, FromRow)]
pub struct Rotation {
    /// The role that the app is told to use.
    pub app_role: String,
    pub next_password_wrapped: Option<Vec<u8>>,
    /// The role that was in use before, while it may still log in.
    pub retiring_role: Option<String>,
    /// Whether the former role's time is over.
    pub is_over: bool,
    /// Whether it has been over for as long again.
    pub is_long_over: bool,
}

impl Rotation {
    /// Whether this is the former role of a rotation that is under way.
    #[must_use]
    pub fn is_retiring(&self, role: &str) -> bool {
        self.retiring_role.as_deref() == Some(role) && self.app_role != role
    }
}

/// The state, with the password that the next role is to have. Made once: whoever asks again finds the first.
pub async fn prepare(
    connection: &mut PgConnection,
    tenant: TenantId,
    next_password_wrapped: &[u8],
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenant_credentials SET next_password_wrapped = coalesce(next_password_wrapped, $2)
         WHERE tenant_id = $1",
    )
    .bind(tenant.0)
    .bind(next_password_wrapped)
    .execute(connection)
    .await
    .map(drop)
}

pub async fn rotation(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Option<Rotation>> {
    sqlx::query_as(
        "SELECT app_role, next_password_wrapped, retiring_role, coalesce(retire_after <= now(), true) AS is_over,
             coalesce(retire_after + (retire_after - rotated_at) <= now(), true) AS is_long_over
         FROM tenant_credentials JOIN tenants ON tenants.id = tenant_id WHERE tenant_id = $1",
    )
    .bind(tenant.0)
    .fetch_optional(connection)
    .await
}

/// Puts the next role and its password in use. `Ok(false)`: they are already.
pub async fn put_in_use(
    connection: &mut PgConnection,
    tenant: TenantId,
    from: &str,
    to: &str,
    overlap_seconds: f64,
) -> sqlx::Result<bool> {
    let moved =
        sqlx::query("UPDATE tenants SET app_role = $3, updated_at = now() WHERE id = $1 AND app_role = $2")
            .bind(tenant.0)
            .bind(from)
            .bind(to)
            .execute(&mut *connection)
            .await?;
    if moved.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(
        "UPDATE tenant_credentials SET app_password_wrapped = next_password_wrapped, next_password_wrapped = NULL,
             rotated_at = now(), retiring_role = $2, retire_after = now() + make_interval(secs => $3)
         WHERE tenant_id = $1",
    )
    .bind(tenant.0)
    .bind(from)
    .bind(overlap_seconds)
    .execute(connection)
    .await?;
    Ok(true)
}

/// Notes that the app was told of the role that is in use: only now does the time count in which both can log in.
pub async fn record_handed_over(
    connection: &mut PgConnection,
    tenant: TenantId,
    from: &str,
    overlap_seconds: f64,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenant_credentials SET rotated_at = now(), retire_after = now() + make_interval(secs => $3)
         WHERE tenant_id = $1 AND retiring_role = $2",
    )
    .bind(tenant.0)
    .bind(from)
    .bind(overlap_seconds)
    .execute(connection)
    .await
    .map(drop)
}

/// Notes that the former role can log in no more.
pub async fn record_retired(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenant_credentials SET retiring_role = NULL, retire_after = NULL WHERE tenant_id = $1",
    )
    .bind(tenant.0)
    .execute(connection)
    .await
    .map(drop)
}

/// Tenants whose password is older than this or whose last rotation was not brought to its end, the oldest first.
///
/// But for those whose rotation failed within the hour. A few at a time: each writes its app's password file.
pub async fn due(connection: &mut PgConnection, seconds: f64, at_once: i64) -> sqlx::Result<Vec<TenantId>> {
    sqlx::query_scalar::<_, Uuid>(
        "SELECT tenant_id FROM tenant_credentials JOIN tenants ON tenants.id = tenant_id
         WHERE (rotated_at < now() - make_interval(secs => $1) OR retire_after < now()) AND state IN ('active', 'suspended')
         AND NOT EXISTS (
             SELECT FROM jobs WHERE jobs.tenant_id = tenants.id AND kind = 'rotate_credentials'
             AND (jobs.state IN ('waiting', 'running') OR jobs.finished_at > now() - interval '1 hour'))
         ORDER BY rotated_at LIMIT greatest(0, $2 - (
             SELECT count(*) FROM jobs WHERE kind = 'rotate_credentials' AND jobs.state IN ('waiting', 'running')))",
    )
    .bind(seconds)
    .bind(at_once)
    .fetch_all(connection)
    .await
    .map(|ids| ids.into_iter().map(TenantId).collect())
}
