//! Destroying a tenant: nothing is left of it but a row without its data, and the audit log.
//!
//! ```text
//! Begin          from here on the only way is forward
//! Quiet          what was under way ends
//! Protect        the last snapshot there is, or one more; nothing of a tenant that was never made
//! AwaitArchive   until the archive has it: up to the next step an operator may still change his mind
//! Forget         the data key first, then every row: copies that nobody can reach are unreadable
//! Drop           its databases, one at a time and in turn
//! Archive        the keys of all databases it ever had: what is archived of them is unreadable from now on
//! Roles, Files
//! Bury           nothing is left, by looking; the names are free: this makes it destroyed
//! ```
//!
//! Each step finds what is left to do from what is there, so a job that was cut off, or one that is asked for after
//! another has failed, goes on where it stands.

use std::collections::BTreeSet;

use loomworks_archive::RepositoryError;
use loomworks_core::ids::{SnapshotId, TenantId};
use loomworks_core::lsn::Lsn;
use loomworks_core::tenant::{Change, TenantState};
use loomworks_postgres::cluster::remove_directory;
use loomworks_postgres::{closing, databases as catalogue, roles};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::archive::{door, is_quiet, last_snapshot};
use super::drops::{POLL, drop_in_turn};
use super::snapshot::{ARCHIVE_POLL, become_ready};
use crate::credentials::write_password_file;
use crate::db::audit::is_recorded;
use crate::db::notifications::Severity;
use crate::db::tenants::{self, TenantDatabase};
use crate::db::{erasure as rows, lifecycle, routes, snapshots, templates};
use crate::erasure::{self, Erased};
use crate::error::Error;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};
use crate::notifications::{self, Notice};
use crate::retirement::retention_over;
use crate::tenants::state_after;
use crate::{World, audit, data_keys};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Destroy {
    pub tenant: TenantId,
    /// Whoever asked has said for a second time that he means it.
    pub before_retention_ends: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Begin,
    Quiet,
    Protect,
    AwaitArchive { snapshot: SnapshotId, position: Lsn },
    Forget,
    Drop,
    Archive,
    Roles,
    Files,
    Bury,
}

impl Work for Destroy {
    const KIND: &'static str = "destroy";
    const QUEUE: Queue = Queue::LowPriority;
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        super::exchange::dedup_key(self.tenant)
    }

    fn first(&self) -> Step {
        Step::Begin
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::Begin => (0, "beginning"),
            Step::Quiet => (5, "waiting for the tenant's other jobs"),
            Step::Protect => (10, "taking the last snapshot"),
            Step::AwaitArchive { .. } => (15, "waiting for the archive"),
            Step::Forget => (40, "deleting its key and its records"),
            Step::Drop => (50, "dropping its databases"),
            Step::Archive => (75, "deleting the keys of its backups and its WAL"),
            Step::Roles => (80, "dropping its roles"),
            Step::Files => (90, "removing its files"),
            Step::Bury => (95, "making its names free"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        match step {
            Step::Begin => self.begin(world, context).await,
            Step::Quiet => match is_quiet(world, self.tenant, context).await? {
                true => Ok(Then::Next(Step::Protect)),
                false => Ok(Then::Later(ARCHIVE_POLL)),
            },
            Step::Protect => self.protect(world, context).await,
            &Step::AwaitArchive { snapshot, position } => {
                Ok(match become_ready(world, snapshot, position).await? {
                    Some(_) => Then::Next(Step::Forget),
                    None => Then::Later(ARCHIVE_POLL),
                })
            }
            Step::Forget => {
                self.forget(world, context).await?;
                Ok(Then::Next(Step::Drop))
            }
            Step::Drop => self.drop_one(world).await,
            Step::Archive => {
                self.erase_archive(world).await?;
                Ok(Then::Next(Step::Roles))
            }
            Step::Roles => {
                self.drop_roles(world).await?;
                Ok(Then::Next(Step::Files))
            }
            Step::Files => {
                remove_directory(&world.exports_directory.join(self.tenant.to_string())).await?;
                Ok(Then::Next(Step::Bury))
            }
            Step::Bury => {
                self.bury(world, context).await?;
                let report = erasure::look(world, self.tenant).await?;
                Ok(Then::Done(json!({ "tenant": self.tenant, "erasure": report })))
            }
        }
    }

    /// Not once it has begun.
    fn can_cancel(step: &Step) -> bool {
        matches!(step, Step::Begin)
    }

    async fn give_up(&self, connection: &mut PgConnection, context: &Context) -> Result<(), Error> {
        if lifecycle::lock(connection, self.tenant).await?.destroying_since.is_none() {
            return Ok(());
        }
        let notice = Notice {
            event: "tenant.destruction_stopped",
            severity: Severity::Critical,
            message: format!(
                "The destruction of tenant {} stopped halfway. It is tried again by itself.",
                self.tenant
            ),
            detail: json!({ "job": context.job, "tenant": self.tenant }),
        };
        Ok(notifications::raise_and_record(connection, None, &notice).await?)
    }

    /// What has begun is gone on with by itself, what has not must be confirmed again.
    async fn take_up(&self, _: &Step, _: &mut PgConnection, _: &Context) -> Result<Option<Step>, Error> {
        Ok(None)
    }
}

