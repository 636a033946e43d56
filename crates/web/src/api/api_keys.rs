//! API keys: tenants' own, and those of operators and gateways.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use loomworks_control::access::Permission;
use loomworks_control::db::keys::KeyInfo;
use loomworks_control::page::Page;
use loomworks_control::{Error, World, keys};
use loomworks_core::ExposeSecret;
use loomworks_core::api_key::ApiKey;
use loomworks_core::ids::ApiKeyId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::Problem;
use crate::extract::{AsOperator, Body, Managing, OperatorReading, PageQuery, Params, Query};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(revoke))
        .routes(routes!(rotate))
        .routes(routes!(list_operator_keys, create_operator_key))
        .routes(routes!(revoke_operator_key))
        .routes(routes!(rotate_operator_key))
}

/// A key to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// Who or what uses it.
    #[schema(example = "nightly import")]
    pub name: String,
    /// `tenant_admin` (if left out) or `tenant_user`; of the platform's keys `operator` (if left out) or `gateway`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(null))]
    pub scope: Option<String>,
    /// All that the scope may have and you have yourself, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(["read"]))]
    pub permissions: Option<Vec<Permission>>,
    /// `live` (if left out), `test` or `dev`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "live")]
    pub environment: Option<String>,
    /// When it ends, with its time zone. If left out it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    pub expires_at: Option<Timestamp>,
}

/// A key that was made.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyCreated {
    #[serde(flatten)]
    pub info: KeyInfo,
    /// The key. It is shown this once.
    pub api_key: String,
}

/// How a key is replaced.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKey {
    /// How long the old key is good beside the new one, 0 to 10,080 minutes. An hour if left out.
    #[serde(default = "an_hour")]
    #[schema(example = 60, minimum = 0, maximum = 10080)]
    pub overlap_minutes: i32,
}

fn an_hour() -> i32 {
    60
}

#[derive(Deserialize)]
struct InPath {
    key: ApiKeyId,
}

impl CreateKey {
    fn wanted(self, usual_scope: &str) -> Result<keys::Wanted, Error> {
        let name = self.name.trim().parse().map_err(Error::invalid)?;
        if self.name.chars().count() > 100 {
            return Err(Error::invalid("a key's name has 1 to 100 characters"));
        }
        Ok(keys::Wanted {
            name,
            scope: self.scope.unwrap_or_else(|| usual_scope.to_owned()),
            permissions: self.permissions,
            environment: keys::environment(self.environment.as_deref().unwrap_or("live"))?,
            expires_at: self.expires_at,
        })
    }
}

fn created((info, key): (KeyInfo, ApiKey)) -> (StatusCode, Json<KeyCreated>) {
    (StatusCode::CREATED, Json(KeyCreated { info, api_key: key.expose_secret().to_owned() }))
}

/// Make a key with which a tenant's own people use this API.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/api-keys", tag = "API keys", params(("tenant" = String, Path)),
    request_body = CreateKey, responses((status = 201, description = "It was made.", body = KeyCreated)))]
async fn create(
    State(world): State<World>,
    Managing(granted): Managing,
    Body(body): Body<CreateKey>,
) -> Result<(StatusCode, Json<KeyCreated>), Problem> {
    Ok(created(keys::create_for_tenant(&world, &granted, &body.wanted("tenant_admin")?).await?))
}

/// A tenant's keys, newest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/api-keys", tag = "API keys",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of them.", body = Page<KeyInfo>)))]
async fn list(
    State(world): State<World>,
    Managing(granted): Managing,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<KeyInfo>>, Problem> {
    Ok(Json(keys::list(&world, &granted, &query.asked()?).await?))
}

/// End a key.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/api-keys/{key}", tag = "API keys",
    params(("tenant" = String, Path), ("key" = uuid::Uuid, Path)),
    responses((status = 204, description = "It is refused from now on.")))]
async fn revoke(
    State(world): State<World>,
    Managing(granted): Managing,
    Params(InPath { key }): Params<InPath>,
) -> Result<StatusCode, Problem> {
    keys::revoke(&world, &granted, key).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Replace a key: the new one has the same rights, the old one ends after the overlap.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/api-keys/{key}/rotate", tag = "API keys",
    params(("tenant" = String, Path), ("key" = uuid::Uuid, Path)),
    request_body = RotateKey, responses((status = 201, description = "The new key was made.", body = KeyCreated)))]
async fn rotate(
    State(world): State<World>,
    Managing(granted): Managing,
    Params(InPath { key }): Params<InPath>,
    Body(body): Body<RotateKey>,
) -> Result<(StatusCode, Json<KeyCreated>), Problem> {
    Ok(created(keys::rotate(&world, &granted, key, body.overlap_minutes).await?))
}

/// Make a key for an operator or a gateway.
#[utoipa::path(post, path = "/v1/operator-keys", tag = "API keys", operation_id = "create_for_platform",
    request_body = CreateKey, responses((status = 201, description = "It was made.", body = KeyCreated)))]
async fn create_operator_key(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Body(body): Body<CreateKey>,
) -> Result<(StatusCode, Json<KeyCreated>), Problem> {
    Ok(created(keys::create_for_platform(&world, &operator, &body.wanted("operator")?).await?))
}

/// The keys of operators and gateways, newest first.
#[utoipa::path(get, path = "/v1/operator-keys", tag = "API keys", operation_id = "list_of_platform", params(PageQuery),
    responses((status = 200, description = "A page of them.", body = Page<KeyInfo>)))]
async fn list_operator_keys(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<KeyInfo>>, Problem> {
    Ok(Json(keys::list_of_platform(&world, &operator, &query.asked()?).await?))
}

/// End a key of an operator or a gateway.
#[utoipa::path(delete, path = "/v1/operator-keys/{key}", tag = "API keys", operation_id = "revoke_of_platform",
    params(("key" = uuid::Uuid, Path)), responses((status = 204, description = "It is refused from now on.")))]
async fn revoke_operator_key(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { key }): Params<InPath>,
) -> Result<StatusCode, Problem> {
    keys::revoke_of_platform(&world, &operator, key).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Replace a key of an operator or a gateway.
#[utoipa::path(post, path = "/v1/operator-keys/{key}/rotate", tag = "API keys", operation_id = "rotate_of_platform",
    params(("key" = uuid::Uuid, Path)),
    request_body = RotateKey, responses((status = 201, description = "The new key was made.", body = KeyCreated)))]
async fn rotate_operator_key(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { key }): Params<InPath>,
    Body(body): Body<RotateKey>,
) -> Result<(StatusCode, Json<KeyCreated>), Problem> {
    Ok(created(keys::rotate_of_platform(&world, &operator, key, body.overlap_minutes).await?))
}
