//! Errors as clients see them: one envelope, in one place.

use std::collections::BTreeSet;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use loomworks_control::error::chain;
use loomworks_control::{Error, audit};
use loomworks_undo::UndoError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// What went wrong (`application/problem+json`, RFC 9457, with a machine's code and a person's hint).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// Names the kind of problem; the same as `code`, as a URI.
    #[serde(rename = "type", default)]
    #[schema(example = "urn:loomworks:problem:not_found")]
    pub kind: String,
    /// The kind of problem in a few words.
    #[serde(default)]
    #[schema(example = "Not Found")]
    pub title: String,
    #[schema(example = 404)]
    pub status: u16,
    /// For machines: `not_found`, `conflict`, …
    #[schema(example = "not_found")]
    pub code: String,
    /// For people.
    #[schema(example = "there is no such tenant")]
    pub message: String,
    /// What a person can do about it.
    pub hint: Option<String>,
    /// For an undo that was refused: the rows that stand in its way.
    #[schema(value_type = Option<Vec<Object>>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflicts: Option<Value>,
    pub request_id: String,
}

/// An error on its way to the client.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: Option<String>,
    conflicts: Option<Box<Value>>,
    /// What the log is told and the client is not.
    internal: Option<String>,
    /// When to ask again, in seconds.
    retry_after: Option<u64>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        let message = message.to_string();
        Self { status, code, message, hint: None, conflicts: None, internal: None, retry_after: None }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what}"))
    }

    /// A request that a browser may have been made to send by another site's page.
    pub(crate) fn csrf(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "csrf", message).with_hint(
            "send `X-Loomworks-CSRF` with the `csrf_token` of /v1/auth/me, from the console's own address",
        )
    }

    pub(crate) fn method_not_allowed() -> Self {
        let message = "this address does not take that method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    pub(crate) fn not_ready(reason: String) -> Self {
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", reason);
        problem.hint = Some("the program tries again by itself; its log says more".into());
        problem
    }

    pub(crate) fn bad_query(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_query", error)
    }

    pub(crate) fn unknown_query(name: &str, taken: &BTreeSet<String>) -> Self {
        let name: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
        let problem = Self::bad_query(format!("there is no query parameter `{name}` here"));
        let taken = taken.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        problem.with_hint(if taken.is_empty() {
            "there is none at all".into()
        } else {
            format!("there is {taken}")
        })
    }

    /// The body is not JSON.
    pub(crate) fn bad_json(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", error)
    }

    /// The body is JSON, but not what is taken here.
    pub(crate) fn bad_body(error: impl ToString) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", error)
    }

    pub(crate) fn unsupported_media_type() -> Self {
        let message = "a body is sent as `Content-Type: application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    pub(crate) fn too_large() -> Self {
        let message = format!("a body has at most {} bytes", crate::BODY_BYTES_MAX);
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// Reading it was given up.
    pub(crate) fn body_too_slow() -> Self {
        let message = "the body did not come in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message).with_hint("send it at once")
    }

    /// The caller has as much open as one may have.
    pub(crate) fn too_many_open(what: &str, most: usize, retry_after: u64) -> Self {
        let message = format!("you have {most} {what} open, and may have no more at a time");
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_open", message);
        Self { retry_after: Some(retry_after), ..problem }.with_hint("wait until one of them has ended")
    }

    /// All callers together have.
    pub(crate) fn all_taken(what: &str, retry_after: u64) -> Self {
        let message = format!("the platform has as many {what} open as it can at a time");
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message);
        Self { retry_after: Some(retry_after), ..problem }.with_hint("ask again in a while")
    }

    pub(crate) fn bad_idempotency_key(length_max: usize) -> Self {
        let message =
            format!("an idempotency key has 1 to {length_max} visible ASCII characters, and there is one");
        Self::new(StatusCode::BAD_REQUEST, "invalid_idempotency_key", message).with_hint("take a random UUID")
    }

    pub(crate) fn idempotency_key_reused() -> Self {
        let message = "this idempotency key was used for another request";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", message)
            .with_hint("take a new key for each request, and the same only to repeat one exactly")
    }

    pub(crate) fn idempotency_running() -> Self {
        let message = "the same request is being carried out";
        let problem = Self::new(StatusCode::CONFLICT, "idempotency_key_in_use", message);
        Self { retry_after: Some(1), ..problem }.with_hint("ask again in a second for its answer")
    }

    pub(crate) fn too_many_idempotency_keys(most: i64) -> Self {
        let message = format!("you have used {most} idempotency keys within a day");
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_idempotency_keys", message);
        Self { retry_after: Some(3600), ..problem }.with_hint(
            "each is kept for a day: send those requests without one that may be carried out twice",
        )
    }

    pub(crate) fn idempotency_answer_lost() -> Self {
        let message = "this was done, but its answer was lost when the platform was stopped";
        Self::new(StatusCode::CONFLICT, "idempotency_answer_lost", message)
            .with_hint("look at the list for what was made; a secret that was shown once has to be made anew")
    }
}

