//! The repository: a cluster's WAL and base backups, sealed for each database by itself, and what can be restored.
//!
//! This crate knows neither tenants nor the management database. The repository is the truth about what is safe; a
//! row elsewhere that says so only repeats it.

pub mod backup;
pub mod keys;
pub mod lineage;
pub mod repository;
pub mod retention;
pub mod seal;
pub mod segment;
pub mod store;

pub use repository::{ClusterIdentity, Repository, RepositoryError};
