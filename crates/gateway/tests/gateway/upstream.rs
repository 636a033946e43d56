//! An app that writes down what it receives.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// One request as the app saw it: the tenant it was told, the path, all headers, the body's length.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) tenant: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body_bytes: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// What a test may ask of the app while it runs.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    _server: JoinSet<()>,
}

struct State {
    seen: Mutex<Vec<Seen>>,
    /// `/slow` waits for a permit before it answers.
    slow: Semaphore,
    busy: watch::Sender<usize>,
    /// A request of this tenant is a mistake and is noted as one.
    forbidden: Mutex<Option<String>>,
    mistakes: Mutex<Vec<String>>,
}

pub(crate) const BIG_BYTES: usize = 20 * 1024 * 1024;

impl Upstream {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            seen: Mutex::default(),
            slow: Semaphore::new(0),
            busy: watch::Sender::new(0),
            forbidden: Mutex::default(),
            mistakes: Mutex::default(),
        });
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&state)));
        Self { address, state, _server: server }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub(crate) fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen[0].clone()
    }

    /// Lets one waiting `/slow` answer.
    pub(crate) fn release_slow(&self) {
        self.state.slow.add_permits(1);
    }

    /// Waits until so many requests are being worked on.
    pub(crate) async fn busy(&self, count: usize) {
        self.state.busy.subscribe().wait_for(|busy| *busy == count).await.unwrap();
    }

    /// From now on nothing of this tenant may be here, and nothing may come.
    pub(crate) fn forbid(&self, tenant: &str) {
        let busy = *self.state.busy.borrow();
        if busy > 0 {
            self.state.mistakes.lock().unwrap().push(format!("{busy} requests were in flight"));
        }
        *self.state.forbidden.lock().unwrap() = Some(tenant.to_owned());
    }

    pub(crate) fn allow(&self) {
        *self.state.forbidden.lock().unwrap() = None;
    }

    pub(crate) fn mistakes(&self) -> Vec<String> {
        self.state.mistakes.lock().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(|request| answer(Arc::clone(&state), request));
            let server = hyper::server::conn::http1::Builder::new();
            let _ = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
    }
}

/// Counts a request while it is worked on.
struct Busy(Arc<State>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.send_modify(|busy| *busy -= 1);
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(state: Arc<State>, mut request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    state.busy.send_modify(|busy| *busy += 1);
    let _busy = Busy(Arc::clone(&state));
    let path = request.uri().path().to_owned();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: Vec<_> =
        request.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let tenant = request.headers().get("x-loomworks-tenant").map(text).unwrap_or_default();
    if state.forbidden.lock().unwrap().as_ref() == Some(&tenant) {
        state.mistakes.lock().unwrap().push(format!("{path} came"));
    }
    let upgrade = (path == "/upgrade").then(|| hyper::upgrade::on(&mut request));
    let body = request.collect().await?;
    assert!(body.trailers().is_none(), "trailers came through");
    let body = body.to_bytes();
    let body_bytes = body.len();
    state.seen.lock().unwrap().push(Seen { tenant: tenant.clone(), path: path.clone(), headers, body_bytes });

    let mut response = Response::new(full(format!("hello {tenant}")));
    match path.as_str() {
        "/brief" => tokio::time::sleep(Duration::from_millis(2)).await,
        "/slow" => state.slow.acquire().await.unwrap().forget(),
        "/big" => {
            let pieces = (0..BIG_BYTES / 65536).map(|_| Ok(Frame::data(Bytes::from_static(&[7; 65536]))));
            *response.body_mut() = http_body_util::StreamBody::new(futures_stream(pieces)).boxed();
        }
        "/echo" => *response.body_mut() = full(body),
        "/hop" => {
            let headers = response.headers_mut();
            headers.insert("connection", "x-private".parse().unwrap());
            headers.insert("x-private", "1".parse().unwrap());
            headers.insert("keep-alive", "timeout=5".parse().unwrap());
            headers.insert("x-request-id", "the app's own".parse().unwrap());
        }
        "/upgrade" => {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("upgrade", "websocket".parse().unwrap());
            response.headers_mut().insert("connection", "upgrade".parse().unwrap());
            response.headers_mut().insert("sec-websocket-accept", "yes".parse().unwrap());
            *response.body_mut() = full("");
            tokio::spawn(echo_in_capitals(upgrade.unwrap()));
        }
        _ => {}
    }
    Ok(response)
}

async fn echo_in_capitals(upgrade: hyper::upgrade::OnUpgrade) {
    let mut stream = TokioIo::new(upgrade.await.unwrap());
    let mut bytes = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
        let capitals = bytes[..length].to_ascii_uppercase();
        if stream.write_all(&capitals).await.is_err() {
            return;
        }
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

/// A stream of items that are ready.
fn futures_stream<T>(items: impl Iterator<Item = T>) -> impl futures_util::Stream<Item = T> {
    futures_util::stream::iter(items)
}
