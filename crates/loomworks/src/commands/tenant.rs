//! `loomworks tenant`.

mod export;
mod retirement;

use loomworks_control::db::tenants::Tenant;
use loomworks_control::usage::{Level, Usage};
use loomworks_web::api::Accepted;
use loomworks_web::api::tenants::{CreateTenant, FirstUser, Suspend, TenantCreated, UpdateTenant};

use super::{bytes, moment, or_dash};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::{TenantCommand, TenantUpdate};

pub(super) async fn run(client: &Client, command: TenantCommand, json: bool) -> Result<(), Failure> {
    match command {
        TenantCommand::Create { subdomain, name, profile, admin_login, draft, tier, expires, wait } => {
            let body = CreateTenant {
                subdomain,
                name,
                profile,
                admin_login,
                draft,
                tier,
                subscription_expires: expires,
                settings: None,
            };
            made(client, client.post("/v1/tenants", &body).await?, wait, json).await
        }
        TenantCommand::Provision { tenant, wait } => {
            let path = format!("/v1/tenants/{tenant}/provision");
            made(client, client.post(&path, &serde_json::json!({})).await?, wait, json).await
        }
        TenantCommand::Update(update) => self::update(client, update, json).await,
        TenantCommand::List { state, tier, search } => {
            let state = state.map(|state| ("state", state.to_string()));
            let tier = tier.map(|tier| ("tier", tier.to_string()));
            let query: Vec<_> = [state, tier, search.map(|text| ("q", text))].into_iter().flatten().collect();
            list(&client.get_all("/v1/tenants", &query).await?, json)
        }
        TenantCommand::Usage { tenant } => {
            show_usage(&client.get(&format!("/v1/tenants/{tenant}/usage")).await?, json)
        }
        TenantCommand::Show { tenant } => show(&client.get(&format!("/v1/tenants/{tenant}")).await?, json),
        TenantCommand::Suspend { tenant, reason } => {
            show(&client.post(&format!("/v1/tenants/{tenant}/suspend"), &Suspend { reason }).await?, json)
        }
        TenantCommand::Resume { tenant } => {
            show(&client.post(&format!("/v1/tenants/{tenant}/resume"), &serde_json::json!({})).await?, json)
        }
        TenantCommand::RotateCredentials { tenant, no_wait } => {
            let path = format!("/v1/tenants/{tenant}/credentials/rotate");
            let accepted: Accepted = client.post(&path, &serde_json::json!({})).await?;
            if json && no_wait {
                return output::json(&accepted);
            }
            if no_wait {
                output::line(format!("job {} does it", accepted.job));
                return Ok(());
            }
            let job = client.follow(accepted.job).await?;
            if json { output::json(&job) } else { output::told("done; only the new password works") }
        }
        TenantCommand::Archive { tenant, reason, yes, no_wait } => {
            retirement::archive(client, &tenant, reason, yes, no_wait, json).await
        }
        TenantCommand::Unarchive { tenant, no_wait } => {
            retirement::unarchive(client, &tenant, no_wait, json).await
        }
        TenantCommand::Destroy { tenant, dry_run: true, .. } => {
            retirement::destroy_plan(client, &tenant, json).await
        }
        TenantCommand::Destroy { tenant, before_retention_ends, yes, no_wait, dry_run: false } => {
            retirement::destroy(client, &tenant, before_retention_ends, yes, no_wait, json).await
        }
        TenantCommand::Erasure { tenant } => retirement::erasure(client, &tenant, json).await,
        TenantCommand::Export { tenant, output, export } => {
            export::run(client, &tenant, &output, export, json).await
        }
        TenantCommand::Exports { tenant } => export::list(client, &tenant, json).await,
    }
}

/// A tenant that was made, with what is told of it once.
#[derive(serde::Serialize)]
struct Waited<'a> {
    #[serde(flatten)]
    tenant: &'a Tenant,
    admin: &'a FirstUser,
}

/// Says what was begun, or waits until it is done.
async fn made(client: &Client, created: TenantCreated, wait: bool, json: bool) -> Result<(), Failure> {
    // First of all: it is told this once, whatever becomes of the rest.
    if let (Some(admin), false) = (&created.admin, json) {
        show_admin(admin);
    }
    let tenant = &created.tenant;
    match created.job {
        Some(job) if wait => {
            client.follow(job).await?;
            let tenant: Tenant = client.get(&format!("/v1/tenants/{}", tenant.id)).await?;
            match &created.admin {
                Some(admin) if json => output::json(&Waited { tenant: &tenant, admin }),
                _ => show(&tenant, json),
            }
        }
        _ if json => output::json(&created),
        Some(job) => {
            output::line(format!("tenant {} is being made by job {job}", tenant.subdomain));
            output::told(format!("follow it with `loomworks job follow {job}`"))
        }
        None => {
            output::line(format!("the draft of tenant {} is written down", tenant.subdomain));
            output::told(format!("make it with `loomworks tenant provision {}`", tenant.subdomain))
        }
    }
}

