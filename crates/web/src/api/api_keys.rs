//! Tenants' API keys.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::db::keys::KeyInfo;
use loomworks_control::{World, keys};
use loomworks_core::ExposeSecret;
use loomworks_core::ids::ApiKeyId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{AsOperator, Body, ForTenant, Params};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(revoke))
}

/// A key to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// Who or what uses it.
    pub name: String,
}

/// A key that was made.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyCreated {
    #[serde(flatten)]
    pub info: KeyInfo,
    /// The key. It is shown this once.
    pub api_key: String,
}

#[derive(Deserialize)]
struct InPath {
    key: ApiKeyId,
}

/// Make a key with which a tenant's own people use this API.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/api-keys", tag = "API keys", params(("tenant" = String, Path)),
    request_body = CreateKey, responses((status = 201, body = KeyCreated)))]
async fn create(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    ForTenant(granted): ForTenant,
    Body(body): Body<CreateKey>,
) -> Result<(StatusCode, Json<KeyCreated>), Problem> {
    let (info, key) = keys::create_for_tenant(&world, &operator, &granted, &body.name).await?;
    Ok((StatusCode::CREATED, Json(KeyCreated { info, api_key: key.expose_secret().to_owned() })))
}

/// A tenant's keys.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/api-keys", tag = "API keys", params(("tenant" = String, Path)),
    responses((status = 200, body = Vec<KeyInfo>)))]
async fn list(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    ForTenant(granted): ForTenant,
) -> Result<Json<Vec<KeyInfo>>, Problem> {
    Ok(Json(keys::list(&world, &operator, &granted).await?))
}

/// End a key.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/api-keys/{key}", tag = "API keys",
    params(("tenant" = String, Path), ("key" = uuid::Uuid, Path)), responses(
    (status = 204, description = "It is refused from now on."),
    (status = 404, body = ProblemDetails),
))]
async fn revoke(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    ForTenant(granted): ForTenant,
    Params(InPath { key }): Params<InPath>,
) -> Result<StatusCode, Problem> {
    keys::revoke(&world, &operator, &granted, key).await?;
    Ok(StatusCode::NO_CONTENT)
}
