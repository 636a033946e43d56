//! Operators' accounts.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::access::Permission;
use loomworks_control::db::operators::OperatorInfo;
use loomworks_control::operators::{self, NewOperator};
use loomworks_control::page::{Asked, Page};
use loomworks_control::{Error, World};
use loomworks_core::SecretString;
use loomworks_core::email::{BadEmail, Email};
use loomworks_core::ids::OperatorId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{AsOperator, Body, OperatorReading, Params, Query};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(disable))
        .routes(routes!(enable))
        .routes(routes!(set_password))
}

/// An account to be made.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateOperator {
    pub name: String,
    /// What the operator logs in with. One address is one account, in capitals or not.
    pub email: String,
    /// At least 12 characters. Left out: the operator comes by OpenID Connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    pub permissions: Vec<Permission>,
}

/// Another password.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPassword {
    /// At least 12 characters.
    pub password: String,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// 1 to 1000, 100 if left out.
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct InPath {
    operator: OperatorId,
}

/// The operators' accounts, by address.
#[utoipa::path(get, path = "/v1/operators", tag = "operators", params(ListQuery), responses(
    (status = 200, body = Page<OperatorInfo>),
))]
async fn list(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<OperatorInfo>>, Problem> {
    let asked = Asked::new(query.limit, query.cursor.as_deref())?;
    Ok(Json(operators::list(&world, &operator, &asked).await?))
}

/// Make an account with which an operator logs in.
#[utoipa::path(post, path = "/v1/operators", tag = "operators", request_body = CreateOperator, responses(
    (status = 201, body = OperatorInfo),
    (status = 409, body = ProblemDetails, description = "There is an account with this address."),
))]
async fn create(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Body(body): Body<CreateOperator>,
) -> Result<(StatusCode, Json<OperatorInfo>), Problem> {
    let email: Email = body.email.parse().map_err(|error: BadEmail| Error::invalid(error))?;
    let password = body.password.map(SecretString::from);
    let new = NewOperator { name: body.name, email, password, permissions: body.permissions };
    Ok((StatusCode::CREATED, Json(operators::create(&world, &operator, new).await?)))
}

/// Let nobody log in to an account any more, and end its sessions.
#[utoipa::path(post, path = "/v1/operators/{operator}/disable", tag = "operators",
    params(("operator" = uuid::Uuid, Path)), responses(
    (status = 200, body = OperatorInfo),
))]
async fn disable(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { operator: id }): Params<InPath>,
) -> Result<Json<OperatorInfo>, Problem> {
    Ok(Json(operators::set_disabled(&world, &operator, id, true).await?))
}

/// Let an operator log in again, and forget who he is at the OpenID provider until he comes from there.
#[utoipa::path(post, path = "/v1/operators/{operator}/enable", tag = "operators",
    params(("operator" = uuid::Uuid, Path)), responses(
    (status = 200, body = OperatorInfo),
))]
async fn enable(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { operator: id }): Params<InPath>,
) -> Result<Json<OperatorInfo>, Problem> {
    Ok(Json(operators::set_disabled(&world, &operator, id, false).await?))
}

/// Give an account another password, and end its sessions.
#[utoipa::path(post, path = "/v1/operators/{operator}/password", tag = "operators", request_body = SetPassword,
    params(("operator" = uuid::Uuid, Path)), responses(
    (status = 200, body = OperatorInfo),
))]
async fn set_password(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { operator: id }): Params<InPath>,
    Body(body): Body<SetPassword>,
) -> Result<Json<OperatorInfo>, Problem> {
    Ok(Json(operators::set_password(&world, &operator, id, body.password.into()).await?))
}
