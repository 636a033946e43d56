//! Every column that holds a wrapped secret, in one place, so that no change of the master key forgets one.

use sqlx::{AssertSqlSafe, FromRow, PgConnection};

/// A column whose secrets the master key wraps.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub table: &'static str,
    pub column: &'static str,
    /// What the secret of a row is bound to, as an SQL expression: the same text as when it was wrapped.
    pub purpose: &'static str,
}

/// A test compares them with the catalogue: each `bytea` column named `wrapped` or `…_wrapped` is one of these.
pub const PLACES: [Place; 7] = [
    Place {
        table: "tenant_credentials",
        column: "app_password_wrapped",
        purpose: "'app password of tenant ' || tenant_id",
    },
    Place {
        table: "tenant_credentials",
        column: "next_password_wrapped",
        purpose: "'app password of tenant ' || tenant_id",
    },
    Place { table: "tenant_data_keys", column: "wrapped", purpose: "'data key of tenant ' || tenant_id" },
    Place {
        table: "tenant_admins",
        column: "password_wrapped",
        purpose: "'admin password of tenant ' || tenant_id",
    },
    Place {
        table: "idempotency_keys",
        column: "answer_wrapped",
        purpose: "'answer to ' || caller || ' under ' || key",
    },
    Place {
        table: "webhook_secrets",
        column: "secret_wrapped",
        purpose: "'secret of webhook ' || webhook_id",
    },
    Place { table: "platform_secrets", column: "wrapped", purpose: "name" },
];

/// What those who wrap secrets share until their transaction has ended, and whoever forgets a key has for himself.
const WRAPPING: &str = "loomworks: wrap secrets";

/// Keeps every former key from being forgotten until the transaction has ended.
pub async fn begin_wrapping(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("SELECT pg_advisory_xact_lock_shared(hashtextextended($1, 0))")
        .bind(WRAPPING)
        .execute(connection)
        .await
        .map(drop)
}

/// Waits until nobody has wrapped a secret that is not committed. For the rest of the transaction nobody will.
pub async fn stop_wrapping(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(WRAPPING)
        .execute(connection)
        .await
        .map(drop)
}

/// A wrapped secret, with where it is.
#[derive(Clone, Debug, FromRow)]
pub struct Found {
    pub row: String,
    pub wrapped: Vec<u8>,
    pub purpose: String,
}

/// Secrets that do not begin with the header of the present key, in the order of their places in the table. Those that
/// are wrapped anew move to its end and are not found again.
pub async fn lock_old(
    connection: &mut PgConnection,
    place: &Place,
    header: &[u8],
    after: &str,
    rows: i64,
) -> sqlx::Result<Vec<Found>> {
    let Place { table, column, purpose } = place;
    let sql = format!(
        "SELECT ctid::text AS row, {column} AS wrapped, {purpose} AS purpose FROM {table}
         WHERE substring({column} FROM 1 FOR octet_length($1)) <> $1 AND ctid > $2::text::tid
         ORDER BY ctid LIMIT $3 FOR UPDATE"
    );
    sqlx::query_as(AssertSqlSafe(sql)).bind(header).bind(after).bind(rows).fetch_all(connection).await
}

/// Puts another form of the same secret in the place of a locked one.
pub async fn replace(
    connection: &mut PgConnection,
    place: &Place,
    found: &Found,
    new: &[u8],
) -> sqlx::Result<()> {
    let Place { table, column, .. } = place;
    // The row cannot have moved since it was locked, but one of its other columns can have been moved by ourselves.
    let sql = format!("UPDATE {table} SET {column} = $1 WHERE ctid = $2::text::tid AND {column} = $3");
    sqlx::query(AssertSqlSafe(sql))
        .bind(new)
        .bind(&found.row)
        .bind(&found.wrapped)
        .execute(connection)
        .await
        .map(drop)
}

/// How many secrets begin with the header, and how many do not.
pub async fn count(connection: &mut PgConnection, place: &Place, header: &[u8]) -> sqlx::Result<(i64, i64)> {
    let Place { table, column, .. } = place;
    let begins = format!("substring({column} FROM 1 FOR octet_length($1))");
    let sql = format!(
        "SELECT count(*) FILTER (WHERE {begins} = $1), count(*) FILTER (WHERE {begins} <> $1) FROM {table}"
    );
    sqlx::query_as(AssertSqlSafe(sql)).bind(header).fetch_one(connection).await
}

/// A secret of the platform itself.
pub async fn platform_secret(connection: &mut PgConnection, name: &str) -> sqlx::Result<Option<Vec<u8>>> {
    sqlx::query_scalar("SELECT wrapped FROM platform_secrets WHERE name = $1")
        .bind(name)
        .fetch_optional(connection)
        .await
}

pub async fn insert_platform_secret(
    connection: &mut PgConnection,
    name: &str,
    wrapped: &[u8],
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO platform_secrets (name, wrapped) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(name)
        .bind(wrapped)
        .execute(connection)
        .await
        .map(drop)
}
