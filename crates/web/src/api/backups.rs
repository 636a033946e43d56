//! Base backups of the cluster.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_archive::backup::Backup;
use loomworks_control::page::Page;
use loomworks_control::{World, backups};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Accepted;
use crate::error::{Problem, ProblemDetails};
use crate::extract::{AsOperator, OperatorReading, PageQuery, Params, Query};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(list, run)).routes(routes!(verify)).routes(routes!(drill))
}

/// A base backup.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BackupShown {
    pub label: String,
    pub start: String,
    pub end: String,
    #[schema(value_type = String, format = DateTime)]
    pub finished_at: jiff::Timestamp,
    /// Of all files of the cluster.
    pub size_bytes: u64,
    /// What this backup has stored: the rest was there.
    pub new_bytes: u64,
    /// Pages that were damaged in the cluster when it was taken.
    pub damaged_pages: u64,
}

/// How a backup is to be taken.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct BackupQuery {
    /// Store everything again, whatever former backups have.
    #[serde(default)]
    #[param(example = false)]
    full: bool,
}

impl From<Backup> for BackupShown {
    fn from(backup: Backup) -> Self {
        Self {
            label: backup.label,
            start: backup.start.to_string(),
            end: backup.end.to_string(),
            finished_at: backup.finished_at,
            size_bytes: backup.size_bytes,
            new_bytes: backup.new_bytes,
            damaged_pages: backup.damaged_pages,
        }
    }
}

/// Take a base backup now, beside the daily one.
#[utoipa::path(post, path = "/v1/backups", tag = "backups", params(BackupQuery), responses((status = 202, description = "It is being taken.", body = Accepted)))]
async fn run(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Query(query): Query<BackupQuery>,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job = backups::run(&world, &operator, query.full).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job })))
}

/// Read a backup back, and prove that it can be restored. The job's result says what was found.
#[utoipa::path(post, path = "/v1/backups/{label}/verify", tag = "backups", params(("label" = String, Path, description = "The backup's label.")), responses(
    (status = 202, description = "It is being read.", body = Accepted),
    (status = 404, description = "There is no such backup.", body = ProblemDetails),
))]
async fn verify(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(Labelled { label }): Params<Labelled>,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job = backups::verify(&world, &operator, &label).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job })))
}

#[derive(Deserialize)]
struct Labelled {
    label: String,
}

/// Restore some tenants on the side, look them over, and throw them away. The job's result says how it went.
#[utoipa::path(post, path = "/v1/archive/drill", tag = "backups",
    responses((status = 202, description = "It is under way.", body = Accepted)))]
async fn drill(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job = backups::drill(&world, &operator).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job })))
}

/// The base backups, oldest first.
#[utoipa::path(get, path = "/v1/backups", tag = "backups", params(PageQuery),
    responses((status = 200, description = "A page of them.", body = Page<BackupShown>)))]
async fn list(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<BackupShown>>, Problem> {
    let Page { items, next_cursor } = backups::list(&world, &operator, &query.asked()?).await?;
    Ok(Json(Page { items: items.into_iter().map(Into::into).collect(), next_cursor }))
}
