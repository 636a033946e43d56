//! Health, and the platform looked over.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::World;
use loomworks_control::doctor::{self, Finding};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::OperatorReading;

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(live)).routes(routes!(ready)).routes(routes!(examine))
}

/// The process answers.
#[utoipa::path(get, path = "/health/live", tag = "status", security(()), responses((status = 204, description = "It does.")))]
async fn live() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// The management database answers too: requests can be.
#[utoipa::path(get, path = "/health/ready", tag = "status", security(()), responses(
    (status = 204, description = "It does."),
    (status = 503, description = "What it waits for is in the message.", body = ProblemDetails),
))]
async fn ready(State(world): State<World>) -> Result<StatusCode, Problem> {
    match doctor::not_ready(&world).await {
        None => Ok(StatusCode::NO_CONTENT),
        Some(reason) => Err(Problem::not_ready(reason)),
    }
}

/// What is well, what is not, and what to do about it.
#[utoipa::path(get, path = "/v1/doctor", tag = "status", responses((status = 200, description = "What was found.", body = Vec<Finding>)))]
async fn examine(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
) -> Result<Json<Vec<Finding>>, Problem> {
    Ok(Json(doctor::examine(&world, &operator).await?))
}
