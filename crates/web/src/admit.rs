//! What every request passes before its handler: how often its sender asks, who he is, whether the address and the
//! query are ones that are understood.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use loomworks_control::access::Caller;
use loomworks_control::{Error, World, keys};
use loomworks_core::{ExposeSecret, SecretString};

use crate::BODY_BYTES_MAX;
use crate::api::auth;
use crate::error::Problem;
use crate::limits::{Allowance, Asker, Limits, Standing};
use crate::strict::has_controls;

/// What is read of a body that is refused, so that its sender hears why.
const READ_AWAY_MAX: usize = 16 * 1024 * 1024;
const READ_AWAY_WITHIN: Duration = Duration::from_secs(5);

/// What admission works with.
pub(crate) struct Admission {
    world: World,
    limits: Limits,
    /// Of each endpoint that the document names, the query parameters it takes.
    queries: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Admission {
    pub(crate) fn new(world: World, allowance: Allowance, document: &serde_json::Value) -> Arc<Self> {
        Arc::new(Self { world, limits: Limits::new(allowance), queries: queries(document) })
    }
}

/// Who has sent the request. In the request's extensions, if anybody has shown who he is.
#[derive(Clone)]
pub(crate) struct Sender(pub(crate) Caller);

/// Admits a request or answers it.
pub(crate) async fn admit(
    State(admission): State<Arc<Admission>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if path.starts_with("/health/") {
        return next.run(request).await;
    }
    // What is shown, taken out of the request: its body cannot be shared between threads.
    let shown = Shown::of(&request);
    let (caller, standing) = match identify(&admission, shown).await {
        Ok(found) => found,
        Err(response) => return *response,
    };
    let mut response = match standing.and_then(|standing| standing.wait_seconds) {
        Some(seconds) => Problem::from(Error::Throttled { seconds }).into_response(),
        None => {
            // Who has not shown who he is hears of nothing else.
            let checked = match caller {
                Some(_) => check(&admission, &request),
                None => Ok(()),
            };
            if let Some(caller) = caller {
                request.extensions_mut().insert(Sender(caller));
            }
            match checked {
                Ok(()) => next.run(request).await,
                Err(problem) => {
                    read_away(request.into_body()).await;
                    problem.into_response()
                }
            }
        }
    };
    if let Some(standing) = standing {
        standing.tell(response.headers_mut());
    }
    response
}

/// A client that is still sending does not read: it would see a broken connection and not the refusal.
async fn read_away(body: Body) {
    let reading = async {
        let (mut bytes, mut pieces) = (0, body.into_data_stream());
        while let Some(Ok(piece)) = pieces.next().await {
            bytes += piece.len();
            if bytes > READ_AWAY_MAX {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(READ_AWAY_WITHIN, reading).await;
}

/// What a request shows of its sender.
struct Shown {
    address: IpAddr,
    key: Option<SecretString>,
    /// What a browser shows that somebody is logged in with.
    browser: Option<(Method, HeaderMap)>,
}

impl Shown {
    fn of(request: &Request) -> Self {
        let text = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        // Who logs in does not act as whoever was logged in before.
        let may_be_logged_in = !request.headers().contains_key(AUTHORIZATION)
            && request.headers().contains_key(COOKIE)
            && request.uri().path() != auth::LOGIN;
        let browser = may_be_logged_in.then(|| (request.method().clone(), request.headers().clone()));
        Self { address: address(request), key: text.and_then(bearer).map(SecretString::from), browser }
    }
}

type Found = (Option<Caller>, Option<Standing>);

/// Who asks, and how his allowance stands.
///
/// Whoever is known from a moment ago is counted by who he is. Everybody else is counted by his address first: to look
/// somebody up costs more than to turn him away.
async fn identify(admission: &Admission, shown: Shown) -> Result<Found, Box<Response>> {
    let world = &admission.world;
    let key = shown.key.as_ref().map(SecretString::expose_secret);
    let caller = match key.and_then(|key| keys::recognise(world, key)) {
        Some(caller) => caller,
        None => {
            let standing = admission.limits.ask(Asker::at(shown.address));
            let answer = |problem: Problem| {
                let mut response = problem.into_response();
                standing.tell(response.headers_mut());
                Box::new(response)
            };
            if let Some(seconds) = standing.wait_seconds {
                return Err(answer(Error::Throttled { seconds }.into()));
            }
            let found = match (key, &shown.browser) {
                (Some(key), _) => keys::authenticate(world, key).await.map_err(Problem::from),
                (None, Some((method, headers))) => auth::logged_in(method, headers, world).await,
                (None, None) => return Ok((None, Some(standing))),
            };
            match found {
                Ok(caller) => caller,
                Err(problem) if problem.is_unauthenticated() => return Ok((None, Some(standing))),
                Err(problem) => return Err(answer(problem)),
            }
        }
    };
    let standing = Asker::of(&caller).map(|asker| admission.limits.ask(asker));
    Ok((Some(caller), standing))
}

/// The scheme's name is written in any case (RFC 9110, section 11.1).
fn bearer(text: &str) -> Option<&str> {
    let (scheme, key) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Where the request came from.
pub(crate) fn address(request: &Request) -> IpAddr {
    let connected = request.extensions().get::<ConnectInfo<SocketAddr>>();
    connected.map_or(IpAddr::from([0, 0, 0, 0]), |ConnectInfo(address)| address.ip())
}

/// Refuses what no handler should see.
fn check(admission: &Admission, request: &Request) -> Result<(), Problem> {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length > BODY_BYTES_MAX) {
        return Err(Problem::too_large());
    }
    match percent_decoded(request.uri().path()) {
        Some(path) if !path.chars().any(char::is_control) => {}
        _ => return Err(Problem::not_found("such address")),
    }
    let Some(path) = request.extensions().get::<MatchedPath>() else { return Ok(()) };
    // HEAD is answered as GET is.
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let Some(taken) = admission.queries.get(&(path.as_str().to_owned(), method.as_str().to_owned())) else {
        return Ok(());
    };
    for part in request.uri().query().unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let decoded = |text: &str| percent_decoded(&text.replace('+', " "));
        let (Some(name), Some(value)) = (decoded(name), decoded(value)) else {
            return Err(Problem::bad_query("the query is not UTF-8"));
        };
        if !taken.contains(&name) {
            return Err(Problem::unknown_query(&name, taken));
        }
        if has_controls(&value) {
            return Err(Problem::bad_query(format!("`{name}` has a control character")));
        }
    }
    Ok(())
}

/// `None`: what is encoded is no text.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || (rest.next()? as char).to_digit(16);
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

fn queries(document: &serde_json::Value) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut queries = BTreeMap::new();
    let paths = document["paths"].as_object();
    for (path, methods) in paths.into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let names = parameters.filter(|parameter| parameter["in"] == "query");
            let names = names.filter_map(|parameter| Some(parameter["name"].as_str()?.to_owned())).collect();
            queries.insert((path.clone(), method.to_uppercase()), names);
        }
    }
    queries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_are_read_or_refused() {
        assert_eq!(percent_decoded("a%20b%C3%A4").as_deref(), Some("a bä"));
        for text in ["%", "%4", "%zz", "%ff", "%C3"] {
            assert!(percent_decoded(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_key_comes_after_its_scheme() {
        assert_eq!(bearer("Bearer x"), Some("x"));
        assert_eq!(bearer("bearer  x "), Some("x"));
        for text in ["Bearer", "Basic x", "x", ""] {
            assert_eq!(bearer(text), None, "{text}");
        }
    }
}
