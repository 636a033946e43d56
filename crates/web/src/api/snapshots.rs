//! Snapshots.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::db::snapshots::Snapshot;
use loomworks_control::page::Page;
use loomworks_control::{Error, World, snapshots};
use loomworks_core::ids::JobId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::Problem;
use crate::extract::{Body, PageQuery, Query, Reading, Working};

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
    (status = 202, description = "It is being taken.", body = SnapshotCreated),
))]
async fn create(
    State(world): State<World>,
    Working(granted): Working,
    Body(body): Body<CreateSnapshot>,
) -> Result<(StatusCode, Json<SnapshotCreated>), Problem> {
    let name = body.name.parse().map_err(Error::invalid)?;
    let (snapshot, job) = snapshots::create(&world, &granted, &name).await?;
    Ok((StatusCode::ACCEPTED, Json(SnapshotCreated { snapshot, job })))
}

/// A tenant's snapshots, newest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/snapshots", tag = "snapshots", 
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of them.", body = Page<Snapshot>)))]
async fn list(
    State(world): State<World>,
    Reading(granted): Reading,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Snapshot>>, Problem> {
    Ok(Json(snapshots::list(&world, &granted, &query.asked()?).await?))
}
