//! A world of which only the management database is real: enough for jobs that work on nothing else.

use std::path::Path;
use std::sync::Arc;

use loomworks_archive::store::Location;
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_control::World;
use loomworks_control::accelerator::Accelerator;
use loomworks_control::credentials::MasterKey;
use loomworks_control::db::{API_ROLE, DATABASE, Db, PLATFORM_ROLE};
use loomworks_control::jobs::{Kinds, Slots};
use loomworks_control::world::Parts;
use loomworks_postgres::Cluster;
use sqlx::postgres::PgPoolOptions;

/// Connections to a management database that is there.
#[allow(dead_code, reason = "not every test program connects by itself")]
pub(crate) fn connect(cluster: &Cluster) -> Db {
    let pool = |role| {
        let options = PgPoolOptions::new().max_connections(16);
        options.connect_lazy_with(cluster.local(role, DATABASE))
    };
    Db { platform: pool(PLATFORM_ROLE), tenants: pool(API_ROLE) }
}

/// A world with files in `directory`, for a worker of this name.
#[allow(clippy::too_many_arguments, reason = "a test says what it needs")]
pub(crate) async fn world(
    cluster: &Cluster,
    db: Db,
    directory: &Path,
    node: &str,
    kinds: Kinds,
    slots: Slots,
    accelerator: Accelerator,
) -> World {
    std::fs::create_dir_all(directory).expect("make a directory");
    let identity = ClusterIdentity {
        system_identifier: 1,
        segment_bytes: 16 << 20,
        major_version: cluster.installation.major_version,
    };
    let master_key = MasterKey::load_or_create(&directory.join("master.key")).expect("a key");
    let location = Location::Directory(directory.join("repository"));
    let repository = Repository::create(&location, identity, Arc::new(master_key.clone())).await;
    let repository = repository.expect("a repository");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let parts = Parts::new(db, cluster.clone(), repository, master_key, directory).expect("the parts");
    World::new(Parts { node: node.to_owned(), kinds, slots, accelerator, ..parts })
}
