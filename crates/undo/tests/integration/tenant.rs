//! A tenant of one test: a database with the operation log, the app's login, an agent's, the undo engine's.

use loomworks_core::SecretString;
use loomworks_postgres::roles::{self, Login, Verifier};
use loomworks_postgres::{databases, sql};
use loomworks_testkit::{Database, server};
use loomworks_undo::{
    Filter, Mode, Operation, OperationId, Outcome, Plan, TablePlan, UNDO_ROLE, UndoError, install,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

pub(crate) struct Tenant {
    pub(crate) database: Database,
    pub(crate) owner: String,
    pub(crate) agent_role: String,
    app_role: String,
    password: SecretString,
}

impl Tenant {
    /// An empty tenant whose changes are recorded.
    pub(crate) async fn new() -> Self {
        let server = server().await;
        let tenant = Self {
            database: Database { server, name: server.unique("tenant") },
            owner: server.unique("owner"),
            agent_role: server.unique("lwai_test"),
            app_role: server.unique("app"),
            password: SecretString::from("secret"),
        };
        let mut postgres = server.cluster.connect("postgres").await.unwrap();
        roles::ensure_group(&mut postgres, &tenant.owner).await.unwrap();
        for role in [&tenant.app_role, &tenant.agent_role] {
            let login = Login {
                role,
                verifier: &Verifier::of(&tenant.password),
                acts_as: &tenant.owner,
                valid_until: None,
                connection_limit: None,
            };
            roles::ensure_login(&mut postgres, &login).await.unwrap();
        }
        databases::ensure(&mut postgres, &tenant.database.name, &tenant.owner).await.unwrap();
        let mut admin = tenant.admin().await;
        databases::close_public_schema(&mut admin, &tenant.owner).await.unwrap();
        install(&mut admin, &tenant.owner).await.unwrap();
        tenant
    }

    /// A tenant with tables that the app made.
    pub(crate) async fn with(schema: &str) -> Self {
        let tenant = Self::new().await;
        tenant.by_app(schema).await;
        tenant
    }

    pub(crate) async fn admin(&self) -> PgConnection {
        self.database.connect().await
    }

    pub(crate) async fn app(&self) -> PgConnection {
        self.database.as_role(&self.app_role, &self.password).connect().await.expect("connect as the app")
    }

    pub(crate) async fn agent(&self) -> PgConnection {
        self.database.as_role(&self.agent_role, &self.password).connect().await.expect("connect as the agent")
    }

    pub(crate) async fn undoer(&self) -> PgConnection {
        self.database.local(UNDO_ROLE).connect().await.expect("connect as the undo engine")
    }

    pub(crate) async fn by_app(&self, statements: &str) {
        let mut app = self.app().await;
        run(&mut app, statements).await.unwrap_or_else(|error| panic!("the app: {statements}: {error}"));
        app.close().await.unwrap();
    }

    /// Runs it as an agent and tells the operation that it became.
    pub(crate) async fn by_agent(&self, statements: &str) -> OperationId {
        let mut agent = self.agent().await;
        run(&mut agent, statements).await.unwrap_or_else(|error| panic!("the agent: {statements}: {error}"));
        agent.close().await.unwrap();
        self.last_operation().await
    }

    /// Why an agent may not do it.
    pub(crate) async fn refused(&self, statements: &str) -> String {
        let mut agent = self.agent().await;
        match run(&mut agent, statements).await {
            Ok(()) => panic!("an agent may: {statements}"),
            Err(sqlx::Error::Database(error)) => error.message().to_owned(),
            Err(error) => panic!("{statements}: {error}"),
        }
    }

    pub(crate) async fn last_operation(&self) -> OperationId {
        self.operations().await.first().expect("there is an operation").id
    }

    /// Newest first.
    pub(crate) async fn operations(&self) -> Vec<Operation> {
        let filter = Filter { limit: 1000, ..Filter::default() };
        loomworks_undo::list(&mut self.undoer().await, &filter).await.unwrap()
    }

    pub(crate) async fn try_undo(&self, ids: &[OperationId], mode: Mode) -> Result<Outcome, UndoError> {
        loomworks_undo::undo(&mut self.undoer().await, ids, mode, "someone@example.com").await
    }

    pub(crate) async fn undo(&self, id: OperationId) -> Outcome {
        self.try_undo(&[id], Mode::Strict).await.unwrap_or_else(|error| panic!("{error}: {error:#?}"))
    }

    /// What stands in the way of an undo, which changes nothing.
    pub(crate) async fn conflicts(&self, ids: &[OperationId], mode: Mode) -> Vec<loomworks_undo::Conflict> {
        match self.try_undo(ids, mode).await {
            Err(UndoError::Conflicts(conflicts)) => {
                assert!(!conflicts.is_empty());
                conflicts
            }
            other => panic!("conflicts were expected: {other:#?}"),
        }
    }

    pub(crate) async fn plan(&self, id: OperationId) -> Plan {
        loomworks_undo::plan(&mut self.undoer().await, &[id], Mode::Strict).await.unwrap()
    }

    /// All rows of a table (or a query in parentheses) as text, one a line.
    pub(crate) async fn rows(&self, table: &str) -> String {
        let sql = format!(
            "SELECT coalesce(string_agg(this_row::text, ' ' ORDER BY this_row::text), '') FROM {table} this_row"
        );
        self.value(&sql).await
    }

    /// All rows of a table as they are sent in binary: equal only if they are so in every byte.
    pub(crate) async fn bytes(&self, table: &str) -> String {
        let row = "encode(record_send(this_row), 'hex')";
        let sql = format!("SELECT coalesce(string_agg({row}, ' ' ORDER BY {row}), '') FROM {table} this_row");
        self.value(&sql).await
    }

    pub(crate) async fn value(&self, sql: &str) -> String {
        let mut admin = self.admin().await;
        let value = value(&mut admin, sql).await.unwrap();
        admin.close().await.unwrap();
        value
    }
}

/// Runs statements in one message, as `psql -c` does.
pub(crate) async fn run(connection: &mut PgConnection, statements: &str) -> sqlx::Result<()> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))).await.map(drop)
}

pub(crate) async fn value(connection: &mut PgConnection, sql: &str) -> sqlx::Result<String> {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await
}

/// Rows deleted, restored, recreated, already as they would be.
pub(crate) fn counts(plan: &TablePlan) -> (u64, u64, u64, u64) {
    (plan.delete, plan.restore, plan.recreate, plan.already)
}

/// The name of an identifier, quoted.
pub(crate) fn ident(name: &str) -> String {
    sql::ident(name)
}
