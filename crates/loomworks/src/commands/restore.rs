//! `loomworks restore`.

use loomworks_core::ids::JobId;
use loomworks_web::api::Accepted;
use loomworks_web::api::restores::{Confirm, PlanShown, RestoreStarted, RestoreTarget};

use super::bytes;
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::{RestoreCommand, Target};

pub(super) async fn run(client: &Client, command: RestoreCommand, json: bool) -> Result<(), Failure> {
    match command {
        RestoreCommand::Plan { tenant, target } => {
            let plan = plan(client, &tenant, &target).await?;
            if json { output::json(&plan) } else { show(&plan) }
        }
        RestoreCommand::Run { tenant, target, yes, no_wait } => {
            if !yes {
                if !json {
                    show(&plan(client, &tenant, &target).await?)?;
                }
                output::confirm(
                    &format!("The database of `{tenant}` will be replaced; it is kept for seven days."),
                    &tenant,
                )?;
            }
            let confirm = subdomain(client, &tenant).await?;
            let body = RestoreTarget { snapshot: target.snapshot, time: target.time, confirm };
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

async fn plan(client: &Client, tenant: &str, target: &Target) -> Result<PlanShown, Failure> {
    let body = RestoreTarget { snapshot: target.snapshot, time: target.time, confirm: String::new() };
    client.post(&format!("/v1/tenants/{tenant}/restores/plan"), &body).await
}

fn show(plan: &PlanShown) -> Result<(), Failure> {
    let rows = [
        ["target".into(), plan.target.clone()],
        ["base backup".into(), format!("{} ({})", plan.base_backup, bytes(plan.base_backup_bytes))],
        ["WAL to replay".into(), format!("at most {}", bytes(plan.wal_bytes))],
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
