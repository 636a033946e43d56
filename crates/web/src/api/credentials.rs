//! What a tenant's app logs in with.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::{World, credentials};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Accepted;
use crate::error::{Problem, ProblemDetails};
use crate::extract::Managing;

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(rotate))
}

/// Give a tenant's app another password. Both work for a while; the app finds the new one in its password file.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/credentials/rotate", tag = "credentials",
    params(("tenant" = String, Path)), responses(
    (status = 202, description = "It is being done.", body = Accepted),
    (status = 404, description = "There is no such tenant, or none that you may see.", body = ProblemDetails),
    (status = 409, description = "The tenant's state does not allow it.", body = ProblemDetails),
))]
async fn rotate(
    State(world): State<World>,
    Managing(granted): Managing,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job = credentials::rotate(&world, &granted).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job })))
}
