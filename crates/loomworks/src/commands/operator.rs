//! `loomworks operator`.

use loomworks_control::db::operators::OperatorInfo;
use loomworks_control::page::Page;
use loomworks_core::ExposeSecret;
use loomworks_core::ids::OperatorId;
use loomworks_web::api::operators::{CreateOperator, SetPassword};

use super::{moment, or_dash, password};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::operators::OperatorCommand;

pub(super) async fn run(client: &Client, command: OperatorCommand, json: bool) -> Result<(), Failure> {
    let accounts = match command {
        OperatorCommand::Create { email, name, permissions, no_password } => {
            let password = if no_password { None } else { Some(password::ask(&email)?) };
            let body = CreateOperator {
                name,
                email: email.into(),
                password: password.map(|password| password.expose_secret().to_owned()),
                permissions: permissions.into_iter().map(Into::into).collect(),
            };
            vec![client.post("/v1/operators", &body).await?]
        }
        OperatorCommand::List => all(client).await?,
        OperatorCommand::Disable { operator } => {
            vec![client.post(&format!("/v1/operators/{operator}/disable"), &()).await?]
        }
        OperatorCommand::Enable { operator } => {
            vec![client.post(&format!("/v1/operators/{operator}/enable"), &()).await?]
        }
        OperatorCommand::SetPassword { operator } => vec![set_password(client, operator).await?],
    };
    show(&accounts, json)
}

async fn set_password(client: &Client, operator: OperatorId) -> Result<OperatorInfo, Failure> {
    let password = password::ask(&operator)?.expose_secret().to_owned();
    client.post(&format!("/v1/operators/{operator}/password"), &SetPassword { password }).await
}

/// All of them, page by page.
async fn all(client: &Client) -> Result<Vec<OperatorInfo>, Failure> {
    let mut accounts = Vec::new();
    let mut cursor = None::<String>;
    loop {
        let after = cursor.map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let page: Page<OperatorInfo> = client.get(&format!("/v1/operators?limit=1000{after}")).await?;
        accounts.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(accounts);
        }
    }
}

fn show(accounts: &[OperatorInfo], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&accounts);
    }
    let row = |account: &OperatorInfo| {
        let permissions: Vec<&str> = account.permissions.0.iter().map(|one| one.as_str()).collect();
        let state = match (account.disabled_at, account.has_password) {
            (Some(_), _) => "disabled",
            (None, true) => "password",
            (None, false) => "OpenID Connect only",
        };
        [
            account.id.to_string(),
            account.email.clone(),
            account.name.clone(),
            permissions.join(","),
            state.into(),
            or_dash(account.last_login_at.map(|at| moment(at.to_jiff())).as_ref()),
        ]
    };
    let rows: Vec<_> = accounts.iter().map(row).collect();
    output::table(["OPERATOR", "ADDRESS", "NAME", "MAY", "LOG-IN", "LAST LOG-IN"], &rows);
    Ok(())
}
