//! Closing a database to those who work in it, opening it again, and finding what is left of a tenant.

use sqlx::PgConnection;

use crate::databases::{self, end_connections};
use crate::roles;
use crate::sql::{ident, run};

/// Who may come into a database: the group that its logins act as, and its app's login.
#[derive(Clone, Copy, Debug)]
pub struct Door<'a> {
    pub database: &'a str,
    pub owner: &'a str,
    pub login: &'a str,
}

/// Lets nobody in any more but superusers, who still have to copy it, and ends the connections there are.
///
/// All logins that act as the owner are refused in the whole cluster: former databases of the tenant are closed with
/// them.
pub async fn close(connection: &mut PgConnection, door: Door<'_>) -> sqlx::Result<()> {
    let Door { database, owner, login } = door;
    if databases::oid(connection, database).await?.is_some() && roles::exists(connection, owner).await? {
        run(connection, format!("REVOKE ALL ON DATABASE {} FROM {}", ident(database), ident(owner))).await?;
    }
    let mut logins = members(connection, owner).await?;
    if !logins.iter().any(|member| member == login) {
        logins.push(login.to_owned());
    }
    for login in logins {
        roles::lock_out(connection, &login).await?;
    }
    end_connections(connection, database).await
}

/// Lets in again whom [`close`] has locked out.
pub async fn open(connection: &mut PgConnection, door: Door<'_>) -> sqlx::Result<()> {
    databases::open_to(connection, door.database, door.owner).await?;
    run(connection, format!("ALTER ROLE {} LOGIN", ident(door.login))).await
}

/// The name that a database has now.
pub async fn name_of(connection: &mut PgConnection, oid: i64) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE oid::int8 = $1")
        .bind(oid)
        .fetch_optional(connection)
        .await
}

/// The databases whose names begin so, with their numbers.
pub async fn databases_beginning_with(
    connection: &mut PgConnection,
    prefix: &str,
) -> sqlx::Result<Vec<(i64, String)>> {
    sqlx::query_as(
        "SELECT oid::int8, datname::text FROM pg_database WHERE starts_with(datname, $1) ORDER BY oid LIMIT 1000",
    )
    .bind(prefix)
    .fetch_all(connection)
    .await
}

/// The roles that are members of a group.
pub async fn members(connection: &mut PgConnection, group: &str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "SELECT DISTINCT m.rolname::text FROM pg_auth_members a JOIN pg_roles g ON g.oid = a.roleid
         JOIN pg_roles m ON m.oid = a.member WHERE g.rolname = $1 ORDER BY 1 LIMIT 10000",
    )
    .bind(group)
    .fetch_all(connection)
    .await
}

/// Takes what several processes must not do at the same time, until the connection ends. `Ok(false)`: another has it.
pub async fn take_turn(connection: &mut PgConnection, what: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
        .bind(what)
        .fetch_one(connection)
        .await
}
