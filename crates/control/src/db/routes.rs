//! The gateways' table: its generation, its rows, and who has taken it.

use loomworks_core::ids::TenantId;
use loomworks_core::name::Subdomain;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

/// The channel on which a new generation is announced.
pub const CHANNEL: &str = "loomworks_routes";

/// A tenant that is routed.
#[derive(Clone, Debug, FromRow)]
pub struct Row {
    #[sqlx(try_from = "Uuid")]
    pub id: TenantId,
    #[sqlx(try_from = "String")]
    pub subdomain: Subdomain,
    pub database_name: String,
    pub profile: String,
    pub suspended: bool,
    pub held: bool,
}

/// Begins a new generation, in the transaction that changes what is routed.
///
/// The row's lock puts the transactions that change routes in an order, so a generation that a gateway has seen can
/// never gain a change later.
pub async fn next_generation(connection: &mut PgConnection) -> sqlx::Result<i64> {
    let generation =
        sqlx::query_scalar("UPDATE route_generation SET generation = generation + 1 RETURNING generation")
            .fetch_one(&mut *connection)
            .await?;
    sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(connection).await?;
    Ok(generation)
}

pub async fn generation(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT generation FROM route_generation").fetch_one(connection).await
}

/// Everything that is routed. To be read in one snapshot with the generation.
pub async fn rows(connection: &mut PgConnection) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as(
        "SELECT id, subdomain, database_name, profile, state = 'suspended' AS suspended, held_by IS NOT NULL AS held
         FROM tenants WHERE state IN ('active', 'suspended') ORDER BY subdomain",
    )
    .fetch_all(connection)
    .await
}

pub async fn acknowledge(connection: &mut PgConnection, gateway: &str, generation: i64) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO gateways (name, generation) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET generation = greatest(gateways.generation, excluded.generation), seen_at = now()",
    )
    .bind(gateway)
    .bind(generation)
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM gateways WHERE seen_at < now() - interval '1 day'")
        .execute(connection)
        .await
        .map(drop)
}

/// Whether every gateway that is alive has taken a generation, and drained what it holds. One that has been silent
/// for 15 seconds is not alive.
pub async fn all_have(connection: &mut PgConnection, generation: i64) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT NOT EXISTS (SELECT FROM gateways WHERE generation < $1 AND seen_at > now() - interval '15 seconds')",
    )
    .bind(generation)
    .fetch_one(connection)
    .await
}

/// How many gateways are alive.
pub async fn gateways_alive(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM gateways WHERE seen_at > now() - interval '15 seconds'")
        .fetch_one(connection)
        .await
}

/// Removes the gateways of a node.
pub async fn forget(connection: &mut PgConnection, node: &str) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM gateways WHERE starts_with(name, $1 || '/')")
        .bind(node)
        .execute(connection)
        .await
        .map(drop)
}
