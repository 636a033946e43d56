//! Subscriptions: when they end, and what tenants were told about it.

use loomworks_core::ids::TenantId;
use loomworks_core::subscription::Notice;
use loomworks_core::tenant::TenantState;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::Date;

/// A subscription and how its tenant stands.
#[derive(Clone, Debug, FromRow)]
pub struct Row {
    #[sqlx(try_from = "Uuid")]
    pub id: TenantId,
    #[sqlx(try_from = "String")]
    pub state: TenantState,
    pub suspended_by_subscription: bool,
    pub subscription_expires: Option<Date>,
    /// The notices given for this end, by their names.
    sent: Vec<String>,
}

impl Row {
    #[must_use]
    pub fn sent(&self) -> Vec<Notice> {
        Notice::ALL
            .into_iter()
            .filter(|notice| self.sent.iter().any(|sent| sent == notice.as_str()))
            .collect()
    }
}

const COLUMNS: &str = "id, state, suspension_cause IS NOT DISTINCT FROM 'subscription' AS suspended_by_subscription, \
    subscription_expires, ARRAY(SELECT notice FROM subscription_notices n \
        WHERE n.tenant_id = tenants.id AND n.expires = subscription_expires) AS sent";

/// Subscriptions about which something may be due.
///
/// Those that end within two weeks or have ended, and those whose end has suspended the tenant, but for tenants that
/// are suspended for it and still to be.
pub async fn candidates(connection: &mut PgConnection, grace_days: i32) -> sqlx::Result<Vec<Row>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM tenants
         WHERE (state = 'active' AND subscription_expires <= (now() AT TIME ZONE 'UTC')::date + 14)
         OR (state = 'suspended' AND suspension_cause = 'subscription' AND (subscription_expires IS NULL
             OR subscription_expires + $1 > (now() AT TIME ZONE 'UTC')::date))
         ORDER BY subscription_expires, id LIMIT 10000"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(grace_days).fetch_all(connection).await
}

/// One tenant's, locked until the transaction ends.
pub async fn lock(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Row> {
    let sql = format!("SELECT {COLUMNS} FROM tenants WHERE id = $1 FOR UPDATE");
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.0).fetch_one(connection).await
}

/// Notes that a notice was given, in the transaction that gives it.
pub async fn record_notice(
    connection: &mut PgConnection,
    tenant: TenantId,
    expires: Date,
    notice: Notice,
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO subscription_notices (tenant_id, expires, notice) VALUES ($1, $2, $3)")
        .bind(tenant.0)
        .bind(expires)
        .bind(notice.as_str())
        .execute(connection)
        .await
        .map(drop)
}