/// What a person can do, where nothing more exact is known.
fn usual_hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            "what is taken here is described in /v1/openapi.json"
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => "every address is in /v1/openapi.json",
        StatusCode::CONFLICT => "look at its present state, then ask again if it is still wanted",
        StatusCode::PAYLOAD_TOO_LARGE => "send less at once",
        _ => "see /v1/openapi.json",
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (status, code) = match &error {
            Error::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Error::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Error::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated"),
            Error::Forbidden => (StatusCode::FORBIDDEN, "forbidden"),
            Error::LoginRefused { .. } => (StatusCode::UNAUTHORIZED, "login_refused"),
            Error::Conflict { .. } => (StatusCode::CONFLICT, "conflict"),
            Error::Throttled { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Error::CannotRestore(_) => (StatusCode::UNPROCESSABLE_ENTITY, "cannot_restore"),
            Error::Undo(undo) => undo_status(undo),
            _ if error.is_value_refused() => (StatusCode::UNPROCESSABLE_ENTITY, "not_taken"),
            _ if error.is_busy() => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        if status == StatusCode::UNPROCESSABLE_ENTITY && code == "not_taken" {
            // A check of ours that is missing: the database has caught it, and somebody should look.
            tracing::warn!(error = chain(&error), "the database refused a value that came from outside");
            return Self::new(status, "invalid", "a value in the request is out of range");
        }
        if status.is_server_error() {
            let mut problem = Self::new(status, code, "something went wrong on our side");
            problem.hint = Some("the operator finds it in the log by the request's id".into());
            problem.internal = Some(chain(&error));
            problem.retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(5);
            return problem;
        }
        let mut problem = Self::new(status, code, &error);
        problem.hint = error.hint();
        if let Error::Throttled { seconds } = error {
            problem.retry_after = Some(seconds);
        }
        if let Error::Undo(UndoError::Conflicts(conflicts)) = &error {
            problem.conflicts = serde_json::to_value(conflicts).ok().map(Box::new);
        }
        problem
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let request_id = request_id();
        if let Some(internal) = &self.internal {
            tracing::error!(request_id, error = internal, "request {request_id} failed: {internal}");
        }
        let details = ProblemDetails {
            kind: format!("urn:loomworks:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Problem").to_owned(),
            status: self.status.as_u16(),
            code: self.code.to_owned(),
            message: self.message,
            hint: self.hint.or_else(|| Some(usual_hint(self.status).to_owned())),
            conflicts: self.conflicts.map(|conflicts| *conflicts),
            request_id,
        };
        let mut response = (self.status, Json(details)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

tokio::task_local! {
    /// The request that the present task answers: an error is made far from the request it belongs to.
    static REQUEST: String;
}

/// Runs what answers a request under its id.
pub(crate) async fn with_request_id<T>(id: String, answer: impl Future<Output = T>) -> T {
    REQUEST.scope(id, answer).await
}

/// Lets a task of its own run as the request that starts it.
pub(crate) fn in_request<T>(answer: impl Future<Output = T>) -> impl Future<Output = T> {
    audit::with_origin(audit::origin(), with_request_id(request_id(), answer))
}

/// The id of the request that the present task answers.
pub(crate) fn request_id() -> String {
    REQUEST.try_with(Clone::clone).unwrap_or_default()
}

fn undo_status(error: &UndoError) -> (StatusCode, &'static str) {
    match error {
        UndoError::Unknown(_) => (StatusCode::NOT_FOUND, "not_found"),
        UndoError::AlreadyUndone { .. } => (StatusCode::CONFLICT, "already_undone"),
        UndoError::Conflicts(_) => (StatusCode::CONFLICT, "undo_conflict"),
        UndoError::Refused { .. } => (StatusCode::CONFLICT, "undo_refused"),
        UndoError::NotRowByRow { .. } | UndoError::ColumnChanged { .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "not_row_by_row")
        }
        UndoError::Database(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}
