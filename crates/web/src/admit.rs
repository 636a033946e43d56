//! What every request passes before its handler: how often its sender asks, who he is, whether the address and the
//! query are ones that are understood.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use loomworks_control::access::Caller;
use loomworks_control::{Error, World};

use crate::api::auth;
use crate::client::{self, Client};
use crate::credential::{Credential, Good};
use crate::error::Problem;
use crate::limits::{Asker, Limits, Standing};
use crate::strict::has_controls;
use crate::{BODY_BYTES_MAX, Settings};

/// What is read of a body that is refused, so that its sender hears why.
const READ_AWAY_MAX: usize = 16 * 1024 * 1024;
const READ_AWAY_WITHIN: Duration = Duration::from_secs(5);

/// What admission works with.
pub(crate) struct Admission {
    world: World,
    limits: Limits,
    good: Good,
    /// Of each endpoint that the document names, the query parameters it takes.
    queries: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Admission {
    pub(crate) fn new(world: World, settings: Settings, document: &serde_json::Value) -> Arc<Self> {
        let limits = Limits::new(settings.allowance, world.accelerator.clone());
        let good = Good::default();
        if let Some(key) = settings.gateway_key {
            good.note(&Credential::Key(key), None);
        }
        Arc::new(Self { world, limits, good, queries: queries(document) })
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
    let shown = Credential::shown(request.headers(), path, &admission.world);
    let Client(address) = client::of(request.extensions());
    let (found, standing) = identify(&admission, shown.as_ref(), address).await;
    let wait_seconds = standing.and_then(|standing| standing.wait_seconds);
    let mut response = match (wait_seconds, found) {
        (Some(seconds), _) => Problem::from(Error::Throttled { seconds }).into_response(),
        (None, Err(error)) => Problem::from(error).into_response(),
        // Who has not shown who he is hears of nothing else.
        (None, Ok(None)) => next.run(request).await,
        (None, Ok(Some(caller))) => {
            let checked = auth::check_wanted(&caller, request.method(), request.headers(), &admission.world)
                .and_then(|()| check(&admission, &request));
            request.extensions_mut().insert(Sender(caller));
            if let Some(shown) = shown {
                request.extensions_mut().insert(shown);
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

type Found = (Result<Option<Caller>, Error>, Option<Standing>);

/// Who asks, and how his allowance stands.
///
/// Whoever is known, or was when he asked last, is counted by who he is. Everybody else is counted by his address
/// first: to look somebody up costs more than to turn him away.
async fn identify(admission: &Admission, shown: Option<&Credential>, address: IpAddr) -> Found {
    let world = &admission.world;
    if let Some(caller) = shown.and_then(|shown| shown.recognise(world)) {
        let standing = count(admission, Asker::of(&caller)).await;
        return (Ok(Some(caller)), standing);
    }
    let known = shown.and_then(|shown| admission.good.asker(shown));
    let standing = count(admission, known.unwrap_or_else(|| Some(Asker::at(address)))).await;
    let waits = standing.is_some_and(|standing| standing.wait_seconds.is_some());
    let Some(shown) = shown.filter(|_| !waits) else { return (Ok(None), standing) };
    match shown.holder(world).await {
        Ok(caller) => {
            let asker = Asker::of(&caller);
            admission.good.note(shown, asker);
            let standing = if known == Some(asker) { standing } else { count(admission, asker).await };
            (Ok(Some(caller)), standing)
        }
        Err(Error::Unauthenticated) => {
            admission.good.forget(shown);
            (Ok(None), standing)
        }
        Err(error) => (Err(error), standing),
    }
}

async fn count(admission: &Admission, asker: Option<Asker>) -> Option<Standing> {
    match asker {
        Some(asker) => Some(admission.limits.ask(asker).await),
        None => None,
    }
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
}
