//! Everything one can ask of Loomworks, as functions.
//!
//! Whoever comes from outside is a [`access::Caller`]. Access control turns that into a value ([`access::Granted`],
//! [`access::Operator`]) without which nothing here can be called. What changes the world is written down as a job in
//! the transaction that wants it and carried out by [`jobs::runner`], step by step.
//!
//! This crate knows nothing of HTTP.

pub mod accelerator;
pub mod access;
pub mod archive;
pub mod audit;
pub mod backups;
pub mod credentials;
pub mod data_keys;
pub mod db;
pub mod doctor;
pub mod erasure;
pub mod error;
pub mod exports;
pub mod fleet;
pub mod idempotency;
pub mod jobs;
pub mod keys;
pub mod master_key;
pub mod metrics;
pub mod notifications;
pub mod oidc;
pub mod operations;
pub mod operators;
pub mod page;
pub mod profile;
pub mod reconcile;
mod recovery;
pub mod restores;
pub mod retirement;
pub mod routes;
pub mod sealed;
pub mod sessions;
pub mod snapshots;
pub mod subscriptions;
pub mod tenants;
pub mod tiers;
pub mod usage;
pub mod webhooks;
pub mod work;
pub mod world;

pub use error::Error;
pub use world::World;
