//! The REST API: a handler says who asks, what is asked, makes one call into `control`, and says what is answered.
//!
//! This crate knows no SQL and nothing of how jobs are carried out.

mod admit;
pub mod api;
mod client;
mod credential;
mod document;
pub mod error;
mod extract;
mod limits;
mod measure;
mod places;
mod repeat;
pub mod serve;
mod strict;

use std::sync::Arc;

use axum::http::HeaderName;
use axum::{Extension, Router, middleware};
use loomworks_control::World;
use loomworks_core::SecretString;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::admit::Admission;
pub use crate::client::{Network, Proxies};
pub use crate::limits::Allowance;
use crate::places::Open;
pub use measure::metrics_router;

/// Told to every client, so that a person can name a request to whoever looks after the platform.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Larger bodies are refused.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Loomworks",
        description = "Hosts tenants' PostgreSQL applications and gives each of them an undo button.",
        license(name = "LGPL-3.0-or-later", identifier = "LGPL-3.0-or-later"),
    ),
    // Only a query names it: those of bodies are found by themselves.
    components(schemas(loomworks_control::db::jobs::State)),
)]
struct Document;

fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::with_openapi(Document::openapi()).merge(api::routes())
}

/// The OpenAPI document.
#[must_use]
pub fn openapi() -> serde_json::Value {
    document::complete(routes().into_openapi())
}

/// How the API treats those who ask.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub allowance: Allowance,
    pub proxies: Proxies,
    /// The key of the gateway in this process: it is not counted, not even before it was looked up for the first time.
    pub gateway_key: Option<SecretString>,
}

/// The API as a service. It wants to know where its requests come from: serve it with `ConnectInfo<SocketAddr>`.
pub fn router(world: World, settings: Settings) -> Router {
    let (router, document) = routes().split_for_parts();
    let document = document::complete(document);
    let proxies = settings.proxies.clone();
    let admission = Admission::new(world.clone(), settings, &document);
    router
        .route("/v1/openapi.json", axum::routing::get(async move || axum::Json(document)))
        .merge(api::internal::routes())
        .fallback(async || error::Problem::not_found("such address"))
        .method_not_allowed_fallback(async || error::Problem::method_not_allowed())
        .with_state(world.clone())
        .layer(middleware::from_fn_with_state(world, repeat::once))
        .layer(middleware::from_fn_with_state(admission, admit::admit))
        .layer(middleware::from_fn(measure::count))
        .layer(Extension(Arc::new(Open::default())))
        .layer(Extension(Arc::new(api::status::Readiness::default())))
        .layer(middleware::from_fn(extract::name_request))
        .layer(middleware::from_fn_with_state(proxies, client::find))
}
