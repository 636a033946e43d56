//! The OpenID provider over HTTP: what it says about itself, its keys, codes exchanged for tokens.
//!
//! Everything has a time limit and a size limit; redirects are not followed. What it says about itself is believed if
//! it names the issuer that we were told, and is kept for an hour. A key that we do not know makes us ask for the keys
//! again, once a minute at the most: invented keys cost the provider nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use loomworks_core::ExposeSecret;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use reqwest::{RequestBuilder, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::flow::Flow;
use super::token::{self, BadToken, Claims, Expected, Jwk};
use super::{Refusal, Settings};
use crate::error::Error;

const TIMEOUT: Duration = Duration::from_secs(10);
const BODY_MAX: usize = 1 << 20;
const KEPT_FOR: Duration = Duration::from_secs(3600);
const KEYS_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What keeps us from using the provider.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProviderError {
    #[error("ask the OpenID provider at {url}")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("the OpenID provider answers {status} at {url}")]
    Status { url: String, status: u16 },
    #[error("the OpenID provider's answer at {url} is not what it should be")]
    Answer { url: String },
    #[error("the OpenID provider calls itself by another name than --oidc-issuer does")]
    OtherIssuer,
    #[error("the OpenID provider names the address `{0}`, which is not protected by TLS")]
    NotSecure(String),
}

/// What a provider says about itself, as far as we need it.
#[derive(Clone, Debug, Deserialize)]
struct Metadata {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct KeySet {
    /// Read one by one: a key of a kind we do not know must not hide the others.
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    id_token: String,
}

struct Kept<T> {
    value: T,
    since: Instant,
}

impl<T> Kept<T> {
    fn is_younger_than(&self, age: Duration) -> bool {
        self.since.elapsed() < age
    }
}

#[derive(Default)]
struct Known {
    metadata: Option<Kept<Metadata>>,
    keys: Option<Kept<Vec<Jwk>>>,
}

/// The provider. Cheap to clone.
#[derive(Clone)]
pub(super) struct Provider {
    http: reqwest::Client,
    issuer: String,
    /// Held while it is asked, so that many log-ins at once ask it once.
    known: Arc<Mutex<Known>>,
}

impl Provider {
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        if secure_url(&settings.issuer).is_err() {
            return Err(Error::invalid(format!("`{}` is no address of an OpenID provider", settings.issuer))
                .with_hint("it begins with https://; plain http is for a provider on this machine"));
        }
        let http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| {
                Error::Internal(format!("make an HTTP client: {}", crate::error::chain(&error)))
            })?;
        Ok(Self { http, issuer: settings.issuer.clone(), known: Arc::default() })
    }

    /// Where to send a browser.
    pub(super) async fn authorization_url(
        &self,
        settings: &Settings,
        flow: &Flow,
    ) -> Result<String, ProviderError> {
        let metadata = self.metadata().await?;
        let mut url = secure_url(&metadata.authorization_endpoint)?;
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &settings.client_id)
            .append_pair("redirect_uri", &settings.redirect_uri)
            .append_pair("scope", "openid email profile")
            .append_pair("state", &flow.state)
            .append_pair("nonce", &flow.nonce)
            .append_pair("code_challenge", &flow.challenge())
            .append_pair("code_challenge_method", "S256");
        Ok(url.into())
    }

    /// The ID token for a code.
    pub(super) async fn exchange(
        &self,
        settings: &Settings,
        code: &str,
        verifier: &str,
    ) -> Result<String, ProviderError> {
        let metadata = self.metadata().await?;
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", &settings.redirect_uri),
            ("code_verifier", verifier),
        ];
        let url = secure_url(&metadata.token_endpoint)?;
        let mut request = self.http.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        // Basic is what every provider takes that does not say otherwise.
        let methods = metadata.token_endpoint_auth_methods_supported.as_deref();
        let takes_basic =
            methods.is_none_or(|methods| methods.iter().any(|one| one == "client_secret_basic"));
        match &settings.client_secret {
            Some(secret) if takes_basic => {
                let pair = format!("{}:{}", encoded(&settings.client_id), encoded(secret.expose_secret()));
                request = request.header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(pair)));
            }
            Some(secret) => {
                form.extend([
                    ("client_id", settings.client_id.as_str()),
                    ("client_secret", secret.expose_secret()),
                ]);
            }
            None => form.push(("client_id", &settings.client_id)),
        }
        let answer: TokenAnswer = answer(&metadata.token_endpoint, request.body(form_body(&form))).await?;
        Ok(answer.id_token)
    }

    /// What a token says, checked with the provider's keys.
    pub(super) async fn verify(&self, token: &str, expected: &Expected<'_>) -> Result<Claims, Refusal> {
        let metadata = self.metadata().await?;
        let mut known = self.known.lock().await;
        if let Some(keys) = known.keys.as_ref().filter(|keys| keys.is_younger_than(KEPT_FOR)) {
            match token::verify(token, &keys.value, expected) {
                // The provider may have begun to use a new key.
                Err(BadToken::UnknownKey) if !keys.is_younger_than(KEYS_AGAIN_AFTER) => {}
                verified => return Ok(verified?),
            }
        }
        let keys = self.fetch_keys(&metadata).await?;
        let verified = token::verify(token, &keys, expected);
        known.keys = Some(Kept { value: keys, since: Instant::now() });
        Ok(verified?)
    }

    async fn fetch_keys(&self, metadata: &Metadata) -> Result<Vec<Jwk>, ProviderError> {
        let url = secure_url(&metadata.jwks_uri)?;
        let set: KeySet = answer(&metadata.jwks_uri, self.http.get(url)).await?;
        Ok(set.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect())
    }

    async fn metadata(&self) -> Result<Metadata, ProviderError> {
        let mut known = self.known.lock().await;
        if let Some(kept) = known.metadata.as_ref().filter(|kept| kept.is_younger_than(KEPT_FOR)) {
            return Ok(kept.value.clone());
        }
        let text = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let metadata: Metadata = answer(&text, self.http.get(secure_url(&text)?)).await?;
        if metadata.issuer != self.issuer {
            return Err(ProviderError::OtherIssuer);
        }
        known.metadata = Some(Kept { value: metadata.clone(), since: Instant::now() });
        Ok(metadata)
    }
}

