//! Settings about people: the commands for operators' accounts, and how they log in.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use loomworks_control::access::Permission;
use loomworks_core::email::Email;
use loomworks_core::ids::OperatorId;

#[derive(Subcommand, Debug)]
pub(crate) enum OperatorCommand {
    /// Make an account. The password is asked for, or read from standard input.
    Create {
        /// What the operator logs in with.
        email: Email,
        /// How people call the operator.
        #[arg(long)]
        name: String,
        /// What the operator may do.
        #[arg(long, value_enum, value_delimiter = ',', default_value = "read,work,manage")]
        permissions: Vec<PermissionName>,
        /// Give no password: the operator comes by OpenID Connect.
        #[arg(long)]
        no_password: bool,
    },
    /// The accounts, by address.
    List,
    /// Let nobody log in to an account any more, and end its sessions.
    Disable { operator: OperatorId },
    /// Let an operator log in again, and forget who he is at the OpenID provider until he comes from there.
    Enable { operator: OperatorId },
    /// Give an account another password, asked for or read from standard input, and end its sessions.
    SetPassword { operator: OperatorId },
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PermissionName {
    /// See everything.
    Read,
    /// What can be taken back: AI sessions, undo, snapshots.
    Work,
    /// What cannot: tenants, restores, keys, operators.
    Manage,
}

impl From<PermissionName> for Permission {
    fn from(name: PermissionName) -> Self {
        match name {
            PermissionName::Read => Self::Read,
            PermissionName::Work => Self::Work,
            PermissionName::Manage => Self::Manage,
        }
    }
}

/// How operators log in.
#[derive(Args, Clone, Debug)]
pub(crate) struct LogInSettings {
    /// The address at which browsers reach the API: `https://console.example.com`.
    #[arg(long, value_name = "URL", env = "LOOMWORKS_PUBLIC_URL", help_heading = "Log-in")]
    pub(crate) public_url: Option<String>,

    /// The OpenID provider by which operators may log in.
    #[arg(
        long,
        value_name = "URL",
        env = "LOOMWORKS_OIDC_ISSUER",
        requires_all = ["oidc_client_id", "oidc_allow", "public_url"],
        help_heading = "Log-in"
    )]
    pub(crate) oidc_issuer: Option<String>,

    /// What the provider calls us.
    #[arg(
        long,
        value_name = "ID",
        env = "LOOMWORKS_OIDC_CLIENT_ID",
        requires = "oidc_issuer",
        help_heading = "Log-in"
    )]
    pub(crate) oidc_client_id: Option<String>,

    /// Where the secret is that we share with the provider. Left out: there is none.
    #[arg(
        long,
        value_name = "FILE",
        env = "LOOMWORKS_OIDC_CLIENT_SECRET_FILE",
        requires = "oidc_issuer",
        help_heading = "Log-in"
    )]
    pub(crate) oidc_client_secret_file: Option<PathBuf>,

    /// Who may log in by it: addresses (`ann@example.com`), domains (`@example.com`), what the provider must say
    /// (`groups=operators`). One of the addresses or domains must fit, and all that it must say.
    #[arg(
        long,
        value_name = "WHO",
        value_delimiter = ',',
        env = "LOOMWORKS_OIDC_ALLOW",
        requires = "oidc_issuer",
        help_heading = "Log-in"
    )]
    pub(crate) oidc_allow: Vec<String>,

    /// Make an account with these permissions for whoever may log in and has none.
    #[arg(
        long,
        value_enum,
        value_name = "PERMISSIONS",
        value_delimiter = ',',
        env = "LOOMWORKS_OIDC_CREATE",
        requires = "oidc_issuer",
        help_heading = "Log-in"
    )]
    pub(crate) oidc_create: Vec<PermissionName>,
}
