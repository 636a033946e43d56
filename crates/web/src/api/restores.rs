//! Restores.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use loomworks_archive::restore::RestorePlan;
use loomworks_control::access::{self, Caller, Granted, Permission};
use loomworks_control::restores::{self, Asked, Mode, Wanted};
use loomworks_control::{Error, World};
use loomworks_core::ids::{JobId, SnapshotId};
use loomworks_core::lsn::Lsn;
use loomworks_undo::OperationId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Accepted;
use crate::error::{Problem, ProblemDetails};
use crate::extract::{Authenticated, Body, Managing, Reading};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(plan)).routes(routes!(run)).routes(routes!(swap_back))
}

/// The moment to go back to: one of snapshot, time, position and operation.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreTarget {
    #[schema(value_type = Option<uuid::Uuid>)]
    pub snapshot: Option<SnapshotId>,
    /// With its time zone.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-03-10T14:05:00+01:00")]
    pub time: Option<Timestamp>,
    /// Just before the record at this position of the WAL.
    #[schema(value_type = Option<String>, example = "16/B374D848")]
    pub lsn: Option<Lsn>,
    /// Just before this operation of an agent.
    #[schema(value_type = Option<i64>)]
    pub operation: Option<OperationId>,
    /// What is done with what was brought back.
    #[serde(default)]
    pub mode: Mode,
    /// Whose past it is, by id or subdomain, if not the tenant's own: the tenant becomes a copy. For operators.
    pub from: Option<String>,
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
    /// How long the WAL is that is looked through; only what is the tenant's own and what all share is replayed.
    pub wal_bytes: u64,
    /// How long it will take, about.
    pub estimated_seconds: u64,
}

impl PlanShown {
    fn new(plan: &RestorePlan, estimated_seconds: u64) -> Self {
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
            estimated_seconds,
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
        match (self.snapshot, self.time, self.lsn, self.operation) {
            (Some(snapshot), None, None, None) => Ok(Wanted::Snapshot(snapshot)),
            (None, Some(time), None, None) => Ok(Wanted::Time(time)),
            (None, None, Some(lsn), None) => Ok(Wanted::Position(lsn)),
            (None, None, None, Some(operation)) => Ok(Wanted::Before(operation)),
            _ => Err(Error::invalid("name one of a snapshot, a time, an lsn and an operation")),
        }
    }

    /// The right to see the tenant whose past it is.
    async fn source(&self, world: &World, caller: &Caller) -> Result<Option<Granted>, Error> {
        match &self.from {
            Some(name) => access::tenant(&world.db, caller, name, Permission::Read).await.map(Some),
            None => Ok(None),
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
    Authenticated(caller): Authenticated,
    Body(body): Body<RestoreTarget>,
) -> Result<Json<PlanShown>, Problem> {
    let source = body.source(&world, &caller).await?;
    let asked = Asked { wanted: body.wanted()?, mode: body.mode, source: source.as_ref() };
    let (plan, seconds) = restores::plan(&world, &granted, &asked).await?;
    Ok(Json(PlanShown::new(&plan, seconds)))
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
    Authenticated(caller): Authenticated,
    Body(body): Body<RestoreTarget>,
) -> Result<(StatusCode, Json<RestoreStarted>), Problem> {
    let source = body.source(&world, &caller).await?;
    let asked = Asked { wanted: body.wanted()?, mode: body.mode, source: source.as_ref() };
    let (plan, seconds, job) = restores::request(&world, &granted, &asked, &body.confirm).await?;
    Ok((StatusCode::ACCEPTED, Json(RestoreStarted { plan: PlanShown::new(&plan, seconds), job })))
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
