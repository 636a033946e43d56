//! Limits: telling tenants' databases theirs, and measuring what is used of them.

mod changes;
mod counted;

use std::sync::LazyLock;

use loomworks_core::ids::TenantId;
use loomworks_undo::Limits;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::provision::names;
use crate::World;
use crate::audit;
use crate::db::jobs::Queue;
use crate::db::notifications::Severity;
use crate::db::usage::{self, Common, ToMeasure};
use crate::error::Error;
use crate::jobs::{Context, Progress, StepError, Then, Work};
use crate::notifications::{Notice, raise};
use crate::profile::Users;
use loomworks_postgres::databases;

/// Tells a tenant's live database what it is to hold people to. Also after a restore, which brings another database
/// with what held then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApplyLimits {
    pub tenant: TenantId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApplyStep {
    Apply,
}

impl Work for ApplyLimits {
    const KIND: &'static str = "apply_limits";
    type Step = ApplyStep;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("apply_limits {}", self.tenant)
    }

    fn first(&self) -> ApplyStep {
        ApplyStep::Apply
    }

    fn progress(_: &ApplyStep) -> Progress {
        Progress { percent: 0, words: "telling the database its limits" }
    }

    async fn run(&self, _: &ApplyStep, world: &World, _: &Context) -> Result<Then<ApplyStep>, StepError> {
        let names = names(world, self.tenant).await?;
        let mut mgmt = world.db.platform.acquire().await?;
        let wanted = usage::wanted(&mut mgmt, self.tenant, &common(world)).await?;
        let applied = usage::applied(&mut mgmt, self.tenant).await?.unwrap_or_default();
        let measured = usage::measured(&mut mgmt, self.tenant).await?;
        drop(mgmt);
        let told = Told::read(&wanted)?;
        let Some(database) = told.database else { return Ok(Then::Done(json!({}))) };
        let mut inside = world.cluster.connect(&names.database_name).await?;
        // The name may stand for another database than a moment ago; then there is another turn.
        let there = databases::oid(&mut inside, &names.database_name).await?.map(i64::from);
        if there != Some(database) {
            return Err(Error::conflict("the database is being exchanged").into());
        }
        if ["database", "parts"].iter().any(|what| applied[what] != wanted[what]) {
            loomworks_undo::install(&mut inside, &names.owner_role).await.map_err(Error::from)?;
        }
        tell(&mut inside, &told).await?;
        if told.full {
            let used = measured.map_or(0, |measured| measured.storage_bytes);
            let said = format!("{} of {}", gigabytes(used), gigabytes(bytes_of(told.max_storage_gb)));
            loomworks_undo::block(&mut inside, &said).await.map_err(Error::from)?;
        } else {
            loomworks_undo::unblock(&mut inside).await.map_err(Error::from)?;
        }
        // What was wanted when it was read is what is noted: if it is something else by now, there is another turn.
        let mut mgmt = world.db.platform.acquire().await?;
        usage::record_applied(&mut mgmt, self.tenant, &wanted).await?;
        Ok(Then::Done(wanted))
    }
}

/// What every database is told, and what is to be installed in it.
#[must_use]
pub fn common(world: &World) -> Common {
    static PARTS: LazyLock<String> = LazyLock::new(|| {
        let mut checksum = ring::digest::Context::new(&ring::digest::SHA256);
        for part in loomworks_undo::parts() {
            checksum.update(&part.len().to_le_bytes());
            checksum.update(part.as_bytes());
        }
        checksum.finish().as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    });
    let users = world.profiles.iter().map(|(name, profile)| (name.clone(), json!(profile.users)));
    Common { parts: PARTS.clone(), users: users.collect() }
}

/// What a database is told, as it was noted.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Told {
    database: Option<i64>,
    max_users: i32,
    max_ai_operations_daily: i32,
    max_storage_gb: f64,
    full: bool,
    users: Option<Users>,
}

impl Told {
    pub(crate) fn read(wanted: &Value) -> Result<Self, Error> {
        Self::deserialize(wanted).map_err(|error| Error::Internal(format!("limits of a tenant: {error}")))
    }
}

/// Tells a database all but whether it is full.
pub(crate) async fn tell(inside: &mut PgConnection, told: &Told) -> Result<(), Error> {
    let limits = Limits {
        users: told.users.as_ref().map(Users::told),
        max_users: Some(told.max_users),
        max_ai_operations_daily: Some(told.max_ai_operations_daily),
    };
    Ok(loomworks_undo::set_limits(inside, &limits).await?)
}

/// Measures what those tenants use whose turn it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeasureUsage {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeasureStep {
    Measure,
}

/// Tenants measured with one query. Each is a look at some hundred files.
const SLICE: i64 = 200;

