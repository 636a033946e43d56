//! `loomworks tenant archive`, `unarchive`, `destroy`, `erasure`.

use loomworks_control::db::tenants::Tenant;
use loomworks_control::erasure::ErasureReport;
use loomworks_control::retirement::DestroyPlan;
use loomworks_core::ids::JobId;
use loomworks_web::api::Accepted;
use loomworks_web::api::retirement::{ArchiveTenant, DestroyTenant};
use serde_json::json;

use crate::client::Client;
use crate::commands::bytes;
use crate::output::{self, Failure};

pub(super) async fn archive(
    client: &Client,
    tenant: &str,
    reason: String,
    yes: bool,
    no_wait: bool,
    json: bool,
) -> Result<(), Failure> {
    let found: Tenant = client.get(&format!("/v1/tenants/{tenant}")).await?;
    if !yes {
        let question =
            format!("`{tenant}` will not be served any more; its data is kept for the retention period.");
        output::confirm(&question, tenant)?;
    }
    let body = ArchiveTenant { confirm: found.subdomain.to_string(), reason };
    let accepted: Accepted = client.post(&format!("/v1/tenants/{tenant}/archive"), &body).await?;
    finish(client, &found, accepted.job, no_wait, json).await
}

pub(super) async fn unarchive(
    client: &Client,
    tenant: &str,
    no_wait: bool,
    json: bool,
) -> Result<(), Failure> {
    let found: Tenant = client.get(&format!("/v1/tenants/{tenant}")).await?;
    let accepted: Accepted = client.post(&format!("/v1/tenants/{tenant}/unarchive"), &json!({})).await?;
    finish(client, &found, accepted.job, no_wait, json).await
}

async fn finish(
    client: &Client,
    tenant: &Tenant,
    job: JobId,
    no_wait: bool,
    json: bool,
) -> Result<(), Failure> {
    if no_wait {
        let accepted = Accepted { job };
        return if json { output::json(&accepted) } else { output::told(format!("job {job}")) };
    }
    client.follow(job).await?;
    super::show(&client.get(&format!("/v1/tenants/{}", tenant.id)).await?, json)
}

pub(super) async fn destroy_plan(client: &Client, tenant: &str, json: bool) -> Result<(), Failure> {
    let plan = plan(client, tenant).await?;
    if json { output::json(&plan) } else { show_plan(&plan) }
}

async fn plan(client: &Client, tenant: &str) -> Result<DestroyPlan, Failure> {
    client.post(&format!("/v1/tenants/{tenant}/destroy/plan"), &json!({})).await
}

fn show_plan(plan: &DestroyPlan) -> Result<(), Failure> {
    let databases = plan.databases.iter().map(|database| {
        let size = u64::try_from(database.size_bytes).unwrap_or(0);
        ["database".to_owned(), format!("{} ({})", database.name, bytes(size))]
    });
    let roles = plan.roles.iter().map(|role| ["role".to_owned(), role.clone()]);
    let rows =
        plan.rows.iter().map(|count| ["rows".to_owned(), format!("{} in {}", count.rows, count.table)]);
    let kept = plan.kept.iter().map(|kept| ["stays".to_owned(), kept.clone()]);
    output::table(["WOULD GO", ""], &databases.chain(roles).chain(rows).chain(kept).collect::<Vec<_>>());
    if let Some(reason) = &plan.refused_because {
        output::line(format!("not now: {reason}"));
    }
    Ok(())
}

pub(super) async fn destroy(
    client: &Client,
    tenant: &str,
    before_retention_ends: bool,
    yes: bool,
    no_wait: bool,
    json: bool,
) -> Result<(), Failure> {
    let plan = plan(client, tenant).await?;
    if !yes {
        if !json {
            show_plan(&plan)?;
        }
        output::confirm(&format!("All of this of `{tenant}` will be gone for ever."), tenant)?;
    }
    let body = DestroyTenant { confirm: plan.tenant.subdomain.to_string(), before_retention_ends };
    let accepted: Accepted = client.post(&format!("/v1/tenants/{tenant}/destroy"), &body).await?;
    if no_wait {
        return if json { output::json(&accepted) } else { output::told(format!("job {}", accepted.job)) };
    }
    client.follow(accepted.job).await?;
    // By its id: its subdomain is nobody's any more.
    erasure(client, &plan.tenant.id.to_string(), json).await
}

pub(super) async fn erasure(client: &Client, tenant: &str, json: bool) -> Result<(), Failure> {
    let report: ErasureReport = client.get(&format!("/v1/tenants/{tenant}/erasure")).await?;
    if json {
        return output::json(&report);
    }
    let checks = report.checks.iter().map(|check| {
        let found = if check.gone { "gone".to_owned() } else { check.found.join(", ") };
        [check.what.clone(), found]
    });
    let kept = report.kept.iter().map(|kept| [kept.clone(), "kept".to_owned()]);
    output::table(["LOOKED FOR", "FOUND"], &checks.chain(kept).collect::<Vec<_>>());
    output::told(if report.complete { "nothing is left" } else { "something is left" })
}
