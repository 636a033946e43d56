//! The operation log, and undo.

use axum::Json;
use axum::extract::State;
use loomworks_control::page::{Asked, Page};
use loomworks_control::{Error, World, operations};
use loomworks_undo::{Mode, Operation, OperationDetail, OperationId, Outcome, Plan};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{Body, Params, Query, Reading, Working};

/// Rows an answer holds at most.
const ROWS_MAX: i64 = 1000;

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(plan))
        .routes(routes!(undo))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Only operations of the session that logs in as this role.
    session: Option<String>,
    /// How many items a page has, 1 to 1000. 100 if left out.
    #[param(minimum = 1, maximum = 1000, example = 100)]
    limit: Option<i64>,
    /// `next_cursor` of the page before. The first page if left out.
    cursor: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ShowQuery {
    /// Rows to show, 0 to 1000, 20 if left out.
    #[param(minimum = 0, maximum = 1000, example = 20)]
    rows: Option<i64>,
}

#[derive(Deserialize)]
struct InPath {
    operation: i64,
}

/// Operations to take back.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Undo {
    #[schema(value_type = Vec<i64>, example = json!([17]))]
    pub operations: Vec<OperationId>,
    /// `strict` refuses if anything stands in the way, `skip` leaves those rows out, `cascade` takes later AI
    /// operations that depend on these back too, `force` overwrites (but breaks no foreign key).
    #[serde(default = "strict")]
    #[schema(value_type = String, example = "strict")]
    pub mode: Mode,
}

fn strict() -> Mode {
    Mode::Strict
}

impl Undo {
    fn check(&self) -> Result<(), Error> {
        match self.operations.len() {
            0 => Err(Error::invalid("name at least one operation")),
            1..=1000 => Ok(()),
            _ => Err(Error::invalid("name at most 1,000 operations")),
        }
    }
}

/// What agents did, newest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/operations", tag = "operations",
    params(("tenant" = String, Path), ListQuery), responses((status = 200, description = "A page of them.", body = Page<Object>)))]
async fn list(
    State(world): State<World>,
    Reading(granted): Reading,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Operation>>, Problem> {
    let asked = Asked::new(query.limit, query.cursor.as_deref())?;
    Ok(Json(operations::list(&world, &granted, query.session, &asked).await?))
}

/// One operation, with rows before and after it.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/operations/{operation}", tag = "operations",
    params(("tenant" = String, Path), ("operation" = i64, Path), ShowQuery), responses(
    (status = 200, description = "The operation.", body = Object),
))]
async fn show(
    State(world): State<World>,
    Reading(granted): Reading,
    Params(InPath { operation }): Params<InPath>,
    Query(query): Query<ShowQuery>,
) -> Result<Json<OperationDetail>, Problem> {
    let rows = query.rows.unwrap_or(20);
    if !(0..=ROWS_MAX).contains(&rows) {
        return Err(Error::invalid(format!("an answer shows 0 to {ROWS_MAX} rows")).into());
    }
    Ok(Json(operations::show(&world, &granted, OperationId(operation), rows).await?))
}

/// What an undo would do. Changes nothing.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/operations/plan-undo", tag = "operations",
    params(("tenant" = String, Path)), request_body = Undo,
    responses((status = 200, description = "What would be done.", body = Object)))]
async fn plan(
    State(world): State<World>,
    Reading(granted): Reading,
    Body(body): Body<Undo>,
) -> Result<Json<Plan>, Problem> {
    body.check()?;
    Ok(Json(operations::plan(&world, &granted, &body.operations, body.mode).await?))
}

/// Take operations back, as a new operation.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/operations/undo", tag = "operations",
    params(("tenant" = String, Path)), request_body = Undo, responses(
    (status = 200, description = "They were taken back.", body = Object),
    (status = 409, description = "Rows were changed since. Nothing was changed.", body = ProblemDetails),
))]
async fn undo(
    State(world): State<World>,
    Working(granted): Working,
    Body(body): Body<Undo>,
) -> Result<Json<Outcome>, Problem> {
    body.check()?;
    Ok(Json(operations::undo(&world, &granted, &body.operations, body.mode).await?))
}
