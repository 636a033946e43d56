//! Tenants, their credentials and their databases.

use loomworks_core::ids::{JobId, TenantId};
use loomworks_core::name::Subdomain;
use loomworks_core::tenant::{Limits, TenantState, Tier};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::lifecycle::{ids, is_busy_with};
use super::{Date, Time, on_constraint};
use crate::error::Error;

/// A tenant, as shown to whoever may see it.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Tenant {
    #[sqlx(try_from = "Uuid")]
    #[schema(value_type = Uuid)]
    pub id: TenantId,
    pub name: String,
    #[sqlx(try_from = "String")]
    #[schema(value_type = String, example = "acme")]
    pub subdomain: Subdomain,
    pub database_name: String,
    #[sqlx(try_from = "String")]
    #[schema(value_type = String, example = "active")]
    pub state: TenantState,
    /// Why it is suspended, for its people too.
    pub suspension_reason: Option<String>,
    pub suspended_by: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub suspended_at: Option<Time>,
    /// `operator`, or `subscription` when its end did it.
    pub suspension_cause: Option<String>,
    pub archive_reason: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub archived_at: Option<Time>,
    /// Until then its data is kept and it can be taken back.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub archived_until: Option<Time>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub destroyed_at: Option<Time>,
    pub profile: String,
    #[sqlx(try_from = "String")]
    #[schema(value_type = String, example = "basic")]
    pub tier: Tier,
    /// The first day that is not paid for. Nothing: it does not end.
    #[schema(value_type = Option<String>, format = Date)]
    pub subscription_expires: Option<Date>,
    /// What is in force: its own limit, or else its tier's.
    pub max_users: i32,
    pub max_storage_gb: f64,
    pub max_ai_operations_daily: i32,
    /// How many days back it can go. Absent: what the platform is set to; `recovery-window` says it in any case.
    pub recovery_days: Option<i32>,
    /// What it has of its own, whatever its tier gives.
    pub own_max_users: Option<i32>,
    pub own_max_storage_gb: Option<f64>,
    pub own_max_ai_operations_daily: Option<i32>,
    pub own_recovery_days: Option<i32>,
    /// The operators' notes about it, free of form. Its own people see none.
    #[schema(value_type = Object)]
    pub settings: Value,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Time,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Time,
}

/// The names that a tenant's roles have in the cluster.
#[derive(Clone, Debug, FromRow)]
pub struct Names {
    #[sqlx(try_from = "Uuid")]
    pub id: TenantId,
    #[sqlx(try_from = "String")]
    pub subdomain: Subdomain,
    pub database_name: String,
    pub profile: String,
    pub owner_role: String,
    pub app_role: String,
}

/// What an app needs to connect to a tenant's database.
#[derive(Clone, Debug, FromRow)]
pub struct Credentials {
    #[sqlx(try_from = "Uuid")]
    pub tenant_id: TenantId,
    pub database_name: String,
    pub app_role: String,
    pub app_password_wrapped: Vec<u8>,
}

/// What is in force for the tenant `t`: its own limit, or else its tier's. For a `LATERAL` join; nowhere else in SQL
/// are the two put together.
pub const LIMITS_IN_FORCE: &str = "(SELECT coalesce(t.max_users, tiers.max_users) AS max_users, \
    coalesce(t.max_storage_gb, tiers.max_storage_gb) AS max_storage_gb, \
    coalesce(t.max_ai_operations_daily, tiers.max_ai_operations_daily) AS max_ai_operations_daily, \
    coalesce(t.recovery_days, tiers.recovery_days) AS recovery_days \
    FROM tiers WHERE tiers.name = t.tier)";

/// A tenant as whoever looks may see it: `loomworks_api` ([`super::API_ROLE`]) looks for the tenant's own people.
const COLUMNS: &str = "t.id, t.name, subdomain, database_name, state, suspension_reason, suspended_by, suspended_at, \
    suspension_cause, archive_reason, archived_at, archived_until, destroyed_at, profile, tier, subscription_expires, \
    l.max_users, l.max_storage_gb, l.max_ai_operations_daily, l.recovery_days, t.max_users AS own_max_users, \
    t.max_storage_gb AS own_max_storage_gb, t.max_ai_operations_daily AS own_max_ai_operations_daily, \
    t.recovery_days AS own_recovery_days, \
    CASE current_user WHEN 'loomworks_api' THEN '{}' ELSE settings END AS settings, t.created_at, t.updated_at";

