//! What people are told without having asked.
//!
//! A notification is a row, written in the transaction that finds it out. People read it here; webhooks get it by
//! [`crate::work::fan_out`], later and by itself, so that whoever raises one waits for nothing.

use std::fmt;
use std::str::FromStr;

use loomworks_core::ids::{JobId, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::access::{self, Caller, Permission};
use crate::db::notifications::{self, Filter, Notification, Severity};
use crate::error::Error;
use crate::page::{Asked, Page};
use crate::{World, audit};

/// Every event there is, with what it tells. Who raises a new one adds it here and in `docs/how-to/webhooks.md`.
pub const EVENTS: &[(&str, &str)] = &[
    ("quota.storage_nearly_full", "80 % of the tenant's storage are used"),
    ("quota.storage_full", "the tenant's storage is used up: its database can only be read and deleted from"),
    ("quota.storage_freed", "there is room again: the tenant's database can be written to"),
    ("quota.users_nearly_full", "80 % of the users that the tenant may have are in use"),
    ("quota.users_full", "as many users are in use as the tenant may have: no other can be added"),
    ("quota.ai_operations_used_up", "AI agents have done all that they may do for the tenant today (UTC)"),
    ("subscription.ends_soon", "the tenant's subscription ends in 14, in 7 days or tomorrow"),
    ("subscription.ended", "the tenant's subscription has ended; it will be suspended"),
    ("subscription.suspended", "the tenant is suspended since its subscription has ended"),
    ("subscription.prolonged", "the tenant's subscription goes on, and it is served again"),
    ("tenant.suspended", "the tenant is kept and not served"),
    ("tenant.resumed", "the tenant is served again"),
    ("tenant.archived", "the tenant is kept for its retention period and not served"),
    ("tenant.destroyed", "the tenant and its data are gone"),
    ("tenant.destruction_stopped", "destroying a tenant could not go on; for operators"),
    ("export.ready", "an export of everything about the tenant can be fetched"),
    ("api_key.expires_soon", "an API key that nobody has rotated expires within seven days"),
    ("credentials.rotated", "the tenant's database password is another one"),
    ("fleet_migration.ended", "a migration of many tenants' databases has ended, stopped or failed"),
    ("backup.damaged_pages", "a backup was taken of a cluster that has damaged pages; for operators"),
    ("backup.damaged", "a backup that was read back cannot be restored whole; for operators"),
    (
        "restore_drill.failed",
        "tenants that were restored on the side to try it did not come back; for operators",
    ),
    ("job.failed", "a job failed for good"),
    ("webhook.disabled", "a webhook could not be reached for five days and gets nothing any more"),
    (TEST_EVENT, "somebody asked for a test of a webhook; sent to that one only"),
];

/// Who does what comes about by itself.
const ACTOR: &str = "loomworks";

/// What a test of a webhook sends.
pub const TEST_EVENT: &str = "webhook.test";

/// Something people should know.
#[derive(Clone, Debug)]
pub struct Notice {
    /// Two words with a dot, as in the audit log: `quota.storage_nearly_full`. One of [`EVENTS`].
    pub event: &'static str,
    pub severity: Severity,
    /// One sentence for people, without a secret in it.
    pub message: String,
    pub detail: Value,
}

impl Notice {
    /// Something that nobody need do anything about.
    #[must_use]
    pub fn info(event: &'static str, message: String, detail: Value) -> Self {
        Self { event, severity: Severity::Info, message, detail }
    }
}

/// Notes it in the transaction that finds it out, which records the act as well. `None`: for operators only.
pub async fn raise(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    notice: &Notice,
) -> sqlx::Result<()> {
    notifications::insert(connection, tenant, notice).await
}

/// The same for what nobody did, and so nobody has recorded: the audit log says that it came about by itself. Without the
/// message, which may have come from a tenant's database: the log is kept for ever.
pub async fn raise_and_record(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    notice: &Notice,
) -> sqlx::Result<()> {
    raise(connection, tenant, notice).await?;
    audit::record(connection, ACTOR, notice.event, tenant, notice.detail.clone()).await
}

/// Tells and records that a job failed for good, in the transaction that says so.
///
/// Not of the jobs that carry notifications: each would make the next.
pub async fn raise_failed_job(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    job: (JobId, &str),
    error: &str,
) -> sqlx::Result<()> {
    raise_job_failed(connection, tenant, job, error, Severity::Warning).await
}

/// The same, of a job that has left something which nobody could put right: somebody has to.
pub(crate) async fn raise_abandoned_job(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    job: (JobId, &str),
    error: &str,
) -> sqlx::Result<()> {
    raise_job_failed(connection, tenant, job, error, Severity::Critical).await
}

async fn raise_job_failed(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    (job, kind): (JobId, &str),
    error: &str,
    severity: Severity,
) -> sqlx::Result<()> {
    use crate::jobs::Work;
    use crate::work::{deliver_webhook::DeliverWebhook, fan_out::FanOut};
    if [DeliverWebhook::KIND, FanOut::KIND].contains(&kind) {
        return Ok(());
    }
    let notice = Notice {
        event: "job.failed",
        severity,
        message: format!("job {job} ({kind}) failed: {error}"),
        detail: json!({ "job": job, "kind": kind }),
    };
    raise_and_record(connection, tenant, &notice).await
}

/// Which events somebody wants: `*`, a name, or the beginning of names, as in `quota.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventPattern(String);

impl EventPattern {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same as in `db::webhooks::fan_out`.
    #[must_use]
    pub fn matches(&self, event: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => event.starts_with(beginning),
            None => self.0 == event,
        }
    }
}

