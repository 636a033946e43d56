//! What tests stand on: a real PostgreSQL server, started once for a test program; a Redis, a server that speaks S3, a
//! store that fails.
//!
//! ```ignore
//! let server = testkit::server().await;
//! let database = server.database().await;
//! let mut connection = database.connect().await;
//! ```

pub mod faulty;
mod reaper;
mod redis;
pub mod s3;
mod server;
pub mod transit;

pub use reaper::Reaper;
pub use redis::Redis;
pub use s3::S3;
pub use server::{Database, Server, free_port, installation, installation_of, server};
