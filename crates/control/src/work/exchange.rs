//! Putting another database in the place of a tenant's live one, so that no request fails.
//!
//! ```text
//! Hold      the gateways let the tenant's new requests wait
//! Drain     until every gateway says that the ones it had let through have ended
//! Rename    both databases change their names in one transaction
//! Publish   the requests that wait go on
//! ```
//!
//! The former database is kept. Exchanging again with the former one as the candidate is the undo of an exchange, and
//! exchanging once more is its redo.

use std::time::Duration;

use jiff::Timestamp;
use loomworks_core::ids::{JobId, TenantId};
use loomworks_core::time;
use loomworks_postgres::databases::{self, Rename};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::provision::names;
use crate::World;
use crate::access::Permission;
use crate::db::tenants::{self, TenantDatabase};
use crate::db::{changes, routes};
use crate::error::Error;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};

/// How long requests that are under way may take before the exchange goes on without them. Shorter than the
/// gateways' own patience, so that those which wait are not refused.
const DRAIN_SECONDS: i64 = 20;

const POLL: Duration = Duration::from_millis(10);

/// Restores and exchanges of a tenant exclude each other.
pub(crate) fn dedup_key(tenant: TenantId) -> String {
    format!("exchange {tenant}")
}

/// The name of a database that was replaced. Its number keeps it unique for ever.
fn former_name(tenant: TenantId, oid: i64) -> String {
    format!("lwt_{}_former_{oid}", tenant.short())
}

/// An exchange, as a part of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exchange {
    Hold { candidate: TenantDatabase },
    Drain { candidate: TenantDatabase, former: TenantDatabase, generation: i64, until: Timestamp },
    Rename { candidate: TenantDatabase, former: TenantDatabase },
    Publish { candidate: TenantDatabase, former: TenantDatabase },
}

/// What follows a step of an exchange.
pub(crate) enum Turn {
    Next(Exchange),
    Shortly(Duration),
    Done(Value),
}

impl Exchange {
    pub(crate) fn progress(&self) -> Progress {
        let (percent, words) = match self {
            Self::Hold { .. } => (90, "holding requests"),
            Self::Drain { .. } => (92, "waiting for requests under way"),
            Self::Rename { .. } => (94, "exchanging the databases"),
            Self::Publish { .. } => (96, "letting requests go on"),
        };
        Progress { percent, words }
    }

    /// Until the databases change their names, ending the hold is all there is to put right.
    pub(crate) fn can_cancel(&self) -> bool {
        matches!(self, Self::Hold { .. } | Self::Drain { .. })
    }

    pub(crate) async fn run(
        &self,
        tenant: TenantId,
        world: &World,
        context: &Context,
    ) -> Result<Turn, StepError> {
        match self {
            Self::Hold { candidate } => hold(tenant, candidate, world, context.job).await,
            Self::Drain { candidate, former, generation, until } => {
                let mut mgmt = world.db.platform.acquire().await?;
                let drained = routes::all_have(&mut mgmt, *generation).await?;
                if !drained && time::now() < *until {
                    return Ok(Turn::Shortly(POLL));
                }
                Ok(Turn::Next(Self::Rename { candidate: candidate.clone(), former: former.clone() }))
            }
            Self::Rename { candidate, former } => {
                rename(tenant, candidate, former, world).await?;
                Ok(Turn::Next(Self::Publish { candidate: candidate.clone(), former: former.clone() }))
            }
            Self::Publish { candidate, former } => publish(tenant, candidate, former, world, context).await,
        }
    }
}

async fn hold(
    tenant: TenantId,
    candidate: &TenantDatabase,
    world: &World,
    job: JobId,
) -> Result<Turn, StepError> {
    let names = names(world, tenant).await?;
    let mut admin = world.cluster.connect("postgres").await?;
    // An exchange that was cut off may have left it closed.
    databases::allow_connections(&mut admin, vec![names.database_name.clone(), candidate.name.clone()])
        .await?;
    let live = databases::oid(&mut admin, &names.database_name).await?;
    let Some(oid) = live.map(i64::from) else {
        return Err(Error::Internal(format!("database `{}` is gone", names.database_name)).into());
    };
    let former = TenantDatabase { oid, name: former_name(tenant, oid) };

    let mut transaction = world.db.platform.begin().await?;
    if !tenants::hold(&mut transaction, tenant, job).await? {
        return Ok(Turn::Shortly(POLL));
    }
    let generation = routes::next_generation(&mut transaction).await?;
    transaction.commit().await?;
    let until = time::now() + jiff::SignedDuration::from_secs(DRAIN_SECONDS);
    Ok(Turn::Next(Exchange::Drain { candidate: candidate.clone(), former, generation, until }))
}

