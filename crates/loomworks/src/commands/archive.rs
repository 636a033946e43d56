//! `loomworks archive`.

use std::process::ExitCode;

use loomworks_control::archive::{ArchiveStatus, ExpiryShown};
use loomworks_web::api::Accepted;

use super::{bytes, moment, or_dash};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::ArchiveCommand;

pub(super) async fn run(client: &Client, command: ArchiveCommand, json: bool) -> Result<ExitCode, Failure> {
    match command {
        ArchiveCommand::Status => status(client, json).await,
        ArchiveCommand::Expiry => {
            let plan: ExpiryShown = client.get("/v1/archive/expiry").await?;
            if json {
                output::json(&plan)?;
            } else {
                show_expiry(&plan);
            }
            Ok(ExitCode::SUCCESS)
        }
        ArchiveCommand::Expire { yes } => {
            if !yes {
                if !json {
                    show_expiry(&client.get("/v1/archive/expiry").await?);
                }
                output::confirm("What is shown is removed from the repository for good.", "remove")?;
            }
            let accepted: Accepted = client.post("/v1/archive/expiry", &serde_json::json!({})).await?;
            let job = client.follow(accepted.job).await?;
            if json {
                output::json(&job)?;
            } else {
                let result = job.result.unwrap_or_default();
                let freed = result["archive"]["bytes"].as_u64().unwrap_or(0);
                output::line(format!("done; {} objects, {}", result["archive"]["objects"], bytes(freed)));
            }
            Ok(ExitCode::SUCCESS)
        }
        ArchiveCommand::Drill => drill(client, json).await,
    }
}

async fn drill(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let accepted: Accepted = client.post("/v1/archive/drill", &serde_json::json!({})).await?;
    let job = client.follow(accepted.job).await?;
    let restored =
        job.result.as_ref().and_then(|result| result["restored"].as_array().cloned()).unwrap_or_default();
    let failed = restored.iter().filter(|one| !one["error"].is_null()).count();
    if json {
        output::json(&job)?;
    } else {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
        let rows = restored.iter().map(|one| {
            let error = if one["error"].is_null() { "restored".to_owned() } else { text(&one["error"]) };
            [text(&one["tenant"]), format!("{} ms", one["milliseconds"]), error]
        });
        output::table(["TENANT", "TOOK", "HOW"], &rows.collect::<Vec<_>>());
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show_expiry(plan: &ExpiryShown) {
    output::line(format!("window: {} days; {}", plan.recovery_days, plan.recovery_days_because));
    let kept = plan.kept.iter().map(|kept| [kept.backup.clone(), kept.why.join("; ")]);
    output::table(["STAYS", "WHY"], &kept.collect::<Vec<_>>());
    let removed = plan.removed.iter().map(|one| [one.objects.to_string(), bytes(one.bytes), one.why.clone()]);
    output::table(["GOES", "SIZE", "WHY"], &removed.collect::<Vec<_>>());
    for reason in &plan.held_back {
        output::line(format!("held back: {reason}"));
    }
}

async fn status(client: &Client, json: bool) -> Result<ExitCode, Failure> {
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
    let windows = status.windows.iter().map(|window| {
        let from = window.recoverable_from.map_or("-".into(), moment);
        [window.recovery_days.to_string(), window.tenants.to_string(), from]
    });
    output::table(["RECOVERY DAYS", "TENANTS", "RECOVERABLE FROM"], &windows.collect::<Vec<_>>());
    for alarm in &status.alarms {
        output::line(format!("alarm: {alarm}"));
    }
}
