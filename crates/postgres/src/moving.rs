//! Moving a database into another cluster of the same history by its files: no row is read, no index built again.
//!
//! ```text
//! obstacle   what forbids it, so that the copy has to be made by `pg_dump` and `pg_restore`
//! freeze     nothing in the files refers to a transaction any more; they are complete on disk
//! landing    a database of the receiving cluster that nobody can connect to, whose files give way to these
//! settle     a copy of it, every page of which passes through the receiving cluster's WAL
//! ```
//!
//! The copy is made by `CREATE DATABASE … STRATEGY wal_log`, so it survives a crash and is archived like everything
//! else; the landing is thrown away. Both clusters have the same past, so numbers of roles mean the same in both; a
//! number of a transaction does not, because the receiving cluster went another way since.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sqlx::{PgConnection, Row};

use crate::cluster::{Cluster, ClusterError};
use crate::sql::{ident, literal, run};

/// Why a database's files cannot be moved, or `None`.
///
/// `source` is connected to the database, `target` to any of the receiving cluster; `owner` is a role there that must have
/// been the same one in the source.
pub async fn obstacle(
    source: &mut PgConnection,
    target: &mut PgConnection,
    owner: &str,
) -> sqlx::Result<Option<&'static str>> {
    if locale(source, "current_database()").await? != locale(target, "'template0'").await? {
        return Ok(Some("its encoding or locale is not that of this cluster's new databases"));
    }
    let elsewhere = "SELECT EXISTS (SELECT FROM pg_class WHERE reltablespace <> 0 AND NOT relisshared)
                         OR (SELECT dattablespace <> 1663 FROM pg_database WHERE datname = current_database())";
    if sqlx::query_scalar(elsewhere).fetch_one(&mut *source).await? {
        return Ok(Some("a part of it is in a tablespace of its own"));
    }
    let number = "SELECT oid::int8 FROM pg_authid WHERE rolname = $1";
    let owner: Option<i64> = sqlx::query_scalar(number).bind(owner).fetch_optional(target).await?;
    let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_authid WHERE oid::int8 = $1)")
        .bind(owner)
        .fetch_one(source)
        .await?;
    Ok((!known).then_some("the role that owns what is in it was made later"))
}

/// What decides whether one database can have another's files, as text that can be compared. The names of the columns
/// depend on the version. Source: PostgreSQL `src/include/catalog/pg_database.h`.
async fn locale(connection: &mut PgConnection, database: &'static str) -> sqlx::Result<String> {
    let sql = format!(
        "SELECT (SELECT jsonb_object_agg(key, value)::text FROM jsonb_each(to_jsonb(d)) WHERE key IN ('encoding',
             'datcollate', 'datctype', 'datlocprovider', 'daticulocale', 'datlocale', 'daticurules'))
         FROM pg_database d WHERE datname = {database}"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(connection).await
}

