//! The management database: the only place with SQL on its tables, one file a table group.

pub mod audit;
pub mod changes;
pub mod credentials;
pub mod data_keys;
pub mod erasure;
pub mod exports;
pub mod fleet;
pub mod idempotency;
pub mod incarnations;
pub mod jobs;
pub mod keys;
pub mod lifecycle;
pub mod metrics;
pub mod notifications;
pub mod operators;
pub mod routes;
pub mod schedules;
pub mod sessions;
pub mod snapshots;
pub mod subscriptions;
pub mod templates;
pub mod tenants;
pub mod tiers;
pub mod usage;
pub mod webhooks;
pub mod wrapped;

use std::time::Duration;

use loomworks_postgres::cluster::SUPERUSER;
use loomworks_postgres::{Cluster, databases, roles, sql};
use sqlx::migrate::Migrate;
use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions, PgConnection, PgPool};

use crate::error::Error;
use crate::jobs::Slots;

pub const DATABASE: &str = "loomworks_mgmt";
/// Owns the tables; nobody logs in as it.
const OWNER: &str = "loomworks_owner";
/// The worker's and the operators' role: sees every row, owns nothing.
pub const PLATFORM_ROLE: &str = "loomworks_platform";
/// The role of tenants' own requests: row security confines it.
pub const API_ROLE: &str = "loomworks_api";

/// Connections of the platform's role for everything but jobs.
const CONNECTIONS: u32 = 8;
/// A step holds one as a rule, and now and then one more for a transaction.
const CONNECTIONS_OF_A_JOB: u32 = 2;
/// The server has 200, and tenants need some.
const CONNECTIONS_MAX: u32 = 100;

/// A moment, as a column of ours.
pub type Time = jiff_sqlx::Timestamp;

/// A day, as a column of ours.
pub type Date = jiff_sqlx::Date;

/// Connections to the management database, one pool a role.
#[derive(Clone, Debug)]
pub struct Db {
    pub platform: PgPool,
    pub tenants: PgPool,
}

impl Db {
    /// The same as [`Self::set_up_for`], for as many jobs as are usual.
    pub async fn set_up(cluster: &Cluster) -> Result<Self, Error> {
        Self::set_up_for(cluster, Slots::default()).await
    }

    /// Makes the database and its roles if they are missing, brings the tables up to date, connects. There are
    /// connections for so many jobs at once.
    pub async fn set_up_for(cluster: &Cluster, slots: Slots) -> Result<Self, Error> {
        let mut admin = cluster.connect("postgres").await?;
        roles::ensure_group(&mut admin, OWNER).await?;
        // Row security is forced, so it would hide from a migration the rows that it is to change. Nobody can log in as
        // the owner, or become him.
        sql::run(&mut admin, format!("ALTER ROLE {} BYPASSRLS", sql::ident(OWNER))).await?;
        for role in [PLATFORM_ROLE, API_ROLE] {
            roles::ensure_group(&mut admin, role).await?;
            // They come over the socket, where the operating system says who they are: no password exists.
            sql::run(&mut admin, format!("ALTER ROLE {} LOGIN", sql::ident(role))).await?;
        }
        databases::close_shared_databases(&mut admin).await?;
        databases::ensure(&mut admin, DATABASE, OWNER).await?;
        let connect = format!(
            "GRANT CONNECT ON DATABASE {} TO {}, {}",
            sql::ident(DATABASE),
            sql::ident(PLATFORM_ROLE),
            sql::ident(API_ROLE)
        );
        sql::run(&mut admin, connect).await?;
        Self::migrate(cluster).await?;
        let jobs = u32::try_from(slots.in_process).unwrap_or(u32::MAX).saturating_mul(CONNECTIONS_OF_A_JOB);
        let platform = pool(cluster, PLATFORM_ROLE, CONNECTIONS.saturating_add(jobs).min(CONNECTIONS_MAX));
        Ok(Self { platform, tenants: pool(cluster, API_ROLE, 8) })
    }

    async fn migrate(cluster: &Cluster) -> Result<(), Error> {
        let mut connection = cluster.local(SUPERUSER, DATABASE).connect().await?;
        databases::close_public_schema(&mut connection, OWNER).await?;
        sql::run(&mut connection, format!("SET ROLE {}", sql::ident(OWNER))).await?;
        // Two processes that start at once wait for each other here.
        connection.lock().await.map_err(migration_error)?;
        let migrated = sqlx::migrate!().run_direct(None, &mut connection, false).await;
        connection.unlock().await.map_err(migration_error)?;
        migrated.map_err(migration_error)
    }
}

fn migration_error(error: sqlx::migrate::MigrateError) -> Error {
    Error::Internal(format!("bring the management database up to date: {}", crate::error::chain(&error)))
}

fn pool(cluster: &Cluster, role: &str, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .connect_lazy_with(cluster.local(role, DATABASE))
}

/// A lock for the rest of the transaction. Who else wants the same thing waits.
pub async fn advisory_lock(connection: &mut PgConnection, what: &str, which: &str) -> sqlx::Result<()> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(format!("{what}: {which}"))
        .execute(connection)
        .await
        .map(drop)
}

/// Turns the violation of a named constraint into an error that says what it means.
pub(crate) fn on_constraint<T>(
    result: sqlx::Result<T>,
    constraint: &str,
    error: impl FnOnce() -> Error,
) -> Result<T, Error> {
    match result {
        Err(sqlx::Error::Database(violated)) if violated.constraint() == Some(constraint) => Err(error()),
        other => Ok(other?),
    }
}
