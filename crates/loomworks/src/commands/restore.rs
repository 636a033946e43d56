//! `loomworks restore`.

use loomworks_control::archive::RecoveryWindow;
use loomworks_control::restores::Mode;
use loomworks_core::ids::JobId;
use loomworks_undo::OperationId;
use loomworks_web::api::Accepted;
use loomworks_web::api::restores::{Confirm, PlanShown, RestoreStarted, RestoreTarget};

use super::{bytes, moment};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::{RestoreCommand, Target};

pub(super) async fn run(client: &Client, command: RestoreCommand, json: bool) -> Result<(), Failure> {
    match command {
        RestoreCommand::Plan { tenant, target, from } => {
            let body = RestoreTarget { from, ..wanted(&target) };
            let plan: PlanShown = client.post(&format!("/v1/tenants/{tenant}/restores/plan"), &body).await?;
            if json { output::json(&plan) } else { show(&plan) }
        }
        RestoreCommand::Window { tenant } => {
            let window: RecoveryWindow = client.get(&format!("/v1/tenants/{tenant}/recovery-window")).await?;
            if json { output::json(&window) } else { show_window(&window) }
        }
        RestoreCommand::Look { tenant, target, no_wait } => {
            let body = RestoreTarget { mode: Mode::Look, ..wanted(&target) };
            let started: RestoreStarted =
                client.post(&format!("/v1/tenants/{tenant}/restores"), &body).await?;
            if no_wait {
                return if json {
                    output::json(&started)
                } else {
                    output::told(format!("job {}", started.job))
                };
            }
            let job = client.follow(started.job).await?;
            if json {
                return output::json(&job);
            }
            let name = job.result.as_ref().and_then(|result| result["database"].as_str()).unwrap_or("-");
            output::told(format!("done; it is the database `{name}`, for a day"))
        }
        RestoreCommand::Run { tenant, target, from, yes, no_wait } => {
            let body = RestoreTarget { from, ..wanted(&target) };
            if !yes {
                if !json {
                    let plan = client.post(&format!("/v1/tenants/{tenant}/restores/plan"), &body).await?;
                    show(&plan)?;
                }
                output::confirm(
                    &format!("The database of `{tenant}` will be replaced; it is kept for seven days."),
                    &tenant,
                )?;
            }
            let confirm = subdomain(client, &tenant).await?;
            let body = RestoreTarget { confirm, ..body };
            let started: RestoreStarted =
                client.post(&format!("/v1/tenants/{tenant}/restores"), &body).await?;
            finish(client, started.job, no_wait, json).await
        }
        RestoreCommand::SwapBack { tenant, yes, no_wait } => {
            if !yes {
                output::confirm(
                    &format!("The database of `{tenant}` will be replaced by its former one."),
                    &tenant,
                )?;
            }
            let body = Confirm { confirm: subdomain(client, &tenant).await? };
            let accepted: Accepted =
                client.post(&format!("/v1/tenants/{tenant}/restores/swap-back"), &body).await?;
            finish(client, accepted.job, no_wait, json).await
        }
    }
}

/// The API wants the subdomain as the confirmation; a person may have named the tenant by its id.
async fn subdomain(client: &Client, tenant: &str) -> Result<String, Failure> {
    let tenant: loomworks_control::db::tenants::Tenant = client.get(&format!("/v1/tenants/{tenant}")).await?;
    Ok(tenant.subdomain.to_string())
}

fn wanted(target: &Target) -> RestoreTarget {
    RestoreTarget {
        snapshot: target.snapshot,
        time: target.time,
        lsn: target.lsn,
        operation: target.operation.map(OperationId),
        ..RestoreTarget::default()
    }
}

fn show_window(window: &RecoveryWindow) -> Result<(), Failure> {
    let from = window.recoverable_from.map_or_else(|| "nothing yet".to_owned(), moment);
    let rows = [
        ["recoverable from".into(), from],
        ["days".into(), window.recovery_days.to_string()],
        ["until".into(), moment(window.recoverable_until)],
        ["a restore takes about".into(), window.estimated_seconds.map_or("-".into(), |s| format!("{s} s"))],
    ];
    output::table(["WINDOW", ""], &rows);
    Ok(())
}

fn show(plan: &PlanShown) -> Result<(), Failure> {
    let rows = [
        ["target".into(), plan.target.clone()],
        ["base backup".into(), format!("{} ({})", plan.base_backup, bytes(plan.base_backup_bytes))],
        ["WAL to look through".into(), bytes(plan.wal_bytes)],
        ["about".into(), format!("{} s", plan.estimated_seconds)],
    ];
    output::table(["PLAN", ""], &rows);
    Ok(())
}

async fn finish(client: &Client, job: JobId, no_wait: bool, json: bool) -> Result<(), Failure> {
    if no_wait {
        let accepted = Accepted { job };
        return if json { output::json(&accepted) } else { output::told(format!("job {job}")) };
    }
    let job = client.follow(job).await?;
    if json {
        return output::json(&job);
    }
    let former = job.result.as_ref().and_then(|result| result["former_database"].as_str()).unwrap_or("-");
    output::line(format!("done; the former database is kept as `{former}`"));
    output::line("`loomworks restore swap-back` takes this back");
    Ok(())
}