/// The roles that own something in the source's connected database, or were granted something there, and that the
/// receiving cluster does not have (any more).
pub async fn strangers(source: &mut PgConnection, target: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    let referred: Vec<(i64, String)> = sqlx::query_as(
        "SELECT DISTINCT r.oid::int8, r.rolname::text FROM pg_shdepend s JOIN pg_authid r ON r.oid = s.refobjid
         WHERE s.refclassid = 'pg_authid'::regclass
           AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .fetch_all(source)
    .await?;
    let numbers: Vec<i64> = referred.iter().map(|(number, _)| *number).collect();
    let there: Vec<i64> = sqlx::query_scalar("SELECT oid::int8 FROM pg_authid WHERE oid::int8 = ANY($1)")
        .bind(numbers)
        .fetch_all(target)
        .await?;
    let gone = referred.into_iter().filter(|(number, _)| !there.contains(number));
    Ok(gone.map(|(_, name)| name).collect())
}

/// A database whose files refer to nothing of the cluster that they come from but roles.
#[derive(Debug)]
pub struct Frozen {
    /// Its number in the source.
    oid: u32,
    /// No transaction of this number or a later one is in the files.
    next_xid: i64,
    dependencies: Dependencies,
}

/// What of a database depends on which role: rows of `pg_shdepend`, by column.
#[derive(Debug, Default)]
struct Dependencies {
    classes: Vec<i64>,
    objects: Vec<i64>,
    parts: Vec<i32>,
    roles: Vec<i64>,
    kinds: Vec<String>,
}

/// Freezes every row of the connected database and has the files written. `None`: some rows would not be frozen.
///
/// Nobody else may work in the cluster, now and until the files have been taken.
/// What was begun and not ended is rolled back: transactions that were prepared too, as `pg_dump` would leave them out.
pub async fn freeze(source: &mut PgConnection) -> sqlx::Result<Option<Frozen>> {
    let prepared = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
    for gid in sqlx::query_scalar::<_, String>(prepared).fetch_all(&mut *source).await? {
        run(source, format!("ROLLBACK PREPARED {}", literal(&gid))).await?;
    }
    // Of tables whose sessions are no more the files are gone, and VACUUM leaves them out.
    let temporary = "SELECT nspname::text FROM pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_'
                     AND EXISTS (SELECT FROM pg_class WHERE relnamespace = pg_namespace.oid) ORDER BY nspname";
    for schema in sqlx::query_scalar::<_, String>(temporary).fetch_all(&mut *source).await? {
        run(source, format!("DROP SCHEMA IF EXISTS {} CASCADE", ident(&schema))).await?;
    }
    let before = next_xid(source).await?;
    // Not what all databases share: each notes for itself how old that is, and the receiving cluster's own stays as it is.
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT quote_ident(nspname) || '.' || quote_ident(relname) FROM pg_class
         JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('r', 'm') AND NOT relisshared",
    )
    .fetch_all(&mut *source)
    .await?;
    run(source, format!("VACUUM (FREEZE) {}", tables.join(", "))).await?;
    // Since then nobody wrote, and no table has anything older.
    let unfrozen: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_class WHERE relkind IN ('r', 'm', 't') AND NOT relisshared
                        AND (age(relfrozenxid) <> 0 OR mxid_age(relminmxid) <> 0))",
    )
    .fetch_one(&mut *source)
    .await?;
    let next_xid = next_xid(source).await?;
    if unfrozen || next_xid != before {
        return Ok(None);
    }
    let number = "SELECT oid::int8 FROM pg_database WHERE datname = current_database()";
    let number: i64 = sqlx::query_scalar(number).fetch_one(&mut *source).await?;
    let dependencies = dependencies(source, number).await?;
    run(source, "CHECKPOINT".to_owned()).await?;
    Ok(Some(Frozen { oid: u32::try_from(number).unwrap_or(0), next_xid, dependencies }))
}

async fn next_xid(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8")
        .fetch_one(connection)
        .await
}

async fn dependencies(source: &mut PgConnection, database: i64) -> sqlx::Result<Dependencies> {
    let rows = sqlx::query(
        "SELECT classid::int8, objid::int8, objsubid, refobjid::int8, deptype::text FROM pg_shdepend
         WHERE dbid::int8 = $1 AND refclassid = 'pg_authid'::regclass",
    )
    .bind(database)
    .fetch_all(source)
    .await?;
    let mut all = Dependencies::default();
    for row in rows {
        all.classes.push(row.try_get(0)?);
        all.objects.push(row.try_get(1)?);
        all.parts.push(row.try_get(2)?);
        all.roles.push(row.try_get(3)?);
        all.kinds.push(row.try_get(4)?);
    }
    Ok(all)
}

/// A number that no database has had: whoever notes it before the database is made knows of it whatever happens.
pub async fn next_oid(connection: &mut PgConnection) -> sqlx::Result<u32> {
    let number: i64 = sqlx::query_scalar(
        "SELECT pg_nextoid('pg_database'::regclass, 'oid', 'pg_database_oid_index'::regclass)::int8",
    )
    .fetch_one(connection)
    .await?;
    Ok(u32::try_from(number).unwrap_or(0))
}

/// A database of the receiving cluster whose place the files take.
#[derive(Clone, Copy, Debug)]
pub struct Landing<'a> {
    pub name: &'a str,
    pub oid: u32,
}

