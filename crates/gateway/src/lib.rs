//! The HTTP gateway: it accepts, routes by host name, forwards.
//!
//! It promises three things. A request reaches the tenant its own `Host` names, or nobody. What an app reads in our
//! headers was written by us. And while a tenant is held, its requests wait; the control plane hears that a hold is in
//! force only when no earlier request of that tenant is in flight.
//!
//! It knows nothing but the route table, which it takes from the control plane and keeps in a file, so it serves with
//! its last table when the control plane is away. Reading order: `listen`, `proxy`, `headers`, `hold`, `feed`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use loomworks_core::route::BaseDomains;

mod feed;
mod framing;
mod headers;
mod hold;
mod listen;
mod pages;
mod proxy;
mod record;
mod upload;

pub use feed::{BadControlPlane, ControlPlane};
pub use hold::Status;
pub use listen::{Gateway, GatewayError, Observer};

/// How long a request waits for a held tenant, unless the operator says otherwise.
pub const HOLD_MAX: Duration = Duration::from_secs(60);

/// Everything a gateway is told at its start.
#[derive(Debug)]
pub struct Settings {
    pub listen: SocketAddr,
    pub base_domains: BaseDomains,
    pub control: ControlPlane,
    /// The last good table is kept here, so that a restart needs nobody.
    pub routes_file: PathBuf,
    /// A request for a held tenant waits this long and is then refused.
    pub hold_max: Duration,
    /// Names this run of this gateway. A gateway that restarts takes a new name, because its promises were made by
    /// the process that is gone.
    pub name: String,
}

impl Settings {
    /// The usual settings, under a name that no other run has.
    #[must_use]
    pub fn new(
        listen: SocketAddr,
        base_domains: BaseDomains,
        control: ControlPlane,
        routes_file: PathBuf,
    ) -> Self {
        let name = format!("gateway-{}", uuid::Uuid::new_v4().simple());
        Self { listen, base_domains, control, routes_file, hold_max: HOLD_MAX, name }
    }
}
