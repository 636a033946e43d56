//! The end of a subscription: notices before it, suspension after the grace period, and taking that back.
//!
//! What is due is decided by [`loomworks_core::subscription::due`].

use jiff::civil::Date;
use jiff::tz::TimeZone;
use loomworks_core::ids::TenantId;
use loomworks_core::subscription::{Due, Notice as Stage, Subscription, due, suspension_day};
use loomworks_core::time;
use serde_json::json;
use sqlx::PgConnection;

use crate::World;
use crate::audit;
use crate::db::lifecycle::{self, Suspension};
use crate::db::notifications::Severity;
use crate::db::routes;
use crate::db::subscriptions::{self, Row};
use crate::error::Error;
use crate::notifications::{self, Notice};

/// Who acts when the calendar does.
const ACTOR: &str = "loomworks";

fn today() -> Date {
    time::now().to_zoned(TimeZone::UTC).date()
}

fn due_for(row: &Row, grace_days: u16) -> Due {
    let subscription = Subscription {
        state: row.state,
        suspended_by_subscription: row.suspended_by_subscription,
        expires: row.subscription_expires.map(|date| date.to_jiff()),
        grace_days,
        sent: &row.sent(),
    };
    due(&subscription, today())
}

/// Tenants for which something is due. Changes nothing.
pub(crate) async fn tenants_with_something_due(world: &World) -> Result<Vec<TenantId>, Error> {
    let grace_days = world.policy.grace_days;
    let mut mgmt = world.db.platform.acquire().await?;
    let rows = subscriptions::candidates(&mut mgmt, i32::from(grace_days)).await?;
    Ok(rows.iter().filter(|row| !due_for(row, grace_days).is_nothing()).map(|row| row.id).collect())
}

/// Does what is due for a tenant, in one transaction: the notice and the note that it was given are both there or
/// neither.
pub(crate) async fn apply(world: &World, tenant: TenantId) -> Result<Due, Error> {
    let grace_days = world.policy.grace_days;
    let mut transaction = world.db.platform.begin().await?;
    let row = subscriptions::lock(&mut transaction, tenant).await?;
    let due = due_for(&row, grace_days);
    if let (Some(stage), Some(expires)) = (due.notice, row.subscription_expires) {
        subscriptions::record_notice(&mut transaction, tenant, expires, stage).await?;
        let notice = notice(stage, expires.to_jiff(), grace_days);
        notifications::raise(&mut transaction, Some(tenant), &notice).await?;
        audit::record(&mut transaction, ACTOR, notice.event, Some(tenant), notice.detail).await?;
    }
    if due.suspend {
        let expires = row.subscription_expires.map(|date| date.to_jiff().to_string()).unwrap_or_default();
        let reason = format!("the subscription ended on {expires}");
        let suspension = Suspension { cause: "subscription", reason: Some(&reason), by: ACTOR };
        lifecycle::suspend(&mut transaction, tenant, suspension).await?;
        served_otherwise(&mut transaction, tenant, "tenant.suspended", &reason).await?;
    }
    if due.resume {
        lifecycle::resume(&mut transaction, tenant).await?;
        served_otherwise(&mut transaction, tenant, "tenant.resumed", "the subscription goes on").await?;
        let notice = Notice {
            event: "subscription.prolonged",
            severity: Severity::Info,
            message: "The subscription goes on, and the tenant is served again.".into(),
            detail: json!({}),
        };
        notifications::raise(&mut transaction, Some(tenant), &notice).await?;
    }
    transaction.commit().await?;
    Ok(due)
}

async fn served_otherwise(
    connection: &mut PgConnection,
    tenant: TenantId,
    action: &str,
    reason: &str,
) -> Result<(), Error> {
    routes::next_generation(connection).await?;
    Ok(audit::record(connection, ACTOR, action, Some(tenant), json!({ "reason": reason })).await?)
}

fn notice(stage: Stage, expires: Date, grace_days: u16) -> Notice {
    let suspended_on = suspension_day(expires, grace_days);
    let (event, severity, message) = match stage {
        Stage::InFourteenDays | Stage::InSevenDays | Stage::InOneDay => {
            let severity = if stage == Stage::InOneDay { Severity::Warning } else { Severity::Info };
            ("subscription.ends_soon", severity, format!("The subscription ends on {expires}."))
        }
        Stage::Expired => (
            "subscription.ended",
            Severity::Critical,
            format!("The subscription ended on {expires}. The tenant will be suspended on {suspended_on}."),
        ),
        Stage::Suspended => (
            "subscription.suspended",
            Severity::Critical,
            format!("The subscription ended on {expires}. The tenant is suspended; its data is kept."),
        ),
    };
    let detail = json!({ "notice": stage.as_str(), "expires": expires, "suspended_on": suspended_on });
    Notice { event, severity, message, detail }
}