/// An address that is protected by TLS, or is on this machine.
fn secure_url(text: &str) -> Result<Url, ProviderError> {
    let refused = || ProviderError::NotSecure(text.chars().take(200).collect());
    let url = Url::parse(text).map_err(|_| refused())?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_here =
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|host| host.is_loopback());
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_here => Ok(url),
        _ => Err(refused()),
    }
}

/// The JSON that a request is answered with.
async fn answer<T: DeserializeOwned>(url: &str, request: RequestBuilder) -> Result<T, ProviderError> {
    let unreachable = |source: reqwest::Error| ProviderError::Unreachable {
        url: url.to_owned(),
        source: source.without_url(),
    };
    let mut response = request.header(ACCEPT, "application/json").send().await.map_err(unreachable)?;
    if !response.status().is_success() {
        return Err(ProviderError::Status { url: url.to_owned(), status: response.status().as_u16() });
    }
    let wrong = || ProviderError::Answer { url: url.to_owned() };
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > BODY_MAX {
            return Err(wrong());
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|_| wrong())
}

/// A form, as an address's query is written.
fn form_body(fields: &[(&str, &str)]) -> String {
    let url = Url::parse_with_params("http://localhost/", fields);
    url.ok().and_then(|url| url.query().map(str::to_owned)).unwrap_or_default()
}

/// A text as the value of a form's field (RFC 6749, section 2.3.1).
fn encoded(text: &str) -> String {
    form_body(&[("", text)]).trim_start_matches('=').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_asked_over_tls_or_on_this_machine() {
        for good in [
            "https://id.example.com/realm",
            "http://127.0.0.1:8080/",
            "http://[::1]:1/x",
            "http://localhost/",
        ] {
            assert!(secure_url(good).is_ok(), "{good}");
        }
        for bad in [
            "http://id.example.com",
            "http://127.0.0.1.evil.example/",
            "ftp://localhost/",
            "id.example.com",
            "",
        ] {
            assert!(secure_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(form_body(&[("a", "x y"), ("b", "&=ä")]), "a=x+y&b=%26%3D%C3%A4");
        assert_eq!(encoded("a:b=c"), "a%3Ab%3Dc");
    }
}
