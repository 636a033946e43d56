//! `loomworks backup`.

use loomworks_web::api::Accepted;
use loomworks_web::api::backups::BackupShown;

use super::{bytes, moment};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::BackupCommand;

pub(super) async fn run(client: &Client, command: BackupCommand, json: bool) -> Result<(), Failure> {
    match command {
        BackupCommand::Run { no_wait } => {
            let accepted: Accepted = client.post("/v1/backups", &serde_json::json!({})).await?;
            if no_wait {
                return if json {
                    output::json(&accepted)
                } else {
                    output::told(format!("job {}", accepted.job))
                };
            }
            let job = client.follow(accepted.job).await?;
            if json { output::json(&job) } else { output::told("done") }
        }
        BackupCommand::List => {
            let backups: Vec<BackupShown> = client.list("/v1/backups").await?;
            if json {
                return output::json(&backups);
            }
            let row = |backup: &BackupShown| {
                let wal = format!("{} to {}", backup.start, backup.end);
                [backup.label.clone(), moment(backup.finished_at), bytes(backup.size_bytes), wal]
            };
            output::table(
                ["BACKUP", "COMPLETE", "SIZE", "WAL"],
                &backups.iter().map(row).collect::<Vec<_>>(),
            );
            Ok(())
        }
    }
}
