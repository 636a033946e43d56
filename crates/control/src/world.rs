//! What the functions of this crate work on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use loomworks_archive::Repository;
use loomworks_core::ids::JobId;
use loomworks_postgres::Cluster;

use crate::credentials::MasterKey;
use crate::db::Db;
use crate::jobs::CrashPoint;
use crate::keys::KeyRing;
use crate::operations::LogConnections;
use crate::profile::Profile;

/// The platform: its database, the cluster it runs, its repository. Cheap to clone.
#[derive(Clone)]
pub struct World(Arc<Parts>);

pub struct Parts {
    pub db: Db,
    pub cluster: Cluster,
    pub repository: Repository,
    pub profiles: BTreeMap<String, Profile>,
    pub master_key: MasterKey,
    pub keys: KeyRing,
    pub log_connections: LogConnections,
    /// Where restores lay out side clusters; next to nothing else.
    pub side_directory: PathBuf,
    /// Where each profile's app finds its credentials.
    pub apps_directory: PathBuf,
    /// This program, for `restore_command`.
    pub program: PathBuf,
    /// The name under which this process claims jobs. One process at a time has it.
    pub node: String,
    /// Where the program is to die, for tests that prove that it may.
    pub crash_at: Option<CrashPoint>,
}

impl World {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The side cluster of a restore.
    #[must_use]
    pub fn side_cluster(&self, job: JobId) -> Cluster {
        let directory = self.side_directory.join(job.short());
        Cluster {
            installation: self.cluster.installation.clone(),
            directory: directory.join("data"),
            socket_directory: directory,
            // It listens on its socket only, where the port is part of a file name.
            port: 5432,
        }
    }
}

impl std::ops::Deref for World {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
