//! What the platform asks of its repository, and how the archive stands.

use std::collections::BTreeMap;

use jiff::Timestamp;
use loomworks_archive::restore::{self, Catalog, RestorePlan, Target};
use loomworks_archive::stream;
use loomworks_core::lsn::Lsn;
use loomworks_core::time;
use loomworks_postgres::receive;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::World;
use crate::access::{Granted, Operator};
use crate::db::{snapshots, tenants as rows, tiers};
use crate::error::Error;
use crate::work::expire;
use crate::{recovery, restores, tenants};

/// The timeline that the cluster is on.
pub(crate) async fn timeline(admin: &mut PgConnection) -> Result<u32, Error> {
    let timeline: i32 =
        sqlx::query_scalar("SELECT timeline_id FROM pg_control_checkpoint()").fetch_one(admin).await?;
    Ok(timeline.cast_unsigned())
}

/// The same, on a connection of its own.
pub(crate) async fn current_timeline(world: &World) -> Result<u32, Error> {
    timeline(&mut world.cluster.connect("postgres").await?).await
}

/// What can be restored now.
pub(crate) async fn catalog(world: &World) -> Result<Catalog, Error> {
    Ok(world.repository.catalog(current_timeline(world).await?).await?)
}

/// How the archive stands.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ArchiveStatus {
    /// Where it is.
    pub repository: String,
    pub timeline: u32,
    /// The newest WAL in the archive ends here.
    pub archived_up_to: Option<String>,
    /// What the server has written ends here.
    pub written_up_to: String,
    pub behind_bytes: u64,
    /// What would be lost if the server were lost now: how old the oldest WAL is, at most, that is not archived.
    pub recovery_point_seconds: u64,
    /// The slot by which the archiver receives. Absent: it has never run.
    pub slot: Option<SlotShown>,
    pub backups: u64,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub newest_backup_at: Option<Timestamp>,
    /// The oldest moment that can be restored.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub recoverable_from: Option<Timestamp>,
    /// How far back tenants can go, the furthest first. The repository is kept for the first.
    pub windows: Vec<WindowShown>,
    /// What somebody should look at.
    pub alarms: Vec<String>,
}

/// The tenants that can go back so many days.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WindowShown {
    pub recovery_days: u16,
    pub tenants: u64,
    /// The oldest moment that one of them can go back to. A tenant that was made later begins later.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub recoverable_from: Option<Timestamp>,
}

/// A replication slot.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SlotShown {
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// WAL that it keeps back.
    pub behind_bytes: u64,
}

/// An archive that is further behind than the specification's `archive_timeout` twice over.
const BEHIND_SECONDS_MAX: u64 = 600;

/// Whether the daily backup is late: a day and two hours for it to be made.
pub(crate) fn is_late(newest_backup: Timestamp, now: Timestamp) -> bool {
    now.duration_since(newest_backup).as_hours() >= 26
}

/// How the archive stands now.
pub async fn status(world: &World, _: &Operator) -> Result<ArchiveStatus, Error> {
    let status = look(world).await?;
    Ok(ArchiveStatus { windows: windows(world, status.recoverable_from).await?, ..status })
}

async fn windows(world: &World, oldest: Option<Timestamp>) -> Result<Vec<WindowShown>, Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    let reaches = tiers::reaches(&mut mgmt, world.policy.recovery_days).await?;
    let now = time::now();
    let shown = reaches.iter().map(|reach| WindowShown {
        recovery_days: reach.days(),
        tenants: reach.tenants.max(0).cast_unsigned(),
        recoverable_from: recovery::from(oldest, reach.days(), Timestamp::MIN, now),
    });
    Ok(shown.collect())
}

/// The same for whoever measures the platform every few seconds, without the tenants' windows.
pub(crate) async fn look(world: &World) -> Result<ArchiveStatus, Error> {
    let mut admin = world.cluster.connect("postgres").await?;
    let timeline = timeline(&mut admin).await?;
    let written: String =
        sqlx::query_scalar("SELECT pg_current_wal_flush_lsn()::text").fetch_one(&mut admin).await?;
    drop(admin);
    let written: Lsn = written.parse().map_err(|error| Error::Internal(format!("{error}")))?;
    let (archived, newest) = world.repository.newest_wal(timeline).await?;
    let slot = receive::slot(&world.cluster, stream::SLOT).await?;
    let backups = world.repository.backups().await?;
    let now = time::now();
    let behind_bytes = written.0.saturating_sub(archived.unwrap_or_default().0);
    // What was stored last holds all that was written up to about then.
    let age = newest.map_or(u64::MAX, |at| now.duration_since(at).as_secs().max(0).cast_unsigned());
    let recovery_point_seconds = if behind_bytes == 0 { 0 } else { age };
    let newest_backup_at = backups.last().map(|backup| backup.finished_at);
    let mut alarms = Vec::new();
    if recovery_point_seconds > BEHIND_SECONDS_MAX {
        alarms.push(format!("the archive is {recovery_point_seconds} s behind the server"));
    }
    match &slot {
        Some(slot) if slot.wal_status.as_deref() == Some("lost") => {
            alarms
                .push("the archiver's slot has lost WAL; it is made anew when the archiver runs".to_owned());
        }
        Some(slot) if !slot.active => alarms.push("the archiver does not receive WAL".to_owned()),
        _ => {}
    }
    match newest_backup_at {
        None => alarms.push("there is no base backup yet: nothing can be restored".to_owned()),
        Some(at) if is_late(at, now) => {
            alarms.push(format!("the newest base backup is of {at}"));
        }
        Some(_) => {}
    }
    Ok(ArchiveStatus {
        repository: world.repository.location().to_string(),
        timeline,
        archived_up_to: archived.map(|lsn| lsn.to_string()),
        written_up_to: written.to_string(),
        behind_bytes,
        recovery_point_seconds,
        slot: slot.map(|slot| SlotShown {
            active: slot.active,
            wal_status: slot.wal_status,
            behind_bytes: slot.behind_bytes.max(0).cast_unsigned(),
        }),
        backups: backups.len() as u64,
        newest_backup_at,
        recoverable_from: backups.first().map(|backup| backup.finished_at),
        windows: Vec::new(),
        alarms,
    })
}

