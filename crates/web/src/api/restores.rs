//! Restores.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use loomworks_archive::restore::RestorePlan;
use loomworks_control::restores::{self, Wanted};
use loomworks_control::{Error, World};
use loomworks_core::ids::{JobId, SnapshotId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Accepted;
use crate::error::{Problem, ProblemDetails};
use crate::extract::{Body, Managing, Reading};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(plan)).routes(routes!(run)).routes(routes!(swap_back))
}

/// The moment to go back to: a snapshot or a time, not both.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreTarget {
    #[schema(value_type = Option<uuid::Uuid>)]
    pub snapshot: Option<SnapshotId>,
    /// With its time zone.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-03-10T14:05:00+01:00")]
    pub time: Option<Timestamp>,
    /// The tenant's subdomain, to confirm that its database is to be replaced. A plan needs none.
    #[serde(default)]
    pub confirm: String,
}

/// How a moment would be brought back.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlanShown {
    /// A WAL position, or a time.
    pub target: String,
    pub base_backup: String,
    pub base_backup_bytes: u64,
    /// WAL to replay at most.
    pub wal_bytes: u64,
}

impl From<&RestorePlan> for PlanShown {
    fn from(plan: &RestorePlan) -> Self {
        use loomworks_archive::restore::Target;
        let target = match plan.target {
            Target::Lsn(lsn) => lsn.to_string(),
            Target::Time(time) => time.to_string(),
        };
        let backup = &plan.backup;
        Self {
            target,
            base_backup: backup.label.clone(),
            base_backup_bytes: backup.size_bytes,
            wal_bytes: plan.wal_bytes,
        }
    }
}

/// A restore that is under way.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RestoreStarted {
    pub plan: PlanShown,
    /// Follow it at `/v1/jobs/{job}`.
    #[schema(value_type = uuid::Uuid)]
    pub job: JobId,
}

/// A confirmation.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Confirm {
    /// The tenant's subdomain.
    pub confirm: String,
}

impl RestoreTarget {
    fn wanted(&self) -> Result<Wanted, Error> {
        match (self.snapshot, self.time) {
            (Some(snapshot), None) => Ok(Wanted::Snapshot(snapshot)),
            (None, Some(time)) => Ok(Wanted::Time(time)),
            _ => Err(Error::invalid("name either a snapshot or a time")),
        }
    }
}

/// What a restore would do. Changes nothing.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/restores/plan", tag = "restores", params(("tenant" = String, Path)),
    request_body = RestoreTarget, responses(
    (status = 200, description = "What would be done.", body = PlanShown),
    (status = 422, description = "That moment cannot be brought back.", body = ProblemDetails),
))]
async fn plan(
    State(world): State<World>,
    Reading(granted): Reading,
    Body(body): Body<RestoreTarget>,
) -> Result<Json<PlanShown>, Problem> {
    let plan = restores::plan(&world, &granted, body.wanted()?).await?;
    Ok(Json(PlanShown::from(&plan)))
}

/// Bring the tenant back to a moment. Its present database is kept for seven days.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/restores", tag = "restores", params(("tenant" = String, Path)),
    request_body = RestoreTarget, responses(
    (status = 202, description = "It is under way.", body = RestoreStarted),
    (status = 409, description = "A restore is under way.", body = ProblemDetails),
    (status = 422, description = "That moment cannot be brought back, or it was not confirmed.", body = ProblemDetails),
))]
async fn run(
    State(world): State<World>,
    Managing(granted): Managing,
    Body(body): Body<RestoreTarget>,
) -> Result<(StatusCode, Json<RestoreStarted>), Problem> {
    let (plan, job) = restores::request(&world, &granted, body.wanted()?, &body.confirm).await?;
    Ok((StatusCode::ACCEPTED, Json(RestoreStarted { plan: PlanShown::from(&plan), job })))
}

/// Put the database back that the last restore replaced. Again: forward.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/restores/swap-back", tag = "restores",
    params(("tenant" = String, Path)), request_body = Confirm, responses(
    (status = 202, description = "It is under way.", body = Accepted),
    (status = 409, description = "There is no former database, or a restore is under way.", body = ProblemDetails),
))]
async fn swap_back(
    State(world): State<World>,
    Managing(granted): Managing,
    Body(body): Body<Confirm>,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job = restores::swap_back(&world, &granted, &body.confirm).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job })))
}
