//! A control plane that speaks the feed's protocol and can be told to stop.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use loomworks_core::route::{Acknowledgement, RouteTable};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) const TOKEN: &str = "the gateway's token";

pub(crate) struct Control {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    server: Mutex<JoinSet<()>>,
}

struct State {
    table: watch::Sender<RouteTable>,
    /// The highest generation that each gateway has acknowledged.
    acknowledged: watch::Sender<HashMap<String, i64>>,
}

impl Control {
    pub(crate) async fn start(table: RouteTable) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state =
            Arc::new(State { table: watch::Sender::new(table), acknowledged: watch::Sender::default() });
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&state)));
        Self { address, state, server: Mutex::new(server) }
    }

    /// Publishes the present table with a change, under the next generation, which it returns.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut RouteTable)) -> i64 {
        let mut generation = 0;
        self.state.table.send_modify(|table| {
            change(table);
            table.generation += 1;
            generation = table.generation;
        });
        generation
    }

    /// Waits until this gateway has acknowledged this generation.
    pub(crate) async fn acknowledged(&self, gateway: &str, generation: i64) {
        let reached = |all: &HashMap<String, i64>| all.get(gateway).is_some_and(|seen| *seen >= generation);
        self.state.acknowledged.subscribe().wait_for(reached).await.unwrap();
    }

    pub(crate) fn has_acknowledged(&self, gateway: &str) -> Option<i64> {
        self.state.acknowledged.borrow().get(gateway).copied()
    }

    /// Dies: it answers nobody, and its connections break.
    pub(crate) fn stop(&self) {
        *self.server.lock().unwrap() = JoinSet::new();
    }

    pub(crate) async fn come_back(&self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.server.lock().unwrap().spawn(serve(listener, Arc::clone(&self.state)));
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(|request| answer(Arc::clone(&state), request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let says = |status| Ok(Response::builder().status(status).body(Full::default()).unwrap());
    if request.headers().get("authorization").is_none_or(|value| *value != format!("Bearer {TOKEN}")) {
        return says(StatusCode::UNAUTHORIZED);
    }
    let target = request.uri().to_string();
    if let Some(newer_than) = target.strip_prefix("/v1/internal/routes?newer_than=") {
        let newer_than: i64 = newer_than.parse().unwrap();
        let mut tables = state.table.subscribe();
        let newer = tables.wait_for(|table| table.generation > newer_than);
        return match tokio::time::timeout(Duration::from_secs(20), newer).await {
            Ok(table) => Ok(Response::new(serde_json::to_vec(&*table.unwrap()).unwrap().into())),
            Err(_) => says(StatusCode::NO_CONTENT),
        };
    }
    if (request.method(), target.as_str()) == (&Method::POST, "/v1/internal/gateways") {
        let body = request.collect().await.unwrap().to_bytes();
        let Acknowledgement { gateway, generation } = serde_json::from_slice(&body).unwrap();
        state.acknowledged.send_modify(|all| {
            let highest = all.entry(gateway).or_insert(generation);
            *highest = generation.max(*highest);
        });
        return says(StatusCode::NO_CONTENT);
    }
    says(StatusCode::NOT_FOUND)
}
