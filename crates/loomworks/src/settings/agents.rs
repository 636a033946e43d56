//! `loomworks ai-session` and `loomworks ops`.

use clap::{Subcommand, ValueEnum};
use loomworks_core::ids::SessionId;

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
