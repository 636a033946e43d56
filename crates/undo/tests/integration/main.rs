//! The operation log and undo against a real server.

mod bypass;
mod columns;
mod concurrency;
mod ddl;
mod dump_and_restore;
mod foreign_keys;
mod log;
mod merging;
mod performance;
mod quota;
mod random;
mod statements;
mod tables;
mod tenant;
mod triggers;
mod types;
mod upgrades;
