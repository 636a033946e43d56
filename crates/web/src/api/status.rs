//! Health, and the platform looked over.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::World;
use loomworks_control::doctor::{self, Finding};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::Problem;
use crate::extract::AsOperator;

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(live)).routes(routes!(ready)).routes(routes!(examine))
}

/// The process answers.
#[utoipa::path(get, path = "/health/live", tag = "status", security(()), responses((status = 204)))]
async fn live() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// The management database answers too.
#[utoipa::path(get, path = "/health/ready", tag = "status", security(()), responses((status = 204), (status = 503)))]
async fn ready(State(world): State<World>) -> StatusCode {
    match doctor::is_ready(&world).await {
        true => StatusCode::NO_CONTENT,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// What is well, what is not, and what to do about it.
#[utoipa::path(get, path = "/v1/doctor", tag = "status", responses((status = 200, body = Vec<Finding>)))]
async fn examine(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
) -> Result<Json<Vec<Finding>>, Problem> {
    Ok(Json(doctor::examine(&world, &operator).await?))
}
