//! Tenants made by the platform's own worker on a real PostgreSQL: from templates, with a pool, within their limits.

mod changes;
mod endings;
mod limits;
mod provision;
mod world;
