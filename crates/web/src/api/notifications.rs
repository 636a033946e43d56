//! Notifications.

use axum::Json;
use axum::extract::State;
use loomworks_control::db::notifications::{Notification, Severity};
use loomworks_control::notifications::{self, Wanted};
use loomworks_control::page::{Asked, Page};
use loomworks_control::{Error, World};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{Authenticated, Query};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(list))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Only those of this tenant, by its id or its subdomain.
    tenant: Option<String>,
    /// Only those that matter this much.
    #[param(inline)]
    severity: Option<Severity>,
    /// Only these events: a name, or the beginning of names, as in `quota.*`.
    #[param(example = "quota.*")]
    event: Option<String>,
    /// 1 to 1000, 100 if left out.
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// What people were told without having asked, newest first: an operator sees all, a tenant's people their own.
#[utoipa::path(get, path = "/v1/notifications", tag = "notifications", params(ListQuery), responses(
    (status = 200, body = Page<Notification>),
    (status = 400, description = "The query cannot be read.", body = ProblemDetails),
    (status = 404, description = "There is no such tenant.", body = ProblemDetails),
))]
async fn list(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Notification>>, Problem> {
    let event = query.event.map(|event| event.parse()).transpose().map_err(Error::invalid)?;
    let wanted = Wanted { tenant: query.tenant, severity: query.severity, event };
    let asked = Asked::new(query.limit, query.cursor.as_deref())?;
    Ok(Json(notifications::list(&world, &caller, &wanted, &asked).await?))
}
