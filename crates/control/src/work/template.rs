//! Building the template of a profile: its content in a database that is copied for each tenant.

use std::process::Stdio;

use loomworks_core::{ExposeSecret, SecretString};
use loomworks_postgres::roles::{self, Login, Verifier};
use loomworks_postgres::{PgConnectOptions, databases, sql};
use loomworks_undo::Limits;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::postgres::PgSslMode;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use tokio::process::Command;

use crate::World;
use crate::credentials::random_password;
use crate::db::templates;
use crate::error::Error;
use crate::fleet::inside::install_marker;
use crate::jobs::runner::nothing;
use crate::jobs::{self, Context, Progress, StepError, Then, Work};
use crate::profile::{Profile, Program};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BuildTemplate {
    pub profile: String,
    /// Its name, which tells the content too.
    pub template: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Fill,
    Capture,
    Seal,
    Publish,
}

pub(crate) fn dedup_key(template: &str) -> String {
    format!("build_template {template}")
}

/// Enqueues the building of a profile's template in the caller's transaction.
pub(crate) async fn request(
    connection: &mut PgConnection,
    profile: &str,
    template: &str,
    requested_by: &str,
) -> Result<(), Error> {
    templates::begin(connection, template, profile).await?;
    let work = BuildTemplate { profile: profile.to_owned(), template: template.to_owned() };
    jobs::enqueue(connection, &work, requested_by).await.map(drop)
}

impl Work for BuildTemplate {
    const KIND: &'static str = "build_template";
    type Step = Step;

    fn tenant(&self) -> Option<loomworks_core::ids::TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        dedup_key(&self.template)
    }

    fn first(&self) -> Step {
        Step::Fill
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::Fill => (0, "filling the template"),
            Step::Capture => (70, "installing the operation log"),
            Step::Seal => (85, "closing the template"),
            Step::Publish => (95, "publishing the template"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, _: &Context) -> Result<Then<Step>, StepError> {
        let Some(profile) =
            world.profiles.get(&self.profile).filter(|now| world.template(now) == self.template)
        else {
            // The profile was changed since. What there is of this template is dropped like every other old one.
            return Ok(Then::Done(nothing()));
        };
        match step {
            Step::Fill => {
                let mut mgmt = world.db.platform.acquire().await?;
                if templates::state(&mut mgmt, &self.template).await? == templates::TemplateState::Ready {
                    return Ok(Then::Done(nothing()));
                }
                drop(mgmt);
                self.fill(world, profile).await.map(|()| Then::Next(Step::Capture))
            }
            Step::Capture => {
                let mut inside = world.cluster.connect(&self.template).await?;
                loomworks_undo::install(&mut inside, &self.template).await.map_err(Error::from)?;
                install_marker(&mut inside).await?;
                // Who counts is part of the profile, how many may be is each tenant's own.
                let limits =
                    Limits { users: profile.users(), max_users: None, max_ai_operations_daily: None };
                loomworks_undo::set_limits(&mut inside, &limits).await.map_err(Error::from)?;
                Ok(Then::Next(Step::Seal))
            }
            Step::Seal => self.seal(world).await.map(|()| Then::Next(Step::Publish)),
            Step::Publish => {
                let mut mgmt = world.db.platform.acquire().await?;
                templates::set_ready(&mut mgmt, &self.template).await?;
                Ok(Then::Done(json!({ "template": self.template })))
            }
        }
    }

    async fn give_up(&self, connection: &mut PgConnection, _: &Context) -> Result<(), Error> {
        Ok(templates::set_failed(connection, &self.template).await?)
    }

    /// Begun anew: another job may have built it meanwhile, which the first step looks for.
    async fn take_up(
        &self,
        _: &Step,
        connection: &mut PgConnection,
        _: &Context,
    ) -> Result<Option<Step>, Error> {
        templates::begin(connection, &self.template, &self.profile).await?;
        Ok(Some(self.first()))
    }
}

impl BuildTemplate {
    /// As whom it is filled.
    fn builder(&self) -> String {
        let (_, checksum) = self.template.rsplit_once('_').unwrap_or(("", &self.template));
        format!("{BUILDER_PREFIX}{checksum}")
    }

    /// Begun anew each time: a program that was cut off may have done anything.
    async fn fill(&self, world: &World, profile: &Profile) -> Result<(), StepError> {
        let (database, builder, password) = (&self.template, self.builder(), random_password());
        let mut admin = world.cluster.connect("postgres").await?;
        databases::drop_database(&mut admin, database).await?;
        roles::ensure_group(&mut admin, database).await?;
        let login = Login {
            role: &builder,
            verifier: &Verifier::of(&password),
            acts_as: database,
            valid_until: None,
            connection_limit: None,
        };
        roles::ensure_login(&mut admin, &login).await?;
        databases::ensure(&mut admin, database, database).await?;
        let mut inside = world.cluster.connect(database).await?;
        databases::close_public_schema(&mut inside, database).await?;
        inside.close().await.map_err(Error::TenantDatabase)?;

        let app = App { world, database, role: &builder, password: &password };
        app.run_sql(&profile.init_sql, &[]).await?;
        if let Some(program) = &profile.init_command {
            app.run_program(program, &[]).await?;
        }
        Ok(())
    }