/// What [`COLUMNS`] are selected from.
fn from() -> String {
    format!("tenants t CROSS JOIN LATERAL {LIMITS_IN_FORCE} l")
}

/// The id of the tenant that has this id or this subdomain. One that was destroyed is none.
pub async fn find_id(connection: &mut PgConnection, name: &str) -> sqlx::Result<Option<TenantId>> {
    let query = match name.parse::<Uuid>() {
        Ok(id) => sqlx::query_scalar::<_, Uuid>(
            "SELECT id FROM tenants WHERE (id = $1 OR subdomain = $2) AND state <> 'destroyed'",
        )
        .bind(id),
        Err(_) => sqlx::query_scalar::<_, Uuid>(
            "SELECT id FROM tenants WHERE ($1::uuid IS NULL AND subdomain = $2) AND state <> 'destroyed'",
        )
        .bind(None::<Uuid>),
    };
    query.bind(name).fetch_optional(connection).await.map(|id| id.map(TenantId))
}

pub async fn get(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<Tenant> {
    find(connection, id).await?.ok_or(sqlx::Error::RowNotFound)
}

/// The tenant of this id, also when it was destroyed.
pub async fn find(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<Option<Tenant>> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM {} WHERE t.id = $1", from())))
        .bind(id.0)
        .fetch_optional(connection)
        .await
}

/// What a tenant may use now: its own limits, what it leaves open from its tier.
pub async fn limits(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<Limits> {
    let sql = format!(
        "SELECT l.max_users, l.max_storage_gb, l.max_ai_operations_daily, l.recovery_days FROM {} WHERE t.id = $1",
        from()
    );
    let (max_users, max_storage_gb, max_ai_operations_daily, recovery_days) =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id.0).fetch_one(connection).await?;
    Ok(Limits { max_users, max_storage_gb, max_ai_operations_daily, recovery_days })
}

/// Which tenants somebody wants to see.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Nothing: all but those that were destroyed.
    pub state: Option<TenantState>,
    pub tier: Option<Tier>,
    /// In the name or in the subdomain.
    pub text: Option<String>,
}

/// A list is sorted by this. The id tells those apart that had the same subdomain one after the other.
pub type ListKey = (String, Uuid);

/// The tenants, by subdomain, after a key.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter,
    after: Option<&ListKey>,
    rows: i64,
) -> sqlx::Result<Vec<Tenant>> {
    let (subdomain, id) = after.cloned().unzip();
    sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM {}
         WHERE ($1::text IS NULL OR (subdomain, t.id) > ($1, $2))
         AND CASE WHEN $3::text IS NULL THEN state <> 'destroyed' ELSE state = $3 END
         AND ($4::text IS NULL OR tier = $4)
         AND ($5::text IS NULL OR strpos(lower(t.name), lower($5)) > 0 OR strpos(subdomain, lower($5)) > 0)
         ORDER BY subdomain, t.id LIMIT $6",
        from()
    )))
    .bind(subdomain)
    .bind(id)
    .bind(filter.state.map(TenantState::as_str))
    .bind(filter.tier.map(Tier::as_str))
    .bind(filter.text.as_deref())
    .bind(rows)
    .fetch_all(connection)
    .await
}

pub async fn names(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<Names> {
    sqlx::query_as(
        "SELECT id, subdomain, database_name, profile, owner_role, app_role FROM tenants WHERE id = $1",
    )
    .bind(id.0)
    .fetch_one(connection)
    .await
}

/// A tenant that is to be.
#[derive(Debug)]
pub struct New<'a> {
    pub id: TenantId,
    pub name: &'a str,
    pub subdomain: &'a Subdomain,
    pub profile: &'a str,
    pub app_password_wrapped: &'a [u8],
}

