//! What a handler is handed: the caller, the body, the path, each with an error that says what was wrong.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::HeaderValue;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use loomworks_control::access::{self, Caller, Granted, Operator};
use loomworks_control::{Error, World, keys};
use serde::de::DeserializeOwned;

use crate::REQUEST_ID;
use crate::error::Problem;

/// Names the request, and tells the name in the answer and in every log line about it.
pub(crate) async fn name_request(request: Request, next: Next) -> Response {
    let id = uuid::Uuid::new_v4().to_string();
    let mut response = crate::error::with_request_id(id.clone(), next.run(request)).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Whoever holds the API key of the request.
pub(crate) struct Authenticated(pub(crate) Caller);

impl FromRequestParts<World> for Authenticated {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, world: &World) -> Result<Self, Problem> {
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = header.and_then(|text| text.strip_prefix("Bearer ")).ok_or(Error::Unauthenticated)?;
        Ok(Self(keys::authenticate(world, key.trim()).await?))
    }
}

/// A caller who may act for the whole platform.
pub(crate) struct AsOperator(pub(crate) Operator);

impl FromRequestParts<World> for AsOperator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, world: &World) -> Result<Self, Problem> {
        let Authenticated(caller) = Authenticated::from_request_parts(parts, world).await?;
        Ok(Self(access::operator(&caller)?))
    }
}

/// A caller who may act for the tenant that the path's `{tenant}` names.
pub(crate) struct ForTenant(pub(crate) Granted);

impl FromRequestParts<World> for ForTenant {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, world: &World) -> Result<Self, Problem> {
        #[derive(serde::Deserialize)]
        struct InPath {
            tenant: String,
        }
        let Authenticated(caller) = Authenticated::from_request_parts(parts, world).await?;
        let Params(InPath { tenant }) = Params::from_request_parts(parts, world).await?;
        Ok(Self(access::tenant(&world.db, &caller, &tenant).await?))
    }
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
                Problem::bad_request(error)
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
        query.map(|query| Self(query.0)).map_err(|error: QueryRejection| Problem::bad_request(error))
    }
}

/// The JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequest<World> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, world: &World) -> Result<Self, Problem> {
        let body = axum::Json::<T>::from_request(request, world).await;
        body.map(|body| Self(body.0)).map_err(|error: JsonRejection| Problem::bad_body(&error))
    }
}