impl Work for MeasureUsage {
    const KIND: &'static str = "measure_usage";
    const QUEUE: Queue = Queue::LowPriority;
    type Step = MeasureStep;

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        "measure_usage".into()
    }

    fn first(&self) -> MeasureStep {
        MeasureStep::Measure
    }

    fn progress(_: &MeasureStep) -> Progress {
        Progress { percent: 0, words: "measuring databases" }
    }

    async fn run(
        &self,
        _: &MeasureStep,
        world: &World,
        context: &Context,
    ) -> Result<Then<MeasureStep>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        usage::add_missing(&mut mgmt).await?;
        let mut admin = world.cluster.connect("postgres").await?;
        let (mut count, mut written) = (0, vec![]);
        loop {
            let slice = usage::to_measure(&mut mgmt, SLICE).await?;
            if slice.is_empty() {
                break;
            }
            // What falls due meanwhile has its turn with the next job: this one ends, and counts what it found.
            let is_last = i64::try_from(slice.len()).is_ok_and(|found| found < SLICE);
            count += slice.len();
            let oids: Vec<i64> = slice.iter().map(|tenant| tenant.oid).collect();
            let sizes: std::collections::HashMap<i64, i64> =
                databases::sizes(&mut admin, &oids).await?.into_iter().collect();
            let mut transaction = world.db.platform.begin().await?;
            let (mut ids, mut bytes, mut levels) = (vec![], vec![], vec![]);
            for tenant in &slice {
                // A database that is being exchanged is looked at the next time.
                let size = sizes.get(&tenant.oid).copied();
                let before = Level::of(&tenant.storage_level);
                let level = size.map_or(before, |size| before.after(size, bytes_of(tenant.max_storage_gb)));
                if let Some(size) = size.filter(|_| level != before) {
                    notify(&mut transaction, context, tenant, before, level, size).await?;
                }
                ids.push(tenant.tenant_id.0);
                bytes.push(size);
                levels.push(level.as_str());
            }
            usage::record_measured(&mut transaction, &ids, &bytes, &levels).await?;
            transaction.commit().await?;
            let writes: std::collections::HashMap<i64, i64> =
                databases::writes(&mut admin, &oids).await?.into_iter().collect();
            written.extend(slice.into_iter().filter_map(|tenant| {
                let writes = *writes.get(&tenant.oid)?;
                (tenant.writes != Some(writes)).then_some((tenant, writes))
            }));
            if is_last {
                break;
            }
        }
        // Only afterwards: what is asked in the databases themselves is not to keep the storage waiting.
        for (tenant, writes) in &written {
            counted::look(world, context, tenant, *writes).await?;
        }
        drop((mgmt, admin));
        let snapshots = changes::look(world, context).await?;
        Ok(Then::Done(json!({ "measured": count, "counted": written.len(), "snapshots": snapshots })))
    }
}

/// How full a tenant's storage is, or how many of its users there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    /// From 80 % on.
    NearlyFull,
    /// From 100 % on: nothing more can be written, no user added.
    Full,
}

impl Level {
    fn of(text: &str) -> Self {
        match text {
            "full" => Self::Full,
            "nearly_full" => Self::NearlyFull,
            _ => Self::Ok,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NearlyFull => "nearly_full",
            Self::Full => "full",
        }
    }

    /// Up at once, down only when there is some room: a tenant at the limit is not to change back and forth.
    fn after(self, used: i64, allowed: i64) -> Self {
        let percent = i128::from(used) * 100 / i128::from(allowed.max(1));
        let up = match percent {
            100.. => Self::Full,
            80.. => Self::NearlyFull,
            _ => Self::Ok,
        };
        let down = match percent {
            95.. => Self::Full,
            75.. => Self::NearlyFull,
            _ => Self::Ok,
        };
        up.max(down.min(self))
    }
}

async fn notify(
    connection: &mut PgConnection,
    context: &Context,
    tenant: &ToMeasure,
    before: Level,
    level: Level,
    size: i64,
) -> Result<(), Error> {
    let of = format!("{} of {}", gigabytes(size), gigabytes(bytes_of(tenant.max_storage_gb)));
    let (event, severity, message) = match level {
        Level::Full => (
            "quota.storage_full",
            Severity::Critical,
            format!(
                "The storage is full ({of}): it can be read and deleted from, and nothing more is written."
            ),
        ),
        Level::NearlyFull if before < level => (
            "quota.storage_nearly_full",
            Severity::Warning,
            format!("More than 80 % of the storage are in use ({of})."),
        ),
        _ if before == Level::Full => (
            "quota.storage_freed",
            Severity::Info,
            format!("There is room again ({of} in use): everything can be written."),
        ),
        // From nearly full back to less is no news.
        _ => return Ok(()),
    };
    let detail = json!({ "used_bytes": size, "limit_bytes": bytes_of(tenant.max_storage_gb) });
    audit::record(connection, &context.requested_by, event, Some(tenant.tenant_id), detail.clone()).await?;
    let notice = Notice { event, severity, message, detail };
    Ok(raise(connection, Some(tenant.tenant_id), &notice).await?)
}

/// A limit in bytes: one gigabyte has 1024³ of them, as PostgreSQL counts.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a limit that large is none")]
pub fn bytes_of(gigabytes: f64) -> i64 {
    (gigabytes.max(0.0) * 1_073_741_824.0) as i64
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn gigabytes(bytes: i64) -> String {
    match bytes {
        ..107_374_182 => format!("{:.1} MB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_rise_at_once_and_fall_with_some_room() {
        use Level::{Full, NearlyFull, Ok};
        for (before, percent, after) in [
            (Ok, 79, Ok),
            (Ok, 80, NearlyFull),
            (NearlyFull, 99, NearlyFull),
            (Ok, 100, Full),
            (Full, 96, Full),
            (Full, 94, NearlyFull),
            (NearlyFull, 76, NearlyFull),
            (NearlyFull, 74, Ok),
            (Full, 10, Ok),
        ] {
            assert_eq!(before.after(percent, 100), after, "{before:?} at {percent} %");
        }
        assert_eq!(Ok.after(i64::MAX, i64::MAX), Full);
        assert_eq!(Ok.after(1, 0), Full, "no storage at all");
        assert_eq!(bytes_of(5.0), 5 << 30);
        assert_eq!(gigabytes(5 << 30), "5.0 GB");
    }
}