pub async fn insert(connection: &mut PgConnection, new: &New<'_>) -> Result<(), Error> {
    let short = new.id.short();
    let inserted = sqlx::query(
        "INSERT INTO tenants (id, name, subdomain, database_name, profile, owner_role, app_role)
         VALUES ($1, $2, $3, $3, $4, $5, $6)",
    )
    .bind(new.id.0)
    .bind(new.name)
    .bind(new.subdomain.as_str())
    .bind(new.profile)
    .bind(format!("lwt_{short}_owner"))
    .bind(format!("lwt_{short}_app"))
    .execute(&mut *connection)
    .await;
    on_constraint(inserted, "tenants_subdomain_key", || {
        Error::conflict(format!("there is a tenant `{}` already", new.subdomain))
    })?;
    sqlx::query("INSERT INTO tenant_credentials (tenant_id, app_password_wrapped) VALUES ($1, $2)")
        .bind(new.id.0)
        .bind(new.app_password_wrapped)
        .execute(connection)
        .await?;
    Ok(())
}

pub async fn set_state(
    connection: &mut PgConnection,
    id: TenantId,
    state: TenantState,
    suspension_reason: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query("UPDATE tenants SET state = $2, suspension_reason = $3, updated_at = now() WHERE id = $1")
        .bind(id.0)
        .bind(state.as_str())
        .bind(suspension_reason)
        .execute(connection)
        .await
        .map(drop)
}

/// Has the gateways hold the tenant's requests for a job. `Ok(false)`: they are held for another one.
pub async fn hold(connection: &mut PgConnection, id: TenantId, job: JobId) -> sqlx::Result<bool> {
    sqlx::query("UPDATE tenants SET held_by = $2 WHERE id = $1 AND (held_by IS NULL OR held_by = $2)")
        .bind(id.0)
        .bind(job.0)
        .execute(connection)
        .await
        .map(|done| done.rows_affected() == 1)
}

/// Ends the hold of a job. `Ok(false)`: it held nothing.
pub async fn release(connection: &mut PgConnection, job: JobId) -> sqlx::Result<bool> {
    sqlx::query("UPDATE tenants SET held_by = NULL WHERE held_by = $1")
        .bind(job.0)
        .execute(connection)
        .await
        .map(|done| done.rows_affected() > 0)
}

pub async fn credentials(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<Credentials> {
    sqlx::query_as(
        "SELECT tenant_id, database_name, app_role, app_password_wrapped
         FROM tenant_credentials JOIN tenants ON tenants.id = tenant_id WHERE tenant_id = $1",
    )
    .bind(id.0)
    .fetch_one(connection)
    .await
}

/// The credentials of all tenants that an app serves, or will when they are made.
pub async fn credentials_of_profile(
    connection: &mut PgConnection,
    profile: &str,
) -> sqlx::Result<Vec<Credentials>> {
    sqlx::query_as(
        "SELECT tenant_id, database_name, app_role, app_password_wrapped
         FROM tenant_credentials JOIN tenants ON tenants.id = tenant_id
         WHERE profile = $1 AND state IN ('provisioning', 'active', 'suspended') ORDER BY database_name",
    )
    .bind(profile)
    .fetch_all(connection)
    .await
}

/// Tenants that are to be made and that no job makes.
pub async fn provisioning_without_job(connection: &mut PgConnection) -> sqlx::Result<Vec<TenantId>> {
    let sql = format!(
        "SELECT id FROM tenants WHERE state = 'provisioning' AND destroying_since IS NULL AND NOT {}
         ORDER BY created_at LIMIT 100",
        is_busy_with("provision")
    );
    ids(connection, sql).await
}

/// A database that a tenant has, or had.
#[derive(Clone, Debug, FromRow, Serialize, Deserialize, PartialEq, Eq)]
pub struct TenantDatabase {
    pub oid: i64,
    pub name: String,
}

/// The databases that were replaced and are kept, the one that was live last first.
pub async fn former_databases(
    connection: &mut PgConnection,
    id: TenantId,
) -> sqlx::Result<Vec<TenantDatabase>> {
    sqlx::query_as(
        "SELECT oid, name FROM tenant_databases WHERE tenant_id = $1 AND role = 'former'
         ORDER BY former_since DESC LIMIT 100",
    )
    .bind(id.0)
    .fetch_all(connection)
    .await
}

/// Notes which database is served from now on; the one that was becomes a former one, kept for seven days.
pub async fn record_live(
    connection: &mut PgConnection,
    id: TenantId,
    live: &TenantDatabase,
    former_name: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE tenant_databases SET role = 'former', name = coalesce($3, name), former_since = now(),
             drop_after = now() + interval '7 days'
         WHERE tenant_id = $1 AND role = 'live' AND oid <> $2",
    )
    .bind(id.0)
    .bind(live.oid)
    .bind(former_name)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO tenant_databases (tenant_id, oid, name, role) VALUES ($1, $2, $3, 'live')
         ON CONFLICT (tenant_id, oid) DO UPDATE
         SET name = excluded.name, role = 'live', live_since = now(), former_since = NULL, drop_after = NULL",
    )
    .bind(id.0)
    .bind(live.oid)
    .bind(&live.name)
    .execute(&mut *connection)
    .await?;
    super::incarnations::record(connection, id, live.oid).await
}

