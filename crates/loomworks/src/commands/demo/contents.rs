//! A tenant's contents as checksums, to compare moments.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::output::Failure;

/// The tables that nobody but the demo's agent changes. What the background clients write is left out.
const TABLES: [&str; 6] = ["companies", "contacts", "invoices", "order_lines", "orders", "products"];

/// A checksum a table. A table that is not there has none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Contents(BTreeMap<&'static str, String>);

impl Contents {
    /// Reads all rows of all tables.
    pub(super) async fn of(connection: &mut PgConnection) -> Result<Self, Failure> {
        let mut tables = BTreeMap::new();
        for table in TABLES {
            let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
                .bind(format!("public.{table}"))
                .fetch_one(&mut *connection)
                .await
                .context("look for a table")?;
            let checksum =
                if there { checksum(connection, table, "true").await? } else { "no such table".into() };
            tables.insert(table, checksum);
        }
        Ok(Self(tables))
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables: Vec<String> =
            self.0.iter().map(|(table, checksum)| format!("{table} {checksum}")).collect();
        f.write_str(&tables.join(", "))
    }
}

/// The number of rows that fulfil a condition and the sum of their checksums, which does not depend on their order.
pub(super) async fn checksum(
    connection: &mut PgConnection,
    table: &'static str,
    condition: &str,
) -> Result<String, Failure> {
    let sql = format!(
        "SELECT count(*) || ':' || to_hex(coalesce(sum(hashtextextended(t::text, 0)::numeric % 1000000007), 0)::bigint)
         FROM public.{table} t WHERE {condition}"
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.context("add up a table")?)
}
