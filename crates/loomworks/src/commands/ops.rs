//! `loomworks ops`: the operation log, and undo.

use loomworks_control::page::Page;
use loomworks_undo::{Mode, Operation, OperationDetail, OperationId, Outcome, Plan};
use loomworks_web::api::operations::Undo;

use super::{moment, shortened};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::{OpsCommand, UndoMode};

pub(super) async fn run(client: &Client, command: OpsCommand, json: bool) -> Result<(), Failure> {
    match command {
        OpsCommand::List { tenant, session, limit } => {
            let session = session.map_or(String::new(), |session| format!("&session={session}"));
            let path = format!("/v1/tenants/{tenant}/operations?limit={limit}{session}");
            list(&client.get::<Page<Operation>>(&path).await?.items, json)
        }
        OpsCommand::Show { tenant, operation, rows } => show(
            &client.get(&format!("/v1/tenants/{tenant}/operations/{operation}?rows={rows}")).await?,
            json,
        ),
        OpsCommand::Undo { tenant, operations, mode, dry_run } => {
            let body =
                Undo { operations: operations.into_iter().map(OperationId).collect(), mode: mode.into() };
            if dry_run {
                let plan: Plan =
                    client.post(&format!("/v1/tenants/{tenant}/operations/plan-undo"), &body).await?;
                return show_plan(&plan, json);
            }
            let outcome: Outcome =
                client.post(&format!("/v1/tenants/{tenant}/operations/undo"), &body).await?;
            show_outcome(&outcome, json)
        }
    }
}

impl From<UndoMode> for Mode {
    fn from(mode: UndoMode) -> Self {
        match mode {
            UndoMode::Strict => Self::Strict,
            UndoMode::Skip => Self::Skip,
            UndoMode::Cascade => Self::Cascade,
            UndoMode::Force => Self::Force,
        }
    }
}

fn counts(operation: &Operation) -> String {
    let tables = operation.tables.iter().map(|table| {
        let counts = [(table.inserted, '+'), (table.updated, '~'), (table.deleted, '-')];
        let counts =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, sign)| format!("{sign}{count}"));
        format!("{} {}", table.table, counts.collect::<Vec<_>>().join(" "))
    });
    tables.collect::<Vec<_>>().join(", ")
}

fn list(operations: &[Operation], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&operations);
    }
    let row = |operation: &Operation| {
        [
            operation.id.0.to_string(),
            moment(operation.at),
            format!("{:?}", operation.kind).to_lowercase(),
            operation.session.clone(),
            operation.undone_by.map_or("-".into(), |by| by.0.to_string()),
            shortened(&counts(operation), 60),
            shortened(&operation.statement, 60),
        ]
    };
    let rows: Vec<_> = operations.iter().map(row).collect();
    output::table(["OPERATION", "WHEN", "KIND", "SESSION", "UNDONE BY", "ROWS", "STATEMENT"], &rows);
    Ok(())
}

fn show(detail: &OperationDetail, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(detail);
    }
    list(std::slice::from_ref(&detail.operation), false)?;
    for row in &detail.rows {
        output::line(serde_json::to_string(row)?);
    }
    Ok(())
}

fn show_plan(plan: &Plan, json: bool) -> Result<(), Failure> {
    if json { output::json(plan) } else { output::told(serde_json::to_string_pretty(plan)?) }
}

fn show_outcome(outcome: &Outcome, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(outcome);
    }
    output::line(format!("done, as operation {}; undo that one to have it again", outcome.operation.0));
    for conflict in &outcome.skipped {
        output::line(format!("left as it is: {}", serde_json::to_string(conflict)?));
    }
    Ok(())
}