/// Former databases whose time is over, with their tenants.
pub async fn databases_to_drop(
    connection: &mut PgConnection,
) -> sqlx::Result<Vec<(TenantId, TenantDatabase)>> {
    let rows: Vec<(Uuid, i64, String)> = sqlx::query_as(
        "SELECT tenant_id, oid, name FROM tenant_databases WHERE role IN ('former', 'beside') AND drop_after < now()
         ORDER BY drop_after LIMIT 10",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id, oid, name)| (TenantId(id), TenantDatabase { oid, name })).collect())
}

/// Whether a database is still one to drop: it may have become live again since.
pub async fn is_to_be_dropped(connection: &mut PgConnection, id: TenantId, oid: i64) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM tenant_databases
         WHERE tenant_id = $1 AND oid = $2 AND role IN ('former', 'beside') AND drop_after < now())",
    )
    .bind(id.0)
    .bind(oid)
    .fetch_one(connection)
    .await
}

/// Notes that a former database is there no more. `Ok(false)`: that is noted already.
pub async fn record_dropped(connection: &mut PgConnection, id: TenantId, oid: i64) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE tenant_databases SET role = 'dropped'
         WHERE tenant_id = $1 AND oid = $2 AND role IN ('former', 'beside')",
    )
    .bind(id.0)
    .bind(oid)
    .execute(connection)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// All databases that a tenant has, or had and that are noted.
pub async fn databases(connection: &mut PgConnection, id: TenantId) -> sqlx::Result<Vec<TenantDatabase>> {
    sqlx::query_as("SELECT oid, name FROM tenant_databases WHERE tenant_id = $1 ORDER BY oid LIMIT 1000")
        .bind(id.0)
        .fetch_all(connection)
        .await
}

/// Some tenants that are served, by chance.
pub async fn some_active(connection: &mut PgConnection, rows: i64) -> sqlx::Result<Vec<TenantId>> {
    let ids: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM tenants WHERE state = 'active' ORDER BY random() LIMIT $1")
            .bind(rows)
            .fetch_all(connection)
            .await?;
    Ok(ids.into_iter().map(TenantId).collect())
}

/// Notes a database that lies beside the live one for a day, to be looked at.
pub async fn record_beside(
    connection: &mut PgConnection,
    id: TenantId,
    database: &TenantDatabase,
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO tenant_databases (tenant_id, oid, name, role, drop_after)
         VALUES ($1, $2, $3, 'beside', now() + interval '1 day')
         ON CONFLICT (tenant_id, oid) DO UPDATE SET role = 'beside', drop_after = excluded.drop_after",
    )
    .bind(id.0)
    .bind(database.oid)
    .bind(&database.name)
    .execute(connection)
    .await
    .map(drop)
}

/// Notes a database of a tenant that is about to be dropped, if it was not known.
pub async fn record_found(
    connection: &mut PgConnection,
    id: TenantId,
    database: &TenantDatabase,
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO tenant_databases (tenant_id, oid, name, role) VALUES ($1, $2, $3, 'dropped')
         ON CONFLICT (tenant_id, oid) DO NOTHING",
    )
    .bind(id.0)
    .bind(database.oid)
    .bind(&database.name)
    .execute(connection)
    .await
    .map(drop)
}
