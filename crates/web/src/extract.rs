//! What a handler is handed: the caller, the body, the path, each with an error that says what was wrong.

use std::time::Duration;

use axum::body::{Body as Stream, Bytes, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use loomworks_control::access::{self, Caller, Granted, Operator, Permission};
use loomworks_control::page::Asked;
use loomworks_control::{Error, World};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::admit::Sender;
use crate::client::{self, Client};
use crate::credential::Credential;
use crate::error::Problem;
use crate::strict::{self, Refused};
use crate::{BODY_BYTES_MAX, REQUEST_ID};

/// Names the request, and tells the name in the answer and in every log line about it.
pub(crate) async fn name_request(request: Request, next: Next) -> Response {
    let id = uuid::Uuid::new_v4().to_string();
    let Client(address) = client::of(request.extensions());
    let origin = format!("{address} request {id}");
    let answered = crate::error::with_request_id(id.clone(), next.run(request));
    let mut response = loomworks_control::audit::with_origin(origin, answered).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Whoever has shown who he is.
pub(crate) struct Authenticated(pub(crate) Caller);

impl FromRequestParts<World> for Authenticated {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &World) -> Result<Self, Problem> {
        let sender = parts.extensions.get::<Sender>().cloned();
        Ok(Self(sender.ok_or(Error::Unauthenticated)?.0))
    }
}

/// What the sender has shown, to be looked at again later.
pub(crate) struct Shown(pub(crate) Credential);

impl FromRequestParts<World> for Shown {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &World) -> Result<Self, Problem> {
        Ok(Self(parts.extensions.get::<Credential>().cloned().ok_or(Error::Unauthenticated)?))
    }
}

// Where a handler wants an operator for a tenant, it asks for the right to the tenant first: to those of other tenants
// there is none, and that is all that they hear.

/// An operator who may see everything.
pub(crate) struct OperatorReading(pub(crate) Operator);

/// An operator who may change everything.
pub(crate) struct AsOperator(pub(crate) Operator);

/// A caller who may see the things of the tenant that the path's `{tenant}` names.
pub(crate) struct Reading(pub(crate) Granted);

/// A caller who may do with that tenant what can be taken back.
pub(crate) struct Working(pub(crate) Granted);

/// A caller who may do with that tenant what cannot be taken back.
pub(crate) struct Managing(pub(crate) Granted);

macro_rules! rights {
    ($($extractor:ident: $right:ident, $permission:expr;)*) => {$(
        impl FromRequestParts<World> for $extractor {
            type Rejection = Problem;

            async fn from_request_parts(parts: &mut Parts, world: &World) -> Result<Self, Problem> {
                Ok(Self($right(parts, world, $permission).await?))
            }
        }
    )*};
}

rights! {
    OperatorReading: operator, Permission::Read;
    AsOperator: operator, Permission::Manage;
    Reading: tenant, Permission::Read;
    Working: tenant, Permission::Work;
    Managing: tenant, Permission::Manage;
}

async fn operator(parts: &mut Parts, world: &World, permission: Permission) -> Result<Operator, Problem> {
    let Authenticated(caller) = Authenticated::from_request_parts(parts, world).await?;
    Ok(access::operator(&caller, permission)?)
}

async fn tenant(parts: &mut Parts, world: &World, permission: Permission) -> Result<Granted, Problem> {
    #[derive(serde::Deserialize)]
    struct InPath {
        tenant: String,
    }
    let Authenticated(caller) = Authenticated::from_request_parts(parts, world).await?;
    let Params(InPath { tenant }) = Params::from_request_parts(parts, world).await?;
    Ok(access::tenant(&world.db, &caller, &tenant, permission).await?)
}

/// The parts of the path.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<World> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, world: &World) -> Result<Self, Problem> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, world).await;
        path.map(|path| Self(path.0)).map_err(|error: PathRejection| {
            // An id that cannot be one is an id of nothing.
            if error.status().is_client_error() {
                Problem::not_found("such thing")
            } else {
                Error::Internal(error.to_string()).into()
            }
        })
    }
}

/// The query after the path.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<World> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, world: &World) -> Result<Self, Problem> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, world).await;
        query
            .map(|query| Self(query.0))
            .map_err(|error: QueryRejection| Problem::bad_query(error.body_text()))
    }
}

/// The part of a list that is asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    /// How many items a page has, 1 to 1000. 100 if left out.
    #[param(minimum = 1, maximum = 1000, example = 100)]
    limit: Option<i64>,
    /// `next_cursor` of the page before. The first page if left out.
    cursor: Option<String>,
}

impl PageQuery {
    pub(crate) fn asked<K: DeserializeOwned + Serialize>(&self) -> Result<Asked<K>, Problem> {
        Ok(Asked::new(self.limit, self.cursor.as_deref())?)
    }
}

/// How long a client may take to send a body.
pub(crate) const WHOLE_WITHIN: Duration = Duration::from_secs(30);

/// All of a body, if it is not too large and comes in time.
pub(crate) async fn whole(body: Stream, within: Duration) -> Result<Bytes, Problem> {
    match tokio::time::timeout(within, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(read) => read.map_err(|_| Problem::too_large()),
        Err(_) => Err(Problem::body_too_slow()),
    }
}

/// The JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequest<World> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &World) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::unsupported_media_type());
        }
        let text = whole(request.into_body(), WHOLE_WITHIN).await?;
        let value = strict::parse(&text).map_err(|refused| match refused {
            Refused::Syntax(message) => Problem::bad_json(message),
            Refused::Content(message) => Problem::bad_body(message),
        })?;
        // A list would be taken for an object's fields in their order.
        if !value.is_object() {
            return Err(Problem::bad_body("a body is a JSON object"));
        }
        serde_json::from_value(value).map(Self).map_err(Problem::bad_body)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type == "application/json"
        || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::response::IntoResponse;

    use super::*;

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let body = || Stream::from_stream(futures_util::stream::pending::<std::io::Result<Bytes>>());
        let refused = whole(body(), Duration::from_millis(1)).await.err().unwrap();
        assert_eq!(refused.into_response().status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(whole(Stream::from("{}"), WHOLE_WITHIN).await.unwrap(), "{}");
        let large = whole(Stream::from(vec![0; BODY_BYTES_MAX + 1]), WHOLE_WITHIN).await.err().unwrap();
        assert_eq!(large.into_response().status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
