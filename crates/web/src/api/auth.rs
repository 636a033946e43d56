//! Logging in and out, and what a browser that is logged in may send.
//!
//! A browser sends its cookie with every request, also with those that another site's page makes it send. So a request
//! that changes anything counts only with a header that carries the login's token, which such a page can neither read
//! nor set, and from our own address. `SameSite` alone is not enough: tenants' apps, below the same domain, are the
//! same site.

pub(crate) mod cookie;
mod oidc;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::header::{CACHE_CONTROL, HOST, ORIGIN, SET_COOKIE, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use loomworks_control::World;
use loomworks_control::access::{Caller, Identity};
use loomworks_control::db::operators::LoginInfo;
use loomworks_control::operators::logins::{self, Browser, LoggedIn, Me};
use loomworks_core::ExposeSecret;
use loomworks_core::ids::LoginId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::client::{self, Client};
use crate::error::{Problem, ProblemDetails};
use crate::extract::{Authenticated, Body, Params};

const FROM_ELSEWHERE: &str = "this request comes from another site's page";

const CSRF: HeaderName = HeaderName::from_static("x-loomworks-csrf");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new()
        .routes(routes!(log_in))
        .routes(routes!(log_out))
        .routes(routes!(me))
        .routes(routes!(list))
        .routes(routes!(revoke))
        .merge(oidc::routes())
}

/// Where operators log in.
pub(crate) const LOGIN: &str = "/v1/auth/login";

/// The token of the login that a browser shows.
pub(crate) fn session(headers: &HeaderMap, world: &World) -> Option<String> {
    cookie::SESSION.read(headers, secure(headers, world))
}

/// Refuses a change that a browser may have been made to send. Programs with a key have no cookie to be misused.
pub(crate) fn check_wanted(
    caller: &Caller,
    method: &Method,
    headers: &HeaderMap,
    world: &World,
) -> Result<(), Problem> {
    let Identity::Operator { login, .. } = caller.identity else { return Ok(()) };
    if method.is_safe() {
        return Ok(());
    }
    if !is_from_our_pages(headers, world) {
        return Err(Problem::csrf(FROM_ELSEWHERE));
    }
    let sent = headers.get(CSRF).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !world.log_in.is_csrf_token(login, sent) {
        return Err(Problem::csrf("a change needs the token of the session as well as its cookie"));
    }
    Ok(())
}

/// Whether no page from elsewhere has sent this. Programs that are no browsers name no origin.
fn is_from_our_pages(headers: &HeaderMap, world: &World) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let from_host = origin.split_once("://").is_some_and(|(_, authority)| Some(authority) == host);
    // Behind a server that ends TLS our own `Host` may be another.
    from_host || world.log_in.public_url.as_deref() == Some(origin)
}

/// From where a request comes.
struct FromBrowser(Browser);

impl FromRequestParts<World> for FromBrowser {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _world: &World) -> Result<Self, Problem> {
        let Client(address) = client::of(&parts.extensions);
        let agent = parts.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Ok(Self(Browser { address, user_agent: agent.to_owned() }))
    }
}

/// Whether the browser is to send its cookies over TLS only.
fn secure(headers: &HeaderMap, world: &World) -> bool {
    world.log_in.secure_cookies || headers.get(FORWARDED_PROTO).is_some_and(|proto| proto == "https")
}

/// An address and a password.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    pub email: String,
    pub password: String,
}

/// Log in with a password.
///
/// The answer sets the cookie `loomworks_session` (over TLS: `__Host-loomworks_session`). Unknown address, wrong password and disabled account are one answer.
/// After five failures the next try has to wait, longer each time.
#[utoipa::path(post, path = "/v1/auth/login", tag = "login", security(()), request_body = Credentials, responses(
    (status = 200, body = Me),
    (status = 401, body = ProblemDetails),
    (status = 403, body = ProblemDetails, description = "Another site's page has sent this."),
    (status = 429, body = ProblemDetails, headers(("retry-after" = u64, description = "seconds to wait"))),
))]
async fn log_in(
    State(world): State<World>,
    FromBrowser(browser): FromBrowser,
    headers: HeaderMap,
    Body(body): Body<Credentials>,
) -> Result<Response, Problem> {
    if !is_from_our_pages(&headers, &world) {
        return Err(Problem::csrf(FROM_ELSEWHERE));
    }
    let LoggedIn { token, me } = logins::log_in(&world, &browser, &body.email, body.password.into()).await?;
    let cookie = cookie::SESSION.set(token.expose_secret(), secure(&headers, &world));
    Ok(([(SET_COOKIE, cookie.as_str()), (CACHE_CONTROL, "no-store")], Json(me)).into_response())
}

/// End this session.
#[utoipa::path(post, path = "/v1/auth/logout", tag = "login", security(("login" = [])), responses(
    (status = 204, description = "The cookie is worth nothing any more."),
    (status = 401, body = ProblemDetails),
    (status = 403, body = ProblemDetails),
))]
async fn log_out(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    logins::log_out(&world, &caller).await?;
    let cookie = cookie::SESSION.forgotten(secure(&headers, &world));
    Ok((StatusCode::NO_CONTENT, AppendHeaders([(SET_COOKIE, cookie)])).into_response())
}

/// Who is logged in, and with which rights.
#[utoipa::path(get, path = "/v1/auth/me", tag = "login", security(("login" = [])), responses(
    (status = 200, body = Me),
    (status = 401, body = ProblemDetails),
    (status = 403, body = ProblemDetails, description = "An API key is nobody's account."),
))]
async fn me(State(world): State<World>, Authenticated(caller): Authenticated) -> Result<Response, Problem> {
    Ok(([(CACHE_CONTROL, "no-store")], Json(logins::me(&world, &caller).await?)).into_response())
}

#[derive(Deserialize)]
struct InPath {
    session: LoginId,
}

/// Where you are logged in, the newest first.
#[utoipa::path(get, path = "/v1/auth/sessions", tag = "login", security(("login" = [])), responses(
    (status = 200, body = Vec<LoginInfo>),
    (status = 401, body = ProblemDetails),
    (status = 403, body = ProblemDetails, description = "An API key is nobody's account."),
))]
async fn list(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
) -> Result<Json<Vec<LoginInfo>>, Problem> {
    Ok(Json(logins::list(&world, &caller).await?))
}

/// End one of your sessions.
#[utoipa::path(delete, path = "/v1/auth/sessions/{session}", tag = "login", security(("login" = [])),
    params(("session" = uuid::Uuid, Path)), responses(
    (status = 204, description = "It is refused from now on."),
    (status = 401, body = ProblemDetails),
    (status = 403, body = ProblemDetails),
    (status = 404, body = ProblemDetails),
))]
async fn revoke(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Params(InPath { session }): Params<InPath>,
) -> Result<StatusCode, Problem> {
    logins::revoke(&world, &caller, session).await?;
    Ok(StatusCode::NO_CONTENT)
}
