//! What the platform asks of its repository.

use loomworks_archive::restore::Catalog;
use sqlx::PgConnection;

use crate::World;
use crate::error::Error;

/// The timeline that the cluster is on.
pub(crate) async fn timeline(admin: &mut PgConnection) -> Result<u32, Error> {
    let timeline: i32 = sqlx::query_scalar("SELECT timeline_id FROM pg_control_checkpoint()").fetch_one(admin).await?;
    Ok(timeline.cast_unsigned())
}

/// What can be restored now.
pub(crate) async fn catalog(world: &World) -> Result<Catalog, Error> {
    let mut admin = world.cluster.connect("postgres").await?;
    let timeline = timeline(&mut admin).await?;
    drop(admin);
    Ok(world.repository.catalog(timeline).await?)
}
