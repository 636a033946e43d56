//! Archiving a tenant, and taking it back.
//!
//! ```text
//! StopServing    no address, no new work: the state is the first thing that changes
//! Quiet          what was under way ends, AI sessions close
//! Close          nobody gets into its database any more
//! Mark           a snapshot of what is there now, and will not change
//! AwaitArchive   until the snapshot can be restored; that is noted, and makes the archive complete
//! ```
//!
//! A tenant that is archived and whose archive is not complete, because this job ended or because one that was to take
//! it back did, is archived once more by a reconciler.

use loomworks_core::ids::{SnapshotId, TenantId};
use loomworks_core::lsn::Lsn;
use loomworks_core::tenant::{Change, TenantState};
use loomworks_postgres::closing::{self, Door};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use super::ai_session::CloseSession;
use super::provision::names;
use super::snapshot::{ARCHIVE_POLL, become_ready, mark};
use crate::World;
use crate::audit;
use crate::credentials::write_password_file;
use crate::db::snapshots::{self, SnapshotType};
use crate::db::tenants::Names;
use crate::db::{lifecycle, routes};
use crate::error::Error;
use crate::jobs::{self, Context, Progress, StepError, Then, Work};
use crate::notifications::{self, Notice};
use crate::tenants::state_after;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Archive {
    pub tenant: TenantId,
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    StopServing,
    Quiet,
    Close,
    Mark,
    AwaitArchive { snapshot: SnapshotId, position: Lsn },
}

impl Work for Archive {
    const KIND: &'static str = "archive";
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    /// The key of an exchange: neither may find the other half done.
    fn dedup_key(&self) -> String {
        super::exchange::dedup_key(self.tenant)
    }

    fn first(&self) -> Step {
        Step::StopServing
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::StopServing => (0, "taking its address away"),
            Step::Quiet => (10, "waiting for the tenant's other jobs"),
            Step::Close => (30, "closing the database"),
            Step::Mark => (50, "taking the last snapshot"),
            Step::AwaitArchive { .. } => (60, "waiting for the archive"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        match step {
            Step::StopServing => {
                self.stop_serving(world, context).await?;
                Ok(Then::Next(Step::Quiet))
            }
            Step::Quiet => match is_quiet(world, self.tenant, context).await? {
                true => Ok(Then::Next(Step::Close)),
                false => Ok(Then::Later(ARCHIVE_POLL)),
            },
            Step::Close => {
                self.check_archived(world).await?;
                let names = names(world, self.tenant).await?;
                let mut admin = world.cluster.connect("postgres").await?;
                closing::close(&mut admin, door(&names)).await?;
                write_password_file(world, &names.profile).await?;
                Ok(Then::Next(Step::Mark))
            }
            Step::Mark => {
                self.check_archived(world).await?;
                Ok(match last_snapshot(world, self.tenant, context, "archived").await? {
                    Some((snapshot, position)) => Then::Next(Step::AwaitArchive { snapshot, position }),
                    None => Then::Later(ARCHIVE_POLL),
                })
            }
            &Step::AwaitArchive { snapshot, position } => {
                if become_ready(world, snapshot, position).await?.is_none() {
                    return Ok(Then::Later(ARCHIVE_POLL));
                }
                let mut mgmt = world.db.platform.acquire().await?;
                lifecycle::set_archive_complete(&mut mgmt, self.tenant, true).await?;
                Ok(Then::Done(json!({ "tenant": self.tenant, "last_snapshot": snapshot })))
            }
        }
    }

    /// Not once its address is gone: what is archived is closed too.
    fn can_cancel(step: &Step) -> bool {
        matches!(step, Step::StopServing)
    }

    async fn give_up(&self, connection: &mut PgConnection, context: &Context) -> Result<(), Error> {
        Ok(snapshots::record_failed(connection, SnapshotId(context.job.0)).await?)
    }

    /// The tenant may have been taken back since.
    async fn take_up(&self, _: &Step, _: &mut PgConnection, _: &Context) -> Result<Option<Step>, Error> {
        Ok(None)
    }
}

impl Archive {
    /// A worker that was left behind must not close a tenant that has been taken back.
    async fn check_archived(&self, world: &World) -> Result<(), StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        match lifecycle::look(&mut mgmt, self.tenant).await? {
            now if now.state == TenantState::Archived => Ok(()),
            now => Err(StepError::permanent(
                format!("the tenant is {}", now.state),
                "ask for it to be archived anew if it is to be",
            )),
        }
    }

    async fn stop_serving(&self, world: &World, context: &Context) -> Result<(), Error> {
        let by = &context.requested_by;
        let mut transaction = world.db.platform.begin().await?;
        let before = lifecycle::lock(&mut transaction, self.tenant).await?;
        let after = state_after(&before, Change::Archive)?;
        if before.state != after {
            let (reason, days) = (self.reason.as_deref(), i32::from(world.policy.archive_days));
            lifecycle::archive(&mut transaction, self.tenant, reason, by, days).await?;
            let detail =
                json!({ "before": before.state, "after": after, "reason": reason, "kept_days": days });
            audit::record(&mut transaction, by, "tenant.archived", Some(self.tenant), detail.clone()).await?;
            let message = format!("the tenant is archived; its data is kept for {days} days");
            let notice = Notice::info("tenant.archived", message, detail);
            notifications::raise(&mut transaction, Some(self.tenant), &notice).await?;
            routes::next_generation(&mut transaction).await?;
        }
        Ok(transaction.commit().await?)
    }
}

