//! `loomworks notification`.

use loomworks_control::db::notifications::Notification;
use loomworks_control::page::Page;

use super::{moment, or_dash, shortened};
use crate::client::{Client, query};
use crate::output::{self, Failure};
use crate::settings::NotificationCommand;

pub(super) async fn run(client: &Client, command: NotificationCommand, json: bool) -> Result<(), Failure> {
    let NotificationCommand::List { tenant, severity, event, page } = command;
    let query = query(&[
        ("tenant", tenant),
        ("severity", severity),
        ("event", event),
        ("limit", Some(page.limit.to_string())),
        ("cursor", page.cursor),
    ])?;
    let page: Page<Notification> = client.get(&format!("/v1/notifications{query}")).await?;
    if json {
        return output::json(&page);
    }
    let row = |notification: &Notification| {
        [
            notification.id.to_string(),
            moment(notification.at.to_jiff()),
            notification.severity.clone(),
            notification.event.clone(),
            or_dash(notification.tenant_id.as_ref()),
            shortened(&notification.message, 80),
        ]
    };
    let rows: Vec<_> = page.items.iter().map(row).collect();
    output::table(["NUMBER", "AT", "SEVERITY", "EVENT", "TENANT", "MESSAGE"], &rows);
    output::more(page.next_cursor.as_deref());
    Ok(())
}
