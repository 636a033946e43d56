//! Webhooks: a tenant's, and the platform's own.
//!
//! All of it needs the right to manage, looking included: an address is often a secret of the receiver's.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use loomworks_control::db::webhooks::{Delivery, Webhook};
use loomworks_control::page::{Asked, Page};
use loomworks_control::webhooks::{self, Owner, Wanted};
use loomworks_control::{Error, World};
use loomworks_core::ids::{DeliveryId, JobId, WebhookId};
use loomworks_core::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{AsOperator, Body, Managing, Params, Query};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new()
        .routes(routes!(list, register))
        .routes(routes!(remove))
        .routes(routes!(test))
        .routes(routes!(rotate_secret))
        .routes(routes!(deliveries))
        .routes(routes!(list_platform, register_platform))
        .routes(routes!(remove_platform))
        .routes(routes!(test_platform))
        .routes(routes!(rotate_platform_secret))
        .routes(routes!(platform_deliveries))
}

/// A webhook to be registered.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterWebhook {
    /// Where to send: `https` or `http`, without a password or a fragment.
    #[schema(example = "https://example.org/loomworks", max_length = 2000)]
    pub url: String,
    /// What to send: `*`, names, or beginnings of names such as `quota.*`.
    #[serde(default = "everything")]
    #[schema(min_items = 1, max_items = 50)]
    pub events: Vec<String>,
    #[serde(default)]
    #[schema(max_length = 255)]
    pub description: String,
}

fn everything() -> Vec<String> {
    vec!["*".into()]
}

/// A webhook with its new secret.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct WebhookSecret {
    #[serde(flatten)]
    pub webhook: Webhook,
    /// With it is signed. It is shown this once.
    #[schema(example = "whsec_…")]
    pub secret: String,
}

/// A test on its way.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TestSent {
    /// Look for it among the webhook's deliveries.
    #[schema(value_type = uuid::Uuid)]
    pub delivery: DeliveryId,
    /// Follow it at `/v1/jobs/{job}`.
    #[schema(value_type = uuid::Uuid)]
    pub job: JobId,
}

#[derive(Deserialize)]
struct InPath {
    webhook: WebhookId,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    /// 1 to 1000, 100 if left out.
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

impl PageQuery {
    fn asked(&self) -> Result<Asked<i64>, Error> {
        Asked::new(self.limit, self.cursor.as_deref())
    }
}

async fn registered(
    world: &World,
    owner: Owner<'_>,
    body: RegisterWebhook,
) -> Result<(StatusCode, Json<WebhookSecret>), Problem> {
    let events = body.events.iter().map(|event| event.parse()).collect::<Result<_, _>>();
    let wanted = Wanted {
        url: body.url.parse().map_err(Error::invalid)?,
        events: events.map_err(Error::invalid)?,
        description: body.description,
    };
    let (webhook, secret) = webhooks::register(world, owner, &wanted).await?;
    Ok((StatusCode::CREATED, shown(webhook, &secret)))
}

fn shown(webhook: Webhook, secret: &SecretString) -> Json<WebhookSecret> {
    Json(WebhookSecret { webhook, secret: secret.expose_secret().to_owned() })
}

async fn tested(
    world: &World,
    owner: Owner<'_>,
    id: WebhookId,
) -> Result<(StatusCode, Json<TestSent>), Problem> {
    let (delivery, job) = webhooks::test(world, owner, id).await?;
    Ok((StatusCode::ACCEPTED, Json(TestSent { delivery, job })))
}

/// A tenant's webhooks, oldest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/webhooks", tag = "webhooks", params(("tenant" = String, Path)),
    responses(
    (status = 200, body = Vec<Webhook>),
))]
async fn list(
    State(world): State<World>,
    Managing(granted): Managing,
) -> Result<Json<Vec<Webhook>>, Problem> {
    Ok(Json(webhooks::list(&world, Owner::Tenant(&granted)).await?))
}

/// Have a tenant's notifications sent to an address.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/webhooks", tag = "webhooks", params(("tenant" = String, Path)),
    request_body = RegisterWebhook, responses(
    (status = 201, description = "The secret is shown this once.", body = WebhookSecret),
    (status = 400, description = "The body is no JSON.", body = ProblemDetails),
    (status = 409, description = "There are as many as there may be.", body = ProblemDetails),
))]
async fn register(
    State(world): State<World>,
    Managing(granted): Managing,
    Body(body): Body<RegisterWebhook>,
) -> Result<(StatusCode, Json<WebhookSecret>), Problem> {
    registered(&world, Owner::Tenant(&granted), body).await
}

/// Remove a tenant's webhook. What waits for it is not sent any more.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/webhooks/{webhook}", tag = "webhooks",
    params(("tenant" = String, Path), ("webhook" = uuid::Uuid, Path)), responses(
    (status = 200, description = "As it was.", body = Webhook),
))]
async fn remove(
    State(world): State<World>,
    Managing(granted): Managing,
    Params(InPath { webhook }): Params<InPath>,
) -> Result<Json<Webhook>, Problem> {
    Ok(Json(webhooks::remove(&world, Owner::Tenant(&granted), webhook).await?))
}

