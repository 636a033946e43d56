//! Fanning out: for each new notification a delivery to every webhook that wants it.
//!
//! Not where a notification is raised. That may be a tenant's own request, which cannot see the platform's webhooks,
//! and it is often a transaction that must be short. So a notification is only a row, and here each row that is not
//! marked yet gets its deliveries, their jobs and its mark in one transaction: none is lost, since a row without a
//! mark is found whenever it was committed, and none is sent under two ids, since the mark comes with the deliveries.

use loomworks_core::ids::{TenantId, WebhookId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::deliver_webhook::DeliverWebhook;
use crate::World;
use crate::db::notifications::{self, Fresh};
use crate::db::webhooks::{self, ToFanOut};
use crate::error::Error;
use crate::jobs::{self, Context, Progress, StepError, Then, Work};

/// Notifications in a transaction.
const BATCH: i64 = 100;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FanOut {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    FanOut,
}

impl Work for FanOut {
    const KIND: &'static str = "fan_out";
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        Self::KIND.into()
    }

    fn first(&self) -> Step {
        Step::FanOut
    }

    fn progress(_: &Step) -> Progress {
        Progress { percent: 0, words: "passing notifications on to webhooks" }
    }

    async fn run(
        &self,
        Step::FanOut: &Step,
        world: &World,
        context: &Context,
    ) -> Result<Then<Step>, StepError> {
        let (mut notifications, mut deliveries) = (0, 0);
        loop {
            let mut transaction = world.db.platform.begin().await.map_err(Error::from)?;
            let (taken, written) = batch(&mut transaction, BATCH, &context.requested_by).await?;
            transaction.commit().await.map_err(Error::from)?;
            if taken == 0 {
                let result = json!({ "notifications": notifications, "deliveries": deliveries });
                return Ok(Then::Done(result));
            }
            notifications += taken;
            deliveries += written;
        }
    }
}

/// Fans out up to `rows` notifications in the caller's transaction. Says how many there were and how many deliveries
/// they made.
pub async fn batch(
    connection: &mut PgConnection,
    rows: i64,
    requested_by: &str,
) -> Result<(usize, usize), Error> {
    let fresh = notifications::take_fresh(connection, rows).await?;
    let mut deliveries = 0;
    for fresh in &fresh {
        let body = body(fresh).to_string();
        let notification = &fresh.notification;
        let new = ToFanOut {
            notification: notification.id,
            tenant: notification.tenant_id.map(TenantId),
            event: &notification.event,
            body: &body,
            about: about(fresh),
        };
        for (delivery, tenant) in webhooks::fan_out(connection, &new).await? {
            jobs::enqueue(connection, &DeliverWebhook { delivery, tenant }, requested_by).await?;
            deliveries += 1;
        }
    }
    let ids: Vec<i64> = fresh.iter().map(|fresh| fresh.notification.id).collect();
    notifications::set_fanned_out(connection, &ids).await?;
    Ok((ids.len(), deliveries))
}

/// The webhook that a notification is about. It is not told: that it cannot be reached does not reach it.
fn about(fresh: &Fresh) -> Option<WebhookId> {
    let notification = &fresh.notification;
    if !notification.event.starts_with("webhook.") {
        return None;
    }
    notification.detail["webhook"].as_str()?.parse().ok()
}

/// What receivers get.
fn body(Fresh { notification, subdomain }: &Fresh) -> Value {
    let tenant =
        notification.tenant_id.map(|id| json!({ "id": id, "subdomain": subdomain })).unwrap_or(Value::Null);
    json!({
        "id": notification.id,
        "event": notification.event,
        "severity": notification.severity,
        "occurred_at": notification.at,
        "tenant": tenant,
        "message": notification.message,
        "data": notification.detail,
    })
}