/// Has the tenant's AI sessions closed; tells whether no other job of the tenant is unfinished.
pub(super) async fn is_quiet(world: &World, tenant: TenantId, context: &Context) -> Result<bool, Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    for session in lifecycle::sessions_not_closed(&mut mgmt, tenant).await? {
        jobs::enqueue(&mut mgmt, &CloseSession { tenant, session }, &context.requested_by).await?;
    }
    Ok(lifecycle::other_unfinished_jobs(&mut mgmt, tenant, context.job).await? == 0)
}

/// Takes a snapshot of what nobody changes any more. Its id is the job's, so that twice is once. `None`: not yet, a
/// position before the first base backup could never be restored.
pub(super) async fn last_snapshot(
    world: &World,
    tenant: TenantId,
    context: &Context,
    why: &str,
) -> Result<Option<(SnapshotId, Lsn)>, StepError> {
    if world.repository.backups().await?.is_empty() {
        return Ok(None);
    }
    let snapshot = SnapshotId(context.job.0);
    let mut mgmt = world.db.platform.acquire().await?;
    let (name, by) = (format!("as {why}"), &context.requested_by);
    snapshots::insert(&mut mgmt, snapshot, tenant, &name, SnapshotType::Auto, by, world.policy.recovery_days)
        .await?;
    drop(mgmt);
    let position = mark(world, tenant, snapshot).await?;
    Ok(Some((snapshot, position)))
}

pub(super) fn door(names: &Names) -> Door<'_> {
    Door { database: &names.database_name, owner: &names.owner_role, login: &names.app_role }
}

/// Takes a tenant back from the archive, as it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unarchive {
    pub tenant: TenantId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnarchiveStep {
    Open,
    Publish,
    Credentials,
}

impl Work for Unarchive {
    const KIND: &'static str = "unarchive";
    type Step = UnarchiveStep;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        super::exchange::dedup_key(self.tenant)
    }

    fn first(&self) -> UnarchiveStep {
        UnarchiveStep::Open
    }

    fn progress(step: &UnarchiveStep) -> Progress {
        let (percent, words) = match step {
            UnarchiveStep::Open => (0, "opening the database"),
            UnarchiveStep::Publish => (60, "publishing the route"),
            UnarchiveStep::Credentials => (80, "handing the app its credentials"),
        };
        Progress { percent, words }
    }

    async fn run(
        &self,
        step: &UnarchiveStep,
        world: &World,
        context: &Context,
    ) -> Result<Then<UnarchiveStep>, StepError> {
        let names = names(world, self.tenant).await?;
        match step {
            UnarchiveStep::Open => {
                self.begin(world).await?;
                let mut admin = world.cluster.connect("postgres").await?;
                closing::open(&mut admin, door(&names)).await?;
                Ok(Then::Next(UnarchiveStep::Publish))
            }
            UnarchiveStep::Publish => {
                self.publish(world, context).await?;
                Ok(Then::Next(UnarchiveStep::Credentials))
            }
            // After the state: the file has those that are not archived.
            UnarchiveStep::Credentials => {
                write_password_file(world, &names.profile).await?;
                Ok(Then::Done(json!({ "tenant": self.tenant, "subdomain": names.subdomain })))
            }
        }
    }

    /// Not once its database may be open.
    fn can_cancel(step: &UnarchiveStep) -> bool {
        matches!(step, UnarchiveStep::Open)
    }

    /// Until it is published it is archived again by a reconciler; after that only its app has to be told.
    async fn take_up(
        &self,
        step: &UnarchiveStep,
        _: &mut PgConnection,
        _: &Context,
    ) -> Result<Option<UnarchiveStep>, Error> {
        Ok(Some(step.clone()).filter(|step| *step == UnarchiveStep::Credentials))
    }
}

impl Unarchive {
    /// From now on the database may be open: whatever becomes of this job, the archive is not complete.
    async fn begin(&self, world: &World) -> Result<(), StepError> {
        let mut transaction = world.db.platform.begin().await?;
        let standing = lifecycle::lock(&mut transaction, self.tenant).await?;
        let change = Change::Unarchive { suspended: standing.was_suspended };
        if let Err(error) = state_after(&standing, change) {
            return Err(StepError::permanent(error.to_string(), "only an archived tenant can be taken back"));
        }
        lifecycle::set_archive_complete(&mut transaction, self.tenant, false).await?;
        Ok(transaction.commit().await?)
    }

    async fn publish(&self, world: &World, context: &Context) -> Result<(), Error> {
        let by = &context.requested_by;
        let mut transaction = world.db.platform.begin().await?;
        let before = lifecycle::lock(&mut transaction, self.tenant).await?;
        let after = state_after(&before, Change::Unarchive { suspended: before.was_suspended })?;
        if before.state != after {
            lifecycle::unarchive(&mut transaction, self.tenant, after).await?;
            let detail = json!({ "before": before.state, "after": after });
            audit::record(&mut transaction, by, "tenant.unarchived", Some(self.tenant), detail).await?;
            routes::next_generation(&mut transaction).await?;
        }
        Ok(transaction.commit().await?)
    }
}
