//! A fleet migration in one tenant's database: applied exactly once, or tried and taken back.
//!
//! It runs as the app role, which acts as the owner: it has no more rights than the app, there is no higher role to go
//! back to, and what it makes belongs to the owner. One statement (`DO`) marks the migration and runs its SQL, in one
//! transaction. In it PostgreSQL refuses `COMMIT` and its kin before they do anything, so nothing of a migration can
//! be there without its mark.

use std::time::Duration;

use loomworks_core::ExposeSecret;
use loomworks_core::ids::FleetMigrationId;
use loomworks_postgres::sql::{literal, run};
use loomworks_postgres::{Cluster, PgConnectOptions};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgDatabaseError, PgErrorPosition, PgRow, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection, Row};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::World;
use crate::credentials::app_password_purpose;
use crate::db::fleet::{Definition, Target};
use crate::error::{Error, chain};

const MARKER: &str = include_str!("marker.sql");

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Applied,
    /// The database could not be worked with; later it may.
    Busy(String),
    Failed(Failure),
}

/// Why PostgreSQL refused it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    pub error: String,
    pub hint: Option<String>,
    pub sqlstate: Option<String>,
}

/// What a migration did to one tenant before it was taken back.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Trial {
    pub tenant: String,
    pub milliseconds: i64,
    /// The rows it wrote, a table each.
    pub rows: Vec<Written>,
    /// The locks it held at its end on the tenant's tables and indexes, beside those of reading.
    pub locks: Vec<Lock>,
    /// Why it did not work.
    pub failure: Option<Failure>,
}

/// Rows of one table.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Written {
    pub table: String,
    pub inserted: i64,
    pub updated: i64,
    pub deleted: i64,
}

/// A lock on one table or index.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Lock {
    pub relation: String,
    #[schema(example = "AccessExclusiveLock")]
    pub mode: String,
}

/// Lets migrations be marked in a tenant's database. `admin` is a superuser's connection to it.
pub(crate) async fn install_marker(admin: &mut PgConnection) -> Result<(), Error> {
    let mut transaction = admin.begin().await.map_err(Error::TenantDatabase)?;
    // Two that come at the same time would both find nothing and trip over each other.
    let lock = "SELECT pg_advisory_xact_lock(hashtext('loomworks.fleet_migration'))";
    run(&mut transaction, lock.to_owned()).await.map_err(Error::TenantDatabase)?;
    run(&mut transaction, MARKER.to_owned()).await.map_err(Error::TenantDatabase)?;
    transaction.commit().await.map_err(Error::TenantDatabase)
}

/// Whether a migration was applied to a database, as the database itself knows.
pub(crate) async fn is_applied(
    cluster: &Cluster,
    database: &str,
    migration: FleetMigrationId,
) -> Result<bool, Error> {
    let mut admin = cluster.connect(database).await?;
    let known: bool = sqlx::query_scalar("SELECT to_regclass('loomworks.fleet_migration') IS NOT NULL")
        .fetch_one(&mut admin)
        .await
        .map_err(Error::TenantDatabase)?;
    if !known {
        return Ok(false);
    }
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM loomworks.fleet_migration WHERE id = $1)")
        .bind(migration.0)
        .fetch_one(&mut admin)
        .await
        .map_err(Error::TenantDatabase)
}

