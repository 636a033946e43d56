//! Putting names and values into statements that take no parameters (`CREATE ROLE`, `ALTER DATABASE`, …).

use sqlx::{AssertSqlSafe, Executor, PgConnection};

/// A quoted identifier. Source: PostgreSQL `src/backend/utils/adt/ruleutils.c`, `quote_identifier`, but always
/// quoted: a name that needs no quotes today is a keyword tomorrow.
///
/// A NUL cannot occur in a name and would cut it off, so it is taken out.
#[must_use]
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('\0', "").replace('"', "\"\""))
}

/// A quoted string. Source: PostgreSQL `src/backend/utils/adt/quote.c`, `quote_literal`.
#[must_use]
pub fn literal(value: &str) -> String {
    let quoted = value.replace('\0', "").replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// Runs a statement, or several separated by semicolons, that was put together with [`ident`] and [`literal`].
pub async fn run(connection: &mut PgConnection, statement: String) -> sqlx::Result<()> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_quotes() {
        assert_eq!(ident("acme"), r#""acme""#);
        assert_eq!(ident(r#"a"; DROP DATABASE x; --"#), r#""a""; DROP DATABASE x; --""#);
        assert_eq!(ident("a\0b"), r#""ab""#);
    }

    #[test]
    fn values_cannot_leave_their_quotes() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"\'"), r"E'\\'''");
        assert_eq!(literal("a\0b"), "'ab'");
    }
}
