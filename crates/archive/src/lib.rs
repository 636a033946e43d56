//! The repository: a cluster's WAL and base backups, sealed for each database by itself, and what can be restored.
//!
//! This crate knows neither tenants nor the management database. The repository is the truth about what is safe; a
//! row elsewhere that says so only repeats it.

pub mod archived;
pub mod backup;
mod coverage;
pub mod inspect;
pub mod keys;
pub mod lineage;
mod range;
pub mod recover;
pub mod replay;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod seal;
pub mod store;
pub mod stream;
pub mod wal;

pub use repository::{ClusterIdentity, Repository, RepositoryError};
