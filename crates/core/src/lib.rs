//! The words of Loomworks and the decisions that need nothing but facts.
//!
//! Everything here is plain data and plain functions: no async, no SQL, no HTTP, no environment. Text from
//! outside becomes one of these types where it comes in, and nobody checks it again afterwards.
//!
//! Two exceptions touch the world, because every other crate needs them done the same way:
//! [`durable`] writes files so that a crash leaves the old or the new content, and [`time::now`] reads the clock.

pub mod api_key;
pub mod durable;
pub mod email;
pub mod ids;
pub mod lsn;
pub mod name;
pub mod route;
pub mod schedule;
pub mod subscription;
pub mod tenant;
pub mod time;
pub mod timing;

pub use secrecy::{ExposeSecret, SecretString};
