//! Tiers.

use axum::Json;
use axum::extract::State;
use loomworks_control::db::tiers::TierLimits;
use loomworks_control::tiers::Wanted;
use loomworks_control::{Error, World, tiers};
use loomworks_core::tenant::Tier;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::tenants::null_is_a_value;
use crate::error::{Problem, ProblemDetails};
use crate::extract::{AsOperator, Authenticated, Body, Params};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(set))
}

/// What a tier gives.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetTier {
    #[schema(example = 50)]
    pub max_users: i32,
    #[schema(example = 50.0)]
    pub max_storage_gb: f64,
    #[schema(example = 1000)]
    pub max_ai_operations_daily: i32,
    /// How many days back its tenants can go, 1 to 3650. `null`: what the platform is set to. Left out: as it was.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "null_is_a_value")]
    #[schema(value_type = Option<i32>, example = 60)]
    pub recovery_days: Option<Option<i32>>,
}

#[derive(Deserialize)]
struct InPath {
    tier: String,
}

/// The tiers and what they give, the smallest first.
#[utoipa::path(get, path = "/v1/tiers", tag = "tiers", responses((status = 200, body = Vec<TierLimits>)))]
async fn list(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
) -> Result<Json<Vec<TierLimits>>, Problem> {
    Ok(Json(tiers::list(&world, &caller).await?))
}

/// Change what a tier gives, to all tenants that have it and no limit of their own.
#[utoipa::path(put, path = "/v1/tiers/{tier}", tag = "tiers", params(("tier" = String, Path)), request_body = SetTier,
    responses(
    (status = 200, body = TierLimits),
    (status = 404, description = "There is no such tier.", body = ProblemDetails),
    (status = 422, description = "A limit makes no sense.", body = ProblemDetails),
))]
async fn set(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { tier }): Params<InPath>,
    Body(body): Body<SetTier>,
) -> Result<Json<TierLimits>, Problem> {
    let tier: Tier = tier.parse().map_err(|_| Error::NotFound("such tier"))?;
    let SetTier { max_users, max_storage_gb, max_ai_operations_daily, recovery_days } = body;
    let wanted = Wanted { max_users, max_storage_gb, max_ai_operations_daily, recovery_days };
    Ok(Json(tiers::set(&world, &operator, tier, wanted).await?))
}
