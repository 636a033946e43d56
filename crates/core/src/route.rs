//! The gateway's route table: which host name belongs to which tenant, and what to do with its requests.
//!
//! Tables are exchanged whole. A change is a new table with a higher generation, so there is one path for a quiet
//! day and for a bad one, and a gateway that slept catches up by taking one table.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::TenantId;
use crate::name::Subdomain;

/// What the gateway does with a request for a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteState {
    /// Forward it.
    Serving,
    /// Let it wait: the tenant's databases are being exchanged and it will be served in a moment.
    Held,
    /// Answer that the tenant is suspended.
    Suspended,
}

/// One tenant's route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    pub tenant: TenantId,
    pub subdomain: Subdomain,
    /// The database the app is told to use.
    pub database: String,
    pub state: RouteState,
    /// Where the app of this tenant listens.
    pub upstream: SocketAddr,
}

/// All routes at one generation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct RouteTable {
    /// Rises with every change and never falls. A gateway refuses an older table.
    pub generation: i64,
    pub routes: Vec<Route>,
}

/// The domains below which tenants live: `acme.<base>` for each of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseDomains(Vec<String>);

/// Domains for development that every gateway knows (specification, decision 10).
const LOCAL_DOMAINS: [&str; 2] = ["localhost", "loomworks.local"];

impl BaseDomains {
    /// The local domains and the operator's own.
    pub fn new(own: impl IntoIterator<Item = String>) -> Self {
        let own = own.into_iter().map(|domain| domain.trim_matches('.').to_ascii_lowercase());
        Self(own.chain(LOCAL_DOMAINS.map(str::to_owned)).collect())
    }

    /// The subdomain that a `Host` value names: `acme` for `acme.localhost:8080` or `ACME.localhost.`.
    ///
    /// `None` for everything that is not exactly one valid label below one of the domains, with at most one
    /// trailing dot and at most one port. It is decided here and only here what counts as a tenant's address. Whether
    /// somebody could choose that name today does not matter: a tenant that has it is served.
    #[must_use]
    pub fn subdomain(&self, host: &str) -> Option<Subdomain> {
        let host = match host.split_once(':') {
            Some((host, port)) => {
                port.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
                port.parse::<u16>().ok()?;
                host
            }
            None => host,
        };
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        self.0.iter().find_map(|base| {
            let label = host.strip_suffix(base)?.strip_suffix('.')?;
            Subdomain::try_from(label.to_owned()).ok()
        })
    }
}

/// A route table as the gateway uses it: one look-up a request.
#[derive(Debug, Default)]
pub struct RouteMap {
    pub generation: i64,
    by_subdomain: HashMap<Subdomain, Route>,
}

impl From<RouteTable> for RouteMap {
    fn from(table: RouteTable) -> Self {
        let by_subdomain = table.routes.into_iter().map(|route| (route.subdomain.clone(), route)).collect();
        Self { generation: table.generation, by_subdomain }
    }
}

impl RouteMap {
    #[must_use]
    pub fn get(&self, subdomain: &Subdomain) -> Option<&Route> {
        self.by_subdomain.get(subdomain)
    }

    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.by_subdomain.values()
    }
}

/// What a gateway tells the control plane once it has taken a table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// Which gateway. A gateway that restarts takes a new name.
    pub gateway: String,
    /// It serves this generation, and no request that was admitted under an older one is still in flight for a
    /// tenant that this one holds.
    pub generation: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> BaseDomains {
        BaseDomains::new(["Loomworks.App.".to_owned()])
    }

    #[test]
    fn a_tenants_address_is_one_label_below_a_known_domain() {
        for host in [
            "acme.localhost",
            "acme.localhost:8080",
            "ACME.LocalHost",
            "acme.localhost.",
            "acme.loomworks.app",
        ] {
            assert_eq!(base().subdomain(host).map(|s| s.to_string()).as_deref(), Some("acme"), "{host}");
        }
    }

    #[test]
    fn a_tenant_keeps_its_address_when_nobody_may_choose_it_any_more() {
        for name in ["my--shop", "wpad"] {
            let host = format!("{name}.localhost");
            assert_eq!(base().subdomain(&host).map(|s| s.to_string()).as_deref(), Some(name));
        }
    }

    #[test]
    fn everything_else_is_nobodys_address() {
        let hosts = [
            "",
            ".",
            "localhost",
            ".localhost",
            "acme",
            "acme.",
            "a.acme.localhost",
            "acme..localhost",
            "acme.localhost..",
            "acme.localhost.evil.example",
            "acmelocalhost",
            "xloomworks.app",
            "acme.localhost:",
            "acme.localhost:x",
            "acme.localhost:+80",
            "acme.localhost:99999",
            "acme.localhost:80:80",
            "127.0.0.1",
            "[::1]",
            "ac_me.localhost",
            "-acme.localhost",
            "acmé.localhost",
            "acme.localhost/",
            "acme .localhost",
            "acme\0.localhost",
            "acme%2elocalhost",
            "user@acme.localhost",
            "acme.localhost,globex.localhost",
        ];
        for host in hosts {
            assert_eq!(base().subdomain(host), None, "{host:?}");
        }
        assert_eq!(base().subdomain(&format!("{}.localhost", "a".repeat(64))), None);
    }

    #[test]
    fn a_table_survives_json() {
        let table = RouteTable {
            generation: 7,
            routes: vec![Route {
                tenant: TenantId::random(),
                subdomain: "acme".parse().unwrap(),
                database: "acme".into(),
                state: RouteState::Held,
                upstream: ([127, 0, 0, 1], 8069).into(),
            }],
        };
        let json = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<RouteTable>(&json).unwrap(), table);
    }
}
