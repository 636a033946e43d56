//! What the functions of this crate work on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use loomworks_archive::Repository;
use loomworks_core::ids::JobId;
use loomworks_postgres::Cluster;

use crate::accelerator::Accelerator;
use crate::credentials::{CredentialPolicy, MasterKey};
use crate::db::Db;
use crate::error::Error;
use crate::jobs::{CrashPoint, Cut, Kinds, Signals, Slots};
use crate::keys::KeyRing;
use crate::oidc::Oidc;
use crate::operations::LogConnections;
use crate::operators::logins::LogIn;
use crate::profile::Profile;
use crate::webhooks::Sender;

/// The platform: its database, the cluster it runs, its repository. Cheap to clone.
#[derive(Clone)]
pub struct World(Arc<Parts>);

pub struct Parts {
    pub db: Db,
    pub cluster: Cluster,
    pub repository: Repository,
    pub profiles: BTreeMap<String, Profile>,
    /// Databases that are to wait for tenants, of each profile that does not say how many.
    pub pool: u32,
    pub master_key: MasterKey,
    /// How often tenants' passwords are changed, and how.
    pub credential_policy: CredentialPolicy,
    pub keys: KeyRing,
    pub log_connections: LogConnections,
    /// How operators log in.
    pub log_in: LogIn,
    /// The OpenID provider, if there is one.
    pub oidc: Option<Oidc>,
    /// What talks to webhooks' receivers.
    pub webhooks: Sender,
    /// Where restores lay out side clusters; next to nothing else.
    pub side_directory: PathBuf,
    /// Where each profile's app finds its credentials.
    pub apps_directory: PathBuf,
    /// Where tenants' exports are kept, encrypted.
    pub exports_directory: PathBuf,
    /// How long things of tenants are kept.
    pub policy: Policy,
    /// The name under which this process claims jobs. One process at a time has it.
    pub node: String,
    /// The kinds of jobs that it knows.
    pub kinds: Kinds,
    /// What is heard of jobs.
    pub signals: Signals,
    /// Redis, if there is one.
    pub accelerator: Accelerator,
    /// How many jobs run at once.
    pub slots: Slots,
    /// Where the program is to die, for tests that prove that it may.
    pub crash_at: Option<CrashPoint>,
    /// Where a worker of this process is to stop dead, for the same.
    pub cut: Cut,
}

impl Parts {
    /// The parts that there must be, and of everything else what is usual. `directory`: where the platform keeps its
    /// files.
    pub fn new(
        db: Db,
        cluster: Cluster,
        repository: Repository,
        master_key: MasterKey,
        directory: &Path,
    ) -> Result<Self, Error> {
        Ok(Self {
            db,
            cluster,
            repository,
            profiles: BTreeMap::new(),
            pool: 0,
            credential_policy: CredentialPolicy::default(),
            keys: KeyRing::new(&master_key),
            log_connections: LogConnections::default(),
            log_in: LogIn::new(&master_key, None, true),
            oidc: None,
            webhooks: Sender::new(false)?,
            master_key,
            side_directory: directory.join("side"),
            apps_directory: directory.join("apps"),
            exports_directory: directory.join("exports"),
            policy: Policy::default(),
            node: "node".to_owned(),
            kinds: crate::work::kinds(),
            signals: Signals::default(),
            accelerator: Accelerator::default(),
            slots: Slots::default(),
            crash_at: None,
            cut: Cut::default(),
        })
    }
}

/// How long what is tenants' is kept, and when it is without being asked for, as the operator has set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// For how many days an archived tenant's data is kept.
    pub archive_days: u16,
    /// For how many days a tenant is served whose subscription has ended.
    pub grace_days: u16,
    /// How many days back a tenant can go of whom neither its own limit nor its tier's says it.
    pub recovery_days: u16,
    /// After how many changed rows a snapshot is taken of a tenant without being asked for. 0: never.
    pub snapshot_after_rows: u32,
}

impl Policy {
    /// How many days back a tenant can go that has this limit, of its own or by its tier.
    #[must_use]
    pub fn recovery_days_of(&self, limit: Option<i32>) -> u16 {
        limit.and_then(|days| u16::try_from(days).ok()).unwrap_or(self.recovery_days)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self { archive_days: 30, grace_days: 7, recovery_days: 30, snapshot_after_rows: 100_000 }
    }
}

impl World {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The name of a profile's template as it is now.
    #[must_use]
    pub fn template(&self, profile: &Profile) -> String {
        profile.template(self.cluster.installation.major_version)
    }

    /// How many databases of a profile are to wait for tenants.
    #[must_use]
    pub fn pool_of(&self, profile: &Profile) -> u32 {
        profile.pool.unwrap_or(self.pool)
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
