//! Errors as clients see them: one envelope, in one place.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use loomworks_control::Error;
use loomworks_control::error::chain;
use loomworks_undo::UndoError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// What went wrong (`application/problem+json`, RFC 9457, with a machine's code and a person's hint).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    pub status: u16,
    /// For machines: `not_found`, `conflict`, …
    pub code: String,
    /// For people.
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
    conflicts: Option<Value>,
    /// What the log is told and the client is not.
    internal: Option<String>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, code, message: message.to_string(), hint: None, conflicts: None, internal: None }
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what}"))
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this address does not take that method",
        )
    }

    pub(crate) fn bad_request(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", error)
    }

    pub(crate) fn bad_body(error: &JsonRejection) -> Self {
        let status = error.status();
        let mut problem = Self::new(status, "invalid", error.body_text());
        problem.hint = Some("the body is JSON as /v1/openapi.json describes it".into());
        problem
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (status, code) = match &error {
            Error::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Error::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Error::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated"),
            Error::Forbidden => (StatusCode::FORBIDDEN, "forbidden"),
            Error::Conflict { .. } => (StatusCode::CONFLICT, "conflict"),
            Error::CannotRestore(_) => (StatusCode::UNPROCESSABLE_ENTITY, "cannot_restore"),
            Error::Undo(undo) => undo_status(undo),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        if status.is_server_error() {
            let mut problem = Self::new(status, code, "something went wrong on our side");
            problem.hint = Some("the operator finds it in the log by the request's id".into());
            problem.internal = Some(chain(&error));
            return problem;
        }
        let mut problem = Self::new(status, code, &error);
        problem.hint = error.hint();
        if let Error::Undo(UndoError::Conflicts(conflicts)) = &error {
            problem.conflicts = serde_json::to_value(conflicts).ok();
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
            status: self.status.as_u16(),
            code: self.code.to_owned(),
            message: self.message,
            hint: self.hint,
            conflicts: self.conflicts,
            request_id,
        };
        let mut response = (self.status, Json(details)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
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

fn request_id() -> String {
    REQUEST.try_with(Clone::clone).unwrap_or_default()
}

fn undo_status(error: &UndoError) -> (StatusCode, &'static str) {
    match error {
        UndoError::Unknown(_) => (StatusCode::NOT_FOUND, "not_found"),
        UndoError::AlreadyUndone { .. } => (StatusCode::CONFLICT, "already_undone"),
        UndoError::Conflicts(_) => (StatusCode::CONFLICT, "undo_conflict"),
        UndoError::NotRowByRow { .. } | UndoError::ColumnChanged { .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "not_row_by_row")
        }
        UndoError::Database(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}
