//! What a tenant uses of its limits, as it is at this moment.

use loomworks_postgres::databases;
use loomworks_undo::UNDO_ROLE;
use serde::{Deserialize, Serialize};
use sqlx::ConnectOptions;

use crate::World;
use crate::access::Granted;
use crate::db::{tenants as rows, usage};
use crate::error::Error;
use crate::tenants;
use crate::work::limits::bytes_of;

/// One limit.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Level {
    pub used: i64,
    pub limit: i64,
    pub remaining: i64,
    pub percent: i64,
}

impl Level {
    fn new(used: i64, limit: i64) -> Self {
        let percent = i64::try_from(i128::from(used) * 100 / i128::from(limit.max(1))).unwrap_or(i64::MAX);
        Self { used, limit, remaining: limit.saturating_sub(used).max(0), percent }
    }
}

/// What is used of what.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// Nothing: the app's profile does not say where its users are.
    pub users: Option<Level>,
    /// In bytes.
    pub storage: Level,
    /// `ok`, `nearly_full` (from 80 % on), `full` (from 100 % until it is below 95 %: nothing more is written).
    pub storage_level: String,
    /// Since midnight UTC.
    pub ai_operations_today: Level,
}

/// Asks the tenant's database and the cluster.
pub async fn show(world: &World, granted: &Granted) -> Result<Usage, Error> {
    let tenant = tenants::provisioned(world, granted).await?;
    let mut scoped = granted.begin(&world.db).await?;
    let limits = rows::limits(&mut scoped, granted.tenant()).await?;
    let measured = usage::measured(&mut scoped, granted.tenant()).await?;
    drop(scoped);
    let mut inside = world
        .cluster
        .confined(UNDO_ROLE, &tenant.database_name)
        .connect()
        .await
        .map_err(Error::TenantDatabase)?;
    let used = loomworks_undo::usage(&mut inside).await?;
    let bytes = databases::size_bytes(&mut inside, &tenant.database_name).await?;
    Ok(Usage {
        users: used.users.map(|users| Level::new(users, limits.max_users.into())),
        storage: Level::new(bytes, bytes_of(limits.max_storage_gb)),
        storage_level: measured.map_or_else(|| "ok".into(), |measured| measured.storage_level),
        ai_operations_today: Level::new(used.ai_operations, limits.max_ai_operations_daily.into()),
    })
}
