//! The endpoints, one file a resource, and the shapes of their requests and answers.
//!
//! The shapes are what clients use too: the command line reads answers into the same types.

pub mod api_keys;
pub mod archive;
pub mod audit;
pub mod auth;
pub mod backups;
pub mod credentials;
pub mod exports;
pub mod fleet_migrations;
pub mod internal;
pub mod jobs;
pub mod master_key;
pub mod notifications;
pub mod operations;
pub mod operators;
pub mod restores;
pub mod retirement;
pub mod sessions;
pub mod snapshots;
pub mod status;
pub mod tenants;
pub mod tiers;
pub mod usage;
pub mod webhooks;

use loomworks_control::World;
use loomworks_core::ids::JobId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

/// The answer to a request that a job carries out.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    /// Follow it at `/v1/jobs/{job}`.
    #[schema(value_type = uuid::Uuid)]
    pub job: JobId,
}

pub(crate) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new()
        .merge(tenants::routes())
        .merge(tiers::routes())
        .merge(retirement::routes())
        .merge(exports::routes())
        .merge(api_keys::routes())
        .merge(sessions::routes())
        .merge(operations::routes())
        .merge(snapshots::routes())
        .merge(restores::routes())
        .merge(jobs::routes())
        .merge(backups::routes())
        .merge(archive::routes())
        .merge(audit::routes())
        .merge(master_key::routes())
        .merge(credentials::routes())
        .merge(fleet_migrations::routes())
        .merge(status::routes())
        .merge(auth::routes())
        .merge(operators::routes())
        .merge(usage::routes())
        .merge(notifications::routes())
        .merge(webhooks::routes())
}
