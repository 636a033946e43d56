//! OpenID Connect, as a browser sees it: sent to the provider, and back.

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, LOCATION, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use loomworks_control::World;
use loomworks_control::oidc::{self, COOKIE_LASTS, Callback};
use loomworks_core::ExposeSecret;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{FromBrowser, cookie, secure};
use crate::error::{Problem, ProblemDetails};
use crate::extract::Query;

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(start)).routes(routes!(callback))
}

/// What is answered where there is no provider.
fn no_provider() -> Problem {
    Problem::not_found("OpenID provider").with_hint("`loomworks serve --oidc-issuer …` names one")
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct StartQuery {
    /// Where to go afterwards: a path on this site. `/` if left out.
    return_to: Option<String>,
}

/// Log in by OpenID Connect: sends the browser to the provider.
#[utoipa::path(get, path = "/v1/auth/oidc/start", tag = "log-in", security(()), params(StartQuery), responses(
    (status = 303, description = "To the provider."),
    (status = 401, body = ProblemDetails, description = "The provider cannot be used at the moment."),
    (status = 404, body = ProblemDetails, description = "There is no provider."),
    (status = 422, body = ProblemDetails, description = "`return_to` is no path of this site."),
))]
async fn start(
    State(world): State<World>,
    headers: HeaderMap,
    Query(query): Query<StartQuery>,
) -> Result<Response, Problem> {
    let provider = world.oidc.as_ref().ok_or_else(no_provider)?;
    let return_to = query.return_to.as_deref().map(str::parse).transpose()?.unwrap_or_default();
    let started = oidc::start(provider, return_to).await?;
    let cookie = cookie::OIDC.set_for(&started.cookie, COOKIE_LASTS.as_secs(), secure(&headers, &world));
    let headers = [(LOCATION, started.location.as_str()), (SET_COOKIE, &cookie), (CACHE_CONTROL, "no-store")];
    Ok((StatusCode::SEE_OTHER, headers).into_response())
}

/// What a provider adds to the address. Providers add more than they must.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CallbackQuery {
    /// To be exchanged for the token.
    code: Option<String>,
    /// As it was sent.
    state: Option<String>,
    /// Who answers.
    iss: Option<String>,
    /// Why there is no code.
    error: Option<String>,
}

/// Where the provider sends the browser back to.
#[utoipa::path(get, path = "/v1/auth/oidc/callback", tag = "log-in", security(()), params(CallbackQuery), responses(
    (status = 303, description = "Logged in, and on to `return_to`."),
    (status = 401, body = ProblemDetails),
    (status = 404, body = ProblemDetails, description = "There is no provider."),
    (status = 429, body = ProblemDetails, headers(("retry-after" = u64, description = "seconds to wait"))),
))]
async fn callback(
    State(world): State<World>,
    FromBrowser(browser): FromBrowser,
    headers: HeaderMap,
    Query(query): Query<CallbackQuery>,
) -> Result<Response, Problem> {
    let provider = world.oidc.as_ref().ok_or_else(no_provider)?;
    let CallbackQuery { code, state, iss, error } = query;
    let secure = secure(&headers, &world);
    let brought = cookie::OIDC.read(&headers, secure);
    let callback = Callback { code, state, iss, error };
    let finished = oidc::finish(&world, provider, &browser, callback, brought.as_deref()).await?;
    // The browser comes from the provider, and so brings the session's cookie only with what the next page asks for.
    let cookies = AppendHeaders([
        (SET_COOKIE, cookie::SESSION.set(finished.logged_in.token.expose_secret(), secure)),
        (SET_COOKIE, cookie::OIDC.forgotten(secure)),
    ]);
    let onward = [(LOCATION, finished.return_to.as_str()), (CACHE_CONTROL, "no-store")];
    Ok((StatusCode::SEE_OTHER, onward, cookies).into_response())
}
