//! The built program against a real PostgreSQL: the journey, crashes, access, secrets.

mod access;
mod crashes;
mod journey;
mod platform;
mod secrets;
