//! What `loomworks fleet` is told.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use loomworks_core::ids::FleetMigrationId;

#[derive(Subcommand, Debug)]
pub(crate) enum FleetCommand {
    /// Migrate many tenants with one SQL file: canaries first, then in waves.
    ///
    /// The tenants are those that there are now; one that is made meanwhile is not migrated.
    Run(Box<FleetRun>),
    /// The fleet migrations, newest first.
    List {
        #[arg(long, default_value_t = 20)]
        limit: i64,
    },
    /// One fleet migration, with the tenants that do not have it, and why.
    Show {
        migration: FleetMigrationId,
        /// Show every tenant.
        #[arg(long)]
        tenants: bool,
    },
    /// Watch a fleet migration until it rests. Status 1: tenants failed.
    Follow { migration: FleetMigrationId },
    /// Begin no more tenants. Those that are under way are finished.
    Pause { migration: FleetMigrationId },
    /// Go on with one that was paused, was stopped by failures, or failed with some tenants.
    Resume {
        migration: FleetMigrationId,
        /// Try the tenants again that failed.
        #[arg(long)]
        retry_failed: bool,
        /// Do not wait until it rests.
        #[arg(long)]
        no_wait: bool,
    },
    /// Begin no more tenants, for good. Those that have it keep it.
    Cancel {
        migration: FleetMigrationId,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Args, Debug)]
pub(crate) struct FleetRun {
    /// The SQL. With each tenant all of it is one transaction, run as the app.
    pub(crate) file: PathBuf,
    /// How to find it again. The file's name if left out.
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) selection: FleetSelection,
    /// Tenants that are migrated before all others.
    #[arg(long, default_value_t = 1)]
    pub(crate) canaries: i32,
    /// Tenants of each wave after the canaries.
    #[arg(long, default_value_t = 100)]
    pub(crate) wave_size: i32,
    /// Tenants that are migrated at the same time, 1 to 32.
    #[arg(long, default_value_t = 8)]
    pub(crate) concurrency: i32,
    /// Take no snapshots before.
    #[arg(long)]
    pub(crate) no_snapshot: bool,
    /// How many seconds all of it may take in one tenant.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) statement_timeout: i32,
    /// How many seconds it may wait for each lock.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    pub(crate) lock_timeout: i32,
    /// How many seconds a tenant is waited for that is being restored.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) busy_timeout: i32,
    /// After how many failures no more tenants are begun. 0: never.
    #[arg(long, default_value_t = 1, value_name = "FAILURES")]
    pub(crate) stop_after: i32,
    /// Wait after the canaries until it is resumed.
    #[arg(long)]
    pub(crate) pause_after_canary: bool,
    /// Only show which tenants it would be; with `=canary`, also run it on the first canary and take it back.
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "plan", require_equals = true)]
    pub(crate) dry_run: Option<DryRun>,
    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Do not wait until it rests.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub(crate) struct FleetSelection {
    /// All tenants.
    #[arg(long, conflicts_with_all = ["tenants", "tier", "profile"])]
    pub(crate) all: bool,
    /// These tenants, in this order; the first ones are the canaries.
    #[arg(long = "tenant", value_name = "TENANT", value_delimiter = ',', conflicts_with_all = ["tier", "profile"])]
    pub(crate) tenants: Vec<String>,
    /// Those of this tier.
    #[arg(long)]
    pub(crate) tier: Option<String>,
    /// Those of this app profile.
    #[arg(long)]
    pub(crate) profile: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DryRun {
    /// Which tenants, in which waves.
    Plan,
    /// That, and what it does to the first canary.
    Canary,
}
