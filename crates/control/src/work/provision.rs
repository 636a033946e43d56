//! Making a tenant: roles, database, content, capture, credentials, route.

use loomworks_core::ExposeSecret;
use loomworks_core::ids::TenantId;
use loomworks_core::tenant::{Change, TenantState};
use loomworks_postgres::roles::{self, Login, Verifier};
use loomworks_postgres::{PgConnectOptions, databases};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::postgres::PgSslMode;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use crate::World;
use crate::credentials::{app_password_purpose, write_password_file};
use crate::db::tenants::{self, Names, TenantDatabase};
use crate::db::{self, routes};
use crate::error::Error;
use crate::jobs::{Context, Progress, StepError, Then, Work};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Provision {
    pub tenant: TenantId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Roles,
    Database,
    Fill,
    Capture,
    Credentials,
    Publish,
}

impl Work for Provision {
    const KIND: &'static str = "provision";
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("provision {}", self.tenant)
    }

    fn first(&self) -> Step {
        Step::Roles
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::Roles => (0, "making roles"),
            Step::Database => (10, "making the database"),
            Step::Fill => (20, "filling the database"),
            Step::Capture => (70, "installing the operation log"),
            Step::Credentials => (85, "handing the app its credentials"),
            Step::Publish => (95, "publishing the route"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        let names = tenants::names(&mut mgmt, self.tenant).await?;
        drop(mgmt);
        match step {
            Step::Roles => make_roles(world, &names).await.map(|()| Then::Next(Step::Database)),
            Step::Database => make_database(world, &names).await.map(|()| Then::Next(Step::Fill)),
            Step::Fill => fill(world, &names).await.map(|()| Then::Next(Step::Capture)),
            Step::Capture => {
                let mut inside = world.cluster.connect(&names.database_name).await?;
                loomworks_undo::install(&mut inside, &names.owner_role).await.map_err(Error::from)?;
                Ok(Then::Next(Step::Credentials))
            }
            Step::Credentials => {
                write_password_file(world, &names.profile).await?;
                Ok(Then::Next(Step::Publish))
            }
            Step::Publish => publish(world, &names, context).await,
        }
    }
}

/// The owner, as whom nobody logs in, and the app's login, which acts as the owner.
async fn make_roles(world: &World, names: &Names) -> Result<(), StepError> {
    let mut mgmt = world.db.platform.acquire().await?;
    let credentials = tenants::credentials(&mut mgmt, names.id).await?;
    drop(mgmt);
    let password =
        world.master_key.unwrap(&credentials.app_password_wrapped, &app_password_purpose(names.id))?;
    let mut admin = world.cluster.connect("postgres").await?;
    roles::ensure_group(&mut admin, &names.owner_role).await?;
    let login = Login {
        role: &names.app_role,
        verifier: &Verifier::of(&password),
        acts_as: &names.owner_role,
        valid_until: None,
        connection_limit: None,
    };
    Ok(roles::ensure_login(&mut admin, &login).await?)
}

async fn make_database(world: &World, names: &Names) -> Result<(), StepError> {
    let mut admin = world.cluster.connect("postgres").await?;
    databases::ensure(&mut admin, &names.database_name, &names.owner_role).await?;
    let mut inside = world.cluster.connect(&names.database_name).await?;
    Ok(databases::close_public_schema(&mut inside, &names.owner_role).await?)
}

/// Runs the profile's statements as the app itself would, so that what they make belongs to the owner and a mistake
/// in them has no more rights than the app.
async fn fill(world: &World, names: &Names) -> Result<(), StepError> {
    let profile = world.profiles.get(&names.profile).ok_or_else(|| {
        StepError::permanent(
            format!("there is no profile `{}`", names.profile),
            "start the platform with `--profile FILE` for it",
        )
    })?;
    let mut mgmt = world.db.platform.acquire().await?;
    let credentials = tenants::credentials(&mut mgmt, names.id).await?;
    drop(mgmt);
    let password =
        world.master_key.unwrap(&credentials.app_password_wrapped, &app_password_purpose(names.id))?;
    let mut connection = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(world.cluster.port)
        .username(&names.app_role)
        .password(password.expose_secret())
        .database(&names.database_name)
        .ssl_mode(PgSslMode::Disable)
        .connect()
        .await
        .map_err(Error::TenantDatabase)?;
    // One transaction: either all of it is there or nothing, so what is there was filled whole.
    if has_tables(&mut connection).await.map_err(Error::TenantDatabase)? {
        return Ok(());
    }
    let mut transaction = connection.begin().await.map_err(Error::TenantDatabase)?;
    for statements in &profile.init_sql {
        transaction
            .execute(sqlx::raw_sql(AssertSqlSafe(statements.clone())))
            .await
            .map_err(Error::TenantDatabase)?;
    }
    transaction.commit().await.map_err(Error::TenantDatabase)?;
    connection.execute("ANALYZE").await.map_err(Error::TenantDatabase)?;
    Ok(())
}

async fn has_tables(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
         WHERE relkind IN ('r', 'p') AND nspname NOT IN ('pg_catalog', 'information_schema', 'loomworks')
         AND relpersistence <> 't')",
    )
    .fetch_one(connection)
    .await
}

/// The transaction that makes it a tenant: active, with its database noted and a new generation of routes.
async fn publish(world: &World, names: &Names, context: &Context) -> Result<Then<Step>, StepError> {
    let mut admin = world.cluster.connect("postgres").await?;
    let oid = databases::oid(&mut admin, &names.database_name)
        .await?
        .ok_or_else(|| Error::Internal(format!("database `{}` is gone", names.database_name)))?;
    let mut transaction = world.db.platform.begin().await?;
    let state = tenants::lock_state(&mut transaction, names.id).await?;
    if state == TenantState::Provisioning {
        let state = state.after(Change::Provisioned).map_err(Error::conflict)?;
        tenants::set_state(&mut transaction, names.id, state, None).await?;
        let live = TenantDatabase { oid: i64::from(oid), name: names.database_name.clone() };
        tenants::record_live(&mut transaction, names.id, &live, None).await?;
        let detail = json!({ "database": names.database_name });
        crate::audit::record(
            &mut transaction,
            &context.requested_by,
            "tenant.provisioned",
            Some(names.id),
            detail,
        )
        .await?;
        routes::next_generation(&mut transaction).await?;
    }
    transaction.commit().await?;
    Ok(Then::Done(json!({ "tenant": names.id, "subdomain": names.subdomain })))
}

/// The names of a tenant's database and roles, for jobs.
pub(crate) async fn names(world: &World, tenant: TenantId) -> Result<Names, Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    Ok(db::tenants::names(&mut mgmt, tenant).await?)
}
