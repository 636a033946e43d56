//! How the archive stands, and to which moments a tenant can go back.

use axum::Json;
use axum::extract::State;
use loomworks_control::World;
use loomworks_control::archive::{self, ArchiveStatus, RecoveryWindow};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::Problem;
use crate::extract::{OperatorReading, Reading};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(status)).routes(routes!(window))
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

/// To which moments the tenant can go back, and how long that would take.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/recovery-window", tag = "restores", params(("tenant" = String, Path)),
    responses((status = 200, description = "From when until when.", body = RecoveryWindow)))]
async fn window(
    State(world): State<World>,
    Reading(granted): Reading,
) -> Result<Json<RecoveryWindow>, Problem> {
    Ok(Json(archive::window(&world, &granted).await?))
}
