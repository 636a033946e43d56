//! A platform of one test, as far as the management database goes: what a process is to keys, logins and answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use loomworks_archive::store::Location;
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_control::World;
use loomworks_control::access::{self, Caller, Granted, Identity, Operator, Permission, Scope};
use loomworks_control::credentials::MasterKey;
use loomworks_control::world::Parts;
use loomworks_core::ids::{ApiKeyId, TenantId};
use loomworks_testkit::server;
use tempfile::TempDir;

use super::database;

/// Long enough for anything. Nothing is said about how long it does take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What several processes of one platform share.
pub(crate) struct Installation {
    directory: TempDir,
}

impl Installation {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    /// A process: memory of its own, and connections of its own.
    pub(crate) async fn process(&self) -> World {
        // Only the first one of a test program counts.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let db = database().await;
        let cluster = server().await.cluster.clone();
        let (system_identifier, segment_bytes) = cluster.control_data().await.expect("look at the cluster");
        let identity = ClusterIdentity {
            system_identifier,
            segment_bytes,
            major_version: cluster.installation.major_version,
        };
        let path = self.directory.path();
        let master_key = MasterKey::load_or_create(&path.join("master.key")).expect("a master key");
        let location = Location::Directory(path.join("repository"));
        let repository = Repository::create(&location, identity, Arc::new(master_key.clone())).await;
        let repository = repository.expect("a repository");
        World::new(Parts::new(db, cluster, repository, master_key, path).expect("the parts"))
    }
}

pub(crate) fn caller(scope: Scope) -> Caller {
    Caller {
        identity: Identity::Key(ApiKeyId::random()),
        scope,
        permissions: Permission::of(scope).to_vec(),
        name: "tester".into(),
    }
}

pub(crate) fn operator() -> Operator {
    access::operator(&caller(Scope::Operator), Permission::Manage).expect("an operator")
}

/// The right of a tenant's admin to manage it.
pub(crate) async fn admin(world: &World, tenant: TenantId) -> Granted {
    let caller = caller(Scope::TenantAdmin(tenant));
    access::tenant(&world.db, &caller, &tenant.to_string(), Permission::Manage).await.expect("its own tenant")
}

/// Asks until it is so.
pub(crate) async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached().await {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
