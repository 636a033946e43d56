//! `loomworks tenant` and `loomworks tier`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use jiff::civil::Date;
use loomworks_core::ids::ExportId;
use loomworks_core::tenant::{TenantState, Tier};

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
        /// How the app's first user logs in, if the profile makes one; `admin` if left out.
        #[arg(long, value_name = "LOGIN")]
        admin_login: Option<String>,
        /// Only write it down; `tenant provision` makes it.
        #[arg(long)]
        draft: bool,
        /// What it may use, unless it gets limits of its own.
        #[arg(long)]
        tier: Option<Tier>,
        /// The first day that is not paid for: 2027-01-01.
        #[arg(long, value_name = "DATE")]
        expires: Option<Date>,
        /// Wait until it is served.
        #[arg(long, conflicts_with = "draft")]
        wait: bool,
    },
    /// Make a tenant of a draft.
    Provision {
        tenant: String,
        /// Wait until it is served.
        #[arg(long)]
        wait: bool,
    },
    /// Change a tenant's name, tier, limits, settings, or the end of its subscription.
    Update(TenantUpdate),
    /// The tenants.
    List {
        /// Only those in this state. All but the destroyed ones if left out.
        #[arg(long)]
        state: Option<TenantState>,
        /// Only those of this tier.
        #[arg(long)]
        tier: Option<Tier>,
        /// Only those with this in their name or subdomain.
        #[arg(long, value_name = "TEXT")]
        search: Option<String>,
    },
    /// One tenant.
    Show { tenant: String },
    /// What a tenant uses of its limits: users, storage, AI operations.
    Usage { tenant: String },
    /// Stop serving a tenant. Its data stays.
    Suspend {
        tenant: String,
        /// Kept with the tenant, for its people and for operators.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Serve a tenant again.
    Resume { tenant: String },
    /// Give a tenant's app another password. Both work for a while, so that no connection fails.
    RotateCredentials {
        tenant: String,
        /// Do not wait until the former one works no more.
        #[arg(long)]
        no_wait: bool,
    },
    /// Stop serving a tenant and close its database. Its data is kept for the retention period.
    Archive {
        tenant: String,
        /// Kept with the tenant.
        #[arg(long, default_value = "")]
        reason: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Take a tenant back from the archive, as it was.
    Unarchive {
        tenant: String,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Destroy a draft or an archived tenant, for ever.
    Destroy {
        tenant: String,
        /// Only show what would go.
        #[arg(long)]
        dry_run: bool,
        /// Destroy it although its data is to be kept for some time yet.
        #[arg(long)]
        before_retention_ends: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Look for what is left of a tenant, by trying to read it. One that was destroyed is named by its id.
    Erasure { tenant: String },
    /// Write everything about a tenant into one archive, and check it.
    Export {
        tenant: String,
        /// Where the archive goes: a tar archive, compressed with Zstandard.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
        /// Download this export in the place of a new one.
        #[arg(long, value_name = "ID")]
        export: Option<ExportId>,
    },
    /// A tenant's exports, newest first.
    Exports { tenant: String },
}

/// What is left out stays as it is.
#[derive(Args, Debug)]
#[group(id = "change", required = true, multiple = true, args = ["name", "tier", "expires", "max_users",
    "max_storage_gb", "max_ai_operations_daily", "recovery_days", "settings"])]
pub(crate) struct TenantUpdate {
    pub(crate) tenant: String,
    /// How people call it.
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[arg(long)]
    pub(crate) tier: Option<Tier>,
    /// The first day that is not paid for, or `never`.
    #[arg(long, value_name = "DATE")]
    pub(crate) expires: Option<OrEmpty<Date>>,
    /// Users it may have, or `tier` for what its tier gives.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_users: Option<OrEmpty<i32>>,
    /// Gigabytes its database may take, or `tier`.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_storage_gb: Option<OrEmpty<f64>>,
    /// Operations its agents may make in a day, or `tier`.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_ai_operations_daily: Option<OrEmpty<i32>>,
    /// Days that it can go back, or `tier`. What is out of a shorter window is removed for good.
    #[arg(long, value_name = "DAYS")]
    pub(crate) recovery_days: Option<OrEmpty<i32>>,
    /// A JSON object, in the place of the former one.
    #[arg(long, value_name = "JSON")]
    pub(crate) settings: Option<String>,
}

/// A value, or the word that takes it away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrEmpty<T>(pub(crate) Option<T>);

impl<T: FromStr<Err: std::fmt::Display>> FromStr for OrEmpty<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" | "tier" | "platform" => Ok(Self(None)),
            text => text.parse().map(|value| Self(Some(value))).map_err(|error: T::Err| error.to_string()),
        }
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum TierCommand {
    /// The tiers and what they give.
    List,
    /// Change what a tier gives, to all tenants that have it and no limit of their own.
    Set {
        tier: Tier,
        #[arg(long)]
        max_users: i32,
        #[arg(long)]
        max_storage_gb: f64,
        #[arg(long)]
        max_ai_operations_daily: i32,
        /// Days that its tenants can go back, or `platform` for what `serve --recovery-days` says. Left out: as it was.
        /// What is out of a shorter window is removed for good.
        #[arg(long, value_name = "DAYS")]
        recovery_days: Option<OrEmpty<i32>>,
    },
}
