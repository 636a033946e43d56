//! The client's body on its way to the app, watched for two facts: when it last moved, and whether it broke.
//!
//! The first lets a slow upload take its time while an app that says nothing is given up. The second tells a client
//! that went away from an app that did.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, sleep_until};

/// What is known about a body on its way.
pub(crate) struct Progress {
    started: Instant,
    moved_after_ms: AtomicU64,
    broken: AtomicBool,
}

/// A body that notes its progress. Without an inner one it is empty.
pub(crate) struct Upload {
    inner: Option<Incoming>,
    progress: Arc<Progress>,
}

impl Upload {
    pub(crate) fn new(inner: Incoming) -> Self {
        let progress = Progress {
            started: Instant::now(),
            moved_after_ms: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        };
        let inner = Some(inner).filter(|body| !body.is_end_stream());
        Self { inner, progress: Arc::new(progress) }
    }

    pub(crate) fn empty(progress: &Arc<Progress>) -> Self {
        Self { inner: None, progress: Arc::clone(progress) }
    }

    pub(crate) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }
}

impl Progress {
    /// The client's body ended before its end.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Returns when nothing has moved for so long.
    pub(crate) async fn stalled(&self, at_most: Duration) {
        loop {
            let moved = self.started + Duration::from_millis(self.moved_after_ms.load(Ordering::Relaxed));
            if moved.elapsed() >= at_most {
                return;
            }
            sleep_until(moved + at_most).await;
        }
    }

    fn moved(&self) {
        let elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_after_ms.store(elapsed_ms, Ordering::Relaxed);
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let polled = Pin::new(inner).poll_frame(cx);
        match &polled {
            // Trailers end here, as all headers that are about one connection do.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => {
                self.inner = None;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(_))) => self.progress.broken.store(true, Ordering::Relaxed),
            Poll::Ready(_) => self.progress.moved(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
