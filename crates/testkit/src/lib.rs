//! What tests stand on: a real PostgreSQL server, started once for a test program.
//!
//! ```ignore
//! let server = testkit::server().await;
//! let database = server.database().await;
//! let mut connection = database.connect().await;
//! ```

mod reaper;
mod redis;
mod server;

pub use reaper::Reaper;
pub use redis::Redis;
pub use server::{Database, Server, free_port, installation, installation_of, server};
