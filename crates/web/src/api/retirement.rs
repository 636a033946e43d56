//! Tenants that end: the archive, destruction, and the proof of it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::World;
use loomworks_control::access::{self, Permission};
use loomworks_control::erasure::{self, ErasureReport};
use loomworks_control::retirement::{self, DestroyPlan};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Accepted;
use crate::error::{Problem, ProblemDetails};
use crate::extract::{AsOperator, Authenticated, Body, Managing, OperatorReading, Params, Reading};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new()
        .routes(routes!(archive))
        .routes(routes!(unarchive))
        .routes(routes!(plan))
        .routes(routes!(destroy))
        .routes(routes!(erasure))
}

/// A tenant to be archived.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArchiveTenant {
    /// The tenant's subdomain, to confirm that it is meant.
    #[serde(default)]
    pub confirm: String,
    /// Kept with the tenant.
    #[serde(default)]
    pub reason: String,
}

/// A tenant to be destroyed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DestroyTenant {
    /// The tenant's subdomain, to confirm that it is meant.
    #[serde(default)]
    pub confirm: String,
    /// The second confirmation: destroy it although its data is to be kept for some time yet.
    #[serde(default)]
    pub before_retention_ends: bool,
}

#[derive(Deserialize)]
struct InPath {
    tenant: String,
}

/// Stop serving a tenant and close its database. Its data is kept for the retention period.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/archive", tag = "tenants", params(("tenant" = String, Path)),
    request_body = ArchiveTenant, responses(
    (status = 202, body = Accepted),
    (status = 404, description = "There is none.", body = ProblemDetails),
    (status = 409, description = "Its state does not allow it, or something else is being done with it.", body = ProblemDetails),
    (status = 422, description = "It was not confirmed.", body = ProblemDetails),
))]
async fn archive(
    State(world): State<World>,
    Managing(granted): Managing,
    AsOperator(operator): AsOperator,
    Body(body): Body<ArchiveTenant>,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job = retirement::archive(&world, &operator, &granted, &body.confirm, &body.reason).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job })))
}

/// Take a tenant back from the archive, as it was.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/unarchive", tag = "tenants", params(("tenant" = String, Path)),
    responses(
    (status = 202, body = Accepted),
    (status = 404, description = "There is none.", body = ProblemDetails),
    (status = 409, description = "It is not archived, or is being destroyed.", body = ProblemDetails),
))]
async fn unarchive(
    State(world): State<World>,
    Managing(granted): Managing,
    AsOperator(operator): AsOperator,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job = retirement::unarchive(&world, &operator, &granted).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job })))
}

/// What destroying a tenant would do. Changes nothing.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/destroy/plan", tag = "tenants", params(("tenant" = String, Path)),
    responses(
    (status = 200, body = DestroyPlan),
    (status = 404, description = "There is none.", body = ProblemDetails),
))]
async fn plan(
    State(world): State<World>,
    Reading(granted): Reading,
    OperatorReading(operator): OperatorReading,
) -> Result<Json<DestroyPlan>, Problem> {
    Ok(Json(retirement::destroy_plan(&world, &operator, &granted).await?))
}

/// Destroy a draft or an archived tenant, for ever.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/destroy", tag = "tenants", params(("tenant" = String, Path)),
    request_body = DestroyTenant, responses(
    (status = 202, body = Accepted),
    (status = 404, description = "There is none.", body = ProblemDetails),
    (status = 409, description = "Its state or its retention does not allow it.", body = ProblemDetails),
    (status = 422, description = "It was not confirmed.", body = ProblemDetails),
))]
async fn destroy(
    State(world): State<World>,
    Managing(granted): Managing,
    AsOperator(operator): AsOperator,
    Body(body): Body<DestroyTenant>,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let DestroyTenant { confirm, before_retention_ends } = body;
    let job = retirement::destroy(&world, &operator, &granted, &confirm, before_retention_ends).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job })))
}

/// What is left of a tenant, found by trying to read it. By its id, also when it was destroyed.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/erasure", tag = "tenants", params(("tenant" = String, Path)),
    responses(
    (status = 200, body = ErasureReport),
    (status = 404, description = "There never was one.", body = ProblemDetails),
))]
async fn erasure(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Params(InPath { tenant }): Params<InPath>,
) -> Result<Json<ErasureReport>, Problem> {
    // An operator may name one that is gone. To everybody else there is no tenant but his own.
    if caller.scope.tenant().is_some() {
        access::tenant(&world.db, &caller, &tenant, Permission::Read).await?;
    }
    let operator = access::operator(&caller, Permission::Read)?;
    Ok(Json(erasure::report(&world, &operator, &tenant).await?))
}
