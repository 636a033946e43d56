//! Everything one can ask of Loomworks, as functions.
//!
//! Whoever comes from outside is a [`access::Caller`]. Access control turns that into a value ([`access::Granted`],
//! [`access::Operator`]) without which nothing here can be called. What changes the world is written down as a job in
//! the transaction that wants it and carried out by [`jobs::runner`], step by step.
//!
//! This crate knows nothing of HTTP.

pub mod access;
pub mod audit;
pub mod backups;
pub mod credentials;
pub mod db;
pub mod doctor;
pub mod error;
pub mod jobs;
pub mod keys;
pub mod operations;
pub mod profile;
pub mod reconcile;
pub mod restores;
pub mod routes;
pub mod sessions;
pub mod snapshots;
pub mod tenants;
pub mod work;
pub mod world;

pub use error::Error;
pub use world::World;
