//! Tenants.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::db::tenants::Tenant;
use loomworks_control::tenants::{self, Wanted};
use loomworks_control::{Error, World};
use loomworks_core::ids::JobId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{AsOperator, Authenticated, Body, ForTenant};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show))
        .routes(routes!(suspend))
        .routes(routes!(resume))
}

/// A tenant to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// 3 to 63 characters: lower-case letters, digits, hyphens; begins with a letter.
    #[schema(example = "acme")]
    pub subdomain: String,
    /// How people call it. The subdomain if left out.
    #[schema(example = "Acme GmbH")]
    pub name: Option<String>,
    /// Which app it is for. May be left out while the platform knows only one.
    pub profile: Option<String>,
}

/// A tenant that is being made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TenantCreated {
    pub tenant: Tenant,
    /// Follow it at `/v1/jobs/{job}`.
    #[schema(value_type = uuid::Uuid)]
    pub job: JobId,
}

/// Why a tenant is suspended.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Suspend {
    /// Kept with the tenant, for its people and for operators.
    #[serde(default)]
    pub reason: String,
}

/// Make a tenant: its database, its roles, its address.
#[utoipa::path(post, path = "/v1/tenants", tag = "tenants", request_body = CreateTenant, responses(
    (status = 202, description = "It is being made.", body = TenantCreated),
    (status = 409, description = "There is one with that subdomain.", body = ProblemDetails),
    (status = 422, description = "The request is not valid.", body = ProblemDetails),
))]
async fn create(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Body(body): Body<CreateTenant>,
) -> Result<(StatusCode, Json<TenantCreated>), Problem> {
    let hint = "for example `acme` or `acme-berlin`";
    let subdomain = body.subdomain.parse().map_err(|error| Error::invalid(error).with_hint(hint))?;
    let name = body.name.as_deref().unwrap_or(&body.subdomain).parse().map_err(Error::invalid)?;
    let wanted = Wanted { name, subdomain, profile: body.profile };
    let (tenant, job) = tenants::create(&world, &operator, &wanted).await?;
    Ok((StatusCode::ACCEPTED, Json(TenantCreated { tenant, job })))
}

/// The tenants you may see.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants", responses((status = 200, body = Vec<Tenant>)))]
async fn list(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
) -> Result<Json<Vec<Tenant>>, Problem> {
    Ok(Json(tenants::list(&world, &caller).await?))
}

/// One tenant, by its id or its subdomain.
#[utoipa::path(get, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)), responses(
    (status = 200, body = Tenant),
    (status = 404, description = "There is none, or none that you may see.", body = ProblemDetails),
))]
async fn show(State(world): State<World>, ForTenant(granted): ForTenant) -> Result<Json<Tenant>, Problem> {
    Ok(Json(tenants::get(&world, &granted).await?))
}

/// Stop serving a tenant. Its data stays.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/suspend", tag = "tenants", params(("tenant" = String, Path)),
    request_body = Suspend, responses(
    (status = 200, body = Tenant),
    (status = 409, description = "Its state does not allow it.", body = ProblemDetails),
))]
async fn suspend(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    ForTenant(granted): ForTenant,
    Body(body): Body<Suspend>,
) -> Result<Json<Tenant>, Problem> {
    Ok(Json(tenants::suspend(&world, &operator, &granted, &body.reason).await?))
}

/// Serve a tenant again.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/resume", tag = "tenants", params(("tenant" = String, Path)), responses(
    (status = 200, body = Tenant),
    (status = 409, description = "Its state does not allow it.", body = ProblemDetails),
))]
async fn resume(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    ForTenant(granted): ForTenant,
) -> Result<Json<Tenant>, Problem> {
    Ok(Json(tenants::resume(&world, &operator, &granted).await?))
}
