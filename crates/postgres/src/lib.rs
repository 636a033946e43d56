//! Running and administering a PostgreSQL server: the programs it comes with, a cluster of our own, its roles and
//! databases.
//!
//! This crate knows neither tenants nor the archive. Statements that carry a name are put together here and
//! nowhere else, so that identifiers are quoted in one place ([`sql`]).

pub mod backup;
pub mod closing;
pub mod cluster;
pub mod config;
pub mod copy;
pub mod databases;
pub mod handover;
pub mod installation;
pub mod memory;
pub mod moving;
pub mod receive;
mod replaying;
pub mod roles;
pub mod sql;

pub use cluster::Cluster;
pub use installation::Installation;
pub use sqlx::postgres::{PgConnectOptions, PgConnection};
