//! Fleet migrations: one SQL migration over many tenants' databases.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::db::fleet::{FleetMigration, MigrationTenant};
use loomworks_control::fleet::{self, FleetPlan, Selection, Wanted};
use loomworks_control::page::{Asked, Page};
use loomworks_control::{Error, World};
use loomworks_core::ids::{FleetMigrationId, JobId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{AsOperator, Body, OperatorReading, Params, Query};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(plan))
        .routes(routes!(show))
        .routes(routes!(tenants))
        .routes(routes!(resume))
        .routes(routes!(pause))
        .routes(routes!(cancel))
}

/// A migration of many tenants.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateFleetMigration {
    #[schema(example = "orders get a note")]
    pub name: String,
    /// One or more statements. With each tenant all of them are one transaction, run as the app.
    #[schema(example = "ALTER TABLE orders ADD COLUMN note text")]
    pub sql: String,
    pub selection: Selection,
    /// Tenants that are migrated before all others, 0 to 1000.
    #[serde(default = "one")]
    pub canaries: i32,
    /// Tenants of each wave after the canaries.
    #[serde(default = "hundred")]
    pub wave_size: i32,
    /// Tenants that are migrated at the same time, 1 to 32.
    #[serde(default = "eight")]
    pub concurrency: i32,
    /// Whether each tenant gets a snapshot before.
    #[serde(default = "yes")]
    pub snapshot_before: bool,
    /// How long all of it may take in one tenant.
    #[serde(default = "five_minutes")]
    pub statement_timeout_seconds: i32,
    /// How long it may wait for each lock.
    #[serde(default = "five")]
    pub lock_timeout_seconds: i32,
    /// How long a tenant is waited for that is being restored or cannot be connected to.
    #[serde(default = "minute")]
    pub busy_timeout_seconds: i32,
    /// After how many failures no more tenants are begun; 0: never.
    #[serde(default = "one")]
    pub stop_after_failures: i32,
    /// Whether it waits after the canaries until it is resumed.
    #[serde(default)]
    pub pause_after_canary: bool,
}

fn one() -> i32 {
    1
}
fn five() -> i32 {
    5
}
fn eight() -> i32 {
    8
}
fn minute() -> i32 {
    60
}
fn hundred() -> i32 {
    100
}
fn five_minutes() -> i32 {
    300
}
fn yes() -> bool {
    true
}

impl TryFrom<CreateFleetMigration> for Wanted {
    type Error = Error;

    fn try_from(body: CreateFleetMigration) -> Result<Self, Error> {
        Ok(Self {
            name: body.name.parse().map_err(Error::invalid)?,
            sql: body.sql,
            selection: body.selection,
            canaries: body.canaries,
            wave_size: body.wave_size,
            concurrency: body.concurrency,
            snapshot_before: body.snapshot_before,
            statement_timeout_seconds: body.statement_timeout_seconds,
            lock_timeout_seconds: body.lock_timeout_seconds,
            busy_timeout_seconds: body.busy_timeout_seconds,
            stop_after_failures: body.stop_after_failures,
            pause_after_canary: body.pause_after_canary,
        })
    }
}

/// A migration that was taken up.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FleetMigrationAccepted {
    pub migration: FleetMigration,
    /// Follow it at `/v1/jobs/{job}`, or the migration itself.
    #[schema(value_type = uuid::Uuid)]
    pub job: JobId,
}

/// How to go on.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeFleetMigration {
    /// Whether the tenants that failed are tried again.
    #[serde(default)]
    pub retry_failed: bool,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct PlanQuery {
    /// Whether it is run on the first canary and taken back. It takes its locks there for as long as it takes.
    #[serde(default)]
    trial: bool,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// 1 to 1000, 100 if left out.
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct TenantsQuery {
    /// Only those that are `waiting`, `running`, `applied`, `failed` or `skipped`.
    state: Option<String>,
    /// 1 to 1000, 100 if left out.
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct InPath {
    migration: FleetMigrationId,
}

/// Migrate many tenants with one SQL migration: those that there are now, not those made later.
#[utoipa::path(post, path = "/v1/fleet-migrations", tag = "fleet migrations", request_body = CreateFleetMigration, responses(
    (status = 202, description = "It has begun.", body = FleetMigrationAccepted),
    (status = 403, description = "You may not manage the platform.", body = ProblemDetails),
    (status = 422, description = "The request is not valid, or no tenant is selected.", body = ProblemDetails),
))]
async fn create(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Body(body): Body<CreateFleetMigration>,
) -> Result<(StatusCode, Json<FleetMigrationAccepted>), Problem> {
    let (migration, job) = fleet::create(&world, &operator, &body.try_into()?).await?;
    Ok((StatusCode::ACCEPTED, Json(FleetMigrationAccepted { migration, job })))
}

