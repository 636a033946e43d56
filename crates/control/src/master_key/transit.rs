//! A service that encrypts with a key which never leaves it: Vault's transit engine, or what speaks as it does.
//!
//! ```text
//! POST <mount>/encrypt/<key>   {"plaintext": base64, "context": base64, "associated_data": base64}
//!                              {"data": {"ciphertext": "vault:v1:…"}}
//! POST <mount>/decrypt/<key>   {"ciphertext": …, "context": …, "associated_data": …}
//!                              {"data": {"plaintext": base64}}
//! X-Vault-Token: what the token file holds, read again when it is refused
//! ```
//!
//! What it is for is bound to the ciphertext: as associated data, and as the context for a key that is derived.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use loomworks_core::{ExposeSecret, SecretString};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::json;

/// How the service is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https://vault.example.com:8200`, or with the path of a mount that is elsewhere: `…:8200/v1/team/transit`.
    pub url: String,
    /// The name of the service's key.
    pub key: String,
    /// A file that holds the token, which somebody else renews.
    pub token_file: PathBuf,
    /// How long a request may take.
    pub patience: Duration,
}

impl Settings {
    #[must_use]
    pub fn new(url: &str, key: &str, token_file: PathBuf) -> Self {
        Self { url: url.to_owned(), key: key.to_owned(), token_file, patience: Duration::from_secs(10) }
    }
}

/// Why the service could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TransitError {
    #[error("`{url}` is no address of a transit service: {why}")]
    Address { url: String, why: &'static str },
    #[error("read the token `{path}`")]
    Token { path: PathBuf, source: std::io::Error },
    #[error("the transit service refuses the token in `{path}`")]
    Refused { path: PathBuf },
    #[error("the transit service has no key `{0}`")]
    NoKey(String),
    #[error("the transit service does not open the master key with its key `{key}`: {answer}")]
    DoesNotOpen { key: String, answer: String },
    #[error("the transit service at `{url}` cannot be reached")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("the transit service at `{url}` answers {status}: {answer}")]
    Unavailable { url: String, status: StatusCode, answer: String },
    #[error("the transit service at `{0}` gives an answer that is none of its own")]
    Answer(String),
}

impl TransitError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Address { .. } => "write https://HOST:PORT; http is taken from this machine itself only",
            Self::Token { .. } => "the token's file must be readable for the user that loomworks runs as",
            Self::Refused { .. } => {
                "the token must be alive, and its policy allow `update` on encrypt/KEY and decrypt/KEY"
            }
            Self::NoKey(_) => "make it there, or correct --master-key-transit-key",
            Self::DoesNotOpen { .. } => "is it the key that has wrapped it, with all its versions?",
            Self::Unreachable { .. } => {
                "is the address right, does it run, and is its certificate known here?"
            }
            Self::Unavailable { .. } => "is it sealed or just starting? start again when it answers",
            Self::Answer(_) => "does the address lead to the transit engine, and to no other page?",
        })
    }
}

/// The service, with the token as it was read last.
pub struct Transit {
    http: reqwest::Client,
    mount: Url,
    settings: Settings,
    token: Mutex<Option<SecretString>>,
}

/// Pauses between tries while it cannot be reached or is not ready.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

impl Transit {
    pub fn new(settings: Settings) -> Result<Self, TransitError> {
        let refused = |why| TransitError::Address { url: settings.url.clone(), why };
        let mut mount = Url::parse(&settings.url).map_err(|_| refused("it is no URL"))?;
        match mount.scheme() {
            "https" => {}
            // What it is sent and answers opens everything.
            "http" if is_this_machine(&mount) => {}
            _ => return Err(refused("it must be reached by https")),
        }
        if mount.query().is_some() || mount.fragment().is_some() || !mount.username().is_empty() {
            return Err(refused("it must be an address and a path alone"));
        }
        if matches!(mount.path(), "" | "/") {
            mount.set_path("v1/transit");
        }
        let http = reqwest::Client::builder()
            .connect_timeout(settings.patience / 2)
            .timeout(settings.patience)
            // The token is for this service and no other.
            .redirect(reqwest::redirect::Policy::none())
            .build();
        let http = http.map_err(|_| refused("no client can be made for it"))?;
        Ok(Self { http, mount, settings, token: Mutex::default() })
    }

