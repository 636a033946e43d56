//! Jobs.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::{Extension, Json};
use futures_util::Stream;
use futures_util::stream;
use loomworks_control::access::{self, Caller, Permission};
use loomworks_control::db::jobs::{Filter, Job, Queue, State as JobState};
use loomworks_control::jobs::{self, Follow};
use loomworks_control::page::{Asked, Page};
use loomworks_control::{Error, World};
use loomworks_core::ids::JobId;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::credential::Credential;
use crate::error::{Problem, ProblemDetails};
use crate::extract::{Authenticated, Params, Query, Shown};
use crate::limits::Asker;
use crate::places::{Open, Place};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(events))
        .routes(routes!(retry))
        .routes(routes!(cancel))
}

/// So often something is said to whoever follows a job that does not change, so that nobody in between thinks that
/// the connection is dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How often it is seen whether whoever follows a job may still do so.
const LOOK_EVERY: Duration = Duration::from_secs(2);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only those in this state.
    #[param(inline)]
    state: Option<JobState>,
    /// `provision`, `restore`, …
    kind: Option<String>,
    /// The tenant's id or subdomain.
    tenant: Option<String>,
    /// Only those of this queue.
    #[param(inline)]
    queue: Option<Queue>,
    /// 1 to 1000, 100 if left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct InPath {
    job: JobId,
}

/// The jobs you may see, newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", params(ListQuery), responses(
    (status = 200, body = Page<Job>),
    (status = 400, body = ProblemDetails, description = "The query cannot be read."),
    (status = 404, body = ProblemDetails, description = "There is no such tenant."),
    (status = 422, body = ProblemDetails, description = "`limit` or `cursor` cannot be meant."),
))]
async fn list(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Job>>, Problem> {
    let asked = Asked::new(query.limit, query.cursor.as_deref())?;
    let tenant = match &query.tenant {
        Some(name) => Some(access::tenant(&world.db, &caller, name, Permission::Read).await?.tenant()),
        None => None,
    };
    // No kind has such a name, and PostgreSQL no such text.
    let kind = query.kind.map(|kind| kind.replace('\0', "?"));
    let filter = Filter { state: query.state, kind, queue: query.queue, tenant };
    Ok(Json(jobs::list(&world, &caller, &filter, &asked).await?))
}

/// One job: how far it is, what it does, how it ended.
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "jobs", params(("job" = uuid::Uuid, Path)), responses(
    (status = 200, body = Job),
))]
async fn show(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Params(InPath { job }): Params<InPath>,
) -> Result<Json<Job>, Problem> {
    Ok(Json(jobs::get(&world, &caller, job).await?))
}

/// A job as it goes on: an event `progress` with the job whenever it is another, and `end` after the last one.
///
/// The stream ends after five minutes at the latest, and when the key or the session is good no more; without an `end`,
/// ask again. It always begins with the job as it
/// is now, so nothing is missed between two streams.
#[utoipa::path(get, path = "/v1/jobs/{job}/events", tag = "jobs", params(("job" = uuid::Uuid, Path)), responses(
    (status = 200, body = String, content_type = "text/event-stream"),
    (status = 429, body = ProblemDetails, description = "You ask too often, or follow too many jobs at a time."),
))]
async fn events(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Shown(shown): Shown,
    Extension(open): Extension<Arc<Open>>,
    Params(InPath { job }): Params<InPath>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let place = Asker::of(&caller).map(|asker| open.streams.take(asker)).transpose()?;
    let following =
        Following { follow: jobs::follow(&world, &caller, job).await?, caller, shown, world, _place: place };
    let events = stream::unfold(Some((following, false)), async |following| {
        let (mut following, ended) = following?;
        if ended {
            return Some((Ok(Event::default().event("end").data("{}")), None));
        }
        // An error ends the stream without an `end`: who follows asks again, and is told then.
        let job = following.next().await.ok()??;
        let event = Event::default().event("progress").json_data(&job).ok()?;
        Some((Ok(event), Some((following, job.is_finished()))))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Somebody who follows a job.
struct Following {
    world: World,
    follow: Follow,
    caller: Caller,
    shown: Credential,
    _place: Option<Place<Asker>>,
}

impl Following {
    /// The job when it is another, to whoever is still the one who asked: his key may have been revoked meanwhile.
    async fn next(&mut self) -> Result<Option<Job>, Error> {
        loop {
            if self.shown.holder(&self.world).await? != self.caller {
                return Ok(None);
            }
            // What is given up here looks again when it is asked again.
            if let Ok(job) = tokio::time::timeout(LOOK_EVERY, self.follow.next()).await {
                return job;
            }
        }
    }
}

/// Try a job again that has failed or was cancelled, at the step at which it stopped.
#[utoipa::path(post, path = "/v1/jobs/{job}/retry", tag = "jobs", params(("job" = uuid::Uuid, Path)), responses(
    (status = 202, body = Job),
    (status = 409, body = ProblemDetails, description = "It has not failed, or an unfinished job wants the same."),
))]
async fn retry(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Params(InPath { job }): Params<InPath>,
) -> Result<(axum::http::StatusCode, Json<Job>), Problem> {
    Ok((axum::http::StatusCode::ACCEPTED, Json(jobs::retry(&world, &caller, job).await?)))
}

/// Stop a job: at once if it waits, else before its next step.
#[utoipa::path(post, path = "/v1/jobs/{job}/cancel", tag = "jobs", params(("job" = uuid::Uuid, Path)), responses(
    (status = 202, body = Job),
    (status = 409, body = ProblemDetails, description = "It has ended, or is too far to be stopped."),
))]
async fn cancel(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Params(InPath { job }): Params<InPath>,
) -> Result<(axum::http::StatusCode, Json<Job>), Problem> {
    Ok((axum::http::StatusCode::ACCEPTED, Json(jobs::cancel(&world, &caller, job).await?)))
}
