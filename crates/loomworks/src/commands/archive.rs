//! `loomworks archive`.

use std::process::ExitCode;

use loomworks_control::archive::ArchiveStatus;

use super::{bytes, moment, or_dash};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::ArchiveCommand;

pub(super) async fn run(client: &Client, ArchiveCommand::Status: ArchiveCommand, json: bool) -> Result<ExitCode, Failure> {
    let status: ArchiveStatus = client.get("/v1/archive").await?;
    if json {
        output::json(&status)?;
    } else {
        show(&status);
    }
    Ok(if status.alarms.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(status: &ArchiveStatus) {
    let slot = status.slot.as_ref().map(|slot| {
        let state = if slot.active { "receiving" } else { "not receiving" };
        format!("{state}, {} kept back", bytes(slot.behind_bytes))
    });
    let rows = [
        ["repository".into(), status.repository.clone()],
        ["archived up to".into(), or_dash(status.archived_up_to.as_ref())],
        ["written up to".into(), status.written_up_to.clone()],
        ["behind".into(), format!("{} s, {}", status.recovery_point_seconds, bytes(status.behind_bytes))],
        ["archiver".into(), slot.unwrap_or_else(|| "has never run".into())],
        ["backups".into(), status.backups.to_string()],
        ["newest backup".into(), status.newest_backup_at.map_or("-".into(), moment)],
        ["recoverable from".into(), status.recoverable_from.map_or("-".into(), moment)],
    ];
    output::table(["ARCHIVE", ""], &rows);
    for alarm in &status.alarms {
        output::line(format!("alarm: {alarm}"));
    }
}
