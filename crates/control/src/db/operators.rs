//! Operators' accounts, and where they are logged in.

use loomworks_core::email::Email;
use loomworks_core::ids::{LoginId, OperatorId};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool};
use uuid::Uuid;

use super::{Time, on_constraint};
use crate::access::Permission;
use crate::error::Error;
use crate::page::Asked;

/// An account, as shown: everything but the password's hash.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct OperatorInfo {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: OperatorId,
    pub name: String,
    pub email: String,
    #[sqlx(try_from = "Vec<String>")]
    #[schema(value_type = Vec<Permission>)]
    pub permissions: Permissions,
    /// Whether the operator can log in with a password; without one, by OpenID Connect only.
    pub has_password: bool,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_login_at: Option<Time>,
    /// Since when nobody can log in to it.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub disabled_at: Option<Time>,
}

/// Permissions, as a column holds them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Permissions(pub Vec<Permission>);

impl From<Vec<String>> for Permissions {
    fn from(texts: Vec<String>) -> Self {
        Self(Permission::of_row(&texts))
    }
}

impl Permissions {
    fn texts(&self) -> Vec<&'static str> {
        self.0.iter().copied().map(Permission::as_str).collect()
    }
}

/// The time during which an operator is logged in with one browser, as shown.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct LoginInfo {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: LoginId,
    /// `password` or `oidc`.
    pub method: String,
    pub client_address: String,
    /// What the browser calls itself.
    pub user_agent: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    /// To the minute.
    #[schema(value_type = String, format = DateTime)]
    pub last_seen_at: Time,
    /// When it ends, however much it is used.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Time,
}

/// What is needed to check a password.
#[derive(Clone, FromRow)]
pub struct Stored {
    #[sqlx(try_from = "Uuid")]
    pub id: OperatorId,
    pub password_hash: Option<String>,
    pub disabled: bool,
}

/// Whoever a provider says has come.
#[derive(Clone, Debug, FromRow)]
pub struct Known {
    #[sqlx(try_from = "Uuid")]
    pub id: OperatorId,
    pub disabled: bool,
    /// Whether the account is bound to somebody at a provider.
    pub bound: bool,
    /// Whether that is the one who has come.
    pub same: bool,
}

/// What a token stands for.
#[derive(Clone, Debug, FromRow)]
pub struct Current {
    #[sqlx(try_from = "Uuid")]
    pub login: LoginId,
    #[sqlx(try_from = "Uuid")]
    pub operator: OperatorId,
    pub email: String,
    #[sqlx(try_from = "Vec<String>")]
    pub permissions: Permissions,
    /// Whether it is time to note that it is in use.
    pub seen_long_ago: bool,
}

/// An account that is to be.
#[derive(Debug)]
pub struct New<'a> {
    pub name: &'a str,
    pub email: &'a Email,
    pub password_hash: Option<&'a str>,
    pub permissions: &'a Permissions,
}

/// A login that is to be.
#[derive(Debug)]
pub struct NewLogin<'a> {
    pub operator: OperatorId,
    pub token_hash: &'a [u8],
    pub method: &'static str,
    pub client_address: &'a str,
    pub user_agent: &'a str,
    pub lasts_s: f64,
}

const SHOWN: &str = "id, name, email, permissions, password_hash IS NOT NULL AS has_password, created_at,
                     last_login_at, disabled_at";
const LOGIN_SHOWN: &str = "id, method, client_address, user_agent, created_at, last_seen_at, expires_at";

pub async fn insert(connection: &mut PgConnection, new: &New<'_>) -> Result<OperatorInfo, Error> {
    let sql = format!(
        "INSERT INTO operators (id, name, email, password_hash, permissions) VALUES ($1, $2, $3, $4, $5)
         RETURNING {SHOWN}"
    );
    let inserted = sqlx::query_as(AssertSqlSafe(sql))
        .bind(Uuid::new_v4())
        .bind(new.name)
        .bind(new.email.as_str())
        .bind(new.password_hash)
        .bind(new.permissions.texts())
        .fetch_one(connection)
        .await;
    on_constraint(inserted, "operators_email_key", || {
        Error::conflict(format!("there is an operator with the address {} already", new.email))
            .with_hint("`loomworks operator list` shows all of them")
    })
}

