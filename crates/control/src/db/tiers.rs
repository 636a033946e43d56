//! Tiers: what each gives to the tenants that have it.

use loomworks_core::tenant::{Limits, Tier};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection};

use super::Time;

/// A tier with its limits.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct TierLimits {
    #[sqlx(try_from = "String")]
    #[schema(value_type = String, example = "basic")]
    pub name: Tier,
    pub max_users: i32,
    pub max_storage_gb: f64,
    pub max_ai_operations_daily: i32,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Time,
}

impl TierLimits {
    #[must_use]
    pub fn limits(&self) -> Limits {
        let Self { max_users, max_storage_gb, max_ai_operations_daily, .. } = *self;
        Limits { max_users, max_storage_gb, max_ai_operations_daily }
    }
}

const COLUMNS: &str = "name, max_users, max_storage_gb, max_ai_operations_daily, updated_at";

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
        "UPDATE tiers SET max_users = $2, max_storage_gb = $3, max_ai_operations_daily = $4, updated_at = now()
         WHERE name = $1 RETURNING {COLUMNS}"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(tier.as_str())
        .bind(limits.max_users)
        .bind(limits.max_storage_gb)
        .bind(limits.max_ai_operations_daily)
        .fetch_one(connection)
        .await
}