/// Makes the landing: an empty database that nobody can connect to, so that the server holds none of its pages.
///
/// It costs the server two checkpoints, so it is best made while other things are waited for.
pub async fn make_landing(connection: &mut PgConnection, landing: Landing<'_>) -> sqlx::Result<()> {
    let statement = format!(
        "CREATE DATABASE {} TEMPLATE template0 STRATEGY file_copy ALLOW_CONNECTIONS false OID {}",
        ident(landing.name),
        landing.oid
    );
    run(connection, statement).await
}

/// Puts the frozen database's files into the landing's place. A file is linked where that can be, and copied otherwise.
///
/// A landing is used once: of one that was copied from the server still holds pages, and would take them for these.
pub async fn land(
    source: &Cluster,
    frozen: &Frozen,
    target: &Cluster,
    landing: Landing<'_>,
) -> Result<(), ClusterError> {
    let from = source.directory.join("base").join(frozen.oid.to_string());
    let into = target.directory.join("base").join(landing.oid.to_string());
    let path = into.clone();
    let placed = tokio::task::spawn_blocking(move || place(&from, &into)).await;
    placed.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|source| ClusterError::File {
        what: "put a database's files into",
        path,
        source,
    })
}

fn place(from: &Path, into: &Path) -> io::Result<()> {
    let server = std::fs::metadata(into)?;
    for entry in std::fs::read_dir(into)? {
        std::fs::remove_file(entry?.path())?;
    }
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let file = into.join(entry.file_name());
        if std::fs::hard_link(entry.path(), &file).is_err() {
            std::fs::copy(entry.path(), &file)?;
            std::os::unix::fs::chown(&file, Some(server.uid()), Some(server.gid()))?;
        }
    }
    Ok(())
}

/// Makes a database of what has landed. Nobody but superusers may connect to it until
/// [`crate::databases::admit_everybody_granted`].
pub async fn settle(
    connection: &mut PgConnection,
    frozen: &Frozen,
    landing: Landing<'_>,
    name: &str,
    oid: u32,
) -> sqlx::Result<()> {
    reach_xid(connection, frozen.next_xid).await?;
    depend(connection, landing, &frozen.dependencies).await?;
    let name = ident(name);
    run(
        connection,
        format!(
            "CREATE DATABASE {name} TEMPLATE {} STRATEGY wal_log OID {oid} CONNECTION LIMIT 0",
            ident(landing.name)
        ),
    )
    .await?;
    run(connection, format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC")).await
}

/// Notes which roles the landing needs; without that a role could be dropped that still owns something. PostgreSQL
/// gives the same to a copy in the transaction that makes it. Source: `src/backend/catalog/pg_shdepend.c`,
/// `copyTemplateDependencies`.
async fn depend(
    connection: &mut PgConnection,
    landing: Landing<'_>,
    dependencies: &Dependencies,
) -> sqlx::Result<()> {
    let Dependencies { classes, objects, parts, roles, kinds } = dependencies;
    sqlx::query(
        "INSERT INTO pg_shdepend (dbid, classid, objid, objsubid, refclassid, refobjid, deptype)
         SELECT $1::int8::oid, class::oid, object::oid, part, 'pg_authid'::regclass, role::oid, kind::\"char\"
         FROM unnest($2::int8[], $3::int8[], $4::int4[], $5::int8[], $6::text[]) AS d (class, object, part, role, kind)",
    )
    .bind(i64::from(landing.oid))
    .bind(classes)
    .bind(objects)
    .bind(parts)
    .bind(roles)
    .bind(kinds)
    .execute(connection)
    .await
    .map(drop)
}

/// Uses up transaction numbers until those in the files are past ones here too. The source went on for a few from a
/// moment that this cluster has left behind, so it is seldom more than none.
async fn reach_xid(connection: &mut PgConnection, wanted: i64) -> sqlx::Result<()> {
    while next_xid(connection).await? < wanted {
        sqlx::query("SELECT pg_current_xact_id()").execute(&mut *connection).await?;
    }
    Ok(())
}
