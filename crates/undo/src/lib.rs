//! The operation log in a tenant's database: what AI agents change is recorded, and can be taken back.
//!
//! An agent logs in as a role `lwai_…` and works in plain SQL. Triggers that look at `session_user`, which nobody but
//! a superuser can change, record each row before and after, in the agent's own transaction ([`install()`]).
//! [`undo()`] takes operations back as a new operation, so an undo can be undone too.
//!
//! This crate knows neither the management database nor backups. What rows cannot bring back (a dropped table) it
//! refuses with the position to restore to.

mod catalog;
mod engine;
mod error;
mod install;
mod log;
mod operation;
mod quota;
mod render;
mod transaction;

pub use engine::{plan, undo};
pub use error::UndoError;
pub use install::{admit, install, parts, rehome};
pub use log::{list, logged_since, show};
pub use operation::{
    Conflict, ConflictColumn, Filter, Mode, Operation, OperationDetail, OperationId, OperationKind, Outcome,
    Plan, RowChange, TableCount, TablePlan,
};
pub use quota::{Limits, Usage, Users, block, set_limits, unblock, usage};

/// Owns the log in every tenant's database. Nobody logs in as it.
pub const LOG_ROLE: &str = "loomworks_log";

/// Reads the log and applies undos. No superuser; logs in on the server's socket only.
pub const UNDO_ROLE: &str = "loomworks_undo";

/// As whom an undo reads and writes the tenant's tables, and so runs what the tenant has written. Nobody logs in as it.
pub const WRITER_ROLE: &str = "loomworks_writer";

/// What the role of an AI session begins with. The triggers' condition compares with it.
pub const AI_ROLE_PREFIX: &str = "lwai_";

/// Where the log lives in every tenant's database. Nobody but us writes there.
pub const SCHEMA: &str = "loomworks";
