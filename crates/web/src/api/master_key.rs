//! The master key.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::World;
use loomworks_control::master_key::rotation::{self, KeyStatus};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Accepted;
use crate::error::{Problem, ProblemDetails};
use crate::extract::{AsOperator, Body, OperatorReading};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(show)).routes(routes!(rotate))
}

/// How the master key is to be changed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateMasterKey {
    /// Drop the former key in the end. What a backup of the management database holds can then be read no more.
    #[serde(default)]
    pub forget_former: bool,
}

/// Which keys there are, and how many secrets each wraps. No key is told, only its id.
#[utoipa::path(get, path = "/v1/master-key", tag = "master key", responses(
    (status = 200, body = KeyStatus),
))]
async fn show(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
) -> Result<Json<KeyStatus>, Problem> {
    Ok(Json(rotation::status(&world, &operator).await?))
}

/// Change the master key: a new one is made, and every stored secret is wrapped with it.
#[utoipa::path(post, path = "/v1/master-key/rotate", tag = "master key", request_body = RotateMasterKey, responses(
    (status = 202, description = "It is being done.", body = Accepted),
    (status = 409, description = "One is under way that does otherwise with the former key.", body = ProblemDetails),
    (status = 422, description = "The request is not valid.", body = ProblemDetails),
))]
async fn rotate(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Body(body): Body<RotateMasterKey>,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let job = rotation::rotate(&world, &operator, body.forget_former).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job })))
}
