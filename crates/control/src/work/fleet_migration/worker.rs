//! One of the workers of a wave: takes a tenant, notes where it can be brought back to, and has it migrated.

use loomworks_core::ids::SnapshotId;
use loomworks_postgres::PgConnection;
use sqlx::PgTransaction;
use tokio::time::Instant;

use super::record;
use crate::World;
use crate::db::fleet::{self, Definition, Ended, Target};
use crate::db::snapshots::{self, SnapshotType};
use crate::error::{Error, chain};
use crate::fleet::inside::{self, Outcome};
use crate::work::snapshot;

/// How soon a tenant that was busy is looked at again, in seconds.
const BUSY_RETRY_SECONDS: f64 = 1.0;

/// Takes tenants of a wave until there is none to take.
pub(super) struct Worker {
    pub(super) world: World,
    pub(super) definition: Definition,
    pub(super) wave: i32,
    pub(super) session: String,
    pub(super) actor: String,
}

impl Worker {
    /// An error of this is the management database's. What one tenant has wrong is noted with the tenant.
    pub(super) async fn work(self) -> Result<(), Error> {
        let mut admin = None;
        let mut next = self.claim(self.begin().await?).await?;
        while let Some(target) = next {
            next = self.migrate(&mut admin, &target).await?;
        }
        Ok(())
    }

    /// Does what is to be done with a tenant, and takes the next one.
    async fn migrate(
        &self,
        admin: &mut Option<PgConnection>,
        target: &Target,
    ) -> Result<Option<Target>, Error> {
        if !matches!(target.tenant_state.as_str(), "active" | "suspended") {
            let error = format!("the tenant is {}", target.tenant_state);
            return self.record(target, Ended { error: Some(&error), ..Ended::of("skipped") }).await;
        }
        if target.busy {
            return self.put_back(target, "the tenant is being restored").await;
        }
        if self.definition.snapshot_before {
            let snapshot = self.snapshot(target).await?;
            if let Err(error) = self.mark(admin, target, snapshot).await {
                // A connection that is broken must not be the next tenant's.
                *admin = None;
                return self.put_back(target, &format!("no snapshot can be taken: {}", chain(&error))).await;
            }
        }
        let started = Instant::now();
        let outcome = inside::apply(&self.world, &self.definition, target, &self.session).await;
        let milliseconds = i64::try_from(started.elapsed().as_millis()).ok();
        match outcome {
            Outcome::Applied => self.record(target, Ended { milliseconds, ..Ended::of("applied") }).await,
            Outcome::Busy(why) => self.put_back(target, &why).await,
            Outcome::Failed(failure) => {
                let error = Some(failure.error.as_str());
                let (hint, sqlstate) = (failure.hint.as_deref(), failure.sqlstate.as_deref());
                self.record(target, Ended { error, hint, sqlstate, milliseconds, ..Ended::of("failed") })
                    .await
            }
        }
    }

    async fn begin(&self) -> Result<PgTransaction<'static>, Error> {
        Ok(fleet::begin(&self.world.db.platform).await?)
    }

    /// Takes a tenant, as the last thing that a transaction does: how one ended and who comes next is one commit.
    async fn claim(&self, mut transaction: PgTransaction<'_>) -> Result<Option<Target>, Error> {
        let target = fleet::claim(&mut transaction, self.definition.id, self.wave).await?;
        transaction.commit().await?;
        Ok(target)
    }

    async fn record(&self, target: &Target, ended: Ended<'_>) -> Result<Option<Target>, Error> {
        let mut transaction = self.begin().await?;
        record(&mut transaction, &self.definition, &self.actor, target, ended).await?;
        self.claim(transaction).await
    }

    /// Lets a tenant wait that cannot be worked with, until its patience is over.
    async fn put_back(&self, target: &Target, why: &str) -> Result<Option<Target>, Error> {
        if target.busy_seconds >= f64::from(self.definition.busy_timeout_seconds) {
            let hint = Some("resume it with --retry-failed when the tenant is back");
            return self.record(target, Ended { error: Some(why), hint, ..Ended::of("failed") }).await;
        }
        let mut transaction = self.begin().await?;
        fleet::put_back(&mut transaction, self.definition.id, target, why, BUSY_RETRY_SECONDS).await?;
        self.claim(transaction).await
    }

    /// The tenant's snapshot before the migration, written down if it was not.
    async fn snapshot(&self, target: &Target) -> Result<SnapshotId, Error> {
        if let Some(id) = target.snapshot_id {
            return Ok(SnapshotId(id));
        }
        let (id, tenant, by) = (SnapshotId::random(), target.tenant_id, &self.definition.requested_by);
        let name: String =
            format!("before fleet migration {}", self.definition.name).chars().take(255).collect();
        let mut transaction = self.begin().await?;
        let days = self.world.policy.recovery_days;
        snapshots::insert(&mut transaction, id, tenant, &name, SnapshotType::Auto, by, days).await?;
        fleet::record_snapshot(&mut transaction, self.definition.id, tenant, id).await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// Notes the position to which the tenant can be brought back. All that the position needs is archived once, after
    /// the wave.
    async fn mark(
        &self,
        admin: &mut Option<PgConnection>,
        target: &Target,
        snapshot: SnapshotId,
    ) -> Result<(), Error> {
        let admin = match admin {
            Some(admin) => admin,
            None => admin.insert(self.world.cluster.connect("postgres").await?),
        };
        snapshot::note_position(&self.world, admin, &target.database_name, snapshot).await.map(drop)
    }
}