/// Show which tenants it would be and in which waves, and what it does to the first canary. Changes nothing.
#[utoipa::path(post, path = "/v1/fleet-migrations/plan", tag = "fleet migrations", params(PlanQuery),
    request_body = CreateFleetMigration, responses(
    (status = 200, body = FleetPlan),
    (status = 403, description = "You may not manage the platform.", body = ProblemDetails),
    (status = 422, description = "The request is not valid, or no tenant is selected.", body = ProblemDetails),
))]
async fn plan(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Query(query): Query<PlanQuery>,
    Body(body): Body<CreateFleetMigration>,
) -> Result<Json<FleetPlan>, Problem> {
    Ok(Json(fleet::plan(&world, &operator, &body.try_into()?, query.trial).await?))
}

/// The fleet migrations, newest first.
#[utoipa::path(get, path = "/v1/fleet-migrations", tag = "fleet migrations", params(ListQuery), responses(
    (status = 200, body = Page<FleetMigration>),
    (status = 403, description = "You may not see the whole platform.", body = ProblemDetails),
    (status = 422, description = "The limit or the cursor is not valid.", body = ProblemDetails),
))]
async fn list(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<FleetMigration>>, Problem> {
    let asked = Asked::new(query.limit, query.cursor.as_deref())?;
    Ok(Json(fleet::list(&world, &operator, &asked).await?))
}

/// One fleet migration: how far it is, how many tenants have it.
#[utoipa::path(get, path = "/v1/fleet-migrations/{migration}", tag = "fleet migrations",
    params(("migration" = uuid::Uuid, Path)), responses(
    (status = 200, body = FleetMigration),
    (status = 403, description = "You may not see the whole platform.", body = ProblemDetails),
))]
async fn show(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
    Params(InPath { migration }): Params<InPath>,
) -> Result<Json<FleetMigration>, Problem> {
    Ok(Json(fleet::get(&world, &operator, migration).await?))
}

/// Its tenants in their order: which have it, which failed and why.
#[utoipa::path(get, path = "/v1/fleet-migrations/{migration}/tenants", tag = "fleet migrations",
    params(("migration" = uuid::Uuid, Path), TenantsQuery), responses(
    (status = 200, body = Page<MigrationTenant>),
    (status = 403, description = "You may not see the whole platform.", body = ProblemDetails),
    (status = 422, description = "The state, the limit or the cursor is not valid.", body = ProblemDetails),
))]
async fn tenants(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
    Params(InPath { migration }): Params<InPath>,
    Query(query): Query<TenantsQuery>,
) -> Result<Json<Page<MigrationTenant>>, Problem> {
    let asked = Asked::new(query.limit, query.cursor.as_deref())?;
    Ok(Json(fleet::tenants(&world, &operator, migration, query.state.as_deref(), &asked).await?))
}

/// Go on with one that was paused, was stopped by failures, or failed with some tenants.
#[utoipa::path(post, path = "/v1/fleet-migrations/{migration}/resume", tag = "fleet migrations",
    params(("migration" = uuid::Uuid, Path)), request_body = ResumeFleetMigration, responses(
    (status = 202, description = "It goes on.", body = FleetMigrationAccepted),
    (status = 403, description = "You may not manage the platform.", body = ProblemDetails),
    (status = 409, description = "Its state does not allow it, or no tenant waits.", body = ProblemDetails),
))]
async fn resume(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { migration }): Params<InPath>,
    Body(body): Body<ResumeFleetMigration>,
) -> Result<(StatusCode, Json<FleetMigrationAccepted>), Problem> {
    let (migration, job) = fleet::resume(&world, &operator, migration, body.retry_failed).await?;
    Ok((StatusCode::ACCEPTED, Json(FleetMigrationAccepted { migration, job })))
}

/// Begin no more tenants until it is resumed. Those that are under way are finished.
#[utoipa::path(post, path = "/v1/fleet-migrations/{migration}/pause", tag = "fleet migrations",
    params(("migration" = uuid::Uuid, Path)), responses(
    (status = 200, body = FleetMigration),
    (status = 403, description = "You may not manage the platform.", body = ProblemDetails),
    (status = 409, description = "Its state does not allow it.", body = ProblemDetails),
))]
async fn pause(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { migration }): Params<InPath>,
) -> Result<Json<FleetMigration>, Problem> {
    Ok(Json(fleet::pause(&world, &operator, migration).await?))
}

/// Begin no more tenants, for good. Those that have it keep it.
#[utoipa::path(post, path = "/v1/fleet-migrations/{migration}/cancel", tag = "fleet migrations",
    params(("migration" = uuid::Uuid, Path)), responses(
    (status = 200, body = FleetMigration),
    (status = 403, description = "You may not manage the platform.", body = ProblemDetails),
    (status = 409, description = "Its state does not allow it.", body = ProblemDetails),
))]
async fn cancel(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { migration }): Params<InPath>,
) -> Result<Json<FleetMigration>, Problem> {
    Ok(Json(fleet::cancel(&world, &operator, migration).await?))
}