    /// Takes away whoever filled it, and writes everything down in its final form: a copy then has no work left.
    async fn seal(&self, world: &World) -> Result<(), StepError> {
        let (database, builder) = (&self.template, self.builder());
        let mut admin = world.cluster.connect("postgres").await?;
        databases::allow_connections(&mut admin, vec![database.clone()]).await?;
        roles::lock_out(&mut admin, &builder).await?;
        let mut inside = world.cluster.connect(database).await?;
        roles::disown(&mut inside, &builder, database).await?;
        roles::drop_role(&mut admin, &builder).await?;
        inside.execute("VACUUM (FREEZE, ANALYZE)").await.map_err(Error::TenantDatabase)?;
        inside.close().await.map_err(Error::TenantDatabase)?;
        // Copies do not get it, but what is granted to the owner here would keep him from being dropped.
        let (name, owner) = (sql::ident(database), sql::ident(database));
        sql::run(&mut admin, format!("REVOKE ALL ON DATABASE {name} FROM {owner}")).await?;
        Ok(databases::seal(&mut admin, database).await?)
    }
}

/// What the names of the roles begin with that fill templates.
pub(crate) const BUILDER_PREFIX: &str = "lw_build_";

/// An app's way into a database: with its own rights, over the network, so that a mistake in what a profile says can do
/// no more than the app can.
pub(crate) struct App<'a> {
    pub(crate) world: &'a World,
    pub(crate) database: &'a str,
    pub(crate) role: &'a str,
    pub(crate) password: &'a SecretString,
}

impl App<'_> {
    /// Runs statements in one transaction, in which these settings hold.
    pub(crate) async fn run_sql(
        &self,
        statements: &[String],
        settings: &[(&str, &str)],
    ) -> Result<(), StepError> {
        let mut connection = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.world.cluster.port)
            .username(self.role)
            .password(self.password.expose_secret())
            .database(self.database)
            .ssl_mode(PgSslMode::Disable)
            .connect()
            .await
            .map_err(Error::TenantDatabase)?;
        let mut transaction = connection.begin().await.map_err(Error::TenantDatabase)?;
        for (name, value) in settings {
            sqlx::query("SELECT set_config($1, $2, true)")
                .bind(name)
                .bind(value)
                .execute(&mut *transaction)
                .await
                .map_err(Error::TenantDatabase)?;
        }
        for (number, part) in statements.iter().enumerate() {
            let done = transaction.execute(sqlx::raw_sql(AssertSqlSafe(part.clone()))).await;
            done.map_err(|error| what_is_wrong(number, error))?;
        }
        transaction.commit().await.map_err(|error| what_is_wrong(statements.len(), error))?;
        connection.close().await.map_err(Error::TenantDatabase)?;
        Ok(())
    }

    /// Runs a program and waits for it. The end of what it says is told if it fails, without the secrets.
    pub(crate) async fn run_program(
        &self,
        program: &Program,
        secrets: &[(&str, &SecretString)],
    ) -> Result<(), StepError> {
        let words: Vec<String> =
            program.words.iter().map(|word| word.replace("{database}", self.database)).collect();
        let (name, arguments) = words.split_first().ok_or_else(|| Error::Internal("no program".into()))?;
        let mut command = Command::new(name);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.world.cluster.port.to_string());
        command.env("PGUSER", self.role).env("PGPASSWORD", self.password.expose_secret());
        command.env("PGDATABASE", self.database);
        for (name, value) in secrets {
            command.env(name, value.expose_secret());
        }
        let hint = "see what it says, correct the profile or the app, and start the platform again";
        let output = match tokio::time::timeout(program.timeout, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(StepError::permanent(format!("run `{name}`: {error}"), hint)),
            Err(_) => {
                let seconds = program.timeout.as_secs();
                return Err(StepError::permanent(
                    format!("`{name}` was not done after {seconds} s"),
                    "raise `timeout_seconds` in the profile if it needs longer",
                ));
            }
        };
        if output.status.success() {
            return Ok(());
        }
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said += &String::from_utf8_lossy(&output.stderr);
        for secret in secrets.iter().map(|(_, secret)| *secret).chain([self.password]) {
            said = said.replace(secret.expose_secret(), "***");
        }
        let end: Vec<char> = said.trim().chars().rev().take(OUTPUT_CHARACTERS).collect();
        let end: String = end.into_iter().rev().collect();
        Err(StepError::permanent(format!("`{name}` failed ({}); it says: {end}", output.status), hint))
    }
}

/// How much of a program's output an error carries.
const OUTPUT_CHARACTERS: usize = 2000;

/// A statement that PostgreSQL refuses is refused again tomorrow; a server that is away comes back.
fn what_is_wrong(number: usize, error: sqlx::Error) -> StepError {
    let classes = ["22", "23", "25", "2F", "38", "39", "3F", "42", "44", "0A", "P0", "LW"];
    let code = error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
    let refused = code.is_some_and(|code| classes.iter().any(|class| code.starts_with(class)));
    if !refused {
        return Error::TenantDatabase(error).into();
    }
    let message = crate::error::chain(&Error::TenantDatabase(error));
    StepError::permanent(
        format!("part {} of the profile's statements does not run: {message}", number + 1),
        "correct the profile and start the platform again",
    )
}
