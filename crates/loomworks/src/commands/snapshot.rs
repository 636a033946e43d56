//! `loomworks snapshot`.

use loomworks_control::db::snapshots::Snapshot;
use loomworks_web::api::snapshots::{CreateSnapshot, SnapshotCreated};

use super::{bytes, moment, or_dash};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::SnapshotCommand;

pub(super) async fn run(client: &Client, command: SnapshotCommand, json: bool) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create { tenant, name, no_wait } => {
            let path = format!("/v1/tenants/{tenant}/snapshots");
            let created: SnapshotCreated = client.post(&path, &CreateSnapshot { name }).await?;
            if no_wait {
                return list(&[created.snapshot], json);
            }
            client.follow(created.job).await?;
            let all: Vec<Snapshot> = client.list(&path).await?;
            let made: Vec<_> =
                all.into_iter().filter(|snapshot| snapshot.id == created.snapshot.id).collect();
            list(&made, json)
        }
        SnapshotCommand::List { tenant } => {
            list(&client.list::<Snapshot>(&format!("/v1/tenants/{tenant}/snapshots")).await?, json)
        }
    }
}

fn list(snapshots: &[Snapshot], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&snapshots);
    }
    let row = |snapshot: &Snapshot| {
        [
            snapshot.id.to_string(),
            snapshot.state.clone(),
            snapshot.snapshot_type.clone(),
            or_dash(snapshot.wal_position.as_ref()),
            snapshot.size_bytes.map_or("-".into(), |size| bytes(u64::try_from(size).unwrap_or(0))),
            moment(snapshot.created_at.to_jiff()),
            snapshot.name.clone(),
        ]
    };
    let rows: Vec<_> = snapshots.iter().map(row).collect();
    output::table(["SNAPSHOT", "STATE", "TYPE", "POSITION", "SIZE", "TAKEN", "NAME"], &rows);
    Ok(())
}
