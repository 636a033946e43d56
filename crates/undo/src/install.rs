//! Putting the log and its triggers into a tenant's database.

use loomworks_postgres::sql::{ident, run};
use sqlx::{Connection, PgConnection};

use crate::UNDO_ROLE;
use crate::error::UndoError;

const ROLES: &str = include_str!("sql/roles.sql");
const SCHEMA: &str = include_str!("sql/schema.sql");
const CAPTURE: &str = include_str!("sql/capture.sql");
const GUARD: &str = include_str!("sql/guard.sql");
const REHOME: &str = include_str!("sql/rehome.sql");

/// Installs the log, or brings it up to date, and records every table from now on. `owner` is the role that owns the
/// tenant's tables.
///
/// `admin` is a superuser's connection to the tenant's database: event triggers belong to superusers, which is why the
/// tenant cannot remove them.
pub async fn install(admin: &mut PgConnection, owner: &str) -> Result<(), UndoError> {
    run(admin, ROLES.to_owned()).await?;
    let mut transaction = admin.begin().await?;
    for part in [SCHEMA, CAPTURE, GUARD] {
        run(&mut transaction, part.to_owned()).await?;
    }
    run(&mut transaction, "SELECT loomworks.enrol_all()".to_owned()).await?;
    transaction.commit().await?;
    join_owner(admin, owner).await
}

/// Brings the log in order after the database was copied by `pg_dump` and `pg_restore`: object ids and column numbers
/// are others in the copy.
pub async fn rehome(admin: &mut PgConnection, owner: &str) -> Result<(), UndoError> {
    let mut transaction = admin.begin().await?;
    for part in [SCHEMA, CAPTURE, GUARD, REHOME] {
        run(&mut transaction, part.to_owned()).await?;
    }
    transaction.commit().await?;
    join_owner(admin, owner).await
}

/// The undo engine changes the tenant's rows with the rights of their owner.
async fn join_owner(admin: &mut PgConnection, owner: &str) -> Result<(), UndoError> {
    let member: bool = sqlx::query_scalar("SELECT pg_has_role($1, $2, 'MEMBER')")
        .bind(UNDO_ROLE)
        .bind(owner)
        .fetch_one(&mut *admin)
        .await?;
    if !member {
        run(admin, format!("GRANT {} TO {}", ident(owner), ident(UNDO_ROLE))).await?;
    }
    Ok(())
}
