//! Exports: everything about a tenant in one archive.

use std::io::{self, Read};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::{Extension, Json};
use futures_util::{Stream, stream};
use loomworks_control::db::exports::Export;
use loomworks_control::{World, exports};
use loomworks_core::ids::{ExportId, JobId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{Managing, Params, Reading};
use crate::places::Open;

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
    (status = 429, description = "You ask too often, or the tenant has two downloads open.", body = ProblemDetails),
))]
async fn download(
    State(world): State<World>,
    Managing(granted): Managing,
    Extension(open): Extension<Arc<Open>>,
    Params(InPath { export }): Params<InPath>,
) -> Result<Response, Problem> {
    let place = open.downloads.take(granted.tenant())?;
    let download = exports::open(&world, &granted, export).await?;
    let size_bytes = download.export.size_bytes.unwrap_or(0);
    let pieces = pieces(download.archive, place);
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

/// What can be read, piece by piece, until the end or an error. Each is read when the one before it was taken: a client
/// that does not read keeps a place, and no thread.
fn pieces<R: Read + Send + 'static>(
    from: R,
    place: impl Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::unfold(Some((from, place)), async |reading| {
        let (mut from, place) = reading?;
        let read = move || {
            let mut buffer = vec![0; PIECE_BYTES];
            let count = from.read(&mut buffer)?;
            buffer.truncate(count);
            io::Result::Ok((from, Bytes::from(buffer)))
        };
        match tokio::task::spawn_blocking(read).await.map_err(io::Error::other).flatten() {
            Ok((_, piece)) if piece.is_empty() => None,
            Ok((from, piece)) => Some((Ok(piece), Some((from, place)))),
            Err(error) => {
                tracing::error!(%error, "an export could not be read to its end");
                Some((Err(error), None))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::StreamExt;

    use super::*;

    /// A file that can be read so often, and counts how often it was.
    struct Counted {
        read: Arc<AtomicUsize>,
        times: usize,
    }

    impl Read for Counted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.read.fetch_add(1, Ordering::SeqCst) {
                read if read < self.times => Ok(buffer.len()),
                _ => Err(io::Error::other("damaged")),
            }
        }
    }

    #[tokio::test]
    async fn no_more_is_read_than_is_taken_and_the_place_is_given_back() {
        let (read, place) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let counted = || Counted { read: Arc::clone(&read), times: 2 };
        let mut unread = Box::pin(pieces(counted(), Arc::clone(&place)));
        assert_eq!(unread.next().await.expect("a piece").expect("bytes").len(), PIECE_BYTES);
        // Whoever else wants a thread has had it by now.
        tokio::task::spawn_blocking(|| ()).await.expect("a thread");
        assert_eq!((read.load(Ordering::SeqCst), Arc::strong_count(&place)), (1, 2));
        drop(unread);
        assert_eq!(Arc::strong_count(&place), 1);

        read.store(0, Ordering::SeqCst);
        let all: Vec<_> = pieces(counted(), Arc::clone(&place)).collect().await;
        assert_eq!(all.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false]);
        let whole: Vec<_> = pieces(&b"content"[..], ()).collect().await;
        assert_eq!(whole.into_iter().map(Result::unwrap).collect::<Vec<_>>(), ["content"]);
    }
}
