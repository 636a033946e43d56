//! Getting the tables: asks the control plane for the next one, keeps it, puts it in force, says so.
//!
//! Two loops that never stop. One asks for a table that is newer than ours, in a call that the control plane holds open
//! until there is one. The other acknowledges a generation once its holds are exact (see `hold`), and again every few
//! seconds, so that the control plane knows which gateways are alive. When the control plane is away, the last good
//! table stays in force.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use loomworks_core::route::{Acknowledgement, RouteTable};
use loomworks_core::{ExposeSecret, SecretString, durable};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::hold::Tables;
use crate::pages::chain;

/// The control plane answers a poll within some 20 seconds, with a table or without one.
const POLL_MAX: Duration = Duration::from_secs(30);
const ACKNOWLEDGE_MAX: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(5);
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Some 500,000 routes.
const TABLE_SIZE_MAX: usize = 128 * 1024 * 1024;

/// Where the control plane is and what it knows this gateway by.
#[derive(Debug)]
pub struct ControlPlane {
    url: String,
    token: SecretString,
}

/// Why a control plane cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum BadControlPlane {
    #[error("the control plane's address `{0}` is not of the form http://host:port")]
    Address(String),
    #[error("the control plane's token has characters that no header can carry")]
    Token,
}

impl ControlPlane {
    pub fn new(url: &str, token: SecretString) -> Result<Self, BadControlPlane> {
        let url = url.trim_end_matches('/');
        let is_base = |uri: &Uri| uri.scheme() == Some(&Scheme::HTTP) && uri.query().is_none();
        url.parse::<Uri>().ok().filter(is_base).ok_or_else(|| BadControlPlane::Address(url.to_owned()))?;
        HeaderValue::from_str(token.expose_secret()).map_err(|_| BadControlPlane::Token)?;
        Ok(Self { url: url.to_owned(), token })
    }
}

