//! `loomworks job`.

use loomworks_control::db::jobs::Job;

use super::{moment, or_dash};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::JobCommand;

pub(super) async fn run(client: &Client, command: JobCommand, json: bool) -> Result<(), Failure> {
    match command {
        JobCommand::List { limit } => {
            list(&client.get::<Vec<Job>>(&format!("/v1/jobs?limit={limit}")).await?, json)
        }
        JobCommand::Show { job } => show(&client.get(&format!("/v1/jobs/{job}")).await?, json),
        JobCommand::Follow { job } => show(&client.follow(job).await?, json),
    }
}

fn list(jobs: &[Job], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&jobs);
    }
    let row = |job: &Job| {
        [
            job.id.to_string(),
            job.kind.clone(),
            job.state.clone(),
            format!("{} %", job.percent),
            moment(job.created_at.to_jiff()),
            job.progress.clone(),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    output::table(["JOB", "KIND", "STATE", "", "ASKED FOR", "PROGRESS"], &rows);
    Ok(())
}

fn show(job: &Job, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(job);
    }
    let rows = [
        ["job".into(), job.id.to_string()],
        ["kind".into(), job.kind.clone()],
        ["state".into(), job.state.clone()],
        ["progress".into(), format!("{} %, {}", job.percent, job.progress)],
        ["asked for by".into(), job.requested_by.clone()],
        ["error".into(), or_dash(job.error.as_ref())],
        ["hint".into(), or_dash(job.hint.as_ref())],
        ["result".into(), or_dash(job.result.as_ref())],
    ];
    output::table(["FIELD", "VALUE"], &rows);
    Ok(())
}