impl FromStr for EventPattern {
    type Err = String;

    /// Refuses what no event matches: it would be silent for ever.
    fn from_str(text: &str) -> Result<Self, String> {
        let pattern = Self(text.to_owned());
        let shape =
            text == "*" || !text.contains('*') || (text.ends_with(".*") && text.matches('*').count() == 1);
        if shape && EVENTS.iter().any(|(event, _)| pattern.matches(event)) {
            return Ok(pattern);
        }
        let shown: String = text.chars().take(60).collect();
        Err(format!(
            "`{}` is no event: write `*`, `quota.*` or a name such as `job.failed`",
            shown.escape_debug()
        ))
    }
}

impl TryFrom<String> for EventPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<EventPattern> for String {
    fn from(pattern: EventPattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for EventPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which notifications somebody wants to see.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// A tenant's id or subdomain.
    pub tenant: Option<String>,
    pub severity: Option<Severity>,
    pub event: Option<EventPattern>,
}

/// The notifications a caller may see, newest first: an operator all, a tenant's people their own.
pub async fn list(
    world: &World,
    caller: &Caller,
    wanted: &Wanted,
    asked: &Asked<i64>,
) -> Result<Page<Notification>, Error> {
    let tenant = match &wanted.tenant {
        Some(name) => Some(access::tenant(&world.db, caller, name, Permission::Read).await?.tenant()),
        None => None,
    };
    let mut scoped = access::listing(&world.db, caller).await?;
    let filter =
        Filter { tenant, severity: wanted.severity, event: wanted.event.as_ref().map(EventPattern::as_str) };
    let rows = notifications::list(&mut scoped, &filter, asked.after, asked.rows()).await?;
    Ok(asked.page(rows, |notification| notification.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_everything_a_name_or_a_beginning() {
        let matches = |pattern: &str, event| pattern.parse::<EventPattern>().unwrap().matches(event);
        assert!(matches("*", "job.failed") && matches("*", "webhook.disabled"));
        assert!(matches("job.failed", "job.failed") && !matches("job.failed", "job.failed2"));
        assert!(matches("quota.*", "quota.storage_full") && !matches("quota.*", "job.failed"));
        for text in
            ["", "**", "quota*", "*.failed", "quota.*.*", "quota", "nothing.*", "Job.failed", "job.failed "]
        {
            assert!(text.parse::<EventPattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn events_are_two_words_with_a_dot_and_each_is_there_once() {
        let mut seen = std::collections::BTreeSet::new();
        for (event, told) in EVENTS {
            let (what, happened) = event.split_once('.').unwrap();
            let word =
                |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            assert!(word(what) && word(happened) && !told.is_empty(), "{event}");
            assert!(seen.insert(event), "{event} is there twice");
        }
    }

    /// Of every file of this crate: what is raised and not in the catalogue could be asked for by nobody.
    #[test]
    fn every_event_that_is_raised_is_in_the_catalogue() {
        fn look(directory: &std::path::Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    look(&path, found);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let events = ["event: \"", "Notice::info(\""]
                        .into_iter()
                        .flat_map(|begin| text.split(begin).skip(1));
                    let events = events.filter_map(|rest| rest.split('"').next());
                    found.extend(events.filter(|event| event.contains('.')).map(str::to_owned));
                }
            }
        }
        let mut found = Vec::new();
        look(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
        assert!(found.contains(&"job.failed".to_owned()));
        for event in found {
            assert!(EVENTS.iter().any(|(known, _)| *known == event), "`{event}` is not in EVENTS");
        }
    }

    #[test]
    fn the_page_for_receivers_has_the_same_catalogue() {
        let page = include_str!("../../../docs/how-to/webhooks.md");
        let rows: Vec<String> =
            EVENTS.iter().map(|(event, told)| format!("| `{event}` | {told} |")).collect();
        let there: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(there, rows, "the table in docs/how-to/webhooks.md and EVENTS say the same");
    }
}