/// What would be removed from the repository.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExpiryShown {
    /// Every moment of so many days can be brought back.
    pub recovery_days: u16,
    /// Why it is so many: whose window is the longest.
    pub recovery_days_because: String,
    /// Backups that stay, and why.
    pub kept: Vec<KeptShown>,
    /// What goes, by the reason.
    pub removed: Vec<RemovedShown>,
    /// Why less is removed than could be.
    pub held_back: Vec<String>,
}

/// A backup that stays.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeptShown {
    pub backup: String,
    pub why: Vec<String>,
}

/// Objects that go for one reason.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RemovedShown {
    pub why: String,
    pub objects: u64,
    pub bytes: u64,
}

/// What would be removed now.
pub async fn expiry(world: &World, _: &Operator) -> Result<ExpiryShown, Error> {
    let (plan, in_force) = expire::plan(world).await?;
    let mut removed: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for removal in plan.removals() {
        let (objects, bytes) = removed.entry(removal.why.to_string()).or_default();
        (*objects, *bytes) = (*objects + 1, *bytes + removal.bytes);
    }
    Ok(ExpiryShown {
        recovery_days: in_force.days,
        recovery_days_because: in_force.why,
        kept: plan.kept.into_iter().map(|kept| KeptShown { backup: kept.label, why: kept.why }).collect(),
        removed: removed
            .into_iter()
            .map(|(why, (objects, bytes))| RemovedShown { why, objects, bytes })
            .collect(),
        held_back: plan.held_back,
    })
}

/// The moments to which a tenant can go back.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RecoveryWindow {
    /// How many days back it can go: its own, its tier's or the platform's.
    pub recovery_days: u16,
    /// Absent: nothing can be restored yet.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub recoverable_from: Option<Timestamp>,
    #[schema(value_type = String, format = DateTime)]
    pub recoverable_until: Timestamp,
    /// How long a restore to now would take, about.
    pub estimated_seconds: Option<u64>,
}

/// To which moments a tenant can go back.
pub async fn window(world: &World, granted: &Granted) -> Result<RecoveryWindow, Error> {
    let tenant = tenants::provisioned(world, granted).await?;
    let now = time::now();
    let catalog = catalog(world).await?;
    let recovery_days = world.policy.recovery_days_of(tenant.recovery_days);
    let oldest = catalog.backups.first().map(|backup| backup.finished_at);
    let recoverable_from = recovery::from(oldest, recovery_days, tenant.created_at.to_jiff(), now);
    let database = restores::database_at(world, granted, &tenant, Target::Time(now)).await?;
    let plan = restore::plan(&catalog, database, Target::Time(now), now).ok();
    let estimated_seconds = match &plan {
        Some(plan) => Some(estimate(world, granted, plan).await?),
        None => None,
    };
    Ok(RecoveryWindow { recovery_days, recoverable_from, recoverable_until: now, estimated_seconds })
}

/// What a restore takes whatever its size: a snapshot, the start of a server, the exchange. Seconds.
const FIXED_SECONDS: u64 = 2;
/// Bytes a second, on two cores, as `bench/archive` measures them, and somewhat less: files are brought back; WAL is looked
/// through, mostly passed over; a database is checked and its files are moved. One that must be dumped and loaded, which only
/// shows once it is recovered, takes some three times as long.
const FILES_RATE: u64 = 200 << 20;
const WAL_RATE: u64 = 1 << 30;
const MOVE_RATE: u64 = 100 << 20;

/// How long a restore would take, in seconds, about.
pub async fn estimate(world: &World, granted: &Granted, plan: &RestorePlan) -> Result<u64, Error> {
    let mut scoped = granted.begin(&world.db).await?;
    let newest = snapshots::newest_ready(&mut scoped, granted.tenant()).await?;
    let database = newest.and_then(|snapshot| snapshot.size_bytes).unwrap_or(0).max(0).cast_unsigned();
    let database = database.max(plan.backup.size_bytes);
    Ok(FIXED_SECONDS + plan.backup.size_bytes / FILES_RATE + plan.wal_bytes / WAL_RATE + database / MOVE_RATE)
}

/// Refuses a moment that is out of what is kept for the tenant.
pub(crate) fn check_kept(world: &World, tenant: &rows::Tenant, asked: Timestamp) -> Result<(), Error> {
    let days = world.policy.recovery_days_of(tenant.recovery_days);
    recovery::check(tenant.subdomain.as_str(), days, asked, time::now())
}
