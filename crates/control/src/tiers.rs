//! Tiers: what each gives, shown to everybody, changed by operators.

use loomworks_core::tenant::{Limits, OwnLimits, Tier};
use serde_json::json;

use crate::World;
use crate::access::{Caller, Operator, listing};
use crate::audit;
use crate::db::tiers::{self, TierLimits};
use crate::error::Error;

/// The tiers, the smallest first.
pub async fn list(world: &World, caller: &Caller) -> Result<Vec<TierLimits>, Error> {
    let mut scoped = listing(&world.db, caller).await?;
    Ok(tiers::list(&mut scoped).await?)
}

/// Changes what a tier gives, to all tenants that have it and no limit of their own.
pub async fn set(
    world: &World,
    operator: &Operator,
    tier: Tier,
    limits: Limits,
) -> Result<TierLimits, Error> {
    OwnLimits::from(limits).check().map_err(Error::invalid)?;
    let mut scoped = operator.begin(&world.db).await?;
    let before = tiers::lock(&mut scoped, tier).await?.limits();
    let after = tiers::set(&mut scoped, tier, limits).await?;
    let detail = json!({ "tier": tier, "before": before, "after": limits });
    audit::record(&mut scoped, &operator.actor, "tier.updated", None, detail).await?;
    scoped.commit().await?;
    Ok(after)
}