/// Ends what a process that is no more has left running, and waits until it is gone: whether it was committed is then
/// certain.
pub(crate) async fn end_sessions(world: &World, name: &str) -> Result<(), Error> {
    let mut admin = world.cluster.connect("postgres").await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let told =
            sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1")
                .bind(name)
                .fetch_all(&mut admin)
                .await?;
        if told.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Internal("what a former process left running does not end".into()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Applies the migration unless it was. Whatever goes wrong here is this tenant's trouble and nobody else's.
pub(crate) async fn apply(world: &World, definition: &Definition, target: &Target, session: &str) -> Outcome {
    let options = match connect_options(world, definition, target, session) {
        Ok(options) => options,
        Err(error) => {
            let (hint, error) =
                (error.hint(), format!("its app's password cannot be used: {}", chain(&error)));
            return Outcome::Failed(Failure { error, hint, sqlstate: None });
        }
    };
    let body = format!(
        "BEGIN IF loomworks.mark_migration(pg_catalog.current_setting('loomworks.migration')::pg_catalog.uuid) \
         THEN EXECUTE {}; END IF; END",
        literal(&definition.sql)
    );
    let statement = format!("BEGIN; DO {}; COMMIT", literal(&body));
    // Twice: the first migration of a tenant that was made before there were any finds no mark to make.
    for first in [true, false] {
        let mut connection = match options.connect().await {
            Ok(connection) => connection,
            Err(error) => return not_connected(&error),
        };
        let done = run(&mut connection, statement.clone()).await;
        let _ = connection.close().await;
        match done {
            Err(error) if first && marker_is_missing(&error) => {
                if let Err(error) = install_marker_in(&world.cluster, &target.database_name).await {
                    return Outcome::Busy(format!("its database cannot be prepared: {}", chain(&error)));
                }
            }
            Err(error) => return refused(&error, &definition.sql),
            Ok(()) => return Outcome::Applied,
        }
    }
    let error = "the mark of a migration cannot be made in its database".to_owned();
    Outcome::Failed(Failure { error, hint: None, sqlstate: None })
}

async fn install_marker_in(cluster: &Cluster, database: &str) -> Result<(), Error> {
    install_marker(&mut cluster.connect(database).await?).await
}

/// Runs the migration and takes it back, telling what it did.
pub(crate) async fn try_out(world: &World, definition: &Definition, target: &Target) -> Result<Trial, Error> {
    let mut connection = connect_options(world, definition, target, "loomworks fleet trial")?
        .connect()
        .await
        .map_err(Error::TenantDatabase)?;
    let mut transaction = connection.begin().await.map_err(Error::TenantDatabase)?;
    // What is checked at the end of a transaction is checked too.
    let body = format!("BEGIN EXECUTE {}; SET CONSTRAINTS ALL IMMEDIATE; END", literal(&definition.sql));
    let started = Instant::now();
    let done = run(&mut transaction, format!("DO {}", literal(&body))).await;
    let milliseconds = i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX);
    let mut trial = Trial {
        tenant: target.subdomain.clone(),
        milliseconds,
        rows: Vec::new(),
        locks: Vec::new(),
        failure: None,
    };
    match done {
        Ok(()) => {
            // Whatever the SQL has left set, the names below are PostgreSQL's.
            run(&mut transaction, "SET LOCAL search_path = pg_catalog".to_owned())
                .await
                .map_err(Error::TenantDatabase)?;
            trial.rows = written(&mut transaction).await.map_err(Error::TenantDatabase)?;
            trial.locks = locks(&mut transaction).await.map_err(Error::TenantDatabase)?;
        }
        Err(error) => {
            trial.failure = Some(match refused(&error, &definition.sql) {
                Outcome::Failed(failure) => failure,
                _ => Failure { error: chain(&error), hint: None, sqlstate: None },
            });
        }
    }
    let _ = transaction.rollback().await;
    Ok(trial)
}

async fn written(connection: &mut PgConnection) -> sqlx::Result<Vec<Written>> {
    let rows = sqlx::query(
        "SELECT concat(schemaname, '.', relname) AS name, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_xact_user_tables
         WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 AND schemaname <> 'loomworks' ORDER BY name LIMIT 1000",
    )
    .fetch_all(connection)
    .await?;
    let written = |row: &PgRow| {
        Ok(Written {
            table: row.try_get(0)?,
            inserted: row.try_get(1)?,
            updated: row.try_get(2)?,
            deleted: row.try_get(3)?,
        })
    };
    rows.iter().map(written).collect()
}

async fn locks(connection: &mut PgConnection) -> sqlx::Result<Vec<Lock>> {
    let rows = sqlx::query(
        "SELECT concat(n.nspname, '.', c.relname) AS name, l.mode FROM pg_locks l
         JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.mode <> 'AccessShareLock'
         AND n.nspname NOT IN ('loomworks', 'information_schema') AND NOT starts_with(n.nspname, 'pg_')
         ORDER BY name, l.mode LIMIT 1000",
    )
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok(Lock { relation: row.try_get(0)?, mode: row.try_get(1)? })).collect()
}

