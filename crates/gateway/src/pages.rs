//! The gateway's own answers: what went wrong, whose it is, and how it is said to a person or to a program.

use std::error::Error;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

/// Whose a failure is: who has to do something about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Whose {
    Client,
    Upstream,
    Ours,
}

impl Whose {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Ours => "ours",
        }
    }
}

/// Why a request was not answered by the app.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("this method is not served here")]
    Method,
    #[error("this expectation cannot be met")]
    Expectation,
    #[error("the client left before it had sent its request")]
    ClientLeft,
    #[error("nobody lives at this address")]
    UnknownAddress,
    #[error("this tenant is suspended")]
    Suspended,
    #[error("this tenant is being worked on and was not ready in time")]
    HeldTooLong,
    #[error("connect to the app at {upstream}")]
    Unreachable { upstream: SocketAddr, source: hyper_util::client::legacy::Error },
    #[error("get an answer from the app at {upstream}")]
    Broken { upstream: SocketAddr, source: hyper_util::client::legacy::Error },
    #[error("the app at {upstream} switched to a protocol that nobody asked for")]
    UnwantedUpgrade { upstream: SocketAddr },
    #[error("the app at {upstream} did not answer in time")]
    TimedOut { upstream: SocketAddr },
    #[error("write the request for the app")]
    Unwritable,
}

impl Failure {
    pub(crate) fn whose(&self) -> Whose {
        match self {
            Self::BadRequest(_)
            | Self::Method
            | Self::Expectation
            | Self::ClientLeft
            | Self::UnknownAddress => Whose::Client,
            Self::Unreachable { .. }
            | Self::Broken { .. }
            | Self::UnwantedUpgrade { .. }
            | Self::TimedOut { .. } => Whose::Upstream,
            Self::Suspended | Self::HeldTooLong | Self::Unwritable => Whose::Ours,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::ClientLeft => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::UnknownAddress => StatusCode::NOT_FOUND,
            Self::Suspended | Self::HeldTooLong => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unreachable { .. } | Self::Broken { .. } | Self::UnwantedUpgrade { .. } => {
                StatusCode::BAD_GATEWAY
            }
            Self::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Unwritable => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The word for programs. It never changes.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::ClientLeft => "bad_request",
            Self::Method => "method_not_allowed",
            Self::Expectation => "expectation_failed",
            Self::UnknownAddress => "unknown_address",
            Self::Suspended => "suspended",
            Self::HeldTooLong => "held",
            Self::Unreachable { .. } | Self::Broken { .. } | Self::UnwantedUpgrade { .. } => {
                "app_unavailable"
            }
            Self::TimedOut { .. } => "app_timeout",
            Self::Unwritable => "internal",
        }
    }

    /// The sentence for people. It says nothing about what is behind the gateway.
    fn message(&self) -> &'static str {
        match self {
            Self::BadRequest(why) => why,
            Self::Method => "This method is not served here.",
            Self::Expectation => "This expectation cannot be met.",
            Self::ClientLeft => "The request ended before its end.",
            Self::UnknownAddress => "There is nothing at this address. Please check its spelling.",
            Self::Suspended => "This site is suspended. Its operator can tell you more.",
            Self::HeldTooLong => "This site is being worked on. Please try again in a moment.",
            Self::Unreachable { .. } | Self::Broken { .. } | Self::UnwantedUpgrade { .. } => {
                "The app behind this address does not answer. Please try again in a moment."
            }
            Self::TimedOut { .. } => "The app behind this address took too long to answer.",
            Self::Unwritable => "Something went wrong on our side.",
        }
    }

    /// Whether the connection cannot be trusted, or not be followed, after this request.
    fn ends_connection(&self) -> bool {
        matches!(self, Self::BadRequest(_) | Self::Method | Self::Expectation | Self::ClientLeft)
    }

    pub(crate) fn answer(&self, json: bool) -> Response<Bytes> {
        let (kind, text) = if json {
            let text = serde_json::json!({ "code": self.code(), "message": self.message() });
            ("application/json", text.to_string())
        } else {
            ("text/html; charset=utf-8", page(self.status(), self.message()))
        };
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(self, Self::HeldTooLong) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
        }
        if self.ends_connection() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// An error and what it came from, outermost first.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// An error with its causes, for a log.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A page that needs nothing else. Both texts are ours, so there is nothing to escape.
fn page(status: StatusCode, message: &str) -> String {
    let title = status.canonical_reason().unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:32rem;margin:20vh auto;padding:0 1rem}}</style>\n\
         </head><body><h1>{title}</h1><p>{message}</p></body></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_json_and_a_person_gets_a_page() {
        let json = Failure::Suspended.answer(true);
        assert_eq!(json.headers()[CONTENT_TYPE], "application/json");
        let body: serde_json::Value = serde_json::from_slice(json.body()).unwrap();
        assert_eq!(body["code"], "suspended");
        let page = Failure::Suspended.answer(false);
        assert!(page.headers()[CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
        assert!(page.body().starts_with(b"<!doctype html>"));
    }

    #[test]
    fn an_answer_says_nothing_about_what_is_behind_the_gateway() {
        let answer = Failure::TimedOut { upstream: ([10, 1, 2, 3], 8069).into() }.answer(false);
        assert!(!String::from_utf8_lossy(answer.body()).contains("10.1.2.3"));
    }
}
