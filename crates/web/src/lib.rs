//! The REST API: a handler says who asks, what is asked, makes one call into `control`, and says what is answered.
//!
//! This crate knows no SQL and nothing of how jobs are carried out.

pub mod api;
pub mod error;
mod extract;

use axum::http::HeaderName;
use axum::{Router, middleware};
use loomworks_control::World;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;

/// Told to every client, so that a person can name a request to whoever looks after the platform.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Loomworks",
        description = "Hosts tenants' PostgreSQL applications and gives each of them an undo button.",
        license(name = "LGPL-3.0-or-later", identifier = "LGPL-3.0-or-later"),
    ),
    modifiers(&ApiKeyScheme),
    security(("api_key" = [])),
)]
struct Document;

struct ApiKeyScheme;

impl utoipa::Modify for ApiKeyScheme {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("frt_live_…").build();
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("api_key", SecurityScheme::Http(scheme));
    }
}

fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::with_openapi(Document::openapi()).merge(api::routes())
}

/// The OpenAPI document.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

/// The API as a service.
pub fn router(world: World) -> Router {
    let (router, document) = routes().split_for_parts();
    router
        .route("/v1/openapi.json", axum::routing::get(async move || axum::Json(document)))
        .merge(api::internal::routes())
        .fallback(async || error::Problem::not_found("such address"))
        .method_not_allowed_fallback(async || error::Problem::method_not_allowed())
        .with_state(world)
        .layer(middleware::from_fn(extract::name_request))
}
