//! `loomworks audit`.

use std::process::ExitCode;

use loomworks_control::audit::verify::Verdict;
use loomworks_control::db::audit::Entry;
use loomworks_control::page::Page;
use loomworks_web::api::audit::VerifyAudit;

use super::{moment, shortened};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::{AuditCommand, AuditFilter};

/// Exit status 1 if the log is not as it was written.
pub(super) async fn run(client: &Client, command: AuditCommand, json: bool) -> Result<ExitCode, Failure> {
    match command {
        AuditCommand::List(filter) => list(client, &filter, json).await?,
        AuditCommand::Verify { since, expect } => {
            let verdict: Verdict = client.post("/v1/audit/verify", &VerifyAudit { since, expect }).await?;
            show(&verdict, json)?;
            return Ok(if verdict.intact { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, filter: &AuditFilter, json: bool) -> Result<(), Failure> {
    let page: Page<Entry> = client.get_with("/v1/audit", &filter.query()).await?;
    if json {
        return output::json(&page);
    }
    let row = |entry: &Entry| {
        [
            entry.id.to_string(),
            moment(entry.at.to_jiff()),
            entry.actor.clone(),
            entry.action.clone(),
            entry.origin.clone(),
            shortened(&entry.detail.to_string(), 80),
        ]
    };
    let rows: Vec<_> = page.items.iter().map(row).collect();
    output::table(["ROW", "WHEN", "WHO", "WHAT", "FROM WHERE", "PARTICULARS"], &rows);
    if let Some(cursor) = page.next_cursor {
        output::line(format!("there is more: add --cursor {cursor}"));
    }
    Ok(())
}

fn show(verdict: &Verdict, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(verdict);
    }
    if let Some(broken) = &verdict.broken {
        output::line(format!("BROKEN: {}", broken.message));
    } else {
        output::line(format!("intact: {} rows looked at, {} sealed", verdict.checked, verdict.sealed));
    }
    output::line(format!("head: {}", verdict.head));
    Ok(())
}
