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
    sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_class c
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = 'public'::regnamespace
         ORDER BY 1 LIMIT 1000",
    )
    .fetch_all(connection)
    .await
}

/// The condition that finds a tenant's rows. The job that destroys it is no row about it, and must outlive it.
fn rows_of_tenant(table: &str) -> &'static str {
    if table == "jobs" { "tenant_id = $1 AND kind <> 'destroy'" } else { "tenant_id = $1" }
}

/// How many rows of the tenant each table has, without those that have none.
pub async fn count(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<Vec<TableRows>> {
    let mut counts = Vec::new();
    for table in tables(connection).await? {
        let sql = format!("SELECT count(*) FROM {} WHERE {}", ident(&table), rows_of_tenant(&table));
        let rows = sqlx::query_scalar(AssertSqlSafe(sql)).bind(tenant.0).fetch_one(&mut *connection).await?;
        counts.push(TableRows { table, rows });
    }
    counts.retain(|count| count.rows > 0);
    Ok(counts)
}

/// Deletes the tenant's rows from every table but the audit log and `spared`.
pub async fn delete(connection: &mut PgConnection, tenant: TenantId, spared: &[&str]) -> Result<(), Error> {
    let mut left = tables(connection).await?;
    left.retain(|table| table != KEPT && !spared.contains(&table.as_str()));
    // Rows that others refer to go in a later round: the catalogue's order is not that of the references.
    while !left.is_empty() {
        let mut referred_to = Vec::new();
        let tried = left.len();
        for table in left {
            let mut part = connection.begin().await?;
            let sql = format!("DELETE FROM {} WHERE {}", ident(&table), rows_of_tenant(&table));
            match sqlx::query(AssertSqlSafe(sql)).bind(tenant.0).execute(&mut *part).await {
                Ok(_) => part.commit().await?,
                Err(sqlx::Error::Database(error)) if error.is_foreign_key_violation() => {
                    part.rollback().await?;
                    referred_to.push(table);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if referred_to.len() == tried {
            let tables = referred_to.join(", ");
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
             suspension_reason = NULL, suspension_cause = NULL, suspended_at = NULL, suspended_by = NULL,
             archive_reason = NULL, archived_by = NULL, archived_at = NULL, archived_until = NULL, held_by = NULL,
             destroyed_at = now(), updated_at = now(), erased = $2
         WHERE id = $1",
    )
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

/// The columns of a table that may be handed out.
pub async fn open_columns(connection: &mut PgConnection, table: &str) -> sqlx::Result<Vec<String>> {
    let columns: Vec<String> = sqlx::query_scalar(
        "SELECT attname::text FROM pg_attribute WHERE attrelid = ('public.' || quote_ident($1))::regclass
         AND attnum > 0 AND NOT attisdropped AND atttypid <> 'bytea'::regtype ORDER BY attnum",
    )
    .bind(table)
    .fetch_all(connection)
    .await?;
    Ok(columns.into_iter().filter(|column| !SECRETS.contains(&(table, column.as_str()))).collect())
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
