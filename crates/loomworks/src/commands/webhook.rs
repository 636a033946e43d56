//! `loomworks webhook`.

use loomworks_control::db::webhooks::{Delivery, Webhook};
use loomworks_control::page::Page;
use loomworks_web::api::webhooks::{RegisterWebhook, TestSent, WebhookSecret};
use serde_json::json;

use super::{moment, or_dash, shortened};
use crate::client::{Client, query};
use crate::output::{self, Failure};
use crate::settings::{WebhookCommand, WebhookOwner};

pub(super) async fn run(client: &Client, command: WebhookCommand, json: bool) -> Result<(), Failure> {
    match command {
        WebhookCommand::Add { address, owner, events, description } => {
            let body = RegisterWebhook { url: address, events, description };
            secret(&client.post(&base(&owner), &body).await?, json)
        }
        WebhookCommand::List { owner } => list(&client.get::<Vec<Webhook>>(&base(&owner)).await?, json),
        WebhookCommand::Remove { webhook, owner, yes } => {
            if !yes {
                output::confirm("What waits for this webhook is not sent any more.", &webhook.to_string())?;
            }
            list(&[client.delete(&format!("{}/{webhook}", base(&owner))).await?], json)
        }
        WebhookCommand::Test { webhook, owner } => {
            let base = format!("{}/{webhook}", base(&owner));
            let sent: TestSent = client.post(&format!("{base}/test"), &json!({})).await?;
            client.follow(sent.job).await?;
            let page: Page<Delivery> = client.get(&format!("{base}/deliveries?limit=1000")).await?;
            let test = page.items.into_iter().find(|delivery| delivery.id == sent.delivery);
            let test = test.ok_or_else(|| Failure::new("the webhook was removed meanwhile"))?;
            deliveries(&Page { items: vec![test.clone()], next_cursor: None }, json)?;
            match test.error {
                Some(error) => Err(Failure::new(format!("the test did not arrive: {error}"))),
                None => Ok(()),
            }
        }
        WebhookCommand::RotateSecret { webhook, owner } => secret(
            &client.post(&format!("{}/{webhook}/rotate-secret", base(&owner)), &json!({})).await?,
            json,
        ),
        WebhookCommand::Deliveries { webhook, owner, page } => {
            let query = query(&[("limit", Some(page.limit.to_string())), ("cursor", page.cursor)])?;
            let page = client.get(&format!("{}/{webhook}/deliveries{query}", base(&owner))).await?;
            deliveries(&page, json)
        }
    }
}

fn base(owner: &WebhookOwner) -> String {
    match &owner.tenant {
        Some(tenant) => format!("/v1/tenants/{tenant}/webhooks"),
        None => "/v1/webhooks".into(),
    }
}

fn secret(made: &WebhookSecret, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(made);
    }
    output::line(format!("webhook {} to {}", made.webhook.id, made.webhook.url));
    output::line(format!("secret, shown this once:\n  {}", made.secret));
    Ok(())
}

fn list(webhooks: &[Webhook], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&webhooks);
    }
    let row = |webhook: &Webhook| {
        [
            webhook.id.to_string(),
            webhook.state.clone(),
            webhook.events.join(" "),
            shortened(&webhook.url, 60),
            shortened(&webhook.description, 40),
        ]
    };
    let rows: Vec<_> = webhooks.iter().map(row).collect();
    output::table(["WEBHOOK", "STATE", "EVENTS", "URL", "DESCRIPTION"], &rows);
    Ok(())
}

fn deliveries(page: &Page<Delivery>, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(page);
    }
    let row = |delivery: &Delivery| {
        [
            delivery.id.to_string(),
            moment(delivery.created_at.to_jiff()),
            delivery.event.clone(),
            delivery.state.clone(),
            delivery.attempts.to_string(),
            or_dash(delivery.http_status.as_ref()),
            delivery.duration_ms.map_or_else(|| "-".into(), |took| format!("{took} ms")),
            shortened(delivery.error.as_deref().unwrap_or("-"), 60),
        ]
    };
    let rows: Vec<_> = page.items.iter().map(row).collect();
    output::table(["DELIVERY", "CREATED", "EVENT", "STATE", "ATTEMPTS", "HTTP", "TOOK", "ERROR"], &rows);
    output::more(page.next_cursor.as_deref());
    Ok(())
}