/// As the app itself comes in, so that the SQL finds the settings and the search path it was written for.
fn connect_options(
    world: &World,
    definition: &Definition,
    target: &Target,
    session: &str,
) -> Result<PgConnectOptions, Error> {
    let password =
        world.master_key.unwrap(&target.app_password_wrapped, &app_password_purpose(target.tenant_id))?;
    Ok(PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(world.cluster.port)
        .username(&target.app_role)
        .password(password.expose_secret())
        .database(&target.database_name)
        .ssl_mode(PgSslMode::Disable)
        .application_name(session)
        .options([
            // Here and not in the statement, which other sessions of the app can see.
            ("loomworks.migration", definition.id.to_string()),
            ("statement_timeout", format!("{}s", definition.statement_timeout_seconds)),
            ("lock_timeout", format!("{}s", definition.lock_timeout_seconds)),
            // Nobody is told of a commit that can be lost. The management database is in the same cluster: that the tenant
            // is migrated, and whatever else is concluded from it, comes later in the same WAL, which a crash of the
            // machine cuts off at one place. A tenant that loses its migration is one that still has to get it.
            ("synchronous_commit", "off".to_owned()),
        ]))
}

fn marker_is_missing(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error.code().as_deref() == Some("42883") && error.message().contains("loomworks.mark_migration")
}

fn not_connected(error: &sqlx::Error) -> Outcome {
    Outcome::Busy(format!("its database cannot be connected to: {}", chain(error)))
}

/// What an error of the statement means for the tenant.
fn refused(error: &sqlx::Error, sql: &str) -> Outcome {
    let sqlx::Error::Database(database) = error else {
        return Outcome::Busy(format!("the connection was lost: {}", chain(error)));
    };
    let code = database.code().unwrap_or_default().into_owned();
    let (message, hint) = match code.as_str() {
        // Ended by an exchange, or by the server's end.
        "57P01" | "57P02" | "57P03" => return Outcome::Busy("its connections were ended".into()),
        "40001" | "40P01" => return Outcome::Busy(database.message().to_owned()),
        "0A000" if database.message().contains("transaction commands") => (
            "the SQL controls transactions itself (COMMIT, ROLLBACK, SAVEPOINT or the like)".to_owned(),
            Some("take that out: with each tenant all of it is one transaction already"),
        ),
        "25001" => (
            database.message().to_owned(),
            Some("it cannot be part of a transaction, and with each tenant all of the SQL is one"),
        ),
        "55P03" => (
            "somebody held a lock for longer than the lock timeout".to_owned(),
            Some(
                "resume it and try the failed tenants again when they are quiet, or allow a longer lock timeout",
            ),
        ),
        "57014" => (
            "it took longer than the statement timeout".to_owned(),
            Some("allow a longer statement timeout, or do less in one migration"),
        ),
        _ => (database.message().to_owned(), None),
    };
    let error = match line_of(database.as_ref(), sql) {
        Some(line) => format!("line {line}: {message}"),
        None => message,
    };
    Outcome::Failed(Failure { error, hint: hint.map(str::to_owned), sqlstate: Some(code) })
}

/// The line of the SQL that the error points to.
fn line_of(error: &dyn sqlx::error::DatabaseError, sql: &str) -> Option<usize> {
    let error = error.try_downcast_ref::<PgDatabaseError>()?;
    let PgErrorPosition::Internal { position, query } = error.position()? else { return None };
    if query != sql {
        return None;
    }
    Some(1 + sql.chars().take(position.saturating_sub(1)).filter(|char| *char == '\n').count())
}
