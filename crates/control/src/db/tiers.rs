//! Tiers: what each gives to the tenants that have it.

use loomworks_core::tenant::{Limits, Tier};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection};

use super::Time;
use super::tenants::LIMITS_IN_FORCE;

/// A tier with its limits.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct TierLimits {
    #[sqlx(try_from = "String")]
    #[schema(value_type = String, example = "basic")]
    pub name: Tier,
    pub max_users: i32,
    pub max_storage_gb: f64,
    pub max_ai_operations_daily: i32,
    /// How many days back its tenants can go. Absent: what the platform is set to (`serve --recovery-days`).
    pub recovery_days: Option<i32>,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Time,
}

impl TierLimits {
    #[must_use]
    pub fn limits(&self) -> Limits {
        let Self { max_users, max_storage_gb, max_ai_operations_daily, recovery_days, .. } = *self;
        Limits { max_users, max_storage_gb, max_ai_operations_daily, recovery_days }
    }
}

const COLUMNS: &str = "name, max_users, max_storage_gb, max_ai_operations_daily, recovery_days, updated_at";

/// The tiers, the smallest first.
pub async fn list(connection: &mut PgConnection) -> sqlx::Result<Vec<TierLimits>> {
    let sql = format!("SELECT {COLUMNS} FROM tiers ORDER BY max_users, name LIMIT 10");
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(connection).await
}

/// One tier, locked until the transaction ends.
pub async fn lock(connection: &mut PgConnection, tier: Tier) -> sqlx::Result<TierLimits> {
    let sql = format!("SELECT {COLUMNS} FROM tiers WHERE name = $1 FOR UPDATE");
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tier.as_str()).fetch_one(connection).await
}

pub async fn set(connection: &mut PgConnection, tier: Tier, limits: Limits) -> sqlx::Result<TierLimits> {
    let sql = format!(
        "UPDATE tiers SET max_users = $2, max_storage_gb = $3, max_ai_operations_daily = $4,
             recovery_days = $5, updated_at = now()
         WHERE name = $1 RETURNING {COLUMNS}"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(tier.as_str())
        .bind(limits.max_users)
        .bind(limits.max_storage_gb)
        .bind(limits.max_ai_operations_daily)
        .bind(limits.recovery_days)
        .fetch_one(connection)
        .await
}

/// The tenants that can go back so many days, and where they have it from.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Reach {
    pub days: i32,
    pub tenants: i64,
    /// How many of them have a limit of their own, and one of those.
    pub own: i64,
    pub example: Option<String>,
    /// The tiers of those that have not, where the tier has one.
    pub tiers: Vec<String>,
    /// There is one for which the platform's setting counts.
    pub platform: bool,
}

impl Reach {
    #[must_use]
    pub fn days(&self) -> u16 {
        u16::try_from(self.days).unwrap_or(u16::MAX)
    }
}

/// How far back tenants can go, the furthest first. `platform_days` is for those of whom nothing is said. Only what can
/// be brought back counts: an archived tenant too.
pub async fn reaches(connection: &mut PgConnection, platform_days: u16) -> sqlx::Result<Vec<Reach>> {
    let sql = format!(
        "SELECT coalesce(l.recovery_days, $1) AS days, count(*) AS tenants,
             count(t.recovery_days) AS own, min(t.subdomain) FILTER (WHERE t.recovery_days IS NOT NULL) AS example,
             coalesce(array_agg(DISTINCT t.tier) FILTER (WHERE t.recovery_days IS NULL
                 AND l.recovery_days IS NOT NULL), '{{}}') AS tiers,
             bool_or(l.recovery_days IS NULL) AS platform
         FROM tenants t CROSS JOIN LATERAL {LIMITS_IN_FORCE} l WHERE t.state NOT IN ('draft', 'destroyed')
         GROUP BY 1 ORDER BY 1 DESC LIMIT 100"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(i32::from(platform_days)).fetch_all(connection).await
}
