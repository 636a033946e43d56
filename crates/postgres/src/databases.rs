//! Databases: made, exchanged by renaming, dropped.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row};

use crate::sql::{ident, run};

/// Makes an empty database that `owner`, and nobody else, may connect to and make things in. `Ok` when it is there.
///
/// The database itself stays the superuser's: its owner could drop it, or change how everybody connects, from another
/// database, where nothing records it.
///
/// `wal_log` writes every page through the WAL: the archive has the whole of it, and no checkpoint is forced.
pub async fn ensure(connection: &mut PgConnection, database: &str, owner: &str) -> sqlx::Result<()> {
    ensure_closed(connection, database).await?;
    open_to(connection, database, owner).await
}

/// Makes an empty database that nobody but superusers may connect to. `Ok` when it is there.
pub async fn ensure_closed(connection: &mut PgConnection, database: &str) -> sqlx::Result<()> {
    let name = ident(database);
    if oid(connection, database).await?.is_none() {
        run(connection, format!("CREATE DATABASE {name} TEMPLATE template0 STRATEGY wal_log")).await?;
    }
    run(connection, format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC")).await
}

/// Copies a database. Nobody but superusers may connect to the copy until [`admit_everybody_granted`]. `Ok` when it is
/// there.
///
/// Nobody may be connected to the template meanwhile. See [`ensure`] on `wal_log`.
pub async fn ensure_clone(connection: &mut PgConnection, database: &str, template: &str) -> sqlx::Result<()> {
    let name = ident(database);
    if oid(connection, database).await?.is_none() {
        let template = ident(template);
        run(
            connection,
            format!("CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log CONNECTION LIMIT 0"),
        )
        .await?;
    }
    run(connection, format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC")).await
}

/// Ends what [`ensure_clone`] began: who was granted the right may connect.
pub async fn admit_everybody_granted(connection: &mut PgConnection, database: &str) -> sqlx::Result<()> {
    run(connection, format!("ALTER DATABASE {} CONNECTION LIMIT -1", ident(database))).await
}

/// Makes a database one that is copied and not worked in: nobody can connect, superusers neither.
pub async fn seal(connection: &mut PgConnection, database: &str) -> sqlx::Result<()> {
    run(connection, format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", ident(database))).await?;
    end_connections(connection, database).await
}

/// Gives a database and the role that owns what is in it their new names, and what a new database is granted besides,
/// in one message, which is one transaction.
///
/// Nothing here is slow by nature. What can be is a connection that has just been closed: PostgreSQL then looks again
/// after a tenth of a second. So nobody may have been in the database a moment ago.
pub async fn rename_with_owner(
    connection: &mut PgConnection,
    database: &Rename<'_>,
    owner: &Rename<'_>,
) -> sqlx::Result<()> {
    let (name, role) = (ident(database.to), ident(owner.to));
    run(
        connection,
        format!(
            "ALTER DATABASE {} RENAME TO {name}; ALTER ROLE {} RENAME TO {role}; \
             GRANT ALL ON DATABASE {name} TO {role}; ALTER DATABASE {name} CONNECTION LIMIT -1",
            ident(database.from),
            ident(owner.from)
        ),
    )
    .await
}

/// The databases whose names begin so.
pub async fn beginning_with(connection: &mut PgConnection, prefix: &str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "SELECT datname::text FROM pg_database WHERE starts_with(datname::text, $1) ORDER BY 1",
    )
    .bind(prefix)
    .fetch_all(connection)
    .await
}

/// The sizes on disk of many databases at once, in bytes. Those that do not exist are left out.
pub async fn sizes(connection: &mut PgConnection, oids: &[i64]) -> sqlx::Result<Vec<(i64, i64)>> {
    sqlx::query_as("SELECT oid::int8, pg_database_size(oid) FROM pg_database WHERE oid::int8 = ANY($1)")
        .bind(oids)
        .fetch_all(connection)
        .await
}

/// How many rows have been inserted and updated in many databases so far. It begins anew after a crash.
pub async fn writes(connection: &mut PgConnection, oids: &[i64]) -> sqlx::Result<Vec<(i64, i64)>> {
    sqlx::query_as(
        "SELECT datid::int8, tup_inserted + tup_updated FROM pg_stat_database WHERE datid::int8 = ANY($1)",
    )
    .bind(oids)
    .fetch_all(connection)
    .await
}

/// Lets `owner` and its members connect to a database and make things in it.
pub async fn open_to(connection: &mut PgConnection, database: &str, owner: &str) -> sqlx::Result<()> {
    run(connection, format!("GRANT ALL ON DATABASE {} TO {}", ident(database), ident(owner))).await
}

/// Gives the public schema to `owner` and takes it away from everybody else. To be run in the database itself.
pub async fn close_public_schema(connection: &mut PgConnection, owner: &str) -> sqlx::Result<()> {
    let owner = ident(owner);
    run(
        connection,
        format!(
            "ALTER SCHEMA public OWNER TO {owner}; REVOKE ALL ON SCHEMA public FROM PUBLIC; \
             GRANT ALL ON SCHEMA public TO {owner}"
        ),
    )
    .await
}

/// The object id of a database: unlike its name it stays the same for its whole life.
pub async fn oid(connection: &mut PgConnection, database: &str) -> sqlx::Result<Option<u32>> {
    let row = sqlx::query("SELECT oid::int8 FROM pg_database WHERE datname = $1")
        .bind(database)
        .fetch_optional(connection)
        .await?;
    row.map(|row| Ok(u32::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0))).transpose()
}

/// The database's size on disk in bytes, 0 when there is none.
pub async fn size_bytes(connection: &mut PgConnection, database: &str) -> sqlx::Result<i64> {
    sqlx::query("SELECT coalesce((SELECT pg_database_size(oid) FROM pg_database WHERE datname = $1), 0)")
        .bind(database)
        .fetch_one(connection)
        .await?
        .try_get(0)
}

/// Gives a database that nobody is connected to another name.
pub async fn rename(connection: &mut PgConnection, from: &str, to: &str) -> sqlx::Result<()> {
    run(connection, format!("ALTER DATABASE {} RENAME TO {}", ident(from), ident(to))).await
}

/// One renaming of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename<'a> {
    pub from: &'a str,
    pub to: &'a str,
}

