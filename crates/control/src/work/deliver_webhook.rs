//! One attempt to bring a notification to a webhook.
//!
//! A job is one attempt. If it fails, the delivery's row says when the next one is due, and a reconciler makes a job
//! of it then: nothing waits in a worker, and a day of attempts does not hang on one job.
//!
//! Cut between the sending and its record, it sends again, under the same delivery id. The receiver tells by that.

use std::time::Duration;

use loomworks_core::ids::{DeliveryId, TenantId};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use crate::World;
use crate::db::notifications::Severity;
use crate::db::webhooks::{self, Outcome};
use crate::error::Error;
use crate::jobs::runner::nothing;
use crate::jobs::{Context, Progress, StepError, Then, Work};
use crate::notifications::{Notice, raise_and_record};
use crate::webhooks::{Message, unwrap_secrets};

/// How long after each failed attempt the next one comes: twelve attempts within 22 hours.
const WAITS: [Duration; 11] = {
    const fn minutes(count: u64) -> Duration {
        Duration::from_secs(60 * count)
    }
    [
        Duration::from_secs(5),
        Duration::from_secs(30),
        minutes(1),
        minutes(5),
        minutes(15),
        minutes(30),
        minutes(60),
        minutes(120),
        minutes(240),
        minutes(360),
        minutes(480),
    ]
};

/// Failed attempts in a row after which a webhook is called failing.
const FAILING_AFTER: i32 = 5;

/// How long nothing may arrive until a webhook is disabled.
const PATIENCE_DAYS: i32 = 5;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeliverWebhook {
    pub delivery: DeliveryId,
    /// The webhook's.
    pub tenant: Option<TenantId>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Send,
    Record { outcome: Outcome, retry_seconds: Option<f64> },
}

impl Work for DeliverWebhook {
    const KIND: &'static str = "deliver_webhook";
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        self.tenant
    }

    /// Known to `db::webhooks::due`.
    fn dedup_key(&self) -> String {
        format!("deliver_webhook {}", self.delivery)
    }

    fn first(&self) -> Step {
        Step::Send
    }

    fn progress(step: &Step) -> Progress {
        match step {
            Step::Send => Progress { percent: 0, words: "sending a notification" },
            Step::Record { .. } => Progress { percent: 90, words: "noting how it went" },
        }
    }

    async fn run(&self, step: &Step, world: &World, _: &Context) -> Result<Then<Step>, StepError> {
        match step {
            Step::Send => self.send(world).await.map_err(StepError::from),
            Step::Record { outcome, retry_seconds } => {
                let mut transaction = world.db.platform.begin().await.map_err(Error::from)?;
                self.record(&mut transaction, outcome, *retry_seconds).await?;
                transaction.commit().await.map_err(Error::from)?;
                Ok(Then::Done(json!({ "http_status": outcome.http_status, "error": outcome.error })))
            }
        }
    }

    async fn give_up(&self, connection: &mut PgConnection, _: &Context) -> Result<(), Error> {
        // Or it would be made into a job again and again.
        Ok(webhooks::abandon(connection, self.delivery, "it could not be sent").await?)
    }
}

impl DeliverWebhook {
    async fn send(&self, world: &World) -> Result<Then<Step>, Error> {
        let mut mgmt = world.db.platform.acquire().await?;
        let Some(delivery) = webhooks::to_send(&mut mgmt, self.delivery).await? else {
            return Ok(Then::Done(nothing()));
        };
        if delivery.is_disabled && !delivery.is_test {
            webhooks::abandon(&mut mgmt, self.delivery, "the webhook was disabled").await?;
            return Ok(Then::Done(nothing()));
        }
        let wrapped = webhooks::secrets(&mut mgmt, delivery.webhook_id).await?;
        // The receiver may be slow: it keeps a worker waiting, and not a connection to the database as well.
        drop(mgmt);
        let message = Message {
            url: &delivery.url,
            event: &delivery.event,
            delivery: self.delivery,
            body: &delivery.body,
            secrets: &unwrap_secrets(&world.master_key, delivery.webhook_id, &wrapped)?,
        };
        let sent = world.webhooks.send(&message).await;
        let outcome = Outcome {
            attempt: delivery.attempts + 1,
            http_status: sent.http_status.map(i32::from),
            duration_ms: i32::try_from(sent.took.as_millis()).unwrap_or(i32::MAX),
            error: sent.error,
        };
        let again = outcome.error.is_some() && !delivery.is_test;
        let retry_seconds = if again { wait_after(outcome.attempt) } else { None };
        Ok(Then::Next(Step::Record { outcome, retry_seconds }))
    }

    /// All in one transaction: what became of the attempt is counted once, however often this is run.
    pub async fn record(
        &self,
        connection: &mut PgConnection,
        outcome: &Outcome,
        retry_seconds: Option<f64>,
    ) -> Result<(), Error> {
        let recorded = webhooks::record_attempt(connection, self.delivery, outcome, retry_seconds).await?;
        let Some(webhook) = recorded else { return Ok(()) };
        if outcome.error.is_none() {
            return Ok(webhooks::record_success(connection, webhook).await?);
        }
        let disabled = webhooks::record_failure(connection, webhook, FAILING_AFTER, PATIENCE_DAYS).await?;
        if let Some(webhook) = disabled {
            // Without its address, which may be a secret of the receiver's.
            let notice = Notice {
                event: "webhook.disabled",
                severity: Severity::Critical,
                message: format!(
                    "webhook {} could not be reached for {PATIENCE_DAYS} days and gets nothing any more; \
                     a test that arrives turns it on again",
                    webhook.id
                ),
                detail: json!({ "webhook": webhook.id, "failures": webhook.failures }),
            };
            raise_and_record(connection, self.tenant, &notice).await?;
        }
        Ok(())
    }
}

/// Seconds to wait after a failed attempt, with noise so that what failed together does not come back together.
/// `None`: it was the last.
fn wait_after(attempt: i32) -> Option<f64> {
    let place = usize::try_from(attempt).ok()?.checked_sub(1)?;
    Some(WAITS.get(place)?.as_secs_f64() * rand::rng().random_range(0.9..1.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_twelve_attempts_within_a_day() {
        let waits: Vec<f64> = (1..=12).map_while(wait_after).collect();
        assert_eq!(waits.len(), 11);
        assert!((18.0..24.5).contains(&(waits.iter().sum::<f64>() / 3600.0)), "{waits:?}");
        assert_eq!((wait_after(0), wait_after(12), wait_after(-1)), (None, None, None));
    }
}
