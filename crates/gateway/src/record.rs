//! What is sent to the client, and what is written down about it.
//!
//! The record of a request travels with the body of its answer. Whichever way that ends, whole, cut, or never begun
//! because the client left, the record goes out of scope then and writes the access line.

use std::error::Error;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use loomworks_core::name::Subdomain;

use crate::hold::InFlight;
use crate::pages::{Failure, Whose, chain};

/// What the client is sent: the app's body or our own. It is in flight, and not yet recorded, until it is dropped.
pub(crate) struct Answer {
    body: Content,
    // Dropped in this order.
    in_flight: Option<InFlight>,
    record: Option<Record>,
}

enum Content {
    Own(Option<Bytes>),
    Forwarded(Incoming),
}

impl Answer {
    pub(crate) fn own(text: Bytes) -> Self {
        Self { body: Content::Own(Some(text)), in_flight: None, record: None }
    }

    pub(crate) fn forwarded(body: Incoming, in_flight: Option<InFlight>) -> Self {
        Self { body: Content::Forwarded(body), in_flight, record: None }
    }

    pub(crate) fn keep(&mut self, record: Record) {
        self.record = Some(record);
        if self.is_end_stream() {
            self.whole(); // nobody will ask for a body that is empty
        }
    }

    fn note(&mut self, polled: &Poll<Option<Result<Frame<Bytes>, hyper::Error>>>) {
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                let sent = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.record.iter_mut().for_each(|record| record.sent_bytes += sent);
            }
            Poll::Ready(Some(Err(error))) => {
                self.record.iter_mut().for_each(|record| record.blame(Whose::Upstream, error));
            }
            Poll::Ready(None) => self.whole(),
            Poll::Pending => {}
        }
        if self.is_end_stream() {
            self.whole();
        }
    }

    /// The whole body has been taken: the app is done with this request.
    fn whole(&mut self) {
        self.in_flight = None;
        self.record.iter_mut().for_each(|record| record.whole = true);
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = match &mut self.body {
            Content::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Content::Forwarded(body) => Pin::new(body).poll_frame(cx),
        };
        self.note(&polled);
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Content::Own(text) => text.is_none(),
            Content::Forwarded(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Content::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Content::Forwarded(body) => body.size_hint(),
        }
    }
}

/// What is known about a request. Dropping it writes the access line.
pub(crate) struct Record {
    pub(crate) id: HeaderValue,
    started: Instant,
    pub(crate) client: IpAddr,
    method: Method,
    path: String,
    pub(crate) tenant: Option<Subdomain>,
    pub(crate) status: Option<StatusCode>,
    fault: Option<Whose>,
    why: Option<String>,
    sent_bytes: u64,
    whole: bool,
}

impl Record {
    pub(crate) fn begin(client: IpAddr, request: &Request<Incoming>) -> Self {
        let id = uuid::Uuid::new_v4().to_string();
        Self {
            id: HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("unknown")),
            started: Instant::now(),
            client,
            method: request.method().clone(),
            // Without the query, which carries what people search for and sometimes secrets.
            path: request.uri().path().to_owned(),
            tenant: None,
            status: None,
            fault: None,
            why: None,
            sent_bytes: 0,
            whole: false,
        }
    }

    pub(crate) fn failed(&mut self, failure: &Failure) {
        self.blame(failure.whose(), failure);
    }

    fn blame(&mut self, whose: Whose, error: &(dyn Error + 'static)) {
        self.fault = Some(whose);
        self.why = Some(chain(error));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.whole && self.fault.is_none() {
            self.fault = Some(Whose::Client);
            self.why = Some("the client left".to_owned());
        }
        tracing::info!(
            target: "loomworks_gateway::access",
            request_id = self.id.to_str().unwrap_or_default(),
            client = %self.client,
            tenant = self.tenant.as_ref().map(Subdomain::as_str),
            method = %self.method,
            path = self.path,
            status = self.status.map(|status| status.as_u16()),
            sent_bytes = self.sent_bytes,
            ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            fault = self.fault.map(Whose::as_str),
            why = self.why,
            "request",
        );
    }
}
