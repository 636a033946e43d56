//! A client of the API: what every command but `serve` and `wal` goes through.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use loomworks_control::db::jobs::Job;
use loomworks_control::page::{LIMIT_MAX, Page};
use loomworks_core::ids::JobId;
use loomworks_core::{ExposeSecret, SecretString};
use loomworks_web::error::ProblemDetails;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::output::{Failure, Progress};
use crate::settings::ClientSettings;

/// How long a download may take.
const DOWNLOAD_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the platform is and who we are. Written by `serve`, readable by its owner only.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ClientFile {
    pub(crate) url: String,
    /// Where tenants have their addresses.
    pub(crate) gateway: std::net::SocketAddr,
    pub(crate) api_key: String,
}

/// The API, with a key.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    api_key: SecretString,
    gateway: Option<std::net::SocketAddr>,
}

impl Client {
    /// From the command line and the environment, what they leave open from the client file.
    pub(crate) fn new(settings: &ClientSettings) -> Result<Self, Failure> {
        let file = settings.file().map(|path| read(&path)).transpose()?.flatten();
        let missing = |what: &str| {
            Failure::refused(format!("no {what} is known")).with_hint(
                "start a platform with `./scripts/dev-start.sh`, or set LOOMWORKS_URL and LOOMWORKS_API_KEY",
            )
        };
        let url = settings.url.clone().or_else(|| file.as_ref().map(|file| file.url.clone()));
        let key = settings.api_key.clone().or_else(|| file.as_ref().map(|file| file.api_key.clone()));
        Ok(Self {
            http: reqwest::Client::builder().timeout(Duration::from_secs(120)).no_proxy().build()?,
            url: url.ok_or_else(|| missing("address of the API"))?,
            api_key: SecretString::from(key.ok_or_else(|| missing("API key"))?),
            gateway: file.map(|file| file.gateway),
        })
    }

    /// Where the gateway listens, as far as the client file knows.
    pub(crate) fn gateway(&self) -> Result<std::net::SocketAddr, Failure> {
        self.gateway.ok_or_else(|| {
            Failure::refused("the address of the gateway is not known")
                .with_hint("it is in the client file that `loomworks serve` writes")
        })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(self.api_key.expose_secret())
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(self.request(Method::GET, path)).await
    }

    /// With a query whose values may contain anything.
    pub(crate) async fn get_with<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, Failure> {
        let query: Vec<String> =
            query.iter().map(|(name, value)| format!("{name}={}", percent_encoded(value))).collect();
        self.get(&format!("{path}?{}", query.join("&"))).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.answer(self.request(Method::POST, path).json(body)).await
    }

    /// A whole list, page by page, with the parts of the query that begin with `?` in `path`.
    pub(crate) async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Failure> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let (mut all, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let after = cursor.map(|cursor| format!("{joint}cursor={cursor}")).unwrap_or_default();
            let page: Page<T> = self.get(&format!("{path}{after}")).await?;
            all.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// A request whose answer says nothing.
    pub(crate) async fn end(&self, path: &str) -> Result<(), Failure> {
        self.send(self.request(Method::DELETE, path)).await.map(drop)
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.answer(self.request(Method::PATCH, path).json(body)).await
    }

    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.answer(self.request(Method::PUT, path).json(body)).await
    }

