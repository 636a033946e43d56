//! Every setting, from the command line and the environment, defined once.

mod access;
mod agents;
pub(crate) mod fleet;
mod notices;
pub(crate) mod operators;
mod queue;
mod recovery;
mod repository;
mod serve;
mod tenant;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

pub(crate) use access::*;
pub(crate) use agents::*;
pub(crate) use notices::*;
pub(crate) use queue::JobCommand;
pub(crate) use recovery::*;
pub(crate) use repository::*;
pub(crate) use serve::*;
pub(crate) use tenant::*;

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
    Serve(Box<Serve>),
    /// Make, see, change, suspend, archive, export and destroy tenants.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// See and change what the tiers give.
    #[command(subcommand)]
    Tier(TierCommand),
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
    /// Make, see, replace and revoke API keys.
    #[command(subcommand)]
    Key(KeyCommand),
    /// See what the platform is doing, try it again, cancel it.
    #[command(subcommand)]
    Job(JobCommand),
    /// Take and see base backups of the cluster.
    #[command(subcommand)]
    Backup(BackupCommand),
    /// See how the archive of WAL and backups stands.
    #[command(subcommand)]
    Archive(ArchiveCommand),
    /// Make, see and disable the accounts of those who run the platform.
    #[command(subcommand)]
    Operator(operators::OperatorCommand),
    /// Migrate the databases of many tenants with one SQL file.
    #[command(subcommand)]
    Fleet(fleet::FleetCommand),
    /// Store WAL in the repository and bring it back: what PostgreSQL calls.
    #[command(subcommand)]
    Wal(Box<WalCommand>),
    /// See who did what, and whether the log of it is as it was written.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// See and change the master key, which wraps every stored secret.
    #[command(subcommand, name = "master-key")]
    MasterKey(MasterKeyCommand),
    /// See what people were told without having asked.
    #[command(subcommand)]
    Notification(NotificationCommand),
    /// Have notifications sent to an address.
    #[command(subcommand)]
    Webhook(WebhookCommand),
    /// Look the platform over: what is well, what is not, what to do.
    Doctor,
    Recover(Box<Recover>),
    /// Show the whole promise: two tenants, an agent's mistake, undone.
    Demo,
    /// Stop a platform that was left running and remove its data directory.
    Remove(Remove),
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
        // What PostgreSQL remarks to statements that may be run twice is for nobody.
        Command::Serve(_) => "info,sqlx::postgres::notice=warn",
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
