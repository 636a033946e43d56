//! `Idempotency-Key`: a request that is asked twice is carried out once.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use loomworks_control::access::Caller;
use loomworks_control::idempotency::{self, ANSWER_BYTES_MAX, Answer, Attempt, Begun, KEYS_MAX};
use loomworks_control::{Error, World};

use crate::admit::Sender;
use crate::error::{self, Problem};
use crate::extract::{WHOLE_WITHIN, whole};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const KEY_LENGTH_MAX: usize = 255;

/// Carries a request out, or repeats what was answered to the same one.
pub(crate) async fn once(State(world): State<World>, request: Request, next: Next) -> Response {
    let sender = request.extensions().get::<Sender>().cloned();
    let (Some(Sender(caller)), true) = (sender, request.method() == Method::POST) else {
        return next.run(request).await;
    };
    match key(request.headers()) {
        Ok(None) => next.run(request).await,
        Ok(Some(key)) => match repeatable(world, caller, key, request, next).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        },
        Err(problem) => problem.into_response(),
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let visible = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let text = value.to_str().ok().filter(visible).filter(|text| text.len() <= KEY_LENGTH_MAX);
    match (text, values.next()) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => Err(Problem::bad_idempotency_key(KEY_LENGTH_MAX)),
    }
}

async fn repeatable(
    world: World,
    caller: Caller,
    key: String,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let body = whole(body, WHOLE_WITHIN).await?;
    let asked = format!("{} {}", parts.method, parts.uri.path_and_query().map_or("", |path| path.as_str()));
    let attempt = match idempotency::begin(&world, &caller, &key, &asked, &body).await? {
        Begun::Now(attempt) => attempt,
        Begun::Answered(answer) => return Ok(replay(answer)),
        Begun::Running => return Err(Problem::idempotency_running()),
        Begun::Differs => return Err(Problem::idempotency_key_reused()),
        Begun::AnswerLost => return Err(Problem::idempotency_answer_lost()),
        Begun::TooMany => return Err(Problem::too_many_idempotency_keys(KEYS_MAX)),
    };
    let request = Request::from_parts(parts, Body::from(body));
    // In a task of its own: when the client goes away, what it asked for is finished and the answer is there for it.
    let carried_out = tokio::spawn(error::in_request(carry_out(world, attempt, request, next)));
    carried_out.await.map_err(|error| Error::Internal(format!("carry the request out: {error}")))?
}

async fn carry_out(
    world: World,
    attempt: Attempt,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let response = idempotency::within(attempt.clone(), next.run(request)).await;
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, 16 * ANSWER_BYTES_MAX).await else {
        idempotency::finish(&world, &attempt, None).await?;
        return Err(Error::Internal("an answer could not be read".into()).into());
    };
    let answer = answer(parts.status, &parts.headers, &body);
    idempotency::finish(&world, &attempt, answer.as_ref()).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn answer(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Option<Answer> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| Some(value.to_str().ok()?.to_owned()));
    let body = String::from_utf8(body.to_vec()).ok()?;
    Some(Answer { status: status.as_u16(), content_type, body })
}

fn replay(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = (status, answer.body).into_response();
    response.headers_mut().remove(CONTENT_TYPE);
    if let Some(value) = answer.content_type.and_then(|text| HeaderValue::from_str(&text).ok()) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}