impl Destroy {
    async fn begin(&self, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        let mut transaction = world.db.platform.begin().await?;
        let standing = lifecycle::lock(&mut transaction, self.tenant).await?;
        // It was made or taken back since somebody asked for this.
        if let Err(error) = state_after(&standing, Change::Destroy) {
            return Err(StepError::permanent(error.to_string(), "archive it first"));
        }
        if let Err(error) = retention_over(&standing, self.before_retention_ends) {
            return Err(StepError::permanent(error.to_string(), "ask for it anew, and confirm it twice"));
        }
        if standing.state == TenantState::Destroyed {
            return Ok(Then::Done(json!({ "tenant": self.tenant })));
        }
        if standing.destroying_since.is_none() {
            lifecycle::begin_destroying(&mut transaction, self.tenant).await?;
            let detail = json!({ "before": standing.state });
            audit::record(
                &mut transaction,
                &context.requested_by,
                "tenant.destruction_begun",
                Some(self.tenant),
                detail,
            )
            .await?;
        }
        transaction.commit().await?;
        Ok(Then::Next(Step::Quiet))
    }

    /// A tenant whose archive is complete has a snapshot of all that is in its database, because nobody could change
    /// anything since. Another one is closed and gets one.
    async fn protect(&self, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        let standing = lifecycle::look(&mut mgmt, self.tenant).await?;
        let since = standing.archived_at.filter(|_| standing.archive_is_complete);
        let newest = snapshots::newest_ready(&mut mgmt, self.tenant)
            .await?
            .filter(|snapshot| since.is_some_and(|since| snapshot.created_at.to_jiff() >= since.to_jiff()));
        // One that never became active has nothing that anybody would want back.
        if newest.is_some()
            || standing.state != TenantState::Archived
            || databases(&mut mgmt, world, self.tenant).await?.is_empty()
        {
            return Ok(Then::Next(Step::Forget));
        }
        let names = tenants::names(&mut mgmt, self.tenant).await?;
        drop(mgmt);
        let mut admin = world.cluster.connect("postgres").await?;
        closing::close(&mut admin, door(&names)).await?;
        Ok(match last_snapshot(world, self.tenant, context, "destroyed").await? {
            Some((snapshot, position)) => Then::Next(Step::AwaitArchive { snapshot, position }),
            None => Then::Later(ARCHIVE_POLL),
        })
    }

