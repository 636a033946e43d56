//! Webhooks: addresses to which notifications are sent, signed.
//!
//! A tenant's webhook gets that tenant's notifications, one of the platform's gets all. What is sent and when is
//! decided in [`crate::work::fan_out`] and [`crate::work::deliver_webhook`].

pub mod address;
mod sender;
pub mod url;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use loomworks_core::ids::{DeliveryId, JobId, TenantId, WebhookId};
use loomworks_core::{SecretString, time};
use serde_json::json;

pub use sender::{Message, Sender, Sent};
pub use url::WebhookUrl;

use crate::World;
use crate::access::{Granted, Operator, Scoped};
use crate::credentials::{MasterKey, random};
use crate::db::webhooks::{self, Delivery, New, Webhook};
use crate::db::{self, Db};
use crate::error::Error;
use crate::notifications::{EventPattern, TEST_EVENT};
use crate::page::{Asked, Page};
use crate::work::deliver_webhook::DeliverWebhook;
use crate::{audit, jobs, tenants};

/// Webhooks that a tenant may have, and that the platform may have.
const WEBHOOKS_MAX: usize = 10;

/// How long a webhook's former secret still signs beside the new one.
const OVERLAP_HOURS: i32 = 24;

/// Secrets that sign at the same time.
const SECRETS_MAX: i64 = 5;

/// Whose webhooks are asked about.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    Tenant(&'a Granted),
    Platform(&'a Operator),
}

impl Owner<'_> {
    fn tenant(&self) -> Option<TenantId> {
        match self {
            Self::Tenant(granted) => Some(granted.tenant()),
            Self::Platform(_) => None,
        }
    }

    fn actor(&self) -> &str {
        match self {
            Self::Tenant(granted) => &granted.actor,
            Self::Platform(operator) => &operator.actor,
        }
    }

    async fn begin(&self, db: &Db) -> Result<Scoped, Error> {
        match self {
            Self::Tenant(granted) => granted.begin(db).await,
            Self::Platform(operator) => operator.begin(db).await,
        }
    }

    /// One change at a time, so that limits hold.
    async fn begin_change(&self, db: &Db) -> Result<Scoped, Error> {
        let mut scoped = self.begin(db).await?;
        let which = self.tenant().map_or_else(|| "platform".to_owned(), |tenant| tenant.to_string());
        db::advisory_lock(&mut scoped, "webhooks", &which).await?;
        Ok(scoped)
    }

    async fn record(
        &self,
        scoped: &mut Scoped,
        action: &str,
        detail: serde_json::Value,
    ) -> Result<(), Error> {
        Ok(audit::record(scoped, self.actor(), action, self.tenant(), detail).await?)
    }
}

/// A webhook that somebody wants, checked.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub url: WebhookUrl,
    pub events: Vec<EventPattern>,
    pub description: String,
}

/// Registers a webhook. The secret is in the answer and nowhere else.
pub async fn register(
    world: &World,
    owner: Owner<'_>,
    wanted: &Wanted,
) -> Result<(Webhook, SecretString), Error> {
    if !(1..=50).contains(&wanted.events.len()) {
        return Err(Error::invalid("a webhook has 1 to 50 events").with_hint("`*` means all"));
    }
    if wanted.description.chars().count() > 255 || wanted.description.chars().any(char::is_control) {
        return Err(Error::invalid("a description has at most 255 characters, all on one line"));
    }
    world.webhooks.check(&wanted.url)?;
    let (id, secret) = (WebhookId::random(), new_secret());
    let events: Vec<String> = wanted.events.iter().map(EventPattern::to_string).collect();

    let mut scoped = owner.begin_change(&world.db).await?;
    if webhooks::list(&mut scoped, owner.tenant()).await?.len() >= WEBHOOKS_MAX {
        return Err(Error::conflict(format!("there are {WEBHOOKS_MAX} webhooks already"))
            .with_hint("remove one that is not used any more"));
    }
    let new = New {
        id,
        tenant: owner.tenant(),
        url: wanted.url.as_str(),
        events: &events,
        description: &wanted.description,
        requested_by: owner.actor(),
    };
    let webhook = webhooks::insert(&mut scoped, &new).await?;
    let wrapped = world.master_key.wrap_for(&mut scoped, &secret, &secret_purpose(id)).await?;
    webhooks::insert_secret(&mut scoped, owner.tenant(), id, &wrapped).await?;
    let detail = json!({ "webhook": id, "host": wanted.url.host(), "events": events });
    owner.record(&mut scoped, "webhook.registered", detail).await?;
    scoped.commit().await?;
    Ok((webhook, secret))
}

