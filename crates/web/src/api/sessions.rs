//! AI sessions.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::db::sessions::Session;
use loomworks_control::page::Page;
use loomworks_control::sessions::{self, Wanted};
use loomworks_control::{Error, World};
use loomworks_core::ExposeSecret;
use loomworks_core::ids::{JobId, SessionId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::Problem;
use crate::extract::{Body, PageQuery, Params, Query, Reading, Working};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(list, open)).routes(routes!(close))
}

/// A session to be opened.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// Who will work in it.
    #[schema(example = "contact-cleaner")]
    pub agent: String,
    /// What for.
    #[serde(default)]
    pub purpose: String,
    /// How long it is open, 1 to 1440.
    #[serde(default = "default_minutes")]
    pub minutes: i32,
}

fn default_minutes() -> i32 {
    60
}

/// A session that was opened.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct SessionOpened {
    #[serde(flatten)]
    pub session: Session,
    /// All the agent needs to connect. It is shown this once.
    #[schema(example = "postgres://lwai_…:…@127.0.0.1:5432/acme")]
    pub connection_string: String,
    /// Takes the snapshot of the moment before the agent began.
    #[schema(value_type = uuid::Uuid)]
    pub snapshot_job: JobId,
}

#[derive(Deserialize)]
struct InPath {
    session: SessionId,
}

/// Open a session: the agent gets a connection string, and all that it changes is recorded.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/ai-sessions", tag = "AI sessions", params(("tenant" = String, Path)),
    request_body = OpenSession, responses(
    (status = 201, description = "The connection string works if the state is `open`.", body = SessionOpened),
))]
async fn open(
    State(world): State<World>,
    Working(granted): Working,
    Body(body): Body<OpenSession>,
) -> Result<(StatusCode, Json<SessionOpened>), Problem> {
    let agent = body.agent.parse().map_err(Error::invalid)?;
    let wanted = Wanted { agent, purpose: body.purpose, minutes: body.minutes };
    let opened = sessions::open(&world, &granted, &wanted).await?;
    let answer = SessionOpened {
        session: opened.session,
        connection_string: opened.connection_string.expose_secret().to_owned(),
        snapshot_job: opened.snapshot_job,
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

/// A tenant's sessions, newest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/ai-sessions", tag = "AI sessions", 
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of them.", body = Page<Session>)))]
async fn list(
    State(world): State<World>,
    Reading(granted): Reading,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Session>>, Problem> {
    Ok(Json(sessions::list(&world, &granted, &query.asked()?).await?))
}

/// End a session: its connections end, what it did stays in the operation log.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/ai-sessions/{session}", tag = "AI sessions",
    params(("tenant" = String, Path), ("session" = uuid::Uuid, Path)), responses(
    (status = 200, description = "It is ended.", body = Session),
))]
async fn close(
    State(world): State<World>,
    Working(granted): Working,
    Params(InPath { session }): Params<InPath>,
) -> Result<Json<Session>, Problem> {
    Ok(Json(sessions::close(&world, &granted, session).await?.0))
}
