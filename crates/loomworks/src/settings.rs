//! Every setting, from the command line and the environment, defined once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use loomworks_control::jobs::CrashPoint;
use loomworks_core::ids::{JobId, SessionId, SnapshotId};
use tracing_subscriber::EnvFilter;

/// Host tenants' PostgreSQL applications, each with an undo button.
#[derive(Parser, Debug)]
#[command(name = "loomworks", version, propagate_version = true, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Print JSON instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) client: ClientSettings,

    /// What to log: `error`, `warn`, `info`, `debug`, or a filter such as `info,sqlx=debug`.
    #[arg(long, global = true, env = "LOOMWORKS_LOG", value_name = "FILTER", help_heading = "Logging")]
    log: Option<String>,

    /// Log JSON, one line an event.
    #[arg(long, global = true, env = "LOOMWORKS_LOG_JSON", help_heading = "Logging")]
    log_json: bool,
}

const EXAMPLES: &str = "\
Examples:
  loomworks serve --data ./data --profile profile.toml   run the whole platform in one process
  loomworks tenant create acme --wait                    make a tenant and wait until it is served
  loomworks ai-session open acme --agent cleaner         let an agent in, by connection string
  loomworks ops list acme                                what the agent did
  loomworks ops undo acme 17                             take it back
  loomworks restore run acme --time 2026-03-10T14:05:00Z --yes
                                                         bring one tenant back to a moment";

/// How the API is reached.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClientSettings {
    /// Where the API is.
    #[arg(long, global = true, env = "LOOMWORKS_URL", help_heading = "API")]
    pub(crate) url: Option<String>,

    /// An API key. Only through the environment: a command line can be read by everybody on the machine.
    #[arg(long, global = true, env = "LOOMWORKS_API_KEY", hide = true, hide_env_values = true)]
    pub(crate) api_key: Option<String>,

    /// Where the address and the key are read from when they are not given.
    #[arg(long, global = true, env = "LOOMWORKS_CLIENT_FILE", value_name = "FILE", help_heading = "API")]
    pub(crate) client_file: Option<PathBuf>,

    /// Where the configuration of this user is kept.
    #[arg(long, global = true, env = "XDG_CONFIG_HOME", hide = true)]
    config_home: Option<PathBuf>,

    /// This user's home.
    #[arg(long, global = true, env = "HOME", hide = true)]
    home: Option<PathBuf>,
}

impl ClientSettings {
    /// The client file: the one that was named, or `~/.config/loomworks/client.json`.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        let config = || self.config_home.clone().or_else(|| Some(self.home.as_ref()?.join(".config")));
        self.client_file.clone().or_else(|| Some(config()?.join("loomworks/client.json")))
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the platform: API, gateway, worker, archiver, on a PostgreSQL cluster of its own.
    Serve(Serve),
    /// Make, see, suspend and resume tenants.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Let an AI agent work in a tenant's database, and end it.
    #[command(subcommand, name = "ai-session")]
    AiSession(AiSessionCommand),
    /// See what agents did, and take it back.
    #[command(subcommand)]
    Ops(OpsCommand),
    /// Take and see snapshots of a tenant.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Bring one tenant back to a moment, and take that back.
    #[command(subcommand)]
    Restore(RestoreCommand),
    /// See what the platform is doing.
    #[command(subcommand)]
    Job(JobCommand),
    /// Take and see base backups of the cluster.
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Store WAL in the repository and bring it back: what PostgreSQL calls.
    #[command(subcommand)]
    Wal(WalCommand),
    /// Look the platform over: what is well, what is not, what to do.
    Doctor,
    /// Show the whole promise: two tenants, an agent's mistake, undone.
    Demo,
    /// Stop a platform that was left running and remove its data directory.
    Remove(Remove),
}

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

    /// An app profile. May be given several times.
    #[arg(long = "profile", value_name = "FILE", env = "LOOMWORKS_PROFILES", value_delimiter = ',')]
    pub(crate) profiles: Vec<PathBuf>,

    /// Where a profile's app listens, if not where the profile says: `erp=127.0.0.1:8070`.
    #[arg(long = "upstream", value_name = "PROFILE=ADDRESS")]
    pub(crate) upstreams: Vec<Upstream>,

    /// The domain below which tenants have their addresses, beside `localhost` and `loomworks.local`.
    #[arg(long = "base-domain", value_name = "DOMAIN", env = "LOOMWORKS_BASE_DOMAIN")]
    pub(crate) base_domains: Vec<String>,

    /// Where PostgreSQL's programs are. The newest that is installed if left out.
    #[arg(long, value_name = "DIRECTORY", env = "LOOMWORKS_POSTGRES_BIN")]
    pub(crate) postgres_bin: Option<PathBuf>,

    /// Whom to run as when started by root, who may not run PostgreSQL.
    #[arg(long, default_value = "postgres", value_name = "USER", env = "LOOMWORKS_USER")]
    pub(crate) user: String,

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

