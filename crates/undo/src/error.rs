//! Why an undo, or a look into the log, did not work: one variant for each thing one can do about it.

use loomworks_core::lsn::Lsn;

use crate::operation::{Conflict, OperationId};

#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    #[error("there is no operation {}", .0.0)]
    Unknown(OperationId),
    #[error("operation {} is undone already, by operation {}", operation.0, by.0)]
    AlreadyUndone { operation: OperationId, by: OperationId },
    /// Nothing was changed.
    #[error("{} {} in the way", .0.len(), if .0.len() == 1 { "row stands" } else { "rows stand" })]
    Conflicts(Vec<Conflict>),
    #[error("operation {} cannot be undone row by row: {what}", operation.0)]
    NotRowByRow { operation: OperationId, what: String, lsn: Lsn },
    #[error("column {column} of {table} has another type now than when the operation was logged")]
    ColumnChanged { table: String, column: String },
    /// A rule that the table has been given since, or code of the tenant's that a rule calls, does not let a row pass.
    #[error("a rule of the tenant's database refuses what would be put back: {reason}")]
    Refused { reason: String, source: sqlx::Error },
    #[error("use the operation log")]
    Database(#[source] sqlx::Error),
}

/// The classes of errors that a value or the tenant's own code brings about: data, constraints, functions, PL/pgSQL.
/// Source: PostgreSQL, appendix A, "Error Codes".
const REFUSALS: [&str; 5] = ["22", "23", "38", "39", "P0"];

impl From<sqlx::Error> for UndoError {
    fn from(source: sqlx::Error) -> Self {
        let refusal = source.as_database_error().filter(|error| {
            error.code().is_some_and(|code| REFUSALS.iter().any(|class| code.starts_with(class)))
        });
        match refusal.map(|error| error.message().to_owned()) {
            Some(reason) => Self::Refused { reason, source },
            None => Self::Database(source),
        }
    }
}

impl UndoError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown(_) => Some("`loomworks ops list` shows what there is".into()),
            Self::AlreadyUndone { by, .. } => Some(format!("undo operation {} to have it again", by.0)),
            Self::Conflicts(_) => Some(
                "they were changed since; mode `skip` leaves them as they are, `cascade` takes later operations back \
                 too, `force` overwrites"
                    .into(),
            ),
            Self::NotRowByRow { lsn, .. } => {
                Some(format!("restore the tenant to a moment before it; `loomworks ops show` says when that was (WAL {lsn})"))
            }
            Self::ColumnChanged { .. } => Some("change the column's type back first, or restore the tenant to a moment before the operation".into()),
            Self::Refused { .. } => Some("change that rule first, or restore the tenant to a moment before the operation".into()),
            Self::Database(_) => None,
        }
    }
}