    /// The name of the service's key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.settings.key
    }

    /// Encrypts with the newest version of the service's key. `what_for` is bound to the result.
    pub async fn encrypt(&self, secret: &[u8], what_for: &str) -> Result<String, TransitError> {
        #[derive(Deserialize)]
        struct Data {
            ciphertext: String,
        }
        let what_for = BASE64.encode(what_for);
        let body = json!({
            "plaintext": BASE64.encode(secret), "context": what_for, "associated_data": what_for
        });
        let Data { ciphertext } = self.ask("encrypt", &body).await?;
        Ok(ciphertext)
    }

    /// Opens what [`Self::encrypt`] made for the same purpose.
    pub async fn decrypt(&self, ciphertext: &str, what_for: &str) -> Result<Vec<u8>, TransitError> {
        #[derive(Deserialize)]
        struct Data {
            plaintext: String,
        }
        let what_for = BASE64.encode(what_for);
        let body = json!({ "ciphertext": ciphertext, "context": what_for, "associated_data": what_for });
        let Data { plaintext } = self.ask("decrypt", &body).await?;
        BASE64.decode(plaintext).map_err(|_| self.no_answer())
    }

    async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        what: &str,
        body: &serde_json::Value,
    ) -> Result<T, TransitError> {
        #[derive(Deserialize)]
        struct Answer<T> {
            data: T,
        }
        let mut url = self.mount.clone();
        let segments = url.path_segments_mut();
        segments.map_err(|()| self.no_answer())?.pop_if_empty().extend([what, self.key()]);
        let (mut pauses, mut token_read) = (PAUSES.into_iter(), false);
        loop {
            let token = self.token()?;
            let request =
                self.http.post(url.clone()).header("X-Vault-Token", token.expose_secret()).json(body);
            let error = match request.send().await {
                Ok(answer) if answer.status().is_success() => {
                    let Answer { data } = answer.json().await.map_err(|_| self.no_answer())?;
                    return Ok(data);
                }
                Ok(answer) if answer.status() == StatusCode::FORBIDDEN => {
                    // Somebody may have renewed it since it was read.
                    if token_read {
                        return Err(TransitError::Refused { path: self.settings.token_file.clone() });
                    }
                    self.forget_token();
                    token_read = true;
                    continue;
                }
                Ok(answer) => {
                    let (status, answer) = (answer.status(), answer.text().await.unwrap_or_default());
                    let answer = said(&answer);
                    match status {
                        StatusCode::NOT_FOUND => return Err(TransitError::NoKey(self.key().to_owned())),
                        // Vault has no other status for a key that is not there.
                        StatusCode::BAD_REQUEST if answer.contains("key not found") => {
                            return Err(TransitError::NoKey(self.key().to_owned()));
                        }
                        StatusCode::BAD_REQUEST => {
                            return Err(TransitError::DoesNotOpen { key: self.key().to_owned(), answer });
                        }
                        _ => TransitError::Unavailable { url: self.mount.to_string(), status, answer },
                    }
                }
                Err(source) => {
                    TransitError::Unreachable { url: self.mount.to_string(), source: source.without_url() }
                }
            };
            match pauses.next().filter(|_| may_pass(&error)) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    fn token(&self) -> Result<SecretString, TransitError> {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = &*token {
            return Ok(token.clone());
        }
        let path = &self.settings.token_file;
        let read = std::fs::read_to_string(path)
            .map_err(|source| TransitError::Token { path: path.clone(), source })?;
        Ok(token.insert(SecretString::from(read.trim())).clone())
    }

    fn forget_token(&self) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn no_answer(&self) -> TransitError {
        TransitError::Answer(self.mount.to_string())
    }
}

/// Whether it may be otherwise in a moment.
fn may_pass(error: &TransitError) -> bool {
    match error {
        TransitError::Unreachable { source, .. } => !source.is_timeout() || source.is_connect(),
        TransitError::Unavailable { status, .. } => {
            status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
        }
        _ => false,
    }
}

fn is_this_machine(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.trim_matches(['[', ']']).parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        }
        None => false,
    }
}

/// What the service has to say, without what else may be in an answer.
fn said(answer: &str) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<String>,
    }
    let errors: Option<Errors> = serde_json::from_str(answer).ok();
    errors.map_or_else(|| "nothing".into(), |answer| answer.errors.join("; "))
}
