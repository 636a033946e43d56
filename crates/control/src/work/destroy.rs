//! Destroying a tenant: nothing is left of it but a row without its data, and the audit log.
//!
//! ```text
//! Begin          from here on the only way is forward
//! Quiet          what was under way ends
//! Protect        the last snapshot there is, or one more
//! AwaitArchive   until it can be restored: an operator's mistake is not the end of a customer
//! Forget         the data key first, then every row: copies that nobody can reach are unreadable
//! Drop, Rest     its databases, one at a time: each forces a checkpoint on everybody
//! Roles, Files
//! Bury           nothing is left, by looking; the names are free: this makes it destroyed
//! ```
//!
//! Each step finds what is left to do from what is there, so a job that was cut off, or one that is asked for after
//! another has failed, goes on where it stands.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use loomworks_core::ids::{SnapshotId, TenantId};
use loomworks_core::lsn::Lsn;
use loomworks_core::tenant::{Change, TenantState};
use loomworks_core::time;
use loomworks_postgres::cluster::remove_directory;
use loomworks_postgres::{closing, databases, roles};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::archive::{door, is_quiet, last_snapshot};
use super::provision::names;
use super::snapshot::{ARCHIVE_POLL, become_ready};
use crate::credentials::write_password_file;
use crate::db::notifications::Severity;
use crate::db::tenants::{self, TenantDatabase};
use crate::db::{erasure as rows, lifecycle, routes, snapshots};
use crate::erasure::{self, Erased};
use crate::error::Error;
use crate::jobs::{Context, Progress, StepError, Then, Work};
use crate::notifications::{self, Notice};
use crate::tenants::state_after;
use crate::{World, audit, data_keys};

/// Between two databases that are dropped, for everybody else to breathe.
const REST: SignedDuration = SignedDuration::from_millis(1000);

const POLL: Duration = Duration::from_millis(200);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Destroy {
    pub tenant: TenantId,
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
    Rest { until: Timestamp },
    Roles,
    Files,
    Bury,
}

impl Work for Destroy {
    const KIND: &'static str = "destroy";
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
            Step::Rest { .. } => (60, "resting between two databases"),
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
            Step::Rest { until } if time::now() < *until => Ok(Then::Later(POLL)),
            Step::Rest { .. } => Ok(Then::Next(Step::Drop)),
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

    async fn give_up(&self, connection: &mut PgConnection, context: &Context) -> Result<(), Error> {
        let notice = Notice {
            event: "tenant.destruction_stopped",
            severity: Severity::Critical,
            message: format!(
                "The destruction of tenant {} stopped halfway. It is tried again every minute.",
                self.tenant
            ),
            detail: json!({ "job": context.job, "tenant": self.tenant }),
        };
        Ok(notifications::raise_and_record(connection, None, &notice).await?)
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

    /// An archived tenant has a snapshot of all that is in its database, because nobody could change anything since.
    async fn protect(&self, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        let since = lifecycle::lock(&mut mgmt, self.tenant).await?.archived_at;
        let newest = snapshots::newest_ready(&mut mgmt, self.tenant)
            .await?
            .filter(|snapshot| since.is_some_and(|since| snapshot.created_at.to_jiff() >= since.to_jiff()));
        if newest.is_some() || self.databases(&mut mgmt, world).await?.is_empty() {
            return Ok(Then::Next(Step::Forget));
        }
        drop(mgmt);
        let (snapshot, position) = last_snapshot(world, self.tenant, context, "destroyed").await?;
        Ok(Then::Next(Step::AwaitArchive { snapshot, position }))
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
        rows::delete(&mut transaction, self.tenant, &["tenant_databases"]).await?;
        let detail = json!({
            "rows": deleted.into_iter().filter(|count| count.table != rows::KEPT).collect::<Vec<_>>(),
            "last_snapshot": newest.map(|last| json!({ "position": last.wal_position, "wal_file": last.wal_file })),
        });
        let by = &context.requested_by;
        audit::record(&mut transaction, by, "tenant.forgotten", Some(self.tenant), detail).await?;
        Ok(transaction.commit().await?)
    }

    /// The databases that are still there: those that are noted, by number, and those that a job left behind.
    async fn databases(&self, mgmt: &mut PgConnection, world: &World) -> Result<Vec<TenantDatabase>, Error> {
        let mut admin = world.cluster.connect("postgres").await?;
        let mut found = Vec::new();
        for noted in Erased::of(mgmt, self.tenant).await?.databases {
            if let Some(name) = closing::name_of(&mut admin, noted.oid).await? {
                found.push(TenantDatabase { oid: noted.oid, name });
            }
        }
        let prefix = erasure::prefix(self.tenant);
        for (oid, name) in closing::databases_beginning_with(&mut admin, &prefix).await? {
            if found.iter().all(|known| known.oid != oid) {
                found.push(TenantDatabase { oid, name });
            }
        }
        Ok(found)
    }

    /// Drops one database. One at a time on the whole platform, and never two without a rest.
    async fn drop_one(&self, world: &World) -> Result<Then<Step>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        let Some(database) = self.databases(&mut mgmt, world).await?.into_iter().next() else {
            return Ok(Then::Next(Step::Roles));
        };
        let mut admin = world.cluster.connect("postgres").await?;
        if !closing::take_turn(&mut admin, "drop a tenant's database").await? {
            return Ok(Then::Later(POLL));
        }
        // Noted first, so that what was dropped can be looked for afterwards.
        tenants::record_found(&mut mgmt, self.tenant, &database).await?;
        databases::drop_database(&mut admin, &database.name).await?;
        Ok(Then::Next(Step::Rest { until: time::now() + REST }))
    }

    async fn drop_roles(&self, world: &World) -> Result<(), Error> {
        let names = names(world, self.tenant).await?;
        let door = door(&names);
        let mut admin = world.cluster.connect("postgres").await?;
        // Agents' roles are members too: one whose session was never closed goes here.
        let mut all = closing::members(&mut admin, door.owner).await?;
        all.extend([door.login.to_owned(), door.owner.to_owned()]);
        for role in all {
            roles::lock_out(&mut admin, &role).await?;
            roles::drop_role(&mut admin, &role).await?;
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
