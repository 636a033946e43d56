//! Requests counted and timed, and `/metrics` for whoever scrapes.

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use loomworks_control::metrics::{API_REQUESTS, API_SECONDS};
use metrics_exporter_prometheus::PrometheusHandle;
use tracing::info;

use crate::error::request_id;

/// Counts a request under its route, not its path: paths have names in them, and there is no end to them.
pub(crate) async fn count(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "none".to_owned());
    let method = method(request.method());
    let began = Instant::now();
    let response = next.run(request).await;
    metrics::histogram!(API_SECONDS.name, "method" => method, "route" => route.clone())
        .record(began.elapsed().as_secs_f64());
    let status = response.status();
    // What gateways and probes ask all the time would bury the rest.
    if !route.starts_with("/v1/internal/") && !route.starts_with("/health/") {
        let (request_id, milliseconds) = (request_id(), began.elapsed().as_millis() as u64);
        info!(request_id, method, route, status = status.as_u16(), milliseconds, "answered");
    }
    let status = status.as_u16().to_string();
    metrics::counter!(API_REQUESTS.name, "method" => method, "route" => route, "status" => status)
        .increment(1);
    response
}

/// A client may invent methods: those that are none are one.
fn method(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// What is served to those who scrape: on a listener of its own, so that the API's need not be reachable for them.
pub fn metrics_router(handle: PrometheusHandle) -> Router {
    let render =
        async move || ([(CONTENT_TYPE, "text/plain; version=0.0.4")], handle.render()).into_response();
    Router::new().route("/metrics", get(render))
}