/// The owner's webhooks, oldest first.
pub async fn list(world: &World, owner: Owner<'_>) -> Result<Vec<Webhook>, Error> {
    let mut scoped = owner.begin(&world.db).await?;
    Ok(webhooks::list(&mut scoped, owner.tenant()).await?)
}

/// Removes a webhook. What waits for it is not sent any more.
pub async fn remove(world: &World, owner: Owner<'_>, id: WebhookId) -> Result<Webhook, Error> {
    let mut scoped = owner.begin_change(&world.db).await?;
    let removed = webhooks::delete(&mut scoped, owner.tenant(), id).await?.ok_or(UNKNOWN)?;
    owner.record(&mut scoped, "webhook.removed", json!({ "webhook": id })).await?;
    scoped.commit().await?;
    Ok(removed)
}

/// Sends a test to a webhook, once. One that arrives turns a disabled webhook on again.
pub async fn test(world: &World, owner: Owner<'_>, id: WebhookId) -> Result<(DeliveryId, JobId), Error> {
    let tenant = match owner {
        Owner::Tenant(granted) => {
            let tenant = tenants::get(world, granted).await?;
            json!({ "id": tenant.id, "subdomain": tenant.subdomain })
        }
        Owner::Platform(_) => serde_json::Value::Null,
    };
    let body = json!({
        "id": null,
        "event": TEST_EVENT,
        "severity": "info",
        "occurred_at": time::now(),
        "tenant": tenant,
        "message": "this is a test",
        "data": { "webhook": id },
    });
    let mut scoped = owner.begin(&world.db).await?;
    webhooks::get(&mut scoped, owner.tenant(), id).await?.ok_or(UNKNOWN)?;
    let delivery =
        webhooks::insert_test(&mut scoped, owner.tenant(), id, TEST_EVENT, &body.to_string()).await?;
    let work = DeliverWebhook { delivery, tenant: owner.tenant() };
    let job = jobs::enqueue(&mut scoped, &work, owner.actor()).await?;
    owner.record(&mut scoped, "webhook.tested", json!({ "webhook": id })).await?;
    scoped.commit().await?;
    Ok((delivery, job))
}

/// Gives a webhook a new secret, which is in the answer and nowhere else. The former one signs beside it for a day.
pub async fn rotate_secret(
    world: &World,
    owner: Owner<'_>,
    id: WebhookId,
) -> Result<(Webhook, SecretString), Error> {
    let secret = new_secret();
    let mut scoped = owner.begin_change(&world.db).await?;
    let webhook = webhooks::get(&mut scoped, owner.tenant(), id).await?.ok_or(UNKNOWN)?;
    if webhooks::end_secrets(&mut scoped, id, OVERLAP_HOURS).await? >= SECRETS_MAX {
        return Err(Error::conflict(format!("this webhook has {SECRETS_MAX} secrets that are still good"))
            .with_hint(format!("each former one ends {OVERLAP_HOURS} hours after it was replaced")));
    }
    let wrapped = world.master_key.wrap_for(&mut scoped, &secret, &secret_purpose(id)).await?;
    webhooks::insert_secret(&mut scoped, owner.tenant(), id, &wrapped).await?;
    owner.record(&mut scoped, "webhook.secret_rotated", json!({ "webhook": id })).await?;
    scoped.commit().await?;
    Ok((webhook, secret))
}

/// What was sent to a webhook and what became of it, newest first.
pub async fn deliveries(
    world: &World,
    owner: Owner<'_>,
    id: WebhookId,
    asked: &Asked<i64>,
) -> Result<Page<Delivery>, Error> {
    let mut scoped = owner.begin(&world.db).await?;
    webhooks::get(&mut scoped, owner.tenant(), id).await?.ok_or(UNKNOWN)?;
    let rows = webhooks::deliveries(&mut scoped, id, asked.after, asked.rows()).await?;
    Ok(asked.page(rows, |delivery| delivery.number))
}

const UNKNOWN: Error = Error::NotFound("such webhook");

/// 256 bits that nobody can guess.
fn new_secret() -> SecretString {
    SecretString::from(format!("whsec_{}", URL_SAFE_NO_PAD.encode(random::<32>())))
}

/// What a webhook's wrapped secrets are bound to.
#[must_use]
pub fn secret_purpose(webhook: WebhookId) -> String {
    format!("secret of webhook {webhook}")
}

/// Opens the secrets of a webhook.
pub(crate) fn unwrap_secrets(
    master_key: &MasterKey,
    webhook: WebhookId,
    wrapped: &[Vec<u8>],
) -> Result<Vec<SecretString>, Error> {
    wrapped.iter().map(|wrapped| master_key.unwrap(wrapped, &secret_purpose(webhook))).collect()
}
