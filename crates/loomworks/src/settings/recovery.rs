//! `loomworks snapshot`, `restore`, `backup` and `wal`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use loomworks_core::ids::SnapshotId;
use loomworks_core::lsn::Lsn;

use super::repository::RepositorySettings;

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
    /// To just before the record at this position of the WAL.
    #[arg(long)]
    pub(crate) lsn: Option<Lsn>,
    /// To just before this operation of an agent.
    #[arg(long)]
    pub(crate) operation: Option<i64>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum RestoreCommand {
    /// Show what a restore would do.
    Plan {
        tenant: String,
        #[command(flatten)]
        target: Target,
        /// Make the tenant a copy of this one's past.
        #[arg(long, value_name = "TENANT")]
        from: Option<String>,
    },
    /// To which moments a tenant can go back.
    Window { tenant: String },
    /// Bring a moment back beside the live database, for a day, to look at it.
    Look {
        tenant: String,
        #[command(flatten)]
        target: Target,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Bring the tenant back. Its present database is kept for seven days.
    Run {
        tenant: String,
        #[command(flatten)]
        target: Target,
        /// Make the tenant a copy of this one's past.
        #[arg(long, value_name = "TENANT")]
        from: Option<String>,
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
pub(crate) enum BackupCommand {
    /// Take a base backup now, and wait for it.
    Run {
        /// Store everything again, whatever former backups have.
        #[arg(long)]
        full: bool,
        /// Do not wait.
        #[arg(long)]
        no_wait: bool,
    },
    /// Read a backup back, and prove that it can be restored. Exit code 1: it cannot, or not whole.
    Verify { label: String },
    /// The base backups, oldest first.
    List,
}

#[derive(Subcommand, Debug)]
pub(crate) enum ArchiveCommand {
    /// How far the archive is behind the server, what can be restored, what to look at. Exit code 1: there are alarms.
    Status,
    /// What would be removed from the repository now, and why.
    Expiry,
    /// Remove it now, and wait. It is done daily at 04:00 UTC.
    Expire {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Restore some tenants on the side, look them over, throw them away, and say how it went.
    Drill,
}

/// Bring the whole platform back onto an empty machine, with nothing but the repository and the master key.
///
/// Lays the cluster out in a data directory that has none. `loomworks serve --data` with the same settings then recovers it
/// and goes on; what it archives is on a new timeline.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  loomworks recover --data /var/lib/loomworks --repository s3://backups/loomworks \\
      --repository-options /etc/loomworks/s3.toml --master-key-file /etc/loomworks/master.key
  loomworks recover --data /srv/again --repository /mnt/repository --master-key-file master.key \\
      --time 2026-03-10T14:05:00+01:00 --dry-run")]
pub(crate) struct Recover {
    /// The data directory that it is to be in.
    #[arg(long, env = "LOOMWORKS_DATA", value_name = "DIRECTORY")]
    pub(crate) data: PathBuf,

    #[command(flatten)]
    pub(crate) repository: RepositorySettings,

    /// To this moment, with its time zone. To the end of what is archived if left out.
    #[arg(long, conflicts_with = "lsn")]
    pub(crate) time: Option<Timestamp>,

    /// To just before the record at this position of the WAL.
    #[arg(long)]
    pub(crate) lsn: Option<Lsn>,

    /// Where PostgreSQL's programs are, if not where they usually are.
    #[arg(long, env = "LOOMWORKS_POSTGRES_BIN", value_name = "DIRECTORY")]
    pub(crate) postgres_bin: Option<PathBuf>,

    /// The user to go on as, when root starts it.
    #[arg(long, env = "LOOMWORKS_USER", default_value = "postgres", value_name = "NAME")]
    pub(crate) user: String,

    /// Only show what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum WalCommand {
    /// Store a WAL file, as PostgreSQL's `archive_command`: `wal push --repository … --master-key-file … %p`.
    Push {
        #[command(flatten)]
        repository: RepositorySettings,
        path: PathBuf,
    },
    /// Bring a WAL file back, as `restore_command`: `wal fetch --repository … --master-key-file … %f %p`. Status 1: there
    /// is none.
    Fetch {
        #[command(flatten)]
        repository: RepositorySettings,
        /// Segments are taken from this directory, where `loomworks recover` has laid them out, and nowhere else.
        #[arg(long, value_name = "DIRECTORY")]
        laid_out: Option<PathBuf>,
        name: String,
        path: PathBuf,
    },
}
