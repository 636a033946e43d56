//! Base backups of the cluster.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_archive::backup::Backup;
use loomworks_control::page::Page;
use loomworks_control::{World, backups};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Accepted;
use crate::error::Problem;
use crate::extract::{AsOperator, OperatorReading, PageQuery, Query};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(list, run))
}

/// A base backup.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BackupShown {
    pub label: String,
    pub start: String,
    pub end: String,
    #[schema(value_type = String, format = DateTime)]
    pub finished_at: jiff::Timestamp,
    pub size_bytes: u64,
}

impl From<Backup> for BackupShown {
    fn from(backup: Backup) -> Self {
        Self {
            label: backup.label,
            start: backup.start.to_string(),
            end: backup.end.to_string(),
            finished_at: backup.finished_at,
            size_bytes: backup.size_bytes,
        }
    }
}

/// Take a base backup now, beside the daily one.
#[utoipa::path(post, path = "/v1/backups", tag = "backups", responses((status = 202, description = "It is being taken.", body = Accepted)))]
async fn run(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job = backups::run(&world, &operator).await?;
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
