//! Putting the log and its triggers into a tenant's database.

use loomworks_postgres::sql::{ident, run};
use sqlx::{Connection, PgConnection};

use crate::error::UndoError;
use crate::{UNDO_ROLE, WRITER_ROLE};

const ROLES: &str = include_str!("sql/roles.sql");
const SCHEMA: &str = include_str!("sql/schema.sql");
const CAPTURE: &str = include_str!("sql/capture.sql");
const WRITER: &str = include_str!("sql/writer.sql");
const GUARD: &str = include_str!("sql/guard.sql");
const QUOTA: &str = include_str!("sql/quota.sql");
const REHOME: &str = include_str!("sql/rehome.sql");

/// How long to wait for whoever uses what is to be changed.
pub(crate) const PATIENCE: &str = "SET LOCAL lock_timeout = '3s'";

/// Installs the log, or brings it up to date, and records every table from now on. `owner` is the role that owns the
/// tenant's tables.
///
/// `admin` is a superuser's connection to the tenant's database: event triggers belong to superusers, which is why the
/// tenant cannot remove them.
pub async fn install(admin: &mut PgConnection, owner: &str) -> Result<(), UndoError> {
    run(admin, ROLES.to_owned()).await?;
    let mut transaction = admin.begin().await?;
    // Into a database that is worked in: who waits for us is not to wait for long.
    run(&mut transaction, PATIENCE.to_owned()).await?;
    for part in [SCHEMA, CAPTURE, WRITER, GUARD, QUOTA] {
        run(&mut transaction, part.to_owned()).await?;
    }
    run(&mut transaction, "SELECT loomworks.enrol_all()".to_owned()).await?;
    transaction.commit().await?;
    admit(admin, owner).await
}

/// All that [`install`] puts into a database, to notice that a newer program puts in something else.
#[must_use]
pub fn parts() -> [&'static str; 6] {
    [ROLES, SCHEMA, CAPTURE, WRITER, GUARD, QUOTA]
}

/// Brings the log in order after the database was copied by `pg_dump` and `pg_restore`: object ids and column numbers
/// are others in the copy.
pub async fn rehome(admin: &mut PgConnection, owner: &str) -> Result<(), UndoError> {
    run(admin, ROLES.to_owned()).await?;
    let mut transaction = admin.begin().await?;
    for part in [SCHEMA, CAPTURE, WRITER, GUARD, QUOTA, REHOME] {
        run(&mut transaction, part.to_owned()).await?;
    }
    transaction.commit().await?;
    admit(admin, owner).await
}

/// Lets the undo engine in, and lets its writer run what the tenant's constraints and defaults call. That it may read and
/// write is granted with each table's recording.
///
/// A database that was copied from one in which the log is installed needs this alone.
pub async fn admit(admin: &mut PgConnection, owner: &str) -> Result<(), UndoError> {
    let database: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&mut *admin).await?;
    let schemas: Vec<String> = sqlx::query_scalar(
        "SELECT nspname::text FROM pg_namespace
         WHERE NOT starts_with(nspname, 'pg_') AND nspname NOT IN ('information_schema', 'loomworks') ORDER BY nspname",
    )
    .fetch_all(&mut *admin)
    .await?;
    let (database, role, writer) = (ident(&database), ident(UNDO_ROLE), ident(WRITER_ROLE));
    let mut statements = format!(
        "GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {role};
         GRANT TEMPORARY ON DATABASE {database} TO {writer};
         ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT EXECUTE ON ROUTINES TO {writer};",
        owner = ident(owner)
    );
    for schema in schemas {
        statements += &format!("GRANT EXECUTE ON ALL ROUTINES IN SCHEMA {} TO {writer};", ident(&schema));
    }
    Ok(run(admin, statements).await?)
}
