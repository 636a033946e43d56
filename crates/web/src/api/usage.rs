//! What a tenant uses of its limits.

use axum::Json;
use axum::extract::State;
use loomworks_control::World;
use loomworks_control::usage::{self, Usage};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::Reading;

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(show))
}

/// Users, storage and AI operations: used, limit, remaining.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/usage", tag = "tenants", params(("tenant" = String, Path)), responses(
    (status = 200, body = Usage),
    (status = 401, description = "No API key, or none that is good.", body = ProblemDetails),
    (status = 403, description = "This API key may not do that.", body = ProblemDetails),
    (status = 404, description = "There is none, or none that you may see.", body = ProblemDetails),
    (status = 409, description = "The tenant is still being made.", body = ProblemDetails),
))]
async fn show(State(world): State<World>, Reading(granted): Reading) -> Result<Json<Usage>, Problem> {
    Ok(Json(usage::show(&world, &granted).await?))
}
