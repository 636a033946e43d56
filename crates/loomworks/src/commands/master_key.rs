//! `loomworks master-key`.

use loomworks_control::master_key::rotation::KeyStatus;
use loomworks_web::api::Accepted;
use loomworks_web::api::master_key::RotateMasterKey;

use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::MasterKeyCommand;

pub(super) async fn run(client: &Client, command: MasterKeyCommand, json: bool) -> Result<(), Failure> {
    match command {
        MasterKeyCommand::Show => show(&client.get("/v1/master-key").await?, json),
        MasterKeyCommand::Rotate { forget_former, yes, no_wait } => {
            if forget_former && !yes {
                let question =
                    "Backups of the management database from before this can then not be used any more.";
                output::confirm(question, "forget")?;
            }
            let body = RotateMasterKey { forget_former };
            let accepted: Accepted = client.post("/v1/master-key/rotate", &body).await?;
            if no_wait {
                let said = format!("job {} does it", accepted.job);
                return if json { output::json(&accepted) } else { output::told(said) };
            }
            client.follow(accepted.job).await?;
            show(&client.get("/v1/master-key").await?, json)
        }
    }
}

fn show(status: &KeyStatus, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(status);
    }
    output::line(format!("wraps: {}", status.current));
    for former in &status.former {
        output::line(format!("opens: {former}"));
    }
    let mut rows: Vec<_> = status
        .wrapped
        .iter()
        .map(|column| [column.column.clone(), column.current.to_string(), column.former.to_string()])
        .collect();
    let keys = &status.repository;
    rows.push(["keys of the repository".into(), keys.current.to_string(), keys.former.to_string()]);
    output::table(["COLUMN", "PRESENT KEY", "FORMER KEYS"], &rows);
    for name in &keys.unopened {
        output::line(format!("does not open: {name}"));
    }
    Ok(())
}
