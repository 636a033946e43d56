//! Snapshots.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::db::snapshots::Snapshot;
use loomworks_control::{Error, World, snapshots};
use loomworks_core::ids::JobId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{Body, ForTenant};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(list, create))
}

/// A snapshot to be taken.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    #[schema(example = "before the import")]
    pub name: String,
}

/// A snapshot that is being taken.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotCreated {
    pub snapshot: Snapshot,
    /// Follow it at `/v1/jobs/{job}`: the snapshot can be relied on when it has succeeded.
    #[schema(value_type = uuid::Uuid)]
    pub job: JobId,
}

/// Take a snapshot of the tenant as it is now.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/snapshots", tag = "snapshots", params(("tenant" = String, Path)),
    request_body = CreateSnapshot, responses(
    (status = 202, body = SnapshotCreated),
    (status = 422, body = ProblemDetails),
))]
async fn create(
    State(world): State<World>,
    ForTenant(granted): ForTenant,
    Body(body): Body<CreateSnapshot>,
) -> Result<(StatusCode, Json<SnapshotCreated>), Problem> {
    let name = body.name.parse().map_err(Error::invalid)?;
    let (snapshot, job) = snapshots::create(&world, &granted, &name).await?;
    Ok((StatusCode::ACCEPTED, Json(SnapshotCreated { snapshot, job })))
}

/// A tenant's snapshots, newest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/snapshots", tag = "snapshots", params(("tenant" = String, Path)),
    responses((status = 200, body = Vec<Snapshot>)))]
async fn list(
    State(world): State<World>,
    ForTenant(granted): ForTenant,
) -> Result<Json<Vec<Snapshot>>, Problem> {
    Ok(Json(snapshots::list(&world, &granted).await?))
}
