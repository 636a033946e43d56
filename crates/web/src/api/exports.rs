//! Exports: everything about a tenant in one archive.

use std::io::Read;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use futures_util::stream;
use loomworks_control::db::exports::Export;
use loomworks_control::{World, exports};
use loomworks_core::ids::{ExportId, JobId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{Managing, Params, Reading};

/// What is read, decrypted and sent at a time.
const PIECE_BYTES: usize = 64 * 1024;

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(download))
}

/// An export that is being made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExportCreated {
    pub export: Export,
    /// Follow it at `/v1/jobs/{job}`: the export can be downloaded when it has succeeded.
    #[schema(value_type = uuid::Uuid)]
    pub job: JobId,
}

#[derive(Deserialize)]
struct InPath {
    export: ExportId,
}

/// Make an archive of everything about the tenant: its database, its operation log, the platform's rows about it.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/exports", tag = "exports", params(("tenant" = String, Path)),
    responses(
    (status = 202, body = ExportCreated),
    (status = 404, description = "There is no such tenant, or none that you may see.", body = ProblemDetails),
    (status = 409, description = "One is being made, or the tenant is.", body = ProblemDetails),
))]
async fn create(
    State(world): State<World>,
    Managing(granted): Managing,
) -> Result<(StatusCode, Json<ExportCreated>), Problem> {
    let (export, job) = exports::request(&world, &granted).await?;
    Ok((StatusCode::ACCEPTED, Json(ExportCreated { export, job })))
}

/// A tenant's exports, newest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/exports", tag = "exports", params(("tenant" = String, Path)),
    responses((status = 200, body = Vec<Export>)))]
async fn list(State(world): State<World>, Reading(granted): Reading) -> Result<Json<Vec<Export>>, Problem> {
    Ok(Json(exports::list(&world, &granted).await?))
}

/// Download an export: a tar archive, compressed with Zstandard. Its `manifest.json` has the checksums of the others.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/exports/{export}/download", tag = "exports",
    params(("tenant" = String, Path), ("export" = uuid::Uuid, Path)), responses(
    (status = 200, description = "The archive.", body = Vec<u8>, content_type = "application/zstd"),
    (status = 404, description = "There is none.", body = ProblemDetails),
    (status = 409, description = "It is not ready, or its time is over.", body = ProblemDetails),
))]
async fn download(
    State(world): State<World>,
    Managing(granted): Managing,
    Params(InPath { export }): Params<InPath>,
) -> Result<Response, Problem> {
    let download = exports::open(&world, &granted, export).await?;
    let size_bytes = download.export.size_bytes.unwrap_or(0);
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || send(download.archive, &sender));
    let pieces = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/zstd"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size_bytes));
    let disposition = format!("attachment; filename=\"export-{export}.tar.zst\"");
    if let Ok(disposition) = HeaderValue::from_str(&disposition) {
        headers.insert(CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

/// Sends what can be read, piece by piece, until the end, an error, or nobody listens.
fn send(mut from: impl Read, to: &mpsc::Sender<std::io::Result<Bytes>>) {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let piece = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
            Err(error) => {
                tracing::error!(%error, "an export could not be read to its end");
                Err(error)
            }
        };
        let broken = piece.is_err();
        if to.blocking_send(piece).is_err() || broken {
            return;
        }
    }
}
