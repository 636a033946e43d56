//! Jobs.

use axum::Json;
use axum::extract::State;
use loomworks_control::db::jobs::Job;
use loomworks_control::{World, jobs};
use loomworks_core::ids::JobId;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{Authenticated, Params, Query};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// 1 to 1000, 50 if left out.
    limit: Option<i64>,
}

#[derive(Deserialize)]
struct InPath {
    job: JobId,
}

/// The jobs you may see, newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", params(ListQuery), responses((status = 200, body = Vec<Job>)))]
async fn list(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<Job>>, Problem> {
    Ok(Json(jobs::list(&world, &caller, query.limit.unwrap_or(50).clamp(1, 1000)).await?))
}

/// One job: how far it is, what it does, how it ended.
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "jobs", params(("job" = uuid::Uuid, Path)), responses(
    (status = 200, body = Job),
    (status = 404, body = ProblemDetails),
))]
async fn show(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Params(InPath { job }): Params<InPath>,
) -> Result<Json<Job>, Problem> {
    Ok(Json(jobs::get(&world, &caller, job).await?))
}