#[derive(Subcommand, Debug)]
pub(crate) enum TenantCommand {
    /// Make a tenant.
    Create {
        /// Its subdomain: `acme` for `acme.localhost`.
        subdomain: String,
        /// How people call it.
        #[arg(long)]
        name: Option<String>,
        /// Which app it is for.
        #[arg(long)]
        profile: Option<String>,
        /// Wait until it is served.
        #[arg(long)]
        wait: bool,
    },
    /// The tenants.
    List,
    /// One tenant.
    Show { tenant: String },
    /// Stop serving a tenant. Its data stays.
    Suspend {
        tenant: String,
        /// Kept with the tenant, for its people and for operators.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Serve a tenant again.
    Resume { tenant: String },
}

#[derive(Subcommand, Debug)]
pub(crate) enum AiSessionCommand {
    /// Open a session. Prints the connection string, this once.
    Open {
        tenant: String,
        /// Who will work in it.
        #[arg(long)]
        agent: String,
        /// What for.
        #[arg(long, default_value = "")]
        purpose: String,
        /// How long it is open.
        #[arg(long, default_value_t = 60)]
        minutes: i32,
    },
    /// End a session: its connections end, what it did stays in the log.
    Close { tenant: String, session: SessionId },
    /// A tenant's sessions.
    List { tenant: String },
}

#[derive(Subcommand, Debug)]
pub(crate) enum OpsCommand {
    /// What agents did, newest first.
    List {
        tenant: String,
        /// Only the operations of the session that logs in as this role.
        #[arg(long)]
        session: Option<String>,
        #[arg(long, default_value_t = 20)]
        limit: i64,
    },
    /// One operation, with rows before and after it.
    Show {
        tenant: String,
        operation: i64,
        /// Rows to show.
        #[arg(long, default_value_t = 10)]
        rows: i64,
    },
    /// Take operations back.
    Undo {
        tenant: String,
        #[arg(required = true)]
        operations: Vec<i64>,
        /// What to do about rows that were changed since.
        #[arg(long, value_enum, default_value_t = UndoMode::Strict)]
        mode: UndoMode,
        /// Only show what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UndoMode {
    /// Refuse, and change nothing.
    Strict,
    /// Leave them as they are, take the others back.
    Skip,
    /// Take later AI operations that depend on these back as well.
    Cascade,
    /// Overwrite them. Never breaks a foreign key.
    Force,
}

#[derive(Subcommand, Debug)]
pub(crate) enum SnapshotCommand {
    /// Take a snapshot, and wait until it is ready.
    Create {
        tenant: String,
        /// How to find it again.
        #[arg(long, default_value = "by hand")]
        name: String,
        /// Do not wait.
        #[arg(long)]
        no_wait: bool,
    },
    /// A tenant's snapshots, newest first.
    List { tenant: String },
}

#[derive(Args, Debug, Clone)]
#[group(required = true, multiple = false)]
pub(crate) struct Target {
    /// To this snapshot.
    #[arg(long, value_name = "ID")]
    pub(crate) snapshot: Option<SnapshotId>,
    /// To this moment, with its time zone: 2026-03-10T14:05:00+01:00.
    #[arg(long)]
    pub(crate) time: Option<Timestamp>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum RestoreCommand {
    /// Show what a restore would do.
    Plan {
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
    /// Bring the tenant back. Its present database is kept for seven days.
    Run {
        tenant: String,
        #[command(flatten)]
        target: Target,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Put the database back that the last restore replaced. Again: forward.
    SwapBack {
        tenant: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum JobCommand {
    /// The jobs, newest first.
    List {
        #[arg(long, default_value_t = 20)]
        limit: i64,
    },
    /// One job.
    Show { job: JobId },
    /// Watch a job until it has ended.
    Follow { job: JobId },
}

#[derive(Subcommand, Debug)]
pub(crate) enum BackupCommand {
    /// Take a base backup now, and wait for it.
    Run {
        /// Do not wait.
        #[arg(long)]
        no_wait: bool,
    },
    /// The base backups, oldest first.
    List,
}

#[derive(Subcommand, Debug)]
pub(crate) enum WalCommand {
    /// Store a WAL file, as PostgreSQL's `archive_command` ends: `wal push --repository DIR %p`.
    Push {
        #[arg(long, env = "LOOMWORKS_REPOSITORY", value_name = "DIRECTORY")]
        repository: PathBuf,
        path: PathBuf,
    },
    /// Bring a WAL file back, as `restore_command` ends: `wal fetch --repository DIR %f %p`. Status 1: there is none.
    Fetch {
        #[arg(long, env = "LOOMWORKS_REPOSITORY", value_name = "DIRECTORY")]
        repository: PathBuf,
        name: String,
        path: PathBuf,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Remove {
    /// The data directory.
    #[arg(long, env = "LOOMWORKS_DATA", value_name = "DIRECTORY")]
    pub(crate) data: PathBuf,
    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Logs go to standard error, so that what a command prints can be piped.
pub(crate) fn set_up_logging(arguments: &Arguments) {
    let default = match arguments.command {
        Command::Serve(_) => "info",
        _ => "warn",
    };
    let filter = arguments.log.as_deref().unwrap_or(default);
    let builder =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(EnvFilter::new(filter));
    if arguments.log_json {
        builder.json().init();
    } else {
        builder.with_target(false).with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}
