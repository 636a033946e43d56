//! `loomworks doctor`.

use std::process::ExitCode;

use loomworks_control::doctor::Finding;

use crate::client::Client;
use crate::output::{self, Failure};

/// Exit status 1 if anything is not well.
pub(super) async fn run(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let findings: Vec<Finding> = client.get("/v1/doctor").await?;
    if json {
        output::json(&findings)?;
    } else {
        for finding in &findings {
            let mark = if finding.ok { "ok  " } else { "BAD " };
            output::line(format!("{mark} {}: {}", finding.name, finding.detail));
            if let Some(hint) = &finding.hint {
                output::line(format!("     hint: {hint}"));
            }
        }
    }
    Ok(if findings.iter().all(|finding| finding.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
