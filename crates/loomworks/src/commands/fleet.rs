//! `loomworks fleet`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use loomworks_control::db::fleet::{FleetMigration, MigrationTenant};
use loomworks_control::fleet::{FleetPlan, Selection, Trial};
use loomworks_control::page::Page;
use loomworks_core::ids::FleetMigrationId;
use loomworks_web::api::fleet_migrations::{
    CreateFleetMigration, FleetMigrationAccepted, ResumeFleetMigration,
};
use serde_json::json;

use super::{moment, or_dash, shortened};
use crate::client::Client;
use crate::output::{self, Failure, Progress};
use crate::settings::fleet::{DryRun, FleetCommand, FleetRun};

pub(super) async fn run(client: &Client, command: FleetCommand, json: bool) -> Result<ExitCode, Failure> {
    match command {
        FleetCommand::Run(run) => return start(client, *run, json).await,
        FleetCommand::List { limit } => {
            let page: Page<FleetMigration> =
                client.get(&format!("/v1/fleet-migrations?limit={limit}")).await?;
            list(&page.items, json)?;
        }
        FleetCommand::Show { migration, tenants } => {
            let shown = client.get(&path(migration, "")).await?;
            report(client, &shown, tenants, json).await?;
        }
        FleetCommand::Follow { migration } => return follow(client, migration, json).await,
        FleetCommand::Pause { migration } => {
            let shown = client.post(&path(migration, "/pause"), &json!({})).await?;
            report(client, &shown, false, json).await?;
        }
        FleetCommand::Resume { migration, retry_failed, no_wait } => {
            let body = ResumeFleetMigration { retry_failed };
            let accepted: FleetMigrationAccepted = client.post(&path(migration, "/resume"), &body).await?;
            if no_wait {
                return accepted_as_told(&accepted, json);
            }
            return follow(client, migration, json).await;
        }
        FleetCommand::Cancel { migration, yes } => {
            if !yes {
                output::confirm("The tenants that wait will not be migrated.", "cancel")?;
            }
            let shown = client.post(&path(migration, "/cancel"), &json!({})).await?;
            report(client, &shown, false, json).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn path(migration: FleetMigrationId, what: &str) -> String {
    format!("/v1/fleet-migrations/{migration}{what}")
}

async fn start(client: &Client, run: FleetRun, json: bool) -> Result<ExitCode, Failure> {
    let (dry_run, yes, no_wait) = (run.dry_run, run.yes, run.no_wait);
    let body = asked(run)?;
    if let Some(dry_run) = dry_run {
        let trial = dry_run == DryRun::Canary;
        let plan: FleetPlan = client.post(&format!("/v1/fleet-migrations/plan?trial={trial}"), &body).await?;
        let failed = plan.trial.as_ref().is_some_and(|trial| trial.failure.is_some());
        show_plan(&plan, json)?;
        return Ok(ExitCode::from(u8::from(failed)));
    }
    if !yes {
        let plan: FleetPlan = client.post("/v1/fleet-migrations/plan", &body).await?;
        let count = plan.tenants.iter().filter(|tenant| tenant.wave.is_some()).count();
        let snapshots = if body.snapshot_before { "after a snapshot of each" } else { "WITHOUT snapshots" };
        output::confirm(
            &format!("The databases of {count} tenants will be changed, {snapshots}."),
            "migrate",
        )?;
    }
    let accepted: FleetMigrationAccepted = client.post("/v1/fleet-migrations", &body).await?;
    if no_wait {
        return accepted_as_told(&accepted, json);
    }
    follow(client, accepted.migration.id, json).await
}

fn asked(run: FleetRun) -> Result<CreateFleetMigration, Failure> {
    let sql = std::fs::read_to_string(&run.file)
        .with_context(|| format!("read `{}`", run.file.display()))
        .map_err(|error| Failure::refused(format!("{error:#}")))?;
    let file_name = || run.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let tenants = Some(run.selection.tenants).filter(|tenants| !tenants.is_empty());
    Ok(CreateFleetMigration {
        name: run.name.clone().unwrap_or_else(file_name),
        sql,
        selection: Selection {
            tenants,
            tier: run.selection.tier,
            profile: run.selection.profile,
            all: run.selection.all,
        },
        canaries: run.canaries,
        wave_size: run.wave_size,
        concurrency: run.concurrency,
        snapshot_before: !run.no_snapshot,
        statement_timeout_seconds: run.statement_timeout,
        lock_timeout_seconds: run.lock_timeout,
        busy_timeout_seconds: run.busy_timeout,
        stop_after_failures: run.stop_after,
        pause_after_canary: run.pause_after_canary,
    })
}

fn accepted_as_told(accepted: &FleetMigrationAccepted, json: bool) -> Result<ExitCode, Failure> {
    if json {
        output::json(accepted)?;
    } else {
        output::line(format!("fleet migration {} has begun", accepted.migration.id));
        output::line(format!("follow it with `loomworks fleet follow {}`", accepted.migration.id));
    }
    Ok(ExitCode::SUCCESS)
}

/// Watches it until it rests.
async fn follow(client: &Client, id: FleetMigrationId, json: bool) -> Result<ExitCode, Failure> {
    let progress = Progress::start();
    let shown = loop {
        let shown: FleetMigration = client.get(&path(id, "")).await?;
        let done = shown.applied + shown.failed + shown.skipped;
        let percent = i16::try_from(done * 100 / shown.tenants.max(1)).unwrap_or(100);
        progress.show(percent, &shown.progress);
        if shown.rests() {
            break shown;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    progress.end();
    report(client, &shown, false, json).await?;
    Ok(ExitCode::from(u8::from(shown.failed > 0)))
}

/// Every page of a migration's tenants.
async fn tenants(client: &Client, id: FleetMigrationId) -> Result<Vec<MigrationTenant>, Failure> {
    let (mut all, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let after = cursor.map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let page: Page<MigrationTenant> =
            client.get(&path(id, &format!("/tenants?limit=1000{after}"))).await?;
        all.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(all);
        }
    }
}

fn list(migrations: &[FleetMigration], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&migrations);
    }
    let row = |migration: &FleetMigration| {
        [
            migration.id.to_string(),
            migration.state.clone(),
            migration.progress.clone(),
            moment(migration.created_at.to_jiff()),
            migration.name.clone(),
        ]
    };
    let rows: Vec<_> = migrations.iter().map(row).collect();
    output::table(["MIGRATION", "STATE", "PROGRESS", "ASKED FOR", "NAME"], &rows);
    Ok(())
}

/// The migration, and of its tenants those that somebody should look at, or all.
async fn report(client: &Client, shown: &FleetMigration, all: bool, json: bool) -> Result<(), Failure> {
    let tenants = tenants(client, shown.id).await?;
    if json {
        return output::json(&json!({ "migration": shown, "tenants": tenants }));
    }
    let reason = shown.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let rows = [
        ["migration".into(), shown.id.to_string()],
        ["name".into(), shown.name.clone()],
        ["state".into(), format!("{}{reason}", shown.state)],
        ["progress".into(), shown.progress.clone()],
        ["applied".into(), shown.applied.to_string()],
        ["failed".into(), shown.failed.to_string()],
        ["waiting".into(), (shown.waiting + shown.running).to_string()],
        ["skipped".into(), shown.skipped.to_string()],
        ["SQL".into(), shortened(&shown.sql, 80)],
    ];
    output::table(["FIELD", "VALUE"], &rows);
    let told = |tenant: &&MigrationTenant| {
        all || matches!(tenant.state.as_str(), "failed" | "skipped") || tenant.still_applied == Some(false)
    };
    let rows: Vec<_> = tenants.iter().filter(told).map(tenant_row).collect();
    if !rows.is_empty() {
        output::line("");
        output::table(["TENANT", "WAVE", "STATE", "MS", "SQLSTATE", "ERROR"], &rows);
    }
    Ok(())
}

fn tenant_row(tenant: &MigrationTenant) -> [String; 6] {
    let wave = match tenant.wave {
        Some(0) => "canary".into(),
        wave => or_dash(wave.as_ref()),
    };
    let state = match tenant.still_applied {
        Some(false) => "no longer applied",
        _ => &tenant.state,
    };
    let hint = tenant.hint.as_ref().map_or(String::new(), |hint| format!(" (hint: {hint})"));
    [
        tenant.subdomain.clone(),
        wave,
        state.to_owned(),
        or_dash(tenant.milliseconds.as_ref()),
        or_dash(tenant.sqlstate.as_ref()),
        format!("{}{hint}", or_dash(tenant.error.as_ref())),
    ]
}

fn show_plan(plan: &FleetPlan, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(plan);
    }
    let rows: Vec<_> = plan
        .tenants
        .iter()
        .map(|tenant| {
            let wave = match tenant.wave {
                Some(0) => "canary".into(),
                wave => or_dash(wave.as_ref()),
            };
            [tenant.number.to_string(), tenant.subdomain.clone(), wave, or_dash(tenant.skipped.as_ref())]
        })
        .collect();
    output::table(["TURN", "TENANT", "WAVE", "SKIPPED"], &rows);
    if let Some(trial) = &plan.trial {
        show_trial(trial);
    }
    Ok(())
}

fn show_trial(trial: &Trial) {
    output::line("");
    match &trial.failure {
        Some(failure) => {
            output::line(format!("tried out on {}: {}", trial.tenant, failure.error));
            if let Some(hint) = &failure.hint {
                output::line(format!("hint: {hint}"));
            }
        }
        None => output::line(format!("tried out on {}: {} ms, taken back", trial.tenant, trial.milliseconds)),
    }
    for written in &trial.rows {
        let (inserted, updated, deleted) = (written.inserted, written.updated, written.deleted);
        output::line(format!(
            "  {}: {inserted} inserted, {updated} updated, {deleted} deleted",
            written.table
        ));
    }
    for lock in &trial.locks {
        output::line(format!("  {} on {}", lock.mode, lock.relation));
    }
}
