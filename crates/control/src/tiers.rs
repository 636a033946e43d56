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

/// What a tier is to give.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub max_users: i32,
    pub max_storage_gb: f64,
    pub max_ai_operations_daily: i32,
    /// `None` leaves it as it is: what is out of a shorter window is removed for good, so nobody shortens it by not
    /// naming it. `Some(None)`: what the platform is set to.
    pub recovery_days: Option<Option<i32>>,
}

impl Wanted {
    fn after(self, before: Limits) -> Limits {
        let Self { max_users, max_storage_gb, max_ai_operations_daily, recovery_days } = self;
        let recovery_days = recovery_days.unwrap_or(before.recovery_days);
        Limits { max_users, max_storage_gb, max_ai_operations_daily, recovery_days }
    }
}

/// Changes what a tier gives, to all tenants that have it and no limit of their own.
pub async fn set(
    world: &World,
    operator: &Operator,
    tier: Tier,
    wanted: Wanted,
) -> Result<TierLimits, Error> {
    let mut scoped = operator.begin(&world.db).await?;
    let before = tiers::lock(&mut scoped, tier).await?.limits();
    let limits = wanted.after(before);
    OwnLimits::from(limits).check().map_err(Error::invalid)?;
    let after = tiers::set(&mut scoped, tier, limits).await?;
    let detail = json!({ "tier": tier, "before": before, "after": limits });
    audit::record(&mut scoped, &operator.actor, "tier.updated", None, detail).await?;
    scoped.commit().await?;
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_that_are_not_named_stay_and_null_is_the_platforms() {
        let before = Limits { recovery_days: Some(60), ..Limits::default() };
        let wanted = |recovery_days| Wanted {
            max_users: 1,
            max_storage_gb: 1.0,
            max_ai_operations_daily: 1,
            recovery_days,
        };
        assert_eq!(wanted(None).after(before).recovery_days, Some(60));
        assert_eq!(wanted(Some(None)).after(before).recovery_days, None);
        assert_eq!(wanted(Some(Some(7))).after(before).recovery_days, Some(7));
        assert_eq!(wanted(None).after(before).max_users, 1);
    }
}
