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
    #[error("use the operation log")]
    Database(#[from] sqlx::Error),
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
            Self::Database(_) => None,
        }
    }
}
