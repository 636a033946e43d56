//! Everything that the management database has of one tenant, found in its catalogue so that no table is forgotten.
//!
//! Done as superuser: a table that some role may not read or delete from would be left out.

use loomworks_core::ids::TenantId;
use loomworks_postgres::Cluster;
use loomworks_postgres::cluster::SUPERUSER;
use loomworks_postgres::sql::ident;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use super::DATABASE;
use crate::error::Error;

/// What an administrative act left behind is kept: who did what, also with a tenant that is gone.
pub const KEPT: &str = "audit";

/// Columns that are never handed out: secrets, and what a secret could be guessed from. Every `bytea` column is
/// left out as well.
pub const SECRETS: &[(&str, &str)] = &[
    ("api_keys", "hash"),
    ("api_keys", "mac"),
    // The verifier of a session's password is in its job.
    ("jobs", "work"),
    ("jobs", "step"),
    ("tenant_credentials", "app_password_wrapped"),
    ("tenant_data_keys", "wrapped"),
];

/// A superuser's connection to the management database.
pub async fn connect(cluster: &Cluster) -> Result<PgConnection, Error> {
    Ok(cluster.local(SUPERUSER, DATABASE).connect().await?)
}

/// A table with a number of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct TableRows {
    pub table: String,
    pub rows: i64,
}

/// The tables that say whose a row is, but for the tenants themselves.
pub async fn tables(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    Ok(tables_with(connection, &["tenant_id"]).await?.into_iter().map(|(table, _)| table).collect())
}

/// The tables that say whose a row is or whom it is about, each with the condition that finds a tenant's rows.
async fn conditions(connection: &mut PgConnection) -> sqlx::Result<Vec<(String, String)>> {
    let mut tables = tables_with(connection, &["tenant_id", "about_tenant"]).await?;
    for (table, condition) in &mut tables {
        // The job that destroys it is no row about it, and must outlive it.
        if table == "jobs" {
            *condition = format!("({condition}) AND kind <> 'destroy'");
        }
    }
    Ok(tables)
}

/// The tables with one of these columns, each with the condition that one of them is `$1`.
async fn tables_with(connection: &mut PgConnection, columns: &[&str]) -> sqlx::Result<Vec<(String, String)>> {
    sqlx::query_as(
        "SELECT c.relname::text, string_agg(format('%I = $1', a.attname), ' OR ' ORDER BY a.attname)
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = ANY ($1) AND NOT a.attisdropped
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = 'public'::regnamespace
         GROUP BY 1 ORDER BY 1 LIMIT 1000",
    )
    .bind(columns)
    .fetch_all(connection)
    .await
}

