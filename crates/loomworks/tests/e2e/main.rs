//! The built program against a real PostgreSQL: the journey, crashes, access, secrets.

mod access;
mod audit;
mod bad_input;
mod crashes;
mod docs;
mod erasure;
mod fleet;
mod history;
mod journey;
mod lifecycle;
mod log_in;
mod metrics;
mod oidc;
mod permissions;
mod platform;
mod recover;
mod repository;
mod rotation;
mod secrets;
mod webhooks;
mod windows;
