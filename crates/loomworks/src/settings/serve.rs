//! What `loomworks serve` takes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use loomworks_control::jobs::CrashPoint;
use loomworks_web::Network;

use super::operators;
use super::queue::QueueSettings;
use super::repository::RepositorySettings;

#[derive(Args, Debug, Clone)]
pub(crate) struct Serve {
    /// Where everything is kept. Made if it is missing.
    #[arg(long, env = "LOOMWORKS_DATA", value_name = "DIRECTORY")]
    pub(crate) data: PathBuf,

    /// What this process does.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "api,gateway,worker,archiver",
        env = "LOOMWORKS_ROLES"
    )]
    roles: Vec<Role>,

    /// Where the API listens.
    #[arg(long, default_value = "127.0.0.1:7070", env = "LOOMWORKS_API_LISTEN", value_name = "ADDRESS")]
    pub(crate) api_listen: SocketAddr,

    /// Where the gateway listens.
    #[arg(long, default_value = "127.0.0.1:7080", env = "LOOMWORKS_GATEWAY_LISTEN", value_name = "ADDRESS")]
    pub(crate) gateway_listen: SocketAddr,

    /// Where `/metrics` is served, to whoever can connect: `127.0.0.1:7090`. Nowhere if left out.
    #[arg(long, env = "LOOMWORKS_METRICS_LISTEN", value_name = "ADDRESS")]
    pub(crate) metrics_listen: Option<SocketAddr>,

    /// How many requests a second a tenant, an operator or an unknown address may make of the API.
    #[arg(long, default_value = "100", env = "LOOMWORKS_API_RATE", value_name = "REQUESTS")]
    pub(crate) api_rate: NonZeroU32,

    /// How many it may make at once after a while of silence.
    #[arg(long, default_value = "200", env = "LOOMWORKS_API_BURST", value_name = "REQUESTS")]
    pub(crate) api_burst: NonZeroU32,

    /// A network whose servers are believed what `X-Forwarded-For` says: `10.0.0.0/8`, `192.0.2.7`. May be given
    /// several times, in the place of this machine.
    #[arg(
        long = "trusted-proxy",
        value_name = "NETWORK",
        default_value = "127.0.0.0/8,::1/128",
        value_delimiter = ',',
        env = "LOOMWORKS_TRUSTED_PROXIES"
    )]
    pub(crate) trusted_proxies: Vec<Network>,

    /// An app profile. May be given several times.
    #[arg(long = "profile", value_name = "FILE", env = "LOOMWORKS_PROFILES", value_delimiter = ',')]
    pub(crate) profiles: Vec<PathBuf>,

    /// Where a profile's app listens, if not where the profile says: `erp=127.0.0.1:8070`.
    #[arg(long = "upstream", value_name = "PROFILE=ADDRESS")]
    pub(crate) upstreams: Vec<Upstream>,

    /// The domain below which tenants have their addresses, beside `localhost` and `loomworks.local`.
    #[arg(long = "base-domain", value_name = "DOMAIN", env = "LOOMWORKS_BASE_DOMAIN")]
    pub(crate) base_domains: Vec<String>,

    /// Databases that wait for tenants, for each profile that does not say `pool` itself.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(..=100), value_name = "NUMBER", env = "LOOMWORKS_POOL")]
    pub(crate) pool: u32,

    /// Where PostgreSQL's programs are. The newest that is installed if left out.
    #[arg(long, value_name = "DIRECTORY", env = "LOOMWORKS_POSTGRES_BIN")]
    pub(crate) postgres_bin: Option<PathBuf>,

    /// Whom to run as when started by root, who may not run PostgreSQL.
    #[arg(long, default_value = "postgres", value_name = "USER", env = "LOOMWORKS_USER")]
    pub(crate) user: String,

    #[command(flatten)]
    pub(crate) queue: QueueSettings,

    #[command(flatten)]
    pub(crate) repository: RepositorySettings,

    /// After how many days the password of a tenant's app is changed.
    #[arg(long, default_value_t = 90, value_name = "DAYS", env = "LOOMWORKS_CREDENTIALS_DAYS")]
    pub(crate) credentials_days: u64,

    /// How many seconds the former password works beside the new one.
    #[arg(long, default_value_t = 300, value_name = "SECONDS", env = "LOOMWORKS_CREDENTIALS_OVERLAP")]
    pub(crate) credentials_overlap: u64,

    #[command(flatten)]
    pub(crate) log_in: operators::LogInSettings,

    /// Send webhooks also to addresses that are not public, as while developing. Whoever may register a webhook can
    /// then have this machine talk to its own network.
    #[arg(long, env = "LOOMWORKS_WEBHOOKS_TO_PRIVATE_ADDRESSES")]
    pub(crate) webhooks_to_private_addresses: bool,

    /// For how many days the data of an archived tenant is kept.
    #[arg(long, default_value_t = 30, value_name = "DAYS", env = "LOOMWORKS_ARCHIVE_DAYS")]
    pub(crate) archive_days: u16,

    /// How many days back a tenant can go, unless its tier says it or it has a limit of its own.
    #[arg(long, env = "LOOMWORKS_RECOVERY_DAYS", default_value_t = 30, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub(crate) recovery_days: u16,

    /// After how many rows that were changed since a tenant's last snapshot one is taken without being asked for, as after
    /// an import. 0: never.
    #[arg(long, env = "LOOMWORKS_SNAPSHOT_AFTER_ROWS", default_value_t = 100_000, value_name = "ROWS")]
    pub(crate) snapshot_after_rows: u32,

    /// For how many days a tenant is served whose subscription has ended.
    #[arg(long, default_value_t = 7, value_name = "DAYS", env = "LOOMWORKS_GRACE_DAYS")]
    pub(crate) grace_days: u16,

    /// Die at a step of a job, to prove that it can be gone on with: `restore/3/before-save`.
    #[arg(long, hide = true, env = "LOOMWORKS_CRASH_AT")]
    pub(crate) crash_at: Option<CrashPoint>,
}

impl Serve {
    pub(crate) fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    pub(crate) fn role_names(&self) -> String {
        let roles: BTreeSet<Role> = self.roles.iter().copied().collect();
        let names = roles.iter().filter_map(|role| Some(role.to_possible_value()?.get_name().to_owned()));
        names.collect::<Vec<_>>().join(", ")
    }
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// The REST API.
    Api,
    /// The tenants' addresses.
    Gateway,
    /// Jobs, and what is to be made into jobs.
    Worker,
    /// Base backups when they are due.
    Archiver,
}

/// Where the app of a profile listens.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    pub(crate) profile: String,
    pub(crate) address: SocketAddr,
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (profile, address) = text.split_once('=').ok_or("write PROFILE=ADDRESS")?;
        let address =
            address.parse().map_err(|_| format!("`{address}` is not an address such as 127.0.0.1:8069"))?;
        Ok(Self { profile: profile.to_owned(), address })
    }
}
