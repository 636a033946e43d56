//! `loomworks tenant`.

use loomworks_control::db::tenants::Tenant;
use loomworks_web::api::tenants::{CreateTenant, Suspend, TenantCreated};

use super::{moment, or_dash};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::TenantCommand;

pub(super) async fn run(client: &Client, command: TenantCommand, json: bool) -> Result<(), Failure> {
    match command {
        TenantCommand::Create { subdomain, name, profile, wait } => {
            let body = CreateTenant { subdomain, name, profile };
            let created: TenantCreated = client.post("/v1/tenants", &body).await?;
            if !wait {
                return if json { output::json(&created) } else { show_job(&created) };
            }
            client.follow(created.job).await?;
            show(&client.get(&format!("/v1/tenants/{}", created.tenant.id)).await?, json)
        }
        TenantCommand::List => list(&client.get::<Vec<Tenant>>("/v1/tenants").await?, json),
        TenantCommand::Show { tenant } => show(&client.get(&format!("/v1/tenants/{tenant}")).await?, json),
        TenantCommand::Suspend { tenant, reason } => {
            show(&client.post(&format!("/v1/tenants/{tenant}/suspend"), &Suspend { reason }).await?, json)
        }
        TenantCommand::Resume { tenant } => {
            show(&client.post(&format!("/v1/tenants/{tenant}/resume"), &serde_json::json!({})).await?, json)
        }
    }
}

fn show_job(created: &TenantCreated) -> Result<(), Failure> {
    output::line(format!("tenant {} is being made by job {}", created.tenant.subdomain, created.job));
    output::line(format!("follow it with `loomworks job follow {}`", created.job));
    Ok(())
}

fn list(tenants: &[Tenant], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&tenants);
    }
    let row = |tenant: &Tenant| {
        let name = tenant.name.clone();
        [
            tenant.subdomain.to_string(),
            tenant.state.to_string(),
            tenant.profile.clone(),
            tenant.tier.clone(),
            name,
        ]
    };
    output::table(
        ["SUBDOMAIN", "STATE", "PROFILE", "TIER", "NAME"],
        &tenants.iter().map(row).collect::<Vec<_>>(),
    );
    Ok(())
}

fn show(tenant: &Tenant, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(tenant);
    }
    let rows = [
        ["subdomain".into(), tenant.subdomain.to_string()],
        ["name".into(), tenant.name.clone()],
        ["id".into(), tenant.id.to_string()],
        ["state".into(), tenant.state.to_string()],
        ["suspended because".into(), or_dash(tenant.suspension_reason.as_ref())],
        ["database".into(), tenant.database_name.clone()],
        ["profile".into(), tenant.profile.clone()],
        ["tier".into(), tenant.tier.clone()],
        ["made".into(), moment(tenant.created_at.to_jiff())],
    ];
    output::table(["FIELD", "VALUE"], &rows);
    Ok(())
}
