//! An AI agent as the platform sees it: somebody with a connection string and plain SQL.

use std::str::FromStr;

use anyhow::Context;
use loomworks_control::page::Page;
use loomworks_undo::{Operation, OperationId};
use loomworks_web::api::sessions::{OpenSession, SessionOpened};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Executor, PgConnection};

use crate::client::Client;
use crate::output::Failure;

/// An open session.
pub(super) struct Agent<'a> {
    client: &'a Client,
    tenant: &'static str,
    opened: SessionOpened,
}

impl<'a> Agent<'a> {
    pub(super) async fn open(
        client: &'a Client,
        tenant: &'static str,
        agent: &str,
        purpose: &str,
    ) -> Result<Self, Failure> {
        let body = OpenSession { agent: agent.into(), purpose: purpose.into(), minutes: 60 };
        let opened: SessionOpened = client.post(&format!("/v1/tenants/{tenant}/ai-sessions"), &body).await?;
        if opened.session.state != "open" {
            return Err(Failure::new(format!("the session of {tenant} is {}", opened.session.state)));
        }
        // Its snapshot is taken beside; waiting for it keeps one step's work out of the next one's time.
        client.follow(opened.snapshot_job).await?;
        Ok(Self { client, tenant, opened })
    }

    fn options(&self) -> Result<PgConnectOptions, Failure> {
        let options = PgConnectOptions::from_str(&self.opened.connection_string)
            .context("read the connection string")?;
        Ok(options.ssl_mode(PgSslMode::Disable))
    }

    /// Connects with nothing but the connection string.
    pub(super) async fn connect(&self) -> Result<PgConnection, Failure> {
        Ok(self.options()?.connect().await.with_context(|| format!("connect to {}", self.tenant))?)
    }

    /// Whether another tenant's database lets this one in.
    pub(super) async fn gets_into(&self, database: &str) -> Result<bool, Failure> {
        Ok(self.options()?.database(database).connect().await.is_ok())
    }

    /// The newest operation of this session.
    pub(super) async fn last_operation(&self) -> Result<Operation, Failure> {
        let path =
            format!("/v1/tenants/{}/operations?limit=1&session={}", self.tenant, self.opened.session.role);
        let newest: Page<Operation> = self.client.get(&path).await?;
        newest.items.into_iter().next().ok_or_else(|| Failure::new("the operation log is empty"))
    }

    /// Runs a statement and finds it in the log.
    pub(super) async fn run(
        &self,
        connection: &mut PgConnection,
        statement: &'static str,
    ) -> Result<Ran, Failure> {
        let done = connection.execute(statement).await.with_context(|| format!("run `{statement}`"))?;
        let operation = self.last_operation().await?;
        Ok(Ran { id: operation.id, rows: done.rows_affected(), operation })
    }

    pub(super) async fn close(self) -> Result<(), Failure> {
        let path = format!("/v1/tenants/{}/ai-sessions/{}", self.tenant, self.opened.session.id);
        self.client.delete::<serde_json::Value>(&path).await.map(drop)
    }
}

/// A statement that was run.
pub(super) struct Ran {
    pub(super) id: OperationId,
    /// What PostgreSQL told the agent; cascades are not in it.
    pub(super) rows: u64,
    pub(super) operation: Operation,
}

impl Ran {
    /// What the log says, on one line.
    pub(super) fn in_words(&self) -> String {
        let tables = self.operation.tables.iter().map(|table| {
            let counts =
                [(table.inserted, "inserted"), (table.updated, "updated"), (table.deleted, "deleted")];
            let words =
                counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
            format!("{}: {}", table.table, words.collect::<Vec<_>>().join(", "))
        });
        format!("operation {}: {}", self.id.0, tables.collect::<Vec<_>>().join("; "))
    }
}
