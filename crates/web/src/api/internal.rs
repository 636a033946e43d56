//! What gateways ask. No part of the public API.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use loomworks_control::{World, access, routes as control};
use loomworks_core::route::Acknowledgement;
use serde::Deserialize;

use crate::error::Problem;
use crate::extract::{Authenticated, Body, Query};

pub(crate) fn routes() -> Router<World> {
    Router::new().route("/v1/internal/routes", get(table)).route("/v1/internal/gateways", post(acknowledge))
}

#[derive(Deserialize)]
struct TableQuery {
    newer_than: i64,
}

/// The table if there is a newer one, after some time 204.
async fn table(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Query(query): Query<TableQuery>,
) -> Result<Response, Problem> {
    let gateway = access::gateway(&caller)?;
    Ok(match control::newer_than(&world, gateway, query.newer_than).await? {
        Some(table) => Json(table).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// A gateway has taken a table.
async fn acknowledge(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Body(acknowledgement): Body<Acknowledgement>,
) -> Result<StatusCode, Problem> {
    let gateway = access::gateway(&caller)?;
    control::acknowledge(&world, gateway, &acknowledgement).await?;
    Ok(StatusCode::NO_CONTENT)
}
