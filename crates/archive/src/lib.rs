//! The repository: a cluster's WAL and base backups, and what can be restored from them.
//!
//! This crate knows neither tenants nor the management database. The repository is the truth about what is safe; a
//! row elsewhere that says so only repeats it.
//!
//! Layout of a repository, version 1:
//!
//! ```text
//! repository.json                       which cluster; written once, first
//! wal/00000001/000000010000000000000003.zst
//! backups/20260101T020000Z-4f1d…/base.tar.zst
//! backups/20260101T020000Z-4f1d…/manifest.json   written last: now it is a backup
//! ```

pub mod archived;
pub mod backup;
pub mod repository;
pub mod restore;
pub mod segment;
pub mod wal;

pub use repository::{ClusterIdentity, Repository, RepositoryError};