/// How many rows of the tenant each table has, without those that have none.
pub async fn count(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Vec<TableRows>> {
    let mut counts = Vec::new();
    for (table, condition) in conditions(connection).await? {
        let sql = format!("SELECT count(*) FROM {} WHERE {condition}", ident(&table));
        let rows = sqlx::query_scalar(AssertSqlSafe(sql)).bind(tenant.0).fetch_one(&mut *connection).await?;
        counts.push(TableRows { table, rows });
    }
    counts.retain(|count| count.rows > 0);
    Ok(counts)
}

/// Deletes the tenant's rows from every table but the audit log and `spared`.
pub async fn delete(connection: &mut PgConnection, tenant: TenantId, spared: &[&str]) -> Result<(), Error> {
    let mut left = conditions(connection).await?;
    left.retain(|(table, _)| table != KEPT && !spared.contains(&table.as_str()));
    // Rows that others refer to go in a later round: the catalogue's order is not that of the references.
    while !left.is_empty() {
        let mut referred_to = Vec::new();
        let tried = left.len();
        for (table, condition) in left {
            let mut part = connection.begin().await?;
            let sql = format!("DELETE FROM {} WHERE {condition}", ident(&table));
            match sqlx::query(AssertSqlSafe(sql)).bind(tenant.0).execute(&mut *part).await {
                Ok(_) => part.commit().await?,
                Err(sqlx::Error::Database(error)) if error.is_foreign_key_violation() => {
                    part.rollback().await?;
                    referred_to.push((table, condition));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if referred_to.len() == tried {
            let tables: Vec<String> = referred_to.into_iter().map(|(table, _)| table).collect();
            let tables = tables.join(", ");
            return Err(Error::Internal(format!("rows of {tables} are referred to by what is kept")));
        }
        left = referred_to;
    }
    Ok(())
}

/// Leaves of a tenant's row that it was there: no name, no settings, no reason, and its names are free.
pub async fn bury(connection: &mut PgConnection, tenant: TenantId, erased: &Value) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenants SET state = 'destroyed', name = '(destroyed)', settings = '{}', tier = 'basic',
             subscription_expires = NULL, max_users = NULL, max_storage_gb = NULL, max_ai_operations_daily = NULL,
             recovery_days = NULL,
             suspension_reason = NULL, suspension_cause = NULL, suspended_at = NULL, suspended_by = NULL,
             archive_reason = NULL, archived_by = NULL, archived_at = NULL, archived_until = NULL,
             archive_complete_since = NULL, held_by = NULL, destroyed_at = now(), updated_at = now(), erased = $2
         WHERE id = $1",
    )
    .bind(tenant.0)
    .bind(erased)
    .execute(connection)
    .await
    .map(drop)
}

/// Notes what was dropped, to be looked for.
pub async fn note_erased(
    connection: &mut PgConnection,
    tenant: TenantId,
    erased: &Value,
) -> sqlx::Result<()> {
    sqlx::query("UPDATE tenants SET erased = $2 WHERE id = $1")
        .bind(tenant.0)
        .bind(erased)
        .execute(connection)
        .await
        .map(drop)
}

/// What was noted about a tenant when it was buried.
pub async fn erased(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Option<Value>> {
    sqlx::query_scalar("SELECT erased FROM tenants WHERE id = $1 AND erased IS NOT NULL")
        .bind(tenant.0)
        .fetch_optional(connection)
        .await
}

/// The columns of a table: those that may be handed out, and those that are secrets.
async fn columns(connection: &mut PgConnection, table: &str) -> sqlx::Result<(Vec<String>, Vec<String>)> {
    let columns: Vec<(String, bool)> = sqlx::query_as(
        "SELECT attname::text, atttypid <> 'bytea'::regtype FROM pg_attribute
         WHERE attrelid = ('public.' || quote_ident($1))::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    )
    .bind(table)
    .fetch_all(connection)
    .await?;
    let is_open = |(column, open): &(String, bool)| *open && !SECRETS.contains(&(table, column.as_str()));
    let (open, secret): (Vec<_>, Vec<_>) = columns.into_iter().partition(is_open);
    let names = |columns: Vec<(String, bool)>| columns.into_iter().map(|(name, _)| name).collect();
    Ok((names(open), names(secret)))
}

/// The columns of a table that may be handed out.
pub async fn open_columns(connection: &mut PgConnection, table: &str) -> sqlx::Result<Vec<String>> {
    Ok(columns(connection, table).await?.0)
}

/// The columns of a tenant's rows that are not handed out, as `table.column`.
pub async fn left_out(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    let mut all = Vec::new();
    for table in tables(connection).await?.into_iter().chain(["tenants".to_owned()]) {
        let (_, secret) = columns(connection, &table).await?;
        all.extend(secret.iter().map(|column| format!("{table}.{column}")));
    }
    Ok(all)
}

/// The query that gives the rows of a table as JSON, one a row; `$1` is the tenant.
pub async fn rows_as_json(connection: &mut PgConnection, table: &str) -> sqlx::Result<String> {
    let columns = open_columns(connection, table).await?;
    let columns: Vec<String> = columns.iter().map(|column| ident(column)).collect();
    let key = if table == "tenants" { "id" } else { "tenant_id" };
    let (columns, table) = (columns.join(", "), ident(table));
    Ok(format!(
        "SELECT row_to_json(r)::text FROM (SELECT {columns} FROM {table} WHERE {key} = $1 ORDER BY 1) r"
    ))
}
