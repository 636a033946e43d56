//! Health, and the platform looked over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use loomworks_control::World;
use loomworks_control::doctor::{self, Finding};
use tokio::sync::Mutex;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::OperatorReading;

const LOOKED_EVERY: Duration = Duration::from_secs(1);

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(live)).routes(routes!(ready)).routes(routes!(examine))
}

/// The process answers.
#[utoipa::path(get, path = "/health/live", tag = "status", security(()), responses((status = 204, description = "It does.")))]
async fn live() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// The management database answers too: requests can be.
#[utoipa::path(get, path = "/health/ready", tag = "status", security(()), responses(
    (status = 204, description = "It does."),
    (status = 503, description = "What it waits for is in the message.", body = ProblemDetails),
))]
async fn ready(
    State(world): State<World>,
    Extension(readiness): Extension<Arc<Readiness>>,
) -> Result<StatusCode, Problem> {
    match readiness.lacks(&world).await {
        None => Ok(StatusCode::NO_CONTENT),
        Some(reason) => Err(Problem::not_ready(reason)),
    }
}

/// What was found when the management database was asked last, and when. Nobody is limited in asking for it, so what is
/// asked costs one query a second, however often.
#[derive(Default)]
pub(crate) struct Readiness(Mutex<Option<(Instant, Option<String>)>>);

impl Readiness {
    async fn lacks(&self, world: &World) -> Option<String> {
        // Kept while the database is asked: who comes meanwhile hears the same.
        let mut last = self.0.lock().await;
        if let Some((when, lacks)) = &*last
            && when.elapsed() < LOOKED_EVERY
        {
            return lacks.clone();
        }
        let lacks = doctor::not_ready(world).await;
        *last = Some((Instant::now(), lacks.clone()));
        lacks
    }
}

/// What is well, what is not, and what to do about it.
#[utoipa::path(get, path = "/v1/doctor", tag = "status", responses((status = 200, description = "What was found.", body = Vec<Finding>)))]
async fn examine(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
) -> Result<Json<Vec<Finding>>, Problem> {
    Ok(Json(doctor::examine(&world, &operator).await?))
}
