//! One request: identify, admit, choose, forward, record.
//!
//! Each phase either goes on or names its [`Failure`], which knows whose it is. The record is made first and always
//! written, see `record`.

use std::convert::Infallible;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use loomworks_core::name::Subdomain;
use loomworks_core::route::{BaseDomains, Route};
use tokio::sync::watch;

use crate::framing;
use crate::headers::{self, Facts};
use crate::hold::{InFlight, NotAdmitted, Tables};
use crate::listen::told_to_stop;
use crate::pages::{Failure, causes};
use crate::record::{Answer, Record};
use crate::upload::Upload;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// An app may think so long before it begins to answer. Reports and imports take minutes.
const ANSWER_MAX: Duration = Duration::from_secs(300);
/// Shorter than what usual app servers keep an idle connection (5 s and more), so that it is mostly us who close it.
const IDLE_MAX: Duration = Duration::from_secs(4);

pub(crate) struct Proxy {
    base_domains: BaseDomains,
    tables: Arc<Tables>,
    hold_max: Duration,
    client: Client<HttpConnector, Upload>,
    /// Becomes true when the gateway stops: tunnels, which have no end of their own, end then.
    stopping: watch::Receiver<bool>,
}

/// Who a request says it is for, and how it says so.
struct Addressed {
    subdomain: Subdomain,
    host: String,
}

impl Proxy {
    pub(crate) fn new(
        base_domains: BaseDomains,
        tables: Arc<Tables>,
        hold_max: Duration,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_MAX));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(connector);
        Self { base_domains, tables, hold_max, client, stopping }
    }

    pub(crate) async fn serve(
        self: Arc<Self>,
        client: IpAddr,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Infallible> {
        let mut record = Record::begin(client, &request);
        let json = headers::wants_json(request.headers());
        let is_last = framing::is_last(request.headers());
        let mut response = match self.answer(request, &mut record).await {
            Ok((response, in_flight)) => {
                let (parts, body) = response.into_parts();
                Response::from_parts(parts, Answer::forwarded(body, in_flight))
            }
            Err(failure) => {
                record.failed(&failure);
                failure.answer(json).map(Answer::own)
            }
        };
        headers::response_id(response.headers_mut(), &record.id);
        if is_last && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        record.status = Some(response.status());
        response.body_mut().keep(record);
        Ok(response)
    }

    /// The phases up to the answer's head.
    async fn answer(
        &self,
        request: Request<Incoming>,
        record: &mut Record,
    ) -> Result<(Response<Incoming>, Option<InFlight>), Failure> {
        let addressed = identify(&self.base_domains, &request)?;
        record.tenant = Some(addressed.subdomain.clone());
        let (route, in_flight) = self.admit(&addressed.subdomain).await?;
        let upstream = choose(&route);
        self.forward(request, &addressed, route, upstream, in_flight, record).await
    }

    async fn admit(&self, subdomain: &Subdomain) -> Result<(Route, InFlight), Failure> {
        self.tables.admit(subdomain, self.hold_max).await.map_err(|why| match why {
            NotAdmitted::Unknown => Failure::UnknownAddress,
            NotAdmitted::Suspended => Failure::Suspended,
            NotAdmitted::HeldTooLong => Failure::HeldTooLong,
        })
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        addressed: &Addressed,
        route: Route,
        upstream: SocketAddr,
        in_flight: InFlight,
        record: &mut Record,
    ) -> Result<(Response<Incoming>, Option<InFlight>), Failure> {
        // A WebSocket begins with a GET without a body; what looks different is served as a plain request.
        let websocket = headers::wants_websocket(request.headers())
            && request.method() == Method::GET
            && request.version() == Version::HTTP_11
            && request.body().is_end_stream();
        let client_side = websocket.then(|| hyper::upgrade::on(&mut request));

        let request = rewrite(request, addressed, &route, upstream, record).ok_or(Failure::Unwritable)?;
        let request = if websocket { with_upgrade(request) } else { request };
        let mut response = self.ask(request, upstream).await?;

        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let app_side = switched.then(|| hyper::upgrade::on(&mut response));
        headers::response(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        match (client_side, app_side) {
            (Some(client_side), Some(app_side)) => {
                headers::upgrade_to_websocket(response.headers_mut());
                let (tables, stopping) = (Arc::clone(&self.tables), self.stopping.clone());
                tokio::spawn(tunnel(client_side, app_side, tables, route, in_flight, stopping));
                Ok((response, None))
            }
            (None, Some(_)) => Err(Failure::UnwantedUpgrade { upstream }),
            (_, None) => Ok((response, Some(in_flight))),
        }
    }

    /// Sends a request, and a second time if that is safe.
    async fn ask(
        &self,
        request: Request<Upload>,
        upstream: SocketAddr,
    ) -> Result<Response<Incoming>, Failure> {
        let progress = request.body().progress();
        let again = repeatable(&request);
        let answer = async {
            match (self.client.request(request).await, again) {
                // The app closed an idle connection while the request was on its way. Nothing came back, and asking
                // changes nothing, so asking once more is safe.
                (Err(error), Some(again)) if !error.is_connect() => {
                    tracing::debug!(%upstream, %error, "the app closed the connection, asking once more");
                    self.client.request(again.map(|()| Upload::empty(&progress))).await
                }
                (answer, _) => answer,
            }
        };
        let answer = tokio::select! {
            answer = answer => answer,
            () = progress.stalled(ANSWER_MAX) => return Err(Failure::TimedOut { upstream }),
        };
        answer.map_err(|source| match () {
            () if progress.is_broken() => Failure::ClientLeft,
            () if source.is_connect() && is_timeout(&source) => Failure::TimedOut { upstream },
            () if source.is_connect() => Failure::Unreachable { upstream, source },
            () => Failure::Broken { upstream, source },
        })
    }
}

/// Who is meant, or why that cannot be said.
fn identify<B>(base_domains: &BaseDomains, request: &Request<B>) -> Result<Addressed, Failure> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(Failure::Method);
    }
    if !request.uri().path().starts_with('/') {
        return Err(Failure::BadRequest("The request's target is not a path."));
    }
    let mut expected = request.headers().get_all(EXPECT).iter();
    if !expected.all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Failure::Expectation);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Failure::BadRequest("The request does not name exactly one host."));
    };
    let host = host.to_str().map_err(|_| Failure::UnknownAddress)?;
    if let Some(authority) = request.uri().authority() {
        let same =
            authority.as_str().eq_ignore_ascii_case(host) && request.uri().scheme_str() == Some("http");
        if !same {
            return Err(Failure::BadRequest("The request's target and its host disagree."));
        }
    }
    let subdomain = base_domains.subdomain(host).ok_or(Failure::UnknownAddress)?;
    Ok(Addressed { subdomain, host: headers::normal_host(host) })
}