/// Both names change or none. What the names mean now tells whether it was done.
async fn rename(
    tenant: TenantId,
    candidate: &TenantDatabase,
    former: &TenantDatabase,
    world: &World,
) -> Result<(), StepError> {
    let names = names(world, tenant).await?;
    let live_name = names.database_name.as_str();
    let mut admin = world.cluster.connect("postgres").await?;
    let live = databases::oid(&mut admin, live_name).await?.map(i64::from);
    if live != Some(candidate.oid) {
        let renames =
            [Rename { from: live_name, to: &former.name }, Rename { from: &candidate.name, to: live_name }];
        databases::exchange(&mut admin, &renames).await?;
    }
    let all = vec![live_name.to_owned(), former.name.clone()];
    Ok(databases::allow_connections(&mut admin, all).await?)
}

async fn publish(
    tenant: TenantId,
    candidate: &TenantDatabase,
    former: &TenantDatabase,
    world: &World,
    context: &Context,
) -> Result<Turn, StepError> {
    let names = names(world, tenant).await?;
    let mut transaction = world.db.platform.begin().await?;
    // Held still: not done yet. The release is in the transaction that notes the exchange.
    if tenants::release(&mut transaction, context.job).await? {
        let live = TenantDatabase { oid: candidate.oid, name: names.database_name.clone() };
        tenants::record_live(&mut transaction, tenant, &live, Some(&former.name)).await?;
        changes::begin(&mut transaction, &[tenant]).await?;
        let detail = json!({ "live": candidate.oid, "former": former });
        crate::audit::record(
            &mut transaction,
            &context.requested_by,
            "tenant.exchanged",
            Some(tenant),
            detail,
        )
        .await?;
        routes::next_generation(&mut transaction).await?;
    }
    transaction.commit().await?;
    Ok(Turn::Done(json!({ "former_database": former.name })))
}

/// Ends the hold of a job that failed: better the database that was than none.
pub(crate) async fn give_up(connection: &mut PgConnection, context: &Context) -> Result<(), Error> {
    if tenants::release(connection, context.job).await? {
        routes::next_generation(connection).await?;
    }
    Ok(())
}

/// Puts the database that was live before back in place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SwapBack {
    pub tenant: TenantId,
    pub candidate: TenantDatabase,
}

impl Work for SwapBack {
    const KIND: &'static str = "swap_back";
    const QUEUE: Queue = Queue::HighPriority;
    const TENANTS_NEED: Option<Permission> = Some(Permission::Manage);
    type Step = Exchange;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        dedup_key(self.tenant)
    }

    fn first(&self) -> Exchange {
        Exchange::Hold { candidate: self.candidate.clone() }
    }

    fn progress(step: &Exchange) -> Progress {
        step.progress()
    }

    async fn run(
        &self,
        step: &Exchange,
        world: &World,
        context: &Context,
    ) -> Result<Then<Exchange>, StepError> {
        Ok(match step.run(self.tenant, world, context).await? {
            Turn::Next(step) => Then::Next(step),
            Turn::Shortly(wait) => Then::Shortly(wait),
            Turn::Done(result) => Then::Done(result),
        })
    }

    fn can_cancel(step: &Exchange) -> bool {
        step.can_cancel()
    }

    async fn give_up(&self, connection: &mut PgConnection, context: &Context) -> Result<(), Error> {
        give_up(connection, context).await
    }

    /// Its hold is over, and which database is the former one may have changed since.
    async fn take_up(
        &self,
        _: &Exchange,
        _: &mut PgConnection,
        _: &Context,
    ) -> Result<Option<Exchange>, Error> {
        Ok(None)
    }
}
