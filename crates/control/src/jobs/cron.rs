//! Jobs that are enqueued again and again, at times of day or in intervals.
//!
//! Every worker process looks once a second; one at a time leads, which is whoever gets the lock for the transaction.
//! In that transaction a run that is due becomes a job and the schedule learns when it is next due, both or neither:
//! each run is enqueued exactly once. After a time without any worker one run is made up for, however many were
//! missed. A run that comes while the job of the one before is unfinished is left out.

use std::time::Duration;

use loomworks_core::ids::JobId;
use loomworks_core::time;
use loomworks_core::timing::Timing;
use sqlx::PgConnection;
use tracing::warn;

use super::Work;
use crate::World;
use crate::db::schedules::{self, Due, Schedule};
use crate::db::{self};
use crate::error::{Error, chain};
use crate::work::daily_snapshots::DailySnapshots;
use crate::work::expire::Expire;
use crate::work::restore_drill::RestoreDrill;
use crate::work::sweep::Sweep;

const EVERY: Duration = Duration::from_secs(1);

/// Who asked, for jobs that a schedule asked for.
const ACTOR: &str = "schedule";

/// Sees to it that a job is done at these times: makes the schedule, or changes the one of that name.
///
/// May be called at every start. A schedule whose timing is as it was keeps its next run.
pub async fn ensure<W: Work>(
    connection: &mut PgConnection,
    name: &str,
    timing: &Timing,
    work: &W,
) -> Result<(), Error> {
    let next_run_at = timing.next_after(time::now()).ok_or_else(|| {
        Error::invalid(format!("`{timing}` never comes")).with_hint("is there such a day in the calendar?")
    })?;
    let schedule = Schedule {
        name,
        tenant: work.tenant(),
        timing: &timing.to_string(),
        kind: W::KIND,
        queue: W::QUEUE.as_str(),
        work: serde_json::to_value(work).map_err(|error| Error::Internal(error.to_string()))?,
        next_run_at,
    };
    Ok(schedules::ensure(connection, &schedule).await?)
}

/// Ends a schedule. Jobs that it has enqueued go on. `Ok(false)`: there was none.
pub async fn remove(connection: &mut PgConnection, name: &str) -> Result<bool, Error> {
    Ok(schedules::remove(connection, name).await?)
}

/// Lets a schedule rest, or go on. `Ok(false)`: there is none.
pub async fn enable(connection: &mut PgConnection, name: &str, enabled: bool) -> Result<bool, Error> {
    Ok(schedules::enable(connection, name, enabled).await?)
}

/// What the platform itself does regularly.
async fn ensure_own(world: &World) -> Result<(), Error> {
    let mut connection = world.db.platform.acquire().await?;
    let nightly = Timing::daily(jiff::civil::time(3, 20, 0, 0));
    ensure(&mut connection, "sweep", &nightly, &Sweep {}).await?;
    let daily = |hour, minute| Timing::daily(jiff::civil::time(hour, minute, 0, 0));
    ensure(&mut connection, "daily snapshots", &daily(3, 0), &DailySnapshots {}).await?;
    ensure(&mut connection, "expiry", &daily(4, 0), &Expire {}).await?;
    ensure(&mut connection, "restore drill", &daily(5, 0), &RestoreDrill {}).await
}

/// Looks for ever.
pub(crate) async fn run(world: World) {
    while let Err(error) = ensure_own(&world).await {
        warn!(error = chain(&error), "the platform's own schedules could not be written; trying again");
        tokio::time::sleep(EVERY).await;
    }
    loop {
        if let Err(error) = tick(&world).await {
            warn!(error = chain(&error), "the schedules could not be looked at; trying again");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Enqueues what is due, unless another process is at it. Says how many runs became jobs.
pub async fn tick(world: &World) -> Result<usize, Error> {
    let mut transaction = world.db.platform.begin().await?;
    if !schedules::lead(&mut transaction).await? {
        return Ok(0);
    }
    let mut enqueued = 0;
    for due in schedules::due(&mut transaction).await? {
        let job = if due.unfinished { None } else { enqueue(&mut transaction, world, &due).await? };
        enqueued += usize::from(job.is_some());
        // Counted from now and not from when it was due: what was missed meanwhile is not made up for.
        let next = due.timing.parse::<Timing>().ok().and_then(|timing| timing.next_after(time::now()));
        schedules::record_run(&mut transaction, &due.name, next, job).await?;
    }
    transaction.commit().await?;
    Ok(enqueued)
}

async fn enqueue(connection: &mut PgConnection, world: &World, due: &Due) -> Result<Option<JobId>, Error> {
    let max_attempts = world.kinds.find(&due.kind).map_or(1, |kind| kind.max_attempts());
    let new = db::jobs::New {
        kind: &due.kind,
        tenant: due.tenant_id.map(Into::into),
        queue: due.queue,
        dedup_key: &format!("schedule {} {}", due.name, due.next_run_at.to_jiff()),
        work: due.work.clone(),
        max_attempts,
        requested_by: ACTOR,
    };
    Ok(db::jobs::insert(connection, new).await?)
}