/// Where a tenant's requests go.
fn choose(route: &Route) -> SocketAddr {
    route.upstream
}

/// The request as the app gets it: our target, our headers, our framing.
fn rewrite(
    request: Request<Incoming>,
    addressed: &Addressed,
    route: &Route,
    upstream: SocketAddr,
    record: &Record,
) -> Option<Request<Upload>> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query()?.clone();
    parts.uri =
        Uri::builder().scheme("http").authority(upstream.to_string()).path_and_query(path).build().ok()?;
    parts.version = Version::HTTP_11;
    let facts = Facts { route, host: &addressed.host, client: record.client, request_id: &record.id };
    headers::request(&mut parts.headers, &facts)?;
    // hyper frames a body whose length it knows. One of unknown length has to be announced, because hyper leaves the
    // body of a GET away otherwise.
    let body = Upload::new(body);
    match body.size_hint().exact() {
        Some(0) => {}
        Some(length) => drop(parts.headers.insert(CONTENT_LENGTH, length.into())),
        None => {
            parts.headers.remove(CONTENT_LENGTH);
            parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    Some(Request::from_parts(parts, body))
}

fn with_upgrade(mut request: Request<Upload>) -> Request<Upload> {
    headers::upgrade_to_websocket(request.headers_mut());
    request
}

/// A copy to send once more, if that cannot change anything: the method only asks, and there is no body.
fn repeatable(request: &Request<Upload>) -> Option<Request<()>> {
    let asks = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    (asks && request.body().is_end_stream()).then(|| {
        let mut copy = Request::new(());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        copy
    })
}

fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    let is_timeout = |error: &std::io::Error| error.kind() == std::io::ErrorKind::TimedOut;
    causes(error).any(|error| error.downcast_ref().is_some_and(is_timeout))
}

/// Carries bytes both ways until one side ends, the gateway stops, or the table says something else about the tenant.
///
/// A tunnel that outlived a hold would carry messages to a database that is being exchanged, so it is cut. Those
/// who use such tunnels are used to coming back.
async fn tunnel(
    client_side: OnUpgrade,
    app_side: OnUpgrade,
    tables: Arc<Tables>,
    route: Route,
    in_flight: InFlight,
    mut stopping: watch::Receiver<bool>,
) {
    let carry = async {
        let (client_side, app_side) = tokio::try_join!(client_side, app_side)?;
        let (mut client_side, mut app_side) = (TokioIo::new(client_side), TokioIo::new(app_side));
        // Either side's reset is as good an end as any.
        let _ = tokio::io::copy_bidirectional(&mut client_side, &mut app_side).await;
        Ok::<_, hyper::Error>(())
    };
    let ended = tokio::select! {
        carried = carry => if carried.is_ok() { "closed" } else { "never begun" },
        () = tables.changed(&route) => "the tenant's route changed",
        () = told_to_stop(&mut stopping) => "the gateway stops",
    };
    drop(in_flight);
    tracing::debug!(tenant = %route.subdomain, ended, "a tunnel ended");
}
