//! A client of the API: what every command but `serve` and `wal` goes through.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use loomworks_control::db::jobs::Job;
use loomworks_core::ids::JobId;
use loomworks_core::{ExposeSecret, SecretString};
use loomworks_web::error::ProblemDetails;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::output::{Failure, Progress};
use crate::settings::ClientSettings;

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

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.answer(self.request(Method::POST, path).json(body)).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(self.request(Method::DELETE, path)).await
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

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body = response.bytes().await.context("read the answer")?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body).context("understand the answer")?);
        }
        Err(match serde_json::from_slice::<ProblemDetails>(&body) {
            Ok(problem) => {
                let conflicts =
                    problem.conflicts.as_ref().and_then(|all| serde_json::to_string_pretty(all).ok());
                let message =
                    [Some(problem.message), conflicts].into_iter().flatten().collect::<Vec<_>>().join("\n");
                Failure { hint: problem.hint, ..Failure::new(message).with_code(problem.code) }
            }
            Err(_) => Failure::new(format!("the API answered {status}")),
        })
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
            let job: Job = self.get(&format!("/v1/jobs/{id}")).await?;
            match &job.error {
                Some(error) => {
                    progress.show(job.percent, &format!("{}, trying again: {error}", job.progress));
                }
                None => progress.show(job.percent, &job.progress),
            }
            if job.is_finished() {
                break job;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        progress.end();
        if job.state == "succeeded" {
            return Ok(job);
        }
        let message = job.error.unwrap_or_else(|| "it does not say why".into());
        let failure =
            Failure::new(format!("job {id} ({}) failed: {message}", job.kind)).with_code("job_failed");
        Err(Failure { hint: job.hint, ..failure })
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
