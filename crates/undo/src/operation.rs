//! What is in the log, and what an undo says of itself.

use std::collections::BTreeMap;

use jiff::Timestamp;
use loomworks_core::lsn::Lsn;
use serde::{Deserialize, Serialize};

/// The number of an operation in its database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub i64);

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Rows were inserted, updated, deleted.
    Change,
    /// Objects were made, changed, dropped.
    Ddl,
    Truncate,
    /// Operations were taken back.
    Undo,
}

/// What one statement of a client did in one transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    pub id: OperationId,
    /// The role that was logged in.
    pub session: String,
    pub at: Timestamp,
    pub kind: OperationKind,
    /// The first 10,000 characters.
    pub statement: String,
    /// A restore to here is a restore to just before the operation.
    pub lsn: Lsn,
    /// Rows by table, cascades and triggers' effects included.
    pub tables: Vec<TableCount>,
    pub undone_by: Option<OperationId>,
    pub undo_of: Vec<OperationId>,
    /// Who asked for an undo.
    pub requested_by: Option<String>,
    /// Of DDL: its tag, what it dropped.
    pub note: serde_json::Value,
}

/// How many rows of a table an operation changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCount {
    /// Qualified and quoted where needed.
    pub table: String,
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
}

/// An operation with rows it changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationDetail {
    pub operation: Operation,
    pub rows: Vec<RowChange>,
}

/// Values as text, by column. For showing: an undo uses the typed values.
pub(crate) type Image = BTreeMap<String, Option<String>>;

/// One row before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowChange {
    pub table: String,
    pub before: Option<Image>,
    pub after: Option<Image>,
}

/// Which operations to list, newest first.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those of this role.
    pub session: Option<String>,
    /// Only those before this one.
    pub before: Option<OperationId>,
    pub limit: i64,
}

/// What to do about rows that were changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Refuse, and change nothing.
    Strict,
    /// Leave those rows, take the others back.
    Skip,
    /// Take later operations of agents that depend on these back too; otherwise strict.
    Cascade,
    /// Overwrite. Never breaks a foreign key, and leaves rows for which that is not enough: those deleted since, and
    /// those of which a unique value is in use in another row.
    Force,
}

/// What an undo would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// All operations that would be taken back, those that `cascade` added included.
    pub operations: Vec<OperationId>,
    pub tables: Vec<TablePlan>,
    pub conflicts: Vec<Conflict>,
}

/// What an undo would do to a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablePlan {
    pub table: String,
    /// Rows that the operations inserted.
    pub delete: u64,
    /// Rows that get former values back.
    pub restore: u64,
    /// Rows that the operations deleted.
    pub recreate: u64,
    /// Rows that are already as they would become.
    pub already: u64,
}

/// Why a row cannot be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    pub table: String,
    /// The row's key, as text. Empty for a table without one.
    pub key: Image,
    pub reason: String,
    /// The columns that were changed since, with all three values.
    pub columns: Vec<ConflictColumn>,
}

/// A column that was changed since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictColumn {
    pub column: String,
    /// What an undo would put back.
    pub before: Option<String>,
    /// What the operation wrote.
    pub wrote: Option<String>,
    /// What is there.
    pub now: Option<String>,
}

/// What an undo did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The undo itself, which can be undone.
    pub operation: OperationId,
    pub undone: Vec<OperationId>,
    pub tables: Vec<TablePlan>,
    /// Rows that were left as they are.
    pub skipped: Vec<Conflict>,
}
