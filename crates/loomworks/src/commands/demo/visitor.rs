//! A visitor of tenants' addresses, through the gateway.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{RequestBuilder, Response};

use crate::output::Failure;

#[derive(Clone)]
pub(super) struct Visitor {
    http: reqwest::Client,
    port: u16,
}

impl Visitor {
    /// `tenant.localhost` is this machine everywhere, but not every resolver knows it: so it is told.
    pub(super) fn new(gateway: SocketAddr, tenants: &[&str]) -> Result<Self, Failure> {
        let mut builder = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(90));
        for tenant in tenants {
            builder = builder.resolve(&format!("{tenant}.localhost"), gateway);
        }
        Ok(Self { http: builder.build()?, port: gateway.port() })
    }

    fn url(&self, tenant: &str, path: &str) -> String {
        format!("http://{tenant}.localhost:{}{path}", self.port)
    }

    pub(super) fn get(&self, tenant: &str, path: &str) -> RequestBuilder {
        self.http.get(self.url(tenant, path))
    }

    pub(super) async fn post(
        &self,
        tenant: &str,
        path: &str,
        body: &serde_json::Value,
    ) -> reqwest::Result<Response> {
        self.http.post(self.url(tenant, path)).json(body).send().await
    }
}
