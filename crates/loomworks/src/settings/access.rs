//! `loomworks key`, `master-key` and `audit`.

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use loomworks_core::ids::ApiKeyId;

/// Whose API key.
#[derive(Args, Debug, Clone)]
#[group(required = true, multiple = false)]
pub(crate) struct KeyOwner {
    /// The tenant's, by its id or subdomain.
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// The platform's own: operators' and gateways'.
    #[arg(long)]
    pub(crate) platform: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum KeyCommand {
    /// Make a key. It is printed this once.
    Create {
        #[command(flatten)]
        owner: KeyOwner,
        /// Who or what uses it.
        #[arg(long)]
        name: String,
        /// `tenant_admin` or `tenant_user`; with `--platform` `operator` or `gateway`. The first if left out.
        #[arg(long)]
        scope: Option<String>,
        /// What of the scope's rights it has: read, work, manage. All that you have yourself if left out.
        #[arg(long, value_delimiter = ',', value_enum)]
        permissions: Vec<PermissionName>,
        /// `live`, `test` or `dev`.
        #[arg(long, default_value = "live")]
        environment: String,
        /// When it ends, with its time zone: 2027-03-10T14:05:00+01:00.
        #[arg(long)]
        expires_at: Option<Timestamp>,
    },
    /// The keys, newest first.
    List {
        #[command(flatten)]
        owner: KeyOwner,
    },
    /// Make a new key with the same rights; the old one ends after the overlap.
    Rotate {
        #[command(flatten)]
        owner: KeyOwner,
        key: ApiKeyId,
        /// How long both are good.
        #[arg(long, default_value_t = 60)]
        overlap_minutes: i32,
    },
    /// End a key at once.
    Revoke {
        #[command(flatten)]
        owner: KeyOwner,
        key: ApiKeyId,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PermissionName {
    /// See things.
    Read,
    /// Do what can be taken back.
    Work,
    /// Do what cannot.
    Manage,
}

#[derive(Subcommand, Debug)]
pub(crate) enum MasterKeyCommand {
    /// The ids of the keys, and how many secrets each wraps.
    Show,
    /// Make a new master key and wrap every stored secret with it. Nothing stops meanwhile.
    Rotate {
        /// Drop the former key in the end. Older backups of the management database need it.
        #[arg(long)]
        forget_former: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum AuditCommand {
    /// Who did what, newest first.
    List(AuditFilter),
    /// Follow the chain of hashes through the log. Exit status 1: it is not as it was written.
    Verify {
        /// Only what was sealed from this moment on: 2026-03-10T14:05:00Z.
        #[arg(long, value_name = "MOMENT")]
        since: Option<Timestamp>,
        /// A head that was noted earlier; the chain must still lead through it.
        #[arg(long, value_name = "HASH")]
        expect: Option<String>,
    },
}

/// Which lines of the audit log are wanted.
#[derive(Args, Debug, Clone)]
pub(crate) struct AuditFilter {
    /// Of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// By this one.
    #[arg(long)]
    actor: Option<String>,
    /// This act, or all whose names begin so: `tenant.suspended`, `tenant`.
    #[arg(long)]
    action: Option<String>,
    /// From this moment on.
    #[arg(long, value_name = "MOMENT")]
    since: Option<Timestamp>,
    /// Before this moment.
    #[arg(long, value_name = "MOMENT")]
    until: Option<Timestamp>,
    #[arg(long, default_value_t = 50)]
    limit: i64,
    /// Where the page before ended.
    #[arg(long)]
    cursor: Option<String>,
}

impl AuditFilter {
    pub(crate) fn query(&self) -> Vec<(&'static str, String)> {
        let moment = |moment: Option<Timestamp>| moment.map(|moment| moment.to_string());
        let all = [
            ("tenant", self.tenant.clone()),
            ("actor", self.actor.clone()),
            ("action", self.action.clone()),
            ("since", moment(self.since)),
            ("until", moment(self.until)),
            ("limit", Some(self.limit.to_string())),
            ("cursor", self.cursor.clone()),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}
