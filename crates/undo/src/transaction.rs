//! A transaction on which nothing that a tenant or an agent has set has any influence.

use sqlx::{Connection, Executor, PgConnection, Postgres, Transaction};

/// Begins a transaction in which names mean what they say and values print the same everywhere. An owner can set
/// defaults for the whole database, for the undo engine too.
pub(crate) async fn begin(connection: &mut PgConnection) -> sqlx::Result<Transaction<'_, Postgres>> {
    let mut transaction = connection.begin().await?;
    transaction
        .execute(
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE;
             SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL DateStyle = 'ISO, YMD';
             SET LOCAL IntervalStyle = 'iso_8601'; SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex';
             SET LOCAL TimeZone = 'UTC'; SET LOCAL lc_monetary = 'C'; SET LOCAL row_security = off;
             SET LOCAL quote_all_identifiers = off; SET LOCAL statement_timeout = 0",
        )
        .await?;
    Ok(transaction)
}
