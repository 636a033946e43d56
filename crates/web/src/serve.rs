//! The API's listener: so many connections at a time, none of which keeps its place by doing nothing.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Sleep;

/// How long accepting pauses when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long requests that have begun may take after the end was told. A gateway's question is kept open for up to 20
/// seconds: it must not hold up the end.
const DRAIN: Duration = Duration::from_secs(1);

/// What a connection is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Connections at a time. Those beyond wait to be accepted.
    pub connections: usize,
    /// A client has so long to send a whole head, and a kept-alive connection may be idle so long.
    pub head: Duration,
    /// A client that takes nothing of its answer for so long has gone away.
    pub stalled: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connections: 512, head: Duration::from_secs(30), stalled: Duration::from_secs(60) }
    }
}

/// Serves until `stopped`, and then lets what has begun end, for a moment.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    patience: Patience,
    stopped: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(patience.connections));
    let (stopping, stops) = watch::channel(false);
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, client)) => {
                    let connection = connection(router.clone(), stream, client, patience, stops.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = stopped => {}
        () = accepting => {}
    }
    drop(listener);
    stopping.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    // What has not ended by then is cut off with the set.
    let _ = tokio::time::timeout(DRAIN, drained).await;
}

async fn connection(
    router: Router,
    stream: TcpStream,
    client: SocketAddr,
    patience: Patience,
    mut stops: watch::Receiver<bool>,
) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(client));
        router.call(request)
    });
    let stream = Moving { stream, stalled_after: patience.stalled, deadline: None };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told_to_stop(&mut stops) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // A connection fails when its client leaves, stalls or sends nonsense, which is no news to anybody here.
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "a connection failed");
    }
}

async fn told_to_stop(stops: &mut watch::Receiver<bool>) {
    // A sender that is gone has stopped, too.
    let _ = stops.wait_for(|stops| *stops).await;
}

/// A connection that is broken when its other end takes nothing for too long.
struct Moving {
    stream: TcpStream,
    stalled_after: Duration,
    /// When it has stalled, while something waits to be taken.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Moving {
    fn watched(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let stalled_after = self.stalled_after;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(stalled_after)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Moving {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Moving {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watched(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::stream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    use super::*;

    /// Serves this until the test ends.
    async fn served(router: Router, patience: Patience) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(serve(listener, router, patience, std::future::pending()));
        address
    }

    #[tokio::test]
    async fn whoever_does_not_send_a_whole_head_is_let_go_and_makes_place_for_another() {
        let patience = Patience { connections: 1, head: Duration::from_millis(50), ..Patience::default() };
        let address = served(Router::new().route("/", get(async || "well")), patience).await;
        let mut slow = TcpStream::connect(address).await.expect("connect");
        slow.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").await.expect("write");
        let mut other = TcpStream::connect(address).await.expect("connect");
        other.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("write");
        let mut answer = String::new();
        other.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.ends_with("well"), "{answer}");
        let mut rest = Vec::new();
        let _ = slow.read_to_end(&mut rest).await;
        assert!(!String::from_utf8_lossy(&rest).contains("200"));
    }

    /// What an answer holds on to.
    struct Held(mpsc::UnboundedSender<()>);

    impl Drop for Held {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    #[tokio::test]
    async fn whoever_does_not_read_his_answer_is_let_go_with_all_that_it_holds() {
        let (tell, mut ended) = mpsc::unbounded_channel();
        let endless = get(async move || {
            let (piece, held) = (Bytes::from(vec![0; 64 * 1024]), Held(tell));
            Body::from_stream(stream::unfold(held, move |held| {
                let piece = piece.clone();
                async { Some((io::Result::Ok(piece), held)) }
            }))
        });
        let patience = Patience { stalled: Duration::from_millis(50), ..Patience::default() };
        let address = served(Router::new().route("/", endless), patience).await;
        let mut client = TcpStream::connect(address).await.expect("connect");
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("write");
        let mut head = [0; 16];
        client.read_exact(&mut head).await.expect("an answer");
        // It takes no more, and stays.
        ended.recv().await.expect("the answer was given up");
        drop(client);
    }
}
