//! Limits that a tenant's database itself holds everybody to: users, storage, AI operations a day.
//!
//! Nobody who works in the database can lift them: the triggers belong to the superuser or are guarded like the
//! recording's.

use sqlx::{Connection, FromRow, PgConnection};

use crate::error::UndoError;
use crate::install::PATIENCE;
use crate::transaction;

/// Where an app keeps its users.
#[derive(Clone, Copy, Debug)]
pub struct Users<'a> {
    /// The table, with its schema.
    pub table: &'a str,
    /// Which rows count, as an SQL condition on its columns.
    pub active: &'a str,
}

/// What holds in a database. `None`: no limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// `None`: users are not counted.
    pub users: Option<Users<'a>>,
    pub max_users: Option<i32>,
    pub max_ai_operations_daily: Option<i32>,
}

/// What is used of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRow)]
pub struct Usage {
    /// `None`: the app has not said where its users are, or there is no such table with such columns.
    pub users: Option<i64>,
    /// Since midnight UTC.
    pub ai_operations: i64,
}

/// Sets users and AI operations. `admin` is a superuser's connection to the tenant's database.
pub async fn set_limits(admin: &mut PgConnection, limits: &Limits<'_>) -> Result<(), UndoError> {
    let mut transaction = admin.begin().await?;
    loomworks_postgres::sql::run(&mut transaction, PATIENCE.to_owned()).await?;
    // One statement where nothing has to be done to a table: a new tenant waits for it.
    let is_another_table: bool = sqlx::query_scalar(
        "UPDATE loomworks.quota q SET max_users = $1, max_ai_operations_daily = $2, users_table = $3, users_active = $4
         FROM loomworks.quota was
         RETURNING was.users_table IS DISTINCT FROM q.users_table",
    )
    .bind(limits.max_users)
    .bind(limits.max_ai_operations_daily)
    .bind(limits.users.map(|users| users.table))
    .bind(limits.users.map_or("true", |users| users.active))
    .fetch_one(&mut *transaction)
    .await?;
    if is_another_table {
        sqlx::query("SELECT loomworks.unwatch_users()").execute(&mut *transaction).await?;
        sqlx::query(
            "SELECT loomworks.enrol(t) FROM loomworks.recordable() t
             WHERE to_regclass($1)::oid IN (SELECT loomworks.lineage(t))",
        )
        .bind(limits.users.map(|users| users.table))
        .execute(&mut *transaction)
        .await?;
    }
    // What was used long ago is of no interest any more.
    sqlx::query("DELETE FROM loomworks.ai_usage WHERE day < current_date - 31")
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    let used = usage(admin).await?.users;
    let beyond = used.filter(|used| limits.max_users.is_some_and(|max| *used > i64::from(max)));
    sqlx::query("UPDATE loomworks.users_turn SET beyond = $1 WHERE beyond IS DISTINCT FROM $1")
        .bind(beyond)
        .execute(admin)
        .await?;
    Ok(())
}

/// Refuses whatever would need more storage. `said` is told to whoever is refused: `5.1 GB of 5 GB`.
///
/// Each table in a transaction of its own, so that one which somebody writes to for long keeps no other waiting. May be
/// run again, and goes on then: after an error, and for a table that was made by a transaction which had not ended.
pub async fn block(admin: &mut PgConnection, said: &str) -> Result<(), UndoError> {
    let mut transaction = admin.begin().await?;
    sqlx::query("UPDATE loomworks.quota SET storage = $1").bind(said).execute(&mut *transaction).await?;
    sqlx::query("SELECT loomworks.block_ddl()").execute(&mut *transaction).await?;
    transaction.commit().await?;
    each_table(
        admin,
        "SELECT t::int8 FROM loomworks.to_block() t",
        "SELECT loomworks.block_table($1::int8::oid)",
    )
    .await
}

/// Ends what [`block`] began. The first step first: as long as it holds, tables that are changed are closed again.
pub async fn unblock(admin: &mut PgConnection) -> Result<(), UndoError> {
    loomworks_postgres::sql::run(admin, "SELECT loomworks.unblock_ddl()".to_owned()).await?;
    each_table(
        admin,
        "SELECT tgrelid::int8 FROM pg_trigger WHERE tgfoid = 'loomworks.refuse_full'::regproc",
        "SELECT loomworks.unblock_table($1::int8::oid)",
    )
    .await
}

async fn each_table(
    admin: &mut PgConnection,
    which: &'static str,
    what: &'static str,
) -> Result<(), UndoError> {
    let tables: Vec<i64> = sqlx::query_scalar(which).fetch_all(&mut *admin).await?;
    let mut waited_in_vain = None;
    for table in tables {
        let mut transaction = admin.begin().await?;
        loomworks_postgres::sql::run(&mut transaction, PATIENCE.to_owned()).await?;
        let done = sqlx::query(what).bind(table).execute(&mut *transaction).await;
        match done {
            Ok(_) => transaction.commit().await?,
            Err(error) => {
                transaction.rollback().await?;
                // A table that was dropped meanwhile needs nothing.
                let there: bool =
                    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_class WHERE oid::int8 = $1)")
                        .bind(table)
                        .fetch_one(&mut *admin)
                        .await?;
                if there {
                    waited_in_vain = Some(error);
                }
            }
        }
    }
    waited_in_vain.map_or(Ok(()), |error| Err(error.into()))
}

/// What is used. The connection is the undo engine's, or a superuser's.
///
/// Counting may run code of the tenant's. It is rolled back, so that nothing it has left to be done is done as us, and has
/// to be done soon.
pub async fn usage(connection: &mut PgConnection) -> Result<Usage, UndoError> {
    let mut transaction = transaction::begin(connection).await?;
    loomworks_postgres::sql::run(&mut transaction, "SET LOCAL statement_timeout = '5s'".to_owned()).await?;
    let usage = sqlx::query_as("SELECT users, ai_operations FROM loomworks.usage()")
        .fetch_one(&mut *transaction)
        .await?;
    transaction.rollback().await?;
    Ok(usage)
}
