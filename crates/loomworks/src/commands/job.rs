//! `loomworks job`.

use loomworks_control::db::jobs::Job;
use loomworks_control::page::Page;

use super::{moment, or_dash};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::JobCommand;

pub(super) async fn run(client: &Client, command: JobCommand, json: bool) -> Result<(), Failure> {
    match command {
        JobCommand::List(filter) => {
            list(&client.get(&format!("/v1/jobs?{}", filter.query())).await?, filter.cursor.is_some(), json)
        }
        JobCommand::Show { job } => show(&client.get(&format!("/v1/jobs/{job}")).await?, json),
        JobCommand::Follow { job } => show(&client.follow(job).await?, json),
        JobCommand::Retry { job, wait } => {
            let retried = client.post(&format!("/v1/jobs/{job}/retry"), &serde_json::json!({})).await?;
            show(&if wait { client.follow(job).await? } else { retried }, json)
        }
        JobCommand::Cancel { job } => {
            show(&client.post(&format!("/v1/jobs/{job}/cancel"), &serde_json::json!({})).await?, json)
        }
    }
}

fn list(page: &Page<Job>, goes_on: bool, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(page);
    }
    let row = |job: &Job| {
        [
            job.id.to_string(),
            job.kind.clone(),
            job.queue.as_str().to_owned(),
            job.state.clone(),
            format!("{} %", job.percent),
            moment(job.created_at.to_jiff()),
            job.progress.clone(),
        ]
    };
    let rows: Vec<_> = page.items.iter().map(row).collect();
    if rows.is_empty() && !goes_on {
        return output::told("There are no such jobs.");
    }
    output::table(["JOB", "KIND", "QUEUE", "STATE", "", "ASKED FOR", "PROGRESS"], &rows);
    if let Some(cursor) = &page.next_cursor {
        output::line(format!("There are more: --cursor {cursor}"));
    }
    Ok(())
}

fn show(job: &Job, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(job);
    }
    let state = match job.cancel_requested && !job.is_finished() {
        true => format!("{}, to be cancelled", job.state),
        false => job.state.clone(),
    };
    let rows = [
        ["job".into(), job.id.to_string()],
        ["kind".into(), job.kind.clone()],
        ["queue".into(), job.queue.as_str().into()],
        ["state".into(), state],
        ["progress".into(), format!("{} %, {}", job.percent, job.progress)],
        ["tries of this step".into(), format!("{} of {}", job.attempts, job.max_attempts)],
        ["asked for by".into(), job.requested_by.clone()],
        ["error".into(), or_dash(job.error.as_ref())],
        ["hint".into(), or_dash(job.hint.as_ref())],
        ["result".into(), or_dash(job.result.as_ref())],
    ];
    output::table(["FIELD", "VALUE"], &rows);
    Ok(())
}
