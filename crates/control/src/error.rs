//! What may go wrong when somebody asks for something, one variant for each thing one can do about it.

use loomworks_archive::RepositoryError;
use loomworks_archive::backup::BackupError;
use loomworks_archive::restore::CannotRestore;
use loomworks_postgres::cluster::ClusterError;
use loomworks_undo::UndoError;

use crate::master_key::MasterKeyError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong.
    #[error("{message}")]
    Invalid { message: String, hint: Option<String> },
    /// There is no such thing, or not for this caller: the two must look the same.
    #[error("there is no {0}")]
    NotFound(&'static str),
    #[error("this needs an API key")]
    Unauthenticated,
    #[error("you may not do that")]
    Forbidden,
    /// Somebody has asked too often, and may ask again after so many seconds.
    #[error("that was tried too often")]
    Throttled { seconds: u64 },
    /// The thing exists, but not in a state in which this can be done.
    #[error("{message}")]
    Conflict { message: String, hint: Option<String> },
    /// Somebody did not prove who he is. What exactly was wrong is for the audit log.
    #[error("this log-in is refused")]
    LoginRefused { hint: &'static str },
    #[error(transparent)]
    Undo(#[from] UndoError),
    #[error(transparent)]
    CannotRestore(#[from] CannotRestore),
    #[error("use the management database")]
    Database(#[from] sqlx::Error),
    #[error("use the database of the tenant")]
    TenantDatabase(#[source] sqlx::Error),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Backup(Box<BackupError>),
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    #[error("{0}")]
    Internal(String),
}

impl From<BackupError> for Error {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Repository(error) => Self::Repository(error),
            BackupError::Server(error) => Self::Cluster(error),
            other => Self::Backup(Box::new(other)),
        }
    }
}

impl Error {
    pub fn invalid(message: impl ToString) -> Self {
        Self::Invalid { message: message.to_string(), hint: None }
    }

    pub fn conflict(message: impl ToString) -> Self {
        Self::Conflict { message: message.to_string(), hint: None }
    }

    #[must_use]
    pub fn with_hint(self, text: impl Into<String>) -> Self {
        let hint = Some(text.into());
        match self {
            Self::Invalid { message, .. } => Self::Invalid { message, hint },
            Self::Conflict { message, .. } => Self::Conflict { message, hint },
            other => other,
        }
    }

    /// Whether a database could not take a value (PostgreSQL's class 22, "data exception"): one that came from outside
    /// and was not checked.
    #[must_use]
    pub fn is_value_refused(&self) -> bool {
        let (Self::Database(error) | Self::TenantDatabase(error)) = self else { return false };
        error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code.starts_with("22"))
    }

    /// Whether all connections to the database were in use for too long.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(
            self,
            Self::Database(sqlx::Error::PoolTimedOut) | Self::TenantDatabase(sqlx::Error::PoolTimedOut)
        )
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Invalid { hint, .. } | Self::Conflict { hint, .. } => hint.clone(),
            Self::Unauthenticated => Some("send it as `Authorization: Bearer frt_…`".into()),
            Self::Forbidden => Some("ask for a key with the scope and the permission that this needs".into()),
            Self::NotFound(_) => {
                Some("look at the list that it should be in: is it yours, and is it still there?".into())
            }
            Self::LoginRefused { hint } => Some((*hint).into()),
            Self::Throttled { seconds } => Some(format!("try again in {seconds} s")),
            Self::CannotRestore(error) => Some(error.hint()),
            Self::Cluster(ClusterError::Damaged { .. }) => {
                Some("restore to an earlier moment, and look at the live database with `pg_amcheck`".into())
            }
            Self::Repository(error) => error.hint().map(str::to_owned),
            Self::Backup(error) => error.hint().map(str::to_owned),
            Self::MasterKey(error) => error.hint().map(str::to_owned),
            Self::Undo(error) => error.hint().map(|hint| hint.to_string()),
            _ => None,
        }
    }
}

/// An error with everything below it, for a log line or a job's row.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}
