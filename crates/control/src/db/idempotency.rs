//! Requests that were asked with an idempotency key.

use loomworks_core::ids::TenantId;
use sqlx::{FromRow, PgConnection, PgPool};
use uuid::Uuid;

/// A request with a key, by whom.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub caller: &'a str,
    pub key: &'a str,
    pub request: &'a str,
    pub body_mac: &'a [u8],
}

/// What is known of a request that was asked before.
#[derive(Debug, FromRow)]
pub struct Known {
    pub request: String,
    pub body_mac: Vec<u8>,
    pub answer_wrapped: Option<Vec<u8>>,
    pub took_effect: bool,
    /// Somebody carries it out now.
    pub leased: bool,
}

/// Takes the request on. `Ok(false)`: it was asked before and is not to be carried out now, or its caller has
/// `keys_max` others.
pub async fn begin(
    pool: &PgPool,
    asked: &Asked<'_>,
    attempt: Uuid,
    lease_seconds: f64,
    kept_seconds: f64,
    keys_max: i64,
) -> sqlx::Result<bool> {
    sqlx::query(
        "DELETE FROM idempotency_keys
         WHERE caller = $1 AND key = $2 AND created_at < now() - make_interval(secs => $3)",
    )
    .bind(asked.caller)
    .bind(asked.key)
    .bind(kept_seconds)
    .execute(pool)
    .await?;
    sqlx::query(
        "INSERT INTO idempotency_keys AS known (caller, key, request, body_mac, attempt, lease_until)
         SELECT $1, $2, $3, $4, $5, now() + make_interval(secs => $6)
         WHERE (SELECT count(*) FROM (SELECT FROM idempotency_keys WHERE caller = $1 AND key <> $2 LIMIT $7) other) < $7
         ON CONFLICT (caller, key) DO UPDATE SET attempt = excluded.attempt, lease_until = excluded.lease_until
             WHERE known.request = excluded.request AND known.body_mac = excluded.body_mac
                 AND known.effect_at IS NULL AND known.answer_wrapped IS NULL AND known.lease_until < now()",
    )
    .bind(asked.caller)
    .bind(asked.key)
    .bind(asked.request)
    .bind(asked.body_mac)
    .bind(attempt)
    .bind(lease_seconds)
    .bind(keys_max)
    .execute(pool)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// How many requests of this caller are known, up to `most`.
pub async fn count(pool: &PgPool, caller: &str, most: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM (SELECT FROM idempotency_keys WHERE caller = $1 LIMIT $2) known")
        .bind(caller)
        .bind(most)
        .fetch_one(pool)
        .await
}

pub async fn known(pool: &PgPool, caller: &str, key: &str) -> sqlx::Result<Option<Known>> {
    sqlx::query_as(
        "SELECT request, body_mac, answer_wrapped, effect_at IS NOT NULL AS took_effect,
             lease_until >= now() AS leased
         FROM idempotency_keys WHERE caller = $1 AND key = $2",
    )
    .bind(caller)
    .bind(key)
    .fetch_optional(pool)
    .await
}

/// Notes, in the transaction that does what was asked, that it is done. `Ok(false)`: another attempt has begun, and
/// this one must not do it.
pub async fn note_effect(
    connection: &mut PgConnection,
    caller: &str,
    key: &str,
    attempt: Uuid,
    about: Option<TenantId>,
) -> sqlx::Result<bool> {
    let noted: Option<bool> = sqlx::query_scalar("SELECT note_idempotent_effect($1, $2, $3, $4)")
        .bind(caller)
        .bind(key)
        .bind(attempt)
        .bind(about.map(|tenant| tenant.0))
        .fetch_one(connection)
        .await?;
    Ok(noted.is_some())
}

/// Keeps the answer.
pub async fn keep(
    connection: &mut PgConnection,
    caller: &str,
    key: &str,
    attempt: Uuid,
    answer_wrapped: &[u8],
    about: Option<TenantId>,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE idempotency_keys SET answer_wrapped = $4, about_tenant = coalesce(about_tenant, $5)
         WHERE caller = $1 AND key = $2 AND attempt = $3",
    )
    .bind(caller)
    .bind(key)
    .bind(attempt)
    .bind(answer_wrapped)
    .bind(about.map(|tenant| tenant.0))
    .execute(connection)
    .await
    .map(drop)
}

/// Forgets the request, if nothing was done. `Ok(false)`: something was.
pub async fn release(pool: &PgPool, caller: &str, key: &str, attempt: Uuid) -> sqlx::Result<bool> {
    sqlx::query(
        "DELETE FROM idempotency_keys WHERE caller = $1 AND key = $2 AND attempt = $3 AND effect_at IS NULL",
    )
    .bind(caller)
    .bind(key)
    .bind(attempt)
    .execute(pool)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Ends the lease of an attempt that has ended without an answer worth keeping.
pub async fn end_lease(pool: &PgPool, caller: &str, key: &str, attempt: Uuid) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE idempotency_keys SET lease_until = '-infinity' WHERE caller = $1 AND key = $2 AND attempt = $3",
    )
    .bind(caller)
    .bind(key)
    .bind(attempt)
    .execute(pool)
    .await
    .map(drop)
}

/// Removes what nobody may ask for any more.
pub async fn remove_old(pool: &PgPool, kept_seconds: f64) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM idempotency_keys WHERE created_at < now() - make_interval(secs => $1)")
        .bind(kept_seconds)
        .execute(pool)
        .await
        .map(drop)
}