/// Send a test to a tenant's webhook, once. One that arrives turns a disabled webhook on again.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/webhooks/{webhook}/test", tag = "webhooks",
    params(("tenant" = String, Path), ("webhook" = uuid::Uuid, Path)), responses(
    (status = 202, body = TestSent),
    (status = 409, description = "A test is under way.", body = ProblemDetails),
))]
async fn test(
    State(world): State<World>,
    Managing(granted): Managing,
    Params(InPath { webhook }): Params<InPath>,
) -> Result<(StatusCode, Json<TestSent>), Problem> {
    tested(&world, Owner::Tenant(&granted), webhook).await
}

/// Give a tenant's webhook a new secret. The former one signs beside it for 24 hours.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/webhooks/{webhook}/rotate-secret", tag = "webhooks",
    params(("tenant" = String, Path), ("webhook" = uuid::Uuid, Path)), responses(
    (status = 201, description = "The secret is shown this once.", body = WebhookSecret),
    (status = 409, description = "It was done several times today.", body = ProblemDetails),
))]
async fn rotate_secret(
    State(world): State<World>,
    Managing(granted): Managing,
    Params(InPath { webhook }): Params<InPath>,
) -> Result<(StatusCode, Json<WebhookSecret>), Problem> {
    let (webhook, secret) = webhooks::rotate_secret(&world, Owner::Tenant(&granted), webhook).await?;
    Ok((StatusCode::CREATED, shown(webhook, &secret)))
}

/// What was sent to a tenant's webhook and what became of it, newest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/webhooks/{webhook}/deliveries", tag = "webhooks",
    params(("tenant" = String, Path), ("webhook" = uuid::Uuid, Path), PageQuery), responses(
    (status = 200, body = Page<Delivery>),
    (status = 400, description = "The query cannot be read.", body = ProblemDetails),
))]
async fn deliveries(
    State(world): State<World>,
    Managing(granted): Managing,
    Params(InPath { webhook }): Params<InPath>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Delivery>>, Problem> {
    Ok(Json(webhooks::deliveries(&world, Owner::Tenant(&granted), webhook, &query.asked()?).await?))
}

/// The platform's own webhooks, oldest first.
#[utoipa::path(get, path = "/v1/webhooks", tag = "webhooks", responses(
    (status = 200, body = Vec<Webhook>),
))]
async fn list_platform(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
) -> Result<Json<Vec<Webhook>>, Problem> {
    Ok(Json(webhooks::list(&world, Owner::Platform(&operator)).await?))
}

/// Have all notifications sent to an address: those of every tenant and those for operators.
#[utoipa::path(post, path = "/v1/webhooks", tag = "webhooks", request_body = RegisterWebhook, responses(
    (status = 201, description = "The secret is shown this once.", body = WebhookSecret),
    (status = 400, description = "The body is no JSON.", body = ProblemDetails),
    (status = 409, description = "There are as many as there may be.", body = ProblemDetails),
))]
async fn register_platform(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Body(body): Body<RegisterWebhook>,
) -> Result<(StatusCode, Json<WebhookSecret>), Problem> {
    registered(&world, Owner::Platform(&operator), body).await
}

/// Remove one of the platform's webhooks. What waits for it is not sent any more.
#[utoipa::path(delete, path = "/v1/webhooks/{webhook}", tag = "webhooks", params(("webhook" = uuid::Uuid, Path)),
    responses(
    (status = 200, description = "As it was.", body = Webhook),
))]
async fn remove_platform(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { webhook }): Params<InPath>,
) -> Result<Json<Webhook>, Problem> {
    Ok(Json(webhooks::remove(&world, Owner::Platform(&operator), webhook).await?))
}

/// Send a test to one of the platform's webhooks, once. One that arrives turns a disabled webhook on again.
#[utoipa::path(post, path = "/v1/webhooks/{webhook}/test", tag = "webhooks", params(("webhook" = uuid::Uuid, Path)),
    responses(
    (status = 202, body = TestSent),
    (status = 409, description = "A test is under way.", body = ProblemDetails),
))]
async fn test_platform(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { webhook }): Params<InPath>,
) -> Result<(StatusCode, Json<TestSent>), Problem> {
    tested(&world, Owner::Platform(&operator), webhook).await
}

/// Give one of the platform's webhooks a new secret. The former one signs beside it for 24 hours.
#[utoipa::path(post, path = "/v1/webhooks/{webhook}/rotate-secret", tag = "webhooks",
    params(("webhook" = uuid::Uuid, Path)), responses(
    (status = 201, description = "The secret is shown this once.", body = WebhookSecret),
    (status = 409, description = "It was done several times today.", body = ProblemDetails),
))]
async fn rotate_platform_secret(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { webhook }): Params<InPath>,
) -> Result<(StatusCode, Json<WebhookSecret>), Problem> {
    let (webhook, secret) = webhooks::rotate_secret(&world, Owner::Platform(&operator), webhook).await?;
    Ok((StatusCode::CREATED, shown(webhook, &secret)))
}

/// What was sent to one of the platform's webhooks and what became of it, newest first.
#[utoipa::path(get, path = "/v1/webhooks/{webhook}/deliveries", tag = "webhooks",
    params(("webhook" = uuid::Uuid, Path), PageQuery), responses(
    (status = 200, body = Page<Delivery>),
    (status = 400, description = "The query cannot be read.", body = ProblemDetails),
))]
async fn platform_deliveries(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Params(InPath { webhook }): Params<InPath>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Delivery>>, Problem> {
    Ok(Json(webhooks::deliveries(&world, Owner::Platform(&operator), webhook, &query.asked()?).await?))
}
