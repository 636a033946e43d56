//! Sending to a webhook's receiver: signed, with short patience, and to public addresses only.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use loomworks_core::ids::DeliveryId;
use loomworks_core::{ExposeSecret, SecretString, time};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, USER_AGENT};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use tracing::warn;

use super::address::is_public;
use super::url::{WebhookUrl, literal};
use crate::error::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(10);

/// What of an answer's body is read, so that the receiver may finish writing it. Nobody looks at it: what a receiver
/// says is not shown to anybody, or a webhook would be a way to read what only the platform can reach.
const ANSWER_BYTES_MAX: usize = 1024;

/// What talks to receivers.
#[derive(Clone, Debug)]
pub struct Sender {
    http: Client,
    to_private_addresses: bool,
}

/// What is sent.
#[derive(Debug)]
pub struct Message<'a> {
    pub url: &'a str,
    pub event: &'a str,
    pub delivery: DeliveryId,
    pub body: &'a str,
    /// Each makes a signature.
    pub secrets: &'a [SecretString],
}

/// What came of it.
#[derive(Debug)]
pub struct Sent {
    pub http_status: Option<u16>,
    pub took: Duration,
    /// Why it failed, without the address. Nothing: the receiver has it.
    pub error: Option<String>,
}

impl Sender {
    /// `to_private_addresses`: also to receivers in the platform's own network, as while developing.
    pub fn new(to_private_addresses: bool) -> Result<Self, Error> {
        let builder = || {
            Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(TIMEOUT)
                // To where the receiver sends us on nobody has agreed.
                .redirect(Policy::none())
                // A proxy would look the name up itself.
                .no_proxy()
                // Each delivery looks its receiver up anew.
                .pool_max_idle_per_host(0)
                .dns_resolver(Guard { to_private_addresses })
        };
        let http = builder().build().or_else(|error| {
            warn!(
                error = crate::error::chain(&error),
                "no certificate authorities: webhooks with https fail"
            );
            builder().tls_certs_only([]).build()
        });
        let http = http.map_err(|error| Error::Internal(crate::error::chain(&error)))?;
        Ok(Self { http, to_private_addresses })
    }

    /// Refuses an address that is none of the public's. Names are looked at when they are looked up.
    pub fn check(&self, url: &WebhookUrl) -> Result<(), Error> {
        match url.literal() {
            Some(address) if !self.may_reach(address) => {
                Err(Error::invalid(format!("{address} is not a public address"))
                    .with_hint("a webhook is at an address that can be reached from the Internet"))
            }
            _ => Ok(()),
        }
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        self.to_private_addresses || is_public(address)
    }

    /// Sends once. What goes wrong is part of the answer.
    pub async fn send(&self, message: &Message<'_>) -> Sent {
        let began = Instant::now();
        let (http_status, error) = match self.post(message).await {
            Ok(status) if (200..300).contains(&status) => (Some(status), None),
            Ok(status) => (Some(status), Some(format!("the receiver answered {status}"))),
            Err(error) => (None, Some(error)),
        };
        Sent { http_status, took: began.elapsed(), error }
    }

    async fn post(&self, message: &Message<'_>) -> Result<u16, String> {
        let url = Url::parse(message.url).map_err(|_| "its address cannot be read".to_owned())?;
        // Here too: the resolver is not asked about addresses, and the setting may be another one than it was.
        if let Some(address) = literal(&url).filter(|address| !self.may_reach(*address)) {
            return Err(format!("{address} is not a public address"));
        }
        let request = self
            .http
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("Loomworks/", env!("CARGO_PKG_VERSION")))
            .header("Loomworks-Event", message.event)
            .header("Loomworks-Delivery", message.delivery.to_string())
            .header("Loomworks-Signature", signature(message.secrets, time::now().as_second(), message.body))
            .body(message.body.to_owned());
        let mut response = request.send().await.map_err(|error| reason(&error))?;
        let status = response.status().as_u16();
        drain(&mut response).await;
        Ok(status)
    }
}

async fn drain(response: &mut Response) {
    let mut read = 0;
    while read < ANSWER_BYTES_MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => read += chunk.len(),
            // The status is what counts, and that has come.
            Ok(None) | Err(_) => return,
        }
    }
}

/// What went wrong, for people. Never the address: its path may be a secret of the receiver's.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        let within = if error.is_connect() { CONNECT_TIMEOUT } else { TIMEOUT };
        return format!("no answer within {} seconds", within.as_secs());
    }
    let mut cause: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match cause.downcast_ref::<reqwest::Error>() {
        Some(_) => "the request could not be sent".into(),
        None => cause.to_string(),
    }
}

/// `t=<unix seconds>,v1=<hex>,…`: HMAC-SHA256 of `<t>.<body>` with each secret as it is written.
fn signature(secrets: &[SecretString], seconds: i64, body: &str) -> String {
    let mut text = format!("t={seconds}");
    for secret in secrets {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
        let tag = ring::hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
        text += ",v1=";
        for byte in tag.as_ref() {
            text += &format!("{byte:02x}");
        }
    }
    text
}

/// Looks names up, and forgets the addresses that nobody outside may have us talk to.
///
/// The connection is made to what is answered here, so that a name cannot mean one address when it is looked at and
/// another when it is used.
#[derive(Clone, Debug)]
struct Guard {
    to_private_addresses: bool,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let to_private_addresses = self.to_private_addresses;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> =
                found.into_iter().filter(|address| to_private_addresses || is_public(address.ip())).collect();
            if allowed.is_empty() {
                return Err(format!("`{}` has no public address", name.as_str()).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_what_others_compute() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac whsec_abc
        let one = signature(&[SecretString::from("whsec_abc")], 1_700_000_000, r#"{"a":1}"#);
        assert_eq!(one, EXPECTED);
        let two = signature(&["whsec_abc".into(), "whsec_def".into()], 1_700_000_000, r#"{"a":1}"#);
        assert!(two.starts_with(EXPECTED) && two.matches(",v1=").count() == 2, "{two}");
    }

    const EXPECTED: &str = "t=1700000000,v1=3b843bacfb18cc5554542fdcc84d815b399c52758e508a6fcecf0a2af4efea2b";

    #[tokio::test]
    async fn a_name_of_this_machine_has_no_public_address() {
        let refused = Guard { to_private_addresses: false }.resolve("localhost".parse().unwrap()).await;
        let refused = refused.err().map(|error| error.to_string());
        assert_eq!(refused.as_deref(), Some("`localhost` has no public address"));
        assert!(Guard { to_private_addresses: true }.resolve("localhost".parse().unwrap()).await.is_ok());
    }
}
