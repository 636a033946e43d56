//! `loomworks backup`.

use std::process::ExitCode;

use loomworks_web::api::Accepted;
use loomworks_web::api::backups::BackupShown;

use super::{bytes, moment};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::BackupCommand;

pub(super) async fn run(client: &Client, command: BackupCommand, json: bool) -> Result<ExitCode, Failure> {
    match command {
        BackupCommand::Run { full, no_wait } => {
            let path = format!("/v1/backups?full={full}");
            let accepted: Accepted = client.post(&path, &serde_json::json!({})).await?;
            if no_wait {
                if json {
                    output::json(&accepted)?;
                } else {
                    output::line(format!("job {}", accepted.job));
                }
                return Ok(ExitCode::SUCCESS);
            }
            let job = client.follow(accepted.job).await?;
            if json {
                output::json(&job)?;
            } else {
                let result = job.result.unwrap_or_default();
                let size = |field: &str| bytes(result[field].as_u64().unwrap_or(0));
                output::line(format!("done; {} in all, {} of it new", size("size_bytes"), size("new_bytes")));
            }
            Ok(ExitCode::SUCCESS)
        }
        BackupCommand::Verify { label } => {
            let path = format!("/v1/backups/{label}/verify");
            let accepted: Accepted = client.post(&path, &serde_json::json!({})).await?;
            let job = client.follow(accepted.job).await?;
            let result = job.result.clone().unwrap_or_default();
            let count = |field: &str| result[field].as_array().map_or(0, Vec::len);
            let wrong = count("problems") + count("wrong_pages");
            if json {
                output::json(&job)?;
            } else {
                let read = bytes(result["bytes"].as_u64().unwrap_or(0));
                output::line(format!("{read} in {} files read back, {wrong} of it wrong", result["files"]));
                for problem in result["problems"].as_array().into_iter().flatten() {
                    output::line(format!("{}: {}", problem["object"], problem["why"]));
                }
            }
            Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        BackupCommand::List => {
            let backups: Vec<BackupShown> = client.list("/v1/backups").await?;
            if json {
                output::json(&backups)?;
                return Ok(ExitCode::SUCCESS);
            }
            let row = |backup: &BackupShown| {
                let wal = format!("{} to {}", backup.start, backup.end);
                [
                    backup.label.clone(),
                    moment(backup.finished_at),
                    bytes(backup.size_bytes),
                    bytes(backup.new_bytes),
                    wal,
                ]
            };
            output::table(
                ["BACKUP", "COMPLETE", "SIZE", "NEW", "WAL"],
                &backups.iter().map(row).collect::<Vec<_>>(),
            );
            Ok(ExitCode::SUCCESS)
        }
    }
}