    /// The key goes in the same transaction as the rows: whoever finds one finds the other.
    async fn forget(&self, world: &World, context: &Context) -> Result<(), Error> {
        let mut mgmt = rows::connect(&world.cluster).await?;
        let mut transaction = mgmt.begin().await?;
        lifecycle::lock(&mut transaction, self.tenant).await?;
        let newest = snapshots::newest_ready(&mut transaction, self.tenant).await?;
        let deleted = rows::count(&mut transaction, self.tenant).await?;
        data_keys::destroy(&mut transaction, self.tenant).await?;
        // Which databases there are is needed until they are gone.
        rows::delete(&mut transaction, self.tenant, &["tenant_databases", "pool_databases"]).await?;
        let detail = json!({
            "job": context.job,
            "rows": deleted.into_iter().filter(|count| count.table != rows::KEPT).collect::<Vec<_>>(),
            "last_snapshot": newest.map(|last| json!({ "position": last.wal_position, "wal_file": last.wal_file })),
        });
        let by = &context.requested_by;
        // A try that was cut off before its save may have told it already.
        if !is_recorded(&mut transaction, "tenant.forgotten", &json!({ "job": context.job })).await? {
            audit::record(&mut transaction, by, "tenant.forgotten", Some(self.tenant), detail).await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn drop_one(&self, world: &World) -> Result<Then<Step>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        let Some(database) = databases(&mut mgmt, world, self.tenant).await?.into_iter().next() else {
            return Ok(Then::Next(Step::Archive));
        };
        // Noted first, so that what was dropped can be looked for afterwards.
        tenants::record_found(&mut mgmt, self.tenant, &database).await?;
        drop(mgmt);
        match drop_in_turn(world, database.oid).await? {
            true => Ok(Then::Next(Step::Drop)),
            false => Ok(Then::Later(POLL)),
        }
    }

    /// Every database that it ever had goes out of the archive with its key: backups and WAL, also what is archived of it
    /// only later.
    async fn erase_archive(&self, world: &World) -> Result<(), Error> {
        let mut mgmt = world.db.platform.acquire().await?;
        let noted = Erased::of(&mut mgmt, self.tenant).await?.databases;
        drop(mgmt);
        for oid in noted.iter().filter_map(|database| u32::try_from(database.oid).ok()) {
            world.repository.keys().erase(oid).await.map_err(RepositoryError::from)?;
        }
        Ok(())
    }

    async fn drop_roles(&self, world: &World) -> Result<(), Error> {
        let mut mgmt = world.db.platform.acquire().await?;
        let names = tenants::names(&mut mgmt, self.tenant).await?;
        let claimed = templates::claimed(&mut mgmt, self.tenant).await?;
        drop(mgmt);
        let mut admin = world.cluster.connect("postgres").await?;
        let mut all = BTreeSet::from([names.app_role.clone()]);
        all.extend(roles::beginning_with(&mut admin, &erasure::prefix(self.tenant)).await?);
        // Agents' roles are members: one whose session was never closed goes here.
        let owners = [names.owner_role.clone()].into_iter().chain(claimed.map(|copy| copy.name));
        let owners: BTreeSet<String> = owners.collect();
        for owner in &owners {
            all.extend(closing::members(&mut admin, owner).await?);
        }
        // Logins before the role that they belong to.
        for role in all.difference(&owners).chain(&owners) {
            roles::lock_out(&mut admin, role).await?;
            roles::drop_role(&mut admin, role).await?;
        }
        // Its credentials are deleted, so its line goes.
        write_password_file(world, &names.profile).await
    }

    /// Calls it destroyed once nothing but its row is found. What was dropped is noted before, to be looked for.
    async fn bury(&self, world: &World, context: &Context) -> Result<(), StepError> {
        let mut mgmt = rows::connect(&world.cluster).await?;
        let mut transaction = mgmt.begin().await?;
        let standing = lifecycle::lock(&mut transaction, self.tenant).await?;
        if standing.state == TenantState::Destroyed {
            return Ok(());
        }
        let erased = Erased::of(&mut transaction, self.tenant).await?;
        rows::note_erased(&mut transaction, self.tenant, &json!(erased)).await?;
        rows::delete(&mut transaction, self.tenant, &[]).await?;
        transaction.commit().await?;
        if let Some(left) = erasure::look(world, self.tenant).await?.remainder() {
            return Err(StepError {
                message: format!("something is left of tenant {}: {left}", self.tenant),
                hint: Some("remove it if it does not go by itself; the destruction is tried again".into()),
                retry: true,
            });
        }
        let mut transaction = mgmt.begin().await?;
        rows::bury(&mut transaction, self.tenant, &json!(erased)).await?;
        let detail = json!({ "databases": erased.databases.len() });
        let by = &context.requested_by;
        audit::record(&mut transaction, by, "tenant.destroyed", Some(self.tenant), detail).await?;
        let message = format!("tenant {} is destroyed, on the word of {by}", self.tenant);
        let detail = json!({ "tenant": self.tenant });
        // For operators only: the tenant is there no more.
        notifications::raise(&mut transaction, None, &Notice::info("tenant.destroyed", message, detail))
            .await?;
        routes::next_generation(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }
}

/// The databases that are still there: those that are noted, by number, those that a job left behind, and those of a
/// tenant that never became active, which are noted only when it does.
pub(crate) async fn databases(
    mgmt: &mut PgConnection,
    world: &World,
    tenant: TenantId,
) -> Result<Vec<TenantDatabase>, Error> {
    let mut admin = world.cluster.connect("postgres").await?;
    let mut found = Vec::new();
    for noted in Erased::of(mgmt, tenant).await?.databases {
        if let Some(name) = closing::name_of(&mut admin, noted.oid).await? {
            found.push(TenantDatabase { oid: noted.oid, name });
        }
    }
    let mut others = closing::databases_beginning_with(&mut admin, &erasure::prefix(tenant)).await?;
    if tenants::get(mgmt, tenant).await?.state == TenantState::Provisioning {
        let claimed = templates::claimed(mgmt, tenant).await?.map(|copy| copy.name);
        for name in claimed.into_iter().chain([tenants::names(mgmt, tenant).await?.database_name]) {
            if let Some(oid) = catalogue::oid(&mut admin, &name).await? {
                others.push((i64::from(oid), name));
            }
        }
    }
    for (oid, name) in others {
        if found.iter().all(|known| known.oid != oid) {
            found.push(TenantDatabase { oid, name });
        }
    }
    Ok(found)
}
