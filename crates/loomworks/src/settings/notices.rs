//! `loomworks notification` and `webhook`.

use clap::{Args, Subcommand};
use loomworks_core::ids::WebhookId;

#[derive(Subcommand, Debug)]
pub(crate) enum NotificationCommand {
    /// The notifications, newest first.
    List {
        /// Only those of this tenant.
        #[arg(long)]
        tenant: Option<String>,
        /// Only those that matter this much: `info`, `warning` or `critical`.
        #[arg(long)]
        severity: Option<String>,
        /// Only these events: a name, or the beginning of names, as in `quota.*`.
        #[arg(long)]
        event: Option<String>,
        #[command(flatten)]
        page: PageOf<20>,
    },
}

/// A part of a long list.
#[derive(Args, Debug, Clone)]
pub(crate) struct PageOf<const DEFAULT: i64> {
    #[arg(long, default_value_t = DEFAULT)]
    pub(crate) limit: i64,
    /// Go on where a page before ended: its `next_cursor`.
    #[arg(long)]
    pub(crate) cursor: Option<String>,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct WebhookOwner {
    /// A tenant's webhooks. Left out: the platform's own, which get everything.
    #[arg(long)]
    pub(crate) tenant: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum WebhookCommand {
    /// Register an address. Prints the secret with which is signed, this once.
    Add {
        // Not `url`: that is where the API is, and one would be taken for the other.
        #[arg(value_name = "URL")]
        address: String,
        #[command(flatten)]
        owner: WebhookOwner,
        /// What to send: `*`, a name, or the beginning of names, as in `quota.*`. May be given several times.
        #[arg(long = "event", default_value = "*")]
        events: Vec<String>,
        #[arg(long, default_value = "")]
        description: String,
    },
    /// The webhooks.
    List {
        #[command(flatten)]
        owner: WebhookOwner,
    },
    /// Remove a webhook. What waits for it is not sent any more.
    Remove {
        webhook: WebhookId,
        #[command(flatten)]
        owner: WebhookOwner,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Send a test, and wait for what comes of it.
    Test {
        webhook: WebhookId,
        #[command(flatten)]
        owner: WebhookOwner,
    },
    /// Make a new secret and print it, this once. The former one signs beside it for a day.
    RotateSecret {
        webhook: WebhookId,
        #[command(flatten)]
        owner: WebhookOwner,
    },
    /// What was sent to a webhook and what became of it, newest first.
    Deliveries {
        webhook: WebhookId,
        #[command(flatten)]
        owner: WebhookOwner,
        #[command(flatten)]
        page: PageOf<20>,
    },
}