/// Why the control plane gave us nothing of use.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error("ask the control plane")]
    Ask(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the control plane did not answer in time")]
    TimedOut,
    #[error("the control plane answered {0}")]
    Answered(StatusCode),
    #[error("read the control plane's table")]
    Unreadable(#[from] serde_json::Error),
    #[error("the control plane sent generation {sent}, and generation {current} is in force")]
    NotNewer { sent: i64, current: i64 },
}

/// Reads the table that an earlier run has kept. A missing or broken file is an empty table: the control plane will
/// send a whole one.
pub(crate) fn kept(path: &Path) -> RouteTable {
    let read = std::fs::read(path).and_then(|bytes| Ok(serde_json::from_slice::<RouteTable>(&bytes)?));
    match read {
        Ok(table) => {
            tracing::info!(
                generation = table.generation,
                routes = table.routes.len(),
                "took the kept route table"
            );
            table
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => RouteTable::default(),
        Err(error) => {
            let path = path.display();
            tracing::error!(%path, %error, "the kept route table is unreadable and ignored");
            RouteTable::default()
        }
    }
}

pub(crate) struct Feed {
    control: ControlPlane,
    client: Client<HttpConnector, Full<Bytes>>,
    tables: Arc<Tables>,
    routes_file: Arc<PathBuf>,
    gateway: String,
}

impl Feed {
    pub(crate) fn new(
        control: ControlPlane,
        tables: Arc<Tables>,
        routes_file: PathBuf,
        gateway: String,
    ) -> Self {
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build_http();
        Self { control, client, tables, routes_file: Arc::new(routes_file), gateway }
    }

    /// Runs both loops until it is dropped.
    pub(crate) async fn run(self) {
        tokio::join!(self.take_tables(), self.acknowledge());
    }

    async fn take_tables(&self) {
        let mut failures = 0;
        loop {
            match self.take_next().await {
                Ok(()) => {
                    if failures > 0 {
                        tracing::info!(failures, "the control plane answers again");
                    }
                    failures = 0;
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(
                            error = chain(&error),
                            "no newer route table can be had, the last one stays in force"
                        );
                    }
                    sleep(back_off(failures)).await;
                    failures += 1;
                }
            }
        }
    }

    async fn take_next(&self) -> Result<(), FeedError> {
        let current = self.tables.generation();
        let path = format!("/v1/internal/routes?newer_than={current}");
        let (status, body) = self.ask(Method::GET, &path, Bytes::new(), POLL_MAX).await?;
        let table = match status {
            StatusCode::NO_CONTENT => return Ok(()),
            StatusCode::OK => serde_json::from_slice::<RouteTable>(&body)?,
            other => return Err(FeedError::Answered(other)),
        };
        if table.generation <= current {
            return Err(FeedError::NotNewer { sent: table.generation, current });
        }
        self.take(table).await;
        Ok(())
    }

    /// Keeps a table and then puts it in force. In this order, so that a gateway which restarts never goes back
    /// behind a generation that it has acknowledged.
    async fn take(&self, table: RouteTable) {
        let (generation, routes) = (table.generation, table.routes.len());
        let (tables, path) = (Arc::clone(&self.tables), Arc::clone(&self.routes_file));
        let taken = tokio::task::spawn_blocking(move || {
            let kept = serde_json::to_vec(&table).map_err(io::Error::from);
            let kept = kept.and_then(|bytes| durable::write(&path, &bytes));
            tables.install(table);
            kept
        });
        match taken.await {
            Ok(Ok(())) => tracing::info!(generation, routes, "took a route table"),
            Ok(Err(error)) => {
                let path = self.routes_file.display();
                tracing::error!(generation, %path, %error, "took a route table but could not keep it");
            }
            Err(error) => tracing::error!(generation, %error, "could not take a route table"),
        }
    }

    async fn acknowledge(&self) {
        let mut changes = self.tables.changes();
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drained = None;
        let mut failures = 0;
        loop {
            tokio::select! {
                generation = self.tables.drained(), if drained != Some(*changes.borrow()) => drained = Some(generation),
                _ = changes.changed() => continue,
                _ = heartbeat.tick() => {}
            }
            let Some(generation) = drained else { continue };
            match self.say(generation).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(
                            generation,
                            error = chain(&error),
                            "could not acknowledge a route table"
                        );
                    }
                    heartbeat.reset_after(back_off(failures));
                    failures += 1;
                }
            }
        }
    }

    async fn say(&self, generation: i64) -> Result<(), FeedError> {
        let acknowledgement = Acknowledgement { gateway: self.gateway.clone(), generation };
        let body = serde_json::to_vec(&acknowledgement)?.into();
        let (status, _) = self.ask(Method::POST, "/v1/internal/gateways", body, ACKNOWLEDGE_MAX).await?;
        if status.is_success() { Ok(()) } else { Err(FeedError::Answered(status)) }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        at_most: Duration,
    ) -> Result<(StatusCode, Bytes), FeedError> {
        let bearer = format!("Bearer {}", self.control.token.expose_secret());
        let mut bearer = HeaderValue::try_from(bearer).map_err(|error| FeedError::Ask(error.into()))?;
        bearer.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.control.url))
            .header(AUTHORIZATION, bearer)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| FeedError::Ask(error.into()))?;
        let answer = async {
            let response =
                self.client.request(request).await.map_err(|error| FeedError::Ask(error.into()))?;
            let status = response.status();
            let body =
                Limited::new(response.into_body(), TABLE_SIZE_MAX).collect().await.map_err(FeedError::Ask)?;
            Ok((status, body.to_bytes()))
        };
        timeout(at_most, answer).await.unwrap_or(Err(FeedError::TimedOut))
    }
}

/// Doubles with each failure up to a limit, and is spread so that many gateways do not come back at once.
fn back_off(failures: u32) -> Duration {
    let (first, last) = BACK_OFF;
    let longest = first.saturating_mul(1 << failures.min(8)).min(last);
    longest.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_plane_is_a_plain_address_and_a_token_that_can_be_sent() {
        let new = |url: &str, token: &str| ControlPlane::new(url, token.to_owned().into());
        assert!(new("http://127.0.0.1:8001/", "secret").is_ok());
        for url in ["", "127.0.0.1:8001", "ftp://host", "https://host", "http://", "http://host/?a=b"] {
            assert!(matches!(new(url, "secret"), Err(BadControlPlane::Address(_))), "{url}");
        }
        assert!(matches!(new("http://host", "a\nb"), Err(BadControlPlane::Token)));
    }

    #[test]
    fn the_back_off_grows_to_its_limit_and_never_beyond() {
        assert!(back_off(0) <= BACK_OFF.0);
        assert!((0..1000).map(back_off).all(|pause| pause <= BACK_OFF.1 && pause >= BACK_OFF.0 / 2));
    }
}