pub async fn list(pool: &PgPool, asked: &Asked<Email>) -> sqlx::Result<Vec<OperatorInfo>> {
    let sql = format!(
        "SELECT {SHOWN} FROM operators WHERE $1::text IS NULL OR email COLLATE \"C\" > $1
         ORDER BY email COLLATE \"C\" LIMIT $2"
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(asked.after.as_ref().map(Email::as_str))
        .bind(asked.rows())
        .fetch_all(pool)
        .await
}

pub async fn get(connection: &mut PgConnection, id: OperatorId) -> sqlx::Result<Option<OperatorInfo>> {
    let sql = format!("SELECT {SHOWN} FROM operators WHERE id = $1");
    sqlx::query_as(AssertSqlSafe(sql)).bind(id.0).fetch_optional(connection).await
}

pub async fn by_email(pool: &PgPool, email: &Email) -> sqlx::Result<Option<Stored>> {
    sqlx::query_as(
        "SELECT id, password_hash, disabled_at IS NOT NULL AS disabled FROM operators WHERE email = $1",
    )
    .bind(email.as_str())
    .fetch_optional(pool)
    .await
}

/// The account that is bound to this person at a provider, else the one with this address.
pub async fn by_subject(
    connection: &mut PgConnection,
    issuer: &str,
    subject: &str,
    email: &Email,
) -> sqlx::Result<Option<Known>> {
    sqlx::query_as(
        "SELECT id, disabled_at IS NOT NULL AS disabled, oidc_subject IS NOT NULL AS bound,
                coalesce(oidc_issuer = $1 AND oidc_subject = $2, false) AS same
         FROM operators WHERE (oidc_issuer = $1 AND oidc_subject = $2) OR email = $3
         ORDER BY 4 DESC LIMIT 1 FOR UPDATE",
    )
    .bind(issuer)
    .bind(subject)
    .bind(email.as_str())
    .fetch_optional(connection)
    .await
}

pub async fn bind_subject(
    connection: &mut PgConnection,
    id: OperatorId,
    issuer: &str,
    subject: &str,
) -> sqlx::Result<()> {
    sqlx::query("UPDATE operators SET oidc_issuer = $2, oidc_subject = $3 WHERE id = $1")
        .bind(id.0)
        .bind(issuer)
        .bind(subject)
        .execute(connection)
        .await
        .map(drop)
}

/// Whoever is let in again is bound anew: nobody else could be let in to an account whose operator has another name at
/// the provider now. `None`: there is no such account.
pub async fn set_disabled(
    connection: &mut PgConnection,
    id: OperatorId,
    disabled: bool,
) -> sqlx::Result<Option<OperatorInfo>> {
    let sql = format!(
        "UPDATE operators SET disabled_at = CASE WHEN $2 THEN coalesce(disabled_at, now()) END,
             oidc_issuer = CASE WHEN $2 THEN oidc_issuer END, oidc_subject = CASE WHEN $2 THEN oidc_subject END
         WHERE id = $1 RETURNING {SHOWN}"
    );
    sqlx::query_as(AssertSqlSafe(sql)).bind(id.0).bind(disabled).fetch_optional(connection).await
}

pub async fn set_password(connection: &mut PgConnection, id: OperatorId, hash: &str) -> sqlx::Result<()> {
    sqlx::query("UPDATE operators SET password_hash = $2 WHERE id = $1")
        .bind(id.0)
        .bind(hash)
        .execute(connection)
        .await
        .map(drop)
}

/// `None`: the account was disabled in the meantime, or its password is no longer the one that was checked.
pub async fn log_in(
    connection: &mut PgConnection,
    new: &NewLogin<'_>,
    checked_hash: Option<&str>,
) -> sqlx::Result<Option<LoginInfo>> {
    let noted = sqlx::query(
        "UPDATE operators SET last_login_at = now()
         WHERE id = $1 AND disabled_at IS NULL AND ($2::text IS NULL OR password_hash = $2)",
    )
    .bind(new.operator.0)
    .bind(checked_hash)
    .execute(&mut *connection)
    .await?;
    if noted.rows_affected() == 0 {
        return Ok(None);
    }
    sqlx::query("DELETE FROM operator_sessions WHERE expires_at < now()").execute(&mut *connection).await?;
    let sql = format!(
        "INSERT INTO operator_sessions (id, operator_id, token_hash, method, client_address, user_agent, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7)) RETURNING {LOGIN_SHOWN}"
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(Uuid::new_v4())
        .bind(new.operator.0)
        .bind(new.token_hash)
        .bind(new.method)
        .bind(new.client_address)
        .bind(new.user_agent)
        .bind(new.lasts_s)
        .fetch_one(connection)
        .await
        .map(Some)
}

/// What this token stands for now. By one index, and by the account's primary key.
pub async fn current(pool: &PgPool, token_hash: &[u8], idle_s: f64) -> sqlx::Result<Option<Current>> {
    sqlx::query_as(
        "SELECT s.id AS login, o.id AS operator, o.email, o.permissions,
                s.last_seen_at < now() - interval '1 minute' AS seen_long_ago
         FROM operator_sessions s JOIN operators o ON o.id = s.operator_id
         WHERE s.token_hash = $1 AND s.expires_at > now()
         AND s.last_seen_at > now() - make_interval(secs => $2) AND o.disabled_at IS NULL",
    )
    .bind(token_hash)
    .bind(idle_s)
    .fetch_optional(pool)
    .await
}

pub async fn note_seen(pool: &PgPool, login: LoginId) -> sqlx::Result<()> {
    sqlx::query("UPDATE operator_sessions SET last_seen_at = now() WHERE id = $1")
        .bind(login.0)
        .execute(pool)
        .await
        .map(drop)
}

/// Where an operator is logged in, the newest first.
pub async fn logins(pool: &PgPool, operator: OperatorId, idle_s: f64) -> sqlx::Result<Vec<LoginInfo>> {
    let sql = format!(
        "SELECT {LOGIN_SHOWN} FROM operator_sessions WHERE operator_id = $1 AND expires_at > now()
         AND last_seen_at > now() - make_interval(secs => $2) ORDER BY created_at DESC, id LIMIT 1000"
    );
    sqlx::query_as(AssertSqlSafe(sql)).bind(operator.0).bind(idle_s).fetch_all(pool).await
}

pub async fn login(pool: &PgPool, login: LoginId) -> sqlx::Result<Option<LoginInfo>> {
    let sql = format!("SELECT {LOGIN_SHOWN} FROM operator_sessions WHERE id = $1");
    sqlx::query_as(AssertSqlSafe(sql)).bind(login.0).fetch_optional(pool).await
}

/// `Ok(false)`: the operator is not logged in under this id.
pub async fn end_login(
    connection: &mut PgConnection,
    operator: OperatorId,
    login: LoginId,
) -> sqlx::Result<bool> {
    sqlx::query("DELETE FROM operator_sessions WHERE operator_id = $1 AND id = $2")
        .bind(operator.0)
        .bind(login.0)
        .execute(connection)
        .await
        .map(|done| done.rows_affected() == 1)
}

pub async fn end_all_logins(connection: &mut PgConnection, operator: OperatorId) -> sqlx::Result<u64> {
    sqlx::query("DELETE FROM operator_sessions WHERE operator_id = $1")
        .bind(operator.0)
        .execute(connection)
        .await
        .map(|done| done.rows_affected())
}