    /// Everything of a long list, page after page.
    pub(crate) async fn get_all<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Vec<T>, Failure> {
        let (mut all, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let limit = ("limit", LIMIT_MAX.to_string());
            let next = cursor.take().map(|cursor| ("cursor", cursor));
            let query: Vec<_> = query.iter().cloned().chain([limit]).chain(next).collect();
            let url = reqwest::Url::parse_with_params(&format!("{}{path}", self.url), &query)
                .context("understand the address of the API")?;
            let request = self.http.get(url).bearer_auth(self.api_key.expose_secret());
            let page: Page<T> = self.answer(request).await?;
            all.extend(page.items);
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// The status and the body of whatever is answered, for those who expect a refusal.
    pub(crate) async fn try_post(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(StatusCode, serde_json::Value), Failure> {
        let response = self
            .request(Method::POST, path)
            .json(body)
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        Ok((status, response.json().await.context("read the answer")?))
    }

    /// Downloads into a file that must not be there yet; `progress` is told how many bytes have come.
    pub(crate) async fn download(
        &self,
        path: &str,
        into: &mut impl std::io::Write,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, Failure> {
        // As long as it takes: what has no end by itself has one for each piece.
        let request = self.request(Method::GET, path).timeout(DOWNLOAD_MAX);
        let mut response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(refusal(status, &response.bytes().await.context("read the answer")?));
        }
        let mut bytes = 0;
        while let Some(piece) = response.chunk().await.context("download the archive")? {
            into.write_all(&piece).context("write the archive")?;
            bytes += u64::try_from(piece.len()).unwrap_or(0);
            progress(bytes);
        }
        Ok(bytes)
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        Ok(serde_json::from_slice(&self.send(request).await?).context("understand the answer")?)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Vec<u8>, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body = response.bytes().await.context("read the answer")?;
        if status.is_success() {
            return Ok(body.to_vec());
        }
        Err(refusal(status, &body))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let failure =
            Failure::new(format!("the API at {} cannot be reached: {}", self.url, root_cause(error)));
        failure.with_hint("is the platform running? `./scripts/dev-start.sh` starts one")
    }

    /// Waits until a job has ended, showing how far it is. A job that failed is a failure.
    pub(crate) async fn follow(&self, id: JobId) -> Result<Job, Failure> {
        let progress = Progress::start();
        let job = loop {
            // Called out by the API; asked for again and again where that does not come through.
            let job = match self.called_out(id, &progress).await {
                Some(job) => job,
                None => self.get(&format!("/v1/jobs/{id}")).await?,
            };
            show(&progress, &job);
            if job.is_finished() {
                break job;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        progress.end();
        match job.state.as_str() {
            "succeeded" => Ok(job),
            "cancelled" => {
                Err(Failure::new(format!("job {id} ({}) was cancelled", job.kind)).with_code("job_cancelled"))
            }
            _ => {
                let message = job.error.unwrap_or_else(|| "it does not say why".into());
                let failure = Failure::new(format!("job {id} ({}) failed: {message}", job.kind));
                Err(Failure { hint: job.hint, ..failure.with_code("job_failed") })
            }
        }
    }

    /// Reads the events of a job until they end. Gives what was told last.
    async fn called_out(&self, id: JobId, progress: &Progress) -> Option<Job> {
        let request = self.request(Method::GET, &format!("/v1/jobs/{id}/events"));
        let mut response = request.send().await.ok().filter(|response| response.status().is_success())?;
        let (mut text, mut last) = (Vec::new(), None);
        while let Ok(Some(chunk)) = response.chunk().await {
            text.extend_from_slice(&chunk);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let data =
                    line.strip_prefix(b"data:").and_then(|data| serde_json::from_slice::<Job>(data).ok());
                if let Some(job) = data {
                    show(progress, &job);
                    last = Some(job);
                }
            }
        }
        last
    }
}

fn show(progress: &Progress, job: &Job) {
    match &job.error {
        Some(error) => progress.show(job.percent, &format!("{}, trying again: {error}", job.progress)),
        None => progress.show(job.percent, &job.progress),
    }
}

fn percent_encoded(text: &str) -> String {
    let keep = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes().map(|b| if keep(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The query of an address, from what is given.
pub(crate) fn query(parameters: &[(&str, Option<String>)]) -> Result<String, Failure> {
    let given = parameters.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
    let url = reqwest::Url::parse_with_params("http://api/", given)?;
    Ok(url.query().map_or_else(String::new, |query| format!("?{query}")))
}

/// What the API says why it does not do something.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    match serde_json::from_slice::<ProblemDetails>(body) {
        Ok(problem) => {
            let conflicts = problem.conflicts.as_ref().and_then(|all| serde_json::to_string_pretty(all).ok());
            let message =
                [Some(problem.message), conflicts].into_iter().flatten().collect::<Vec<_>>().join("\n");
            Failure { hint: problem.hint, ..Failure::new(message).with_code(problem.code) }
        }
        Err(_) => Failure::new(format!("the API answered {status}")),
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn read(path: &Path) -> Result<Option<ClientFile>, Failure> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::new(format!("read `{}`: {error}", path.display()))),
        Ok(text) => {
            Ok(Some(serde_json::from_slice(&text).with_context(|| format!("read `{}`", path.display()))?))
        }
    }
}
