//! Users and AI operations: counted in the tenant's database, and told when a limit is near.
//!
//! The database itself holds everybody to both, so this is news and nothing depends on it. It costs a connection, and is
//! done only where something was written since the last time.

use std::time::Duration;

use loomworks_undo::UNDO_ROLE;
use serde_json::json;
use sqlx::ConnectOptions;
use tracing::debug;

use super::Level;
use crate::World;
use crate::db::notifications::Severity;
use crate::db::usage::{self, ToMeasure};
use crate::error::{Error, chain};
use crate::jobs::Context;
use crate::notifications::{Notice, raise};

/// A database that does not answer by then is asked the next time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Counts in one database and tells what is new.
pub(super) async fn look(
    world: &World,
    context: &Context,
    tenant: &ToMeasure,
    writes: i64,
) -> Result<(), Error> {
    let counted = match tokio::time::timeout(PATIENCE, count(world, tenant)).await {
        Ok(Ok(counted)) => counted,
        Ok(Err(error)) => {
            debug!(tenant = %tenant.tenant_id, error = chain(&error), "users could not be counted");
            return Ok(());
        }
        Err(_) => return Ok(()),
    };
    let before = Level::of(&tenant.users_level);
    let level = counted.users.map_or(Level::Ok, |users| before.after(users, tenant.max_users.into()));
    let used_up = counted.ai_operations >= tenant.max_ai_operations_daily.into() && counted.ai_operations > 0;
    let mut transaction = world.db.platform.begin().await?;
    let of_users = notice_of_users(before, level, counted.users.unwrap_or(0), tenant.max_users);
    let of_ai = (used_up && !tenant.is_ai_used_up_told).then(|| notice_of_ai(tenant.max_ai_operations_daily));
    for notice in [of_users, of_ai].into_iter().flatten() {
        let (detail, who) = (notice.detail.clone(), Some(tenant.tenant_id));
        crate::audit::record(&mut transaction, &context.requested_by, notice.event, who, detail).await?;
        raise(&mut transaction, who, &notice).await?;
    }
    usage::record_counted(&mut transaction, tenant.tenant_id, level.as_str(), used_up, writes).await?;
    Ok(transaction.commit().await?)
}

async fn count(world: &World, tenant: &ToMeasure) -> Result<loomworks_undo::Usage, Error> {
    let mut inside = world
        .cluster
        .confined(UNDO_ROLE, &tenant.database_name)
        .connect()
        .await
        .map_err(Error::TenantDatabase)?;
    Ok(loomworks_undo::usage(&mut inside).await?)
}

/// Only the way up is news.
fn notice_of_users(before: Level, level: Level, used: i64, allowed: i32) -> Option<Notice> {
    if level <= before {
        return None;
    }
    let detail = json!({ "used": used, "limit": allowed });
    Some(match level {
        Level::Full => Notice {
            event: "quota.users_full",
            severity: Severity::Warning,
            message: format!("{used} of {allowed} users are in use: no other can be added."),
            detail,
        },
        _ => Notice {
            event: "quota.users_nearly_full",
            severity: Severity::Info,
            message: format!("More than 80 % of the users are in use ({used} of {allowed})."),
            detail,
        },
    })
}

fn notice_of_ai(allowed: i32) -> Notice {
    Notice {
        event: "quota.ai_operations_used_up",
        severity: Severity::Warning,
        message: format!(
            "AI agents have done all {allowed} operations of today; it begins anew at midnight UTC."
        ),
        detail: json!({ "limit": allowed }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_way_up_is_told() {
        use Level::{Full, NearlyFull, Ok};
        let event = |before, level| notice_of_users(before, level, 8, 10).map(|notice| notice.event);
        assert_eq!(event(Ok, NearlyFull), Some("quota.users_nearly_full"));
        assert_eq!(event(Ok, Full), Some("quota.users_full"));
        assert_eq!(event(NearlyFull, Full), Some("quota.users_full"));
        for (before, level) in [(Ok, Ok), (Full, Full), (Full, NearlyFull), (NearlyFull, Ok)] {
            assert_eq!(event(before, level), None, "{before:?} {level:?}");
        }
    }
}
