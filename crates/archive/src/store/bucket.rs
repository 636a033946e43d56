//! A bucket of a service that speaks S3: its settings, and how long it is waited for.
//!
//! A service that does not answer must not stop whoever asks for ever: PostgreSQL keeps its WAL until the archiving
//! command ends, and calls it again. So a request is given up when nothing moves, it is made again a few times where
//! that can do no harm, and then the caller is told.

use std::collections::BTreeMap;
use std::time::Duration;

use loomworks_core::{ExposeSecret, SecretString};
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::{BackoffConfig, ClientOptions, Error, RetryConfig};

/// A bucket, and the prefix below which the repository's objects are.
#[derive(Clone, Debug)]
pub struct Bucket {
    pub name: String,
    pub prefix: String,
    /// The service's own settings, by the names that it is usually configured with: `aws_endpoint`, `aws_region`,
    /// `aws_access_key_id`, `aws_secret_access_key`, `aws_allow_http` and the like; the client's, `connect_timeout`,
    /// `read_timeout` and `timeout`; and `retries`.
    pub options: BTreeMap<String, SecretString>,
}

impl PartialEq for Bucket {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.prefix) == (&other.name, &other.prefix)
    }
}

impl Eq for Bucket {}

const CONNECT: Duration = Duration::from_secs(5);
/// For an object to be written, and for the next bytes of one that is read.
const READ: Duration = Duration::from_secs(60);
/// For the whole of a request, also one whose answer trickles.
const REQUEST: Duration = Duration::from_secs(900);

const RETRY: RetryConfig = RetryConfig {
    backoff: BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(5),
        base: 2.0,
    },
    max_retries: 5,
    // No retry begins later than this.
    retry_timeout: Duration::from_secs(60),
};

const RETRIES: &str = "retries";

impl Bucket {
    pub(super) fn open(&self) -> Result<AmazonS3, Error> {
        let client =
            ClientOptions::new().with_connect_timeout(CONNECT).with_read_timeout(READ).with_timeout(REQUEST);
        let mut retry = RETRY;
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.name)
            .with_client_options(client)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            // We remove one at a time, and not every service removes many.
            .with_disable_bulk_delete(true);
        for (name, value) in &self.options {
            let value = value.expose_secret();
            if name == RETRIES {
                retry.max_retries = value.parse().map_err(|_| not_a_number(value))?;
            } else {
                builder = builder.with_config(name.parse()?, value);
            }
        }
        builder.with_retry(retry).build()
    }
}

fn not_a_number(value: &str) -> Error {
    Error::Generic { store: "S3", source: format!("`{RETRIES}` is no number: `{value}`").into() }
}

/// What a person can do about an error of the store.
pub(super) fn hint(error: &Error) -> Option<&'static str> {
    match error {
        _ if is_refusal(error) => {
            Some("the store's credentials must be right, and allow to read, write, list and delete")
        }
        Error::NotFound { .. } => Some("make the bucket, or correct its name"),
        Error::UnknownConfigurationKey { .. } => {
            Some("see docs/operate/repository.md for the options' names")
        }
        _ => match transport(error)? {
            HttpErrorKind::Connect => Some("is the store's address right, and can it be reached from here?"),
            HttpErrorKind::Timeout => Some("the store takes connections and does not answer in time"),
            HttpErrorKind::Request | HttpErrorKind::Interrupted => Some("the store broke off the connection"),
            _ => None,
        },
    }
}

/// Whether the service has refused who asks. Of a listing the client tells that in words only.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => true,
        Error::Generic { .. } => {
            let text = error.to_string();
            ["403 Forbidden", "401 Unauthorized"].iter().any(|status| text.contains(status))
        }
        _ => false,
    }
}

/// How the connection failed, if it did.
fn transport(error: &Error) -> Option<HttpErrorKind> {
    let mut error: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return Some(http.kind());
        }
        error = error.source()?;
    }
}
