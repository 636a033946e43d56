//! The audit log.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use loomworks_control::audit::verify::{self, Verdict, Wanted};
use loomworks_control::db::audit::{Entry, Filter};
use loomworks_control::page::{Asked, Page};
use loomworks_control::{World, audit};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{Authenticated, Body, OperatorReading, Query};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(verify))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct AuditQuery {
    /// A tenant's id or subdomain.
    tenant: Option<String>,
    /// Who did it.
    actor: Option<String>,
    /// What was done, or the word before its dot: `tenant.suspended`, `tenant`.
    action: Option<String>,
    /// From this moment on.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Before this moment.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// 1 to 1000, 100 if left out.
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// What is to be verified.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyAudit {
    /// Only what was sealed from this moment on.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// A head that was noted earlier. The chain must still lead through it.
    pub expect: Option<String>,
}

/// Who did what, newest first: an operator sees all, a tenant's own people what concerns their tenant.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(AuditQuery), responses(
    (status = 200, body = Page<Entry>),
    (status = 400, description = "The query is not valid.", body = ProblemDetails),
    (status = 404, description = "There is no such tenant, or none that you may see.", body = ProblemDetails),
    (status = 422, description = "The page is not valid.", body = ProblemDetails),
))]
async fn list(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Page<Entry>>, Problem> {
    let asked = Asked::new(query.limit, query.cursor.as_deref())?;
    let filter = Filter {
        tenant: None,
        actor: query.actor,
        action: query.action,
        since: query.since,
        until: query.until,
    };
    Ok(Json(audit::list(&world, &caller, query.tenant.as_deref(), filter, asked).await?))
}

/// Whether the log is as it was written. Reads all of it, and changes nothing.
#[utoipa::path(post, path = "/v1/audit/verify", tag = "audit", request_body = VerifyAudit, responses(
    (status = 200, description = "How the log stands, intact or not.", body = Verdict),
    (status = 422, description = "The request is not valid.", body = ProblemDetails),
))]
async fn verify(
    State(world): State<World>,
    OperatorReading(operator): OperatorReading,
    Body(body): Body<VerifyAudit>,
) -> Result<Json<Verdict>, Problem> {
    let wanted = Wanted { since: body.since, expect: body.expect };
    Ok(Json(verify::verify(&world, &operator, &wanted).await?))
}
