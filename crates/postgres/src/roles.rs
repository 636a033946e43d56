//! Roles: made, given a password, taken away.
//!
//! A password reaches the server as a SCRAM verifier, never as text: no log, no `pg_stat_activity` and no job row
//! can then tell it.

use loomworks_core::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row};

use crate::sql::{ident, literal, run};

/// What PostgreSQL stores of a password (RFC 5803). One cannot log in with it.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Verifier(String);

impl Verifier {
    #[must_use]
    pub fn of(password: &SecretString) -> Self {
        Self(postgres_protocol::password::scram_sha_256(password.expose_secret().as_bytes()))
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

/// A role that owns things and grants its rights to members; nobody logs in as it.
pub async fn ensure_group(connection: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    if !exists(connection, role).await? {
        run(connection, format!("CREATE ROLE {} NOLOGIN", ident(role))).await?;
    }
    Ok(())
}

/// A role that logs in.
#[derive(Clone, Debug)]
pub struct Login<'a> {
    pub role: &'a str,
    pub verifier: &'a Verifier,
    /// The group it belongs to and acts as: what it makes is owned by the group, `session_user` stays itself.
    pub acts_as: &'a str,
    /// The moment from which the password is refused, RFC 3339.
    pub valid_until: Option<&'a str>,
    /// `None`: no limit of its own.
    pub connection_limit: Option<i32>,
}

/// Makes the role, or sets the one that is there right.
pub async fn ensure_login(connection: &mut PgConnection, login: &Login<'_>) -> sqlx::Result<()> {
    let role = ident(login.role);
    if !exists(connection, login.role).await? {
        run(connection, format!("CREATE ROLE {role} NOLOGIN")).await?;
    }
    let valid_until = literal(login.valid_until.unwrap_or("infinity"));
    let limit = login.connection_limit.unwrap_or(-1);
    run(
        connection,
        format!(
            "GRANT {group} TO {role}; ALTER ROLE {role} SET role = {group_value}; \
             ALTER ROLE {role} LOGIN INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS \
             CONNECTION LIMIT {limit} VALID UNTIL {valid_until} PASSWORD {password}",
            group = ident(login.acts_as),
            group_value = literal(login.acts_as),
            password = literal(&login.verifier.0),
        ),
    )
    .await
}

/// Ends a role's right to log in and the sessions it has. `Ok` when there is no such role.
pub async fn lock_out(connection: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    if exists(connection, role).await? {
        run(connection, format!("ALTER ROLE {} NOLOGIN", ident(role))).await?;
    }
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1")
        .bind(role)
        .execute(connection)
        .await
        .map(drop)
}

/// Ends a role's right to log in. Sessions that it has go on. `Ok` when there is no such role.
pub async fn refuse_login(connection: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    if exists(connection, role).await? {
        run(connection, format!("ALTER ROLE {} NOLOGIN", ident(role))).await?;
    }
    Ok(())
}

/// Ends the sessions of a role that do nothing at the moment, and tells how many others there are.
pub async fn end_idle_sessions(connection: &mut PgConnection, role: &str) -> sqlx::Result<i64> {
    // A session that took up work between the look and the signal is ended with it: pools look before they use one.
    sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1 AND state = 'idle'",
    )
    .bind(role)
    .execute(&mut *connection)
    .await?;
    sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND state <> 'idle'")
        .bind(role)
        .fetch_one(connection)
        .await
}

/// Takes a role's password away. `Ok` when there is no such role.
pub async fn forget_password(connection: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    if exists(connection, role).await? {
        run(connection, format!("ALTER ROLE {} PASSWORD NULL", ident(role))).await?;
    }
    Ok(())
}

/// Sets a role as another one is set (`ALTER ROLE … SET`), everywhere and in single databases, and gives it the same
/// limit of connections.
pub async fn copy_settings(connection: &mut PgConnection, from: &str, to: &str) -> sqlx::Result<()> {
    let limit: Option<i32> = sqlx::query_scalar("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1")
        .bind(from)
        .fetch_optional(&mut *connection)
        .await?;
    let settings: Vec<(Option<String>, String)> = sqlx::query_as(
        "SELECT datname::text, setting FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
         LEFT JOIN pg_database d ON d.oid = s.setdatabase, unnest(setconfig) AS setting WHERE rolname = $1",
    )
    .bind(from)
    .fetch_all(&mut *connection)
    .await?;
    let mut statements = format!("ALTER ROLE {} CONNECTION LIMIT {};", ident(to), limit.unwrap_or(-1));
    for (database, setting) in settings {
        let Some((name, value)) = setting.split_once('=') else { continue };
        let place = database.map(|name| format!(" IN DATABASE {}", ident(&name))).unwrap_or_default();
        // Lists are kept as they were written, already quoted.
        let value = if LISTS.contains(&name) { value.to_owned() } else { literal(value) };
        statements += &format!("ALTER ROLE {}{place} SET {} = {value};", ident(to), ident(name));
    }
    run(connection, statements).await
}

/// Settings whose value is a list of names. Source: PostgreSQL `src/backend/utils/misc/guc_tables.c`, `GUC_LIST_QUOTE`.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// Gives what the role owns in the connected database to `heir`, and takes its rights there away.
pub async fn disown(connection: &mut PgConnection, role: &str, heir: &str) -> sqlx::Result<()> {
    if exists(connection, role).await? {
        let (role, heir) = (ident(role), ident(heir));
        run(connection, format!("REASSIGN OWNED BY {role} TO {heir}; DROP OWNED BY {role}")).await?;
    }
    Ok(())
}

/// Gives what the role owns in the connected database to `heir`. Its rights stay.
pub async fn reassign_owned(connection: &mut PgConnection, role: &str, heir: &str) -> sqlx::Result<()> {
    run(connection, format!("REASSIGN OWNED BY {} TO {}", ident(role), ident(heir))).await
}

/// Removes a role that owns nothing any more. `Ok` when there is no such role.
pub async fn drop_role(connection: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    run(connection, format!("DROP ROLE IF EXISTS {}", ident(role))).await
}

/// The roles whose names begin so.
pub async fn beginning_with(connection: &mut PgConnection, prefix: &str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar("SELECT rolname::text FROM pg_roles WHERE starts_with(rolname, $1) ORDER BY rolname")
        .bind(prefix)
        .fetch_all(connection)
        .await
}

pub async fn exists(connection: &mut PgConnection, role: &str) -> sqlx::Result<bool> {
    sqlx::query("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)")
        .bind(role)
        .fetch_one(connection)
        .await?
        .try_get(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_does_not_contain_the_password_and_does_not_print() {
        let verifier = Verifier::of(&SecretString::from("correct horse"));
        assert!(verifier.0.starts_with("SCRAM-SHA-256$4096:") && !verifier.0.contains("horse"));
        assert_eq!(format!("{verifier:?}"), "Verifier");
    }
}