async fn update(client: &Client, update: TenantUpdate, json: bool) -> Result<(), Failure> {
    let settings = update.settings.as_deref().map(serde_json::from_str).transpose().map_err(|error| {
        Failure::refused(format!("the settings are no JSON object: {error}"))
            .with_hint(r#"for example --settings '{"region": "eu"}'"#)
    })?;
    let body = UpdateTenant {
        name: update.name,
        tier: update.tier,
        subscription_expires: update.expires.map(|date| date.0),
        max_users: update.max_users.map(|value| value.0),
        max_storage_gb: update.max_storage_gb.map(|value| value.0),
        max_ai_operations_daily: update.max_ai_operations_daily.map(|value| value.0),
        recovery_days: update.recovery_days.map(|value| value.0),
        settings,
    };
    show(&client.patch(&format!("/v1/tenants/{}", update.tenant), &body).await?, json)
}

fn show_admin(admin: &FirstUser) {
    output::line(format!(
        "the app's first user is `{}`, password {} (shown this once)",
        admin.login, admin.password
    ));
}

fn show_usage(usage: &Usage, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(usage);
    }
    let row = |what: &str, level: &Level, show: &dyn Fn(i64) -> String| {
        let percent = format!("{} %", level.percent);
        [what.to_owned(), show(level.used), show(level.limit), show(level.remaining), percent]
    };
    let count = |count: i64| count.to_string();
    let size = |count: i64| bytes(count.unsigned_abs());
    let mut rows = vec![
        row("storage", &usage.storage, &size),
        row("AI operations today", &usage.ai_operations_today, &count),
    ];
    if let Some(users) = &usage.users {
        rows.insert(0, row("users", users, &count));
    }
    output::table(["WHAT", "USED", "LIMIT", "LEFT", "PERCENT"], &rows);
    if usage.storage_level == "full" {
        output::line("the storage is full: it can be read and deleted from, and nothing more is written");
    }
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
            tenant.tier.to_string(),
            name,
        ]
    };
    output::table(
        ["SUBDOMAIN", "STATE", "PROFILE", "TIER", "NAME"],
        &tenants.iter().map(row).collect::<Vec<_>>(),
    );
    Ok(())
}

pub(super) fn show(tenant: &Tenant, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(tenant);
    }
    let own = |own: bool| if own { " (its own)" } else { "" };
    let time =
        |time: Option<loomworks_control::db::Time>| or_dash(time.map(|time| moment(time.to_jiff())).as_ref());
    let rows = [
        ["subdomain".into(), tenant.subdomain.to_string()],
        ["name".into(), tenant.name.clone()],
        ["id".into(), tenant.id.to_string()],
        ["state".into(), tenant.state.to_string()],
        ["suspended because".into(), or_dash(tenant.suspension_reason.as_ref())],
        ["suspended by".into(), or_dash(tenant.suspended_by.as_ref())],
        ["suspended at".into(), time(tenant.suspended_at)],
        ["archived because".into(), or_dash(tenant.archive_reason.as_ref())],
        ["kept until".into(), time(tenant.archived_until)],
        ["database".into(), tenant.database_name.clone()],
        ["profile".into(), tenant.profile.clone()],
        ["tier".into(), tenant.tier.to_string()],
        [
            "subscription ends".into(),
            or_dash(tenant.subscription_expires.map(|date| date.to_jiff()).as_ref()),
        ],
        ["users".into(), format!("{}{}", tenant.max_users, own(tenant.own_max_users.is_some()))],
        [
            "storage GB".into(),
            format!("{}{}", tenant.max_storage_gb, own(tenant.own_max_storage_gb.is_some())),
        ],
        [
            "AI operations a day".into(),
            format!(
                "{}{}",
                tenant.max_ai_operations_daily,
                own(tenant.own_max_ai_operations_daily.is_some())
            ),
        ],
        [
            "recovery days".into(),
            match tenant.recovery_days {
                Some(days) => format!("{days}{}", own(tenant.own_recovery_days.is_some())),
                None => "the platform's".into(),
            },
        ],
        ["settings".into(), tenant.settings.to_string()],
        ["made".into(), moment(tenant.created_at.to_jiff())],
    ];
    output::table(["FIELD", "VALUE"], &rows);
    Ok(())
}
