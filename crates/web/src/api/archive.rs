//! How the archive stands, and to which moments a tenant can go back.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::archive::{self, ArchiveStatus, ExpiryShown, RecoveryWindow};
use loomworks_control::{World, backups};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Accepted;
use crate::error::Problem;
use crate::extract::{AsOperator, OperatorReading, Reading};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(status)).routes(routes!(window)).routes(routes!(expiry, expire))
}

/// How far the archive is behind the server, what can be restored, and what somebody should look at.
#[utoipa::path(get, path = "/v1/archive", tag = "backups",
    responses((status = 200, description = "How it stands.", body = ArchiveStatus)))]
async fn status(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
) -> Result<Json<ArchiveStatus>, Problem> {
    Ok(Json(archive::status(&world, &operator).await?))
}

/// What would be removed from the repository now, and why. Changes nothing.
#[utoipa::path(get, path = "/v1/archive/expiry", tag = "backups",
    responses((status = 200, description = "The plan.", body = ExpiryShown)))]
async fn expiry(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
) -> Result<Json<ExpiryShown>, Problem> {
    Ok(Json(archive::expiry(&world, &operator).await?))
}

/// Remove now what is out of the recovery window and needed by nothing, beside the daily round.
#[utoipa::path(post, path = "/v1/archive/expiry", tag = "backups",
    responses((status = 202, description = "It is being removed.", body = Accepted)))]
async fn expire(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job = backups::expire(&world, &operator).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job })))
}

/// To which moments the tenant can go back, and how long that would take.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/recovery-window", tag = "restores", params(("tenant" = String, Path)),
    responses((status = 200, description = "From when until when.", body = RecoveryWindow)))]
async fn window(
    State(world): State<World>,
    Reading(granted): Reading,
) -> Result<Json<RecoveryWindow>, Problem> {
    Ok(Json(archive::window(&world, &granted).await?))
}