/// Renames databases in one transaction: either all have their new name or none.
///
/// Connections to them are refused and ended first, because a database in use cannot be renamed. Whatever happens,
/// they are allowed again afterwards.
pub async fn exchange(connection: &mut PgConnection, renames: &[Rename<'_>]) -> sqlx::Result<()> {
    let before: Vec<&str> = renames.iter().map(|rename| rename.from).collect();
    let result = close_and_rename(connection, &before, renames).await;
    let names = renames.iter().flat_map(|rename| [rename.from, rename.to]).map(str::to_owned).collect();
    allow_connections(connection, names).await?;
    result
}

async fn close_and_rename(
    connection: &mut PgConnection,
    names: &[&str],
    renames: &[Rename<'_>],
) -> sqlx::Result<()> {
    for name in names {
        run(connection, format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", ident(name))).await?;
    }
    for name in names {
        end_connections(connection, name).await?;
    }
    let mut transaction = connection.begin().await?;
    for Rename { from, to } in renames {
        rename(&mut transaction, from, to).await?;
    }
    transaction.commit().await
}

/// Allows connections to those of the databases that exist: the repair after an exchange was cut off.
pub async fn allow_connections(connection: &mut PgConnection, names: Vec<String>) -> sqlx::Result<()> {
    let closed =
        sqlx::query("SELECT datname::text FROM pg_database WHERE datname = ANY($1) AND NOT datallowconn")
            .bind(&names)
            .fetch_all(&mut *connection)
            .await?;
    for row in closed {
        let name: String = row.try_get(0)?;
        run(connection, format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", ident(&name))).await?;
    }
    Ok(())
}

/// Lets sessions in a database begin as ones that only read. It keeps from slips, not from will.
pub async fn read_only_by_default(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    run(connection, format!("ALTER DATABASE {} SET default_transaction_read_only = on", ident(name))).await
}

/// Ends all connections to a database and waits until they are gone.
///
/// All are told at once and then looked for: `pg_terminate_backend` with a timeout would wait a tenth of a second for
/// each, while a tenant's visitors wait.
pub async fn end_connections(connection: &mut PgConnection, database: &str) -> sqlx::Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let told = sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
        )
        .bind(database)
        .fetch_all(&mut *connection)
        .await?;
        if told.is_empty() || tokio::time::Instant::now() > deadline {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Drops a database, ending its connections. `Ok` when there is none.
pub async fn drop_database(connection: &mut PgConnection, database: &str) -> sqlx::Result<()> {
    run(connection, format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(database))).await
}

/// Takes the databases that `initdb` makes away from everybody but superusers.
pub async fn close_shared_databases(connection: &mut PgConnection) -> sqlx::Result<()> {
    run(connection, "REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC".to_owned()).await
}
