//! Accepting connections, and letting go of them gracefully.
//!
//! A gateway is bound first, so that its address is known, and then serves until it is told to stop. Stopping
//! means: no new connections, idle ones are closed, requests that have begun are finished, for a bounded time.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Settings;
use crate::feed::{self, Feed};
use crate::framing::{HEAD_SIZE_MAX, StrictHeads};
use crate::hold::{Status, Tables};
use crate::pages::chain;
use crate::proxy::Proxy;

/// A client has so long to send a whole head, and a kept-alive connection may be idle so long.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
const HEADERS_MAX: usize = 100;
/// Requests that have begun get so long to end when the gateway stops.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// How long accepting pauses when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A gateway that listens and does not serve yet.
pub struct Gateway {
    listener: TcpListener,
    address: SocketAddr,
    tables: Arc<Tables>,
    feed: Feed,
    proxy: Arc<Proxy>,
    stopping: watch::Sender<bool>,
}

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("read the kept route table")]
    Kept(#[from] tokio::task::JoinError),
}

/// Sees what a gateway is doing while it serves.
#[derive(Clone)]
pub struct Observer(Arc<Tables>);

impl Observer {
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.status()
    }
}

impl Gateway {
    /// Takes the address and the table that an earlier run kept.
    pub async fn bind(settings: Settings) -> Result<Self, GatewayError> {
        let Settings { listen, base_domains, control, routes_file, hold_max, name } = settings;
        let file = routes_file.clone();
        let kept = tokio::task::spawn_blocking(move || feed::kept(&file)).await?;
        let tables = Arc::new(Tables::new(kept));
        let failed = |source| GatewayError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stopping, stops) = watch::channel(false);
        let feed = Feed::new(control, Arc::clone(&tables), routes_file, name);
        let proxy = Arc::new(Proxy::new(base_domains, Arc::clone(&tables), hold_max, stops));
        Ok(Self { listener, address, tables, feed, proxy, stopping })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn observer(&self) -> Observer {
        Observer(Arc::clone(&self.tables))
    }

    /// Serves until `shutdown`, then drains. The feed goes on while connections drain, because a request that waits
    /// for a held tenant needs the table that releases it.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, address, feed, proxy, stopping, .. } = self;
        tracing::info!(%address, "the gateway serves");
        let mut connections = JoinSet::new();
        let mut helpers = JoinSet::new();
        helpers.spawn(feed.run());
        let accepting = async {
            loop {
                match listener.accept().await {
                    Ok((stream, client)) => {
                        connections.spawn(connection(
                            Arc::clone(&proxy),
                            stream,
                            client,
                            stopping.subscribe(),
                        ));
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
            () = shutdown => {}
            () = accepting => {}
        }
        drop(listener);
        tracing::info!(connections = connections.len(), "the gateway stops and drains its connections");
        stopping.send_replace(true);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
            tracing::warn!(
                connections = connections.len(),
                "some connections did not end in time and are cut"
            );
        }
        connections.shutdown().await;
        helpers.shutdown().await;
        tracing::info!("the gateway has stopped");
    }
}

/// One client's connection. Every request on it is routed on its own.
async fn connection(
    proxy: Arc<Proxy>,
    stream: TcpStream,
    client: SocketAddr,
    mut stopping: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%client, %error, "the connection was gone before it began");
        return;
    }
    let service = service_fn(|request| Arc::clone(&proxy).serve(client.ip(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_SIZE_MAX)
        .serve_connection(TokioIo::new(StrictHeads::new(stream)), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told_to_stop(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // A connection fails when its client leaves, stalls or sends nonsense, which is no news to anybody here.
    if let Err(error) = ended {
        tracing::debug!(%client, error = chain(&error), fault = "client", "a connection failed");
    }
}

pub(crate) async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    // A sender that is gone has stopped, too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
