//! Fleet migrations: one SQL migration over the databases of many tenants, canaries first and then in waves.
//!
//! Which tenants are meant is written down with the request. Those that are made meanwhile are not among them: their
//! app profile brings them the new shape.

pub(crate) mod inside;

use std::time::Duration;

use loomworks_core::ids::{FleetMigrationId, JobId};
use loomworks_core::name::Label;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

pub use self::inside::{Failure, Lock, Trial, Written};
use crate::World;
use crate::access::{Operator, Scoped};
use crate::audit;
use crate::db::fleet::{self, Definition, FleetMigration, MigrationTenant, PlannedTenant, Selected};
use crate::db::{jobs as job_rows, tenants};
use crate::error::Error;
use crate::jobs::{self, Work as _};
use crate::page::{Asked, Page};
use crate::work::fleet_migration::{CANCELLED, MigrateFleet};
use crate::work::snapshot::TakeSnapshot;

/// The most that the SQL of a migration may have.
const SQL_BYTES_MAX: usize = 1 << 20;

/// How long a resume waits for the tenants that were under way at the pause.
const COME_TO_REST: Duration = Duration::from_secs(10);

/// Which tenants are meant. Either `all`, or `tenants`, or those that have both the tier and the profile.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Subdomains or ids, in the order in which they are to be migrated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// A migration that somebody wants, checked.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: Label,
    pub sql: String,
    pub selection: Selection,
    pub canaries: i32,
    pub wave_size: i32,
    pub concurrency: i32,
    pub snapshot_before: bool,
    pub statement_timeout_seconds: i32,
    pub lock_timeout_seconds: i32,
    pub busy_timeout_seconds: i32,
    pub stop_after_failures: i32,
    pub pause_after_canary: bool,
}

/// What a migration would do. Nothing was changed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FleetPlan {
    /// The tenants in their order.
    pub tenants: Vec<PlannedTenant>,
    /// How many waves follow the canaries.
    pub waves: i32,
    /// What it did to the first canary before it was taken back, if that was asked for.
    pub trial: Option<Trial>,
}

impl Wanted {
    /// Checks what no type has checked.
    fn check(&self) -> Result<(), Error> {
        let within = |name: &str, value: i32, least: i32, most: i32| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(Error::invalid(format!("`{name}` is {least} to {most}"))),
        };
        within("canaries", self.canaries, 0, 1000)?;
        within("wave_size", self.wave_size, 1, 100_000)?;
        within("concurrency", self.concurrency, 1, 32)?;
        within("statement_timeout_seconds", self.statement_timeout_seconds, 1, 86_400)?;
        within("lock_timeout_seconds", self.lock_timeout_seconds, 1, 3600)?;
        within("busy_timeout_seconds", self.busy_timeout_seconds, 0, 3600)?;
        within("stop_after_failures", self.stop_after_failures, 0, 100_000)?;
        if self.sql.trim().is_empty() || self.sql.len() > SQL_BYTES_MAX || self.sql.contains('\0') {
            return Err(Error::invalid("the SQL has 1 byte to 1 MiB, none of them zero"));
        }
        if self.pause_after_canary && self.canaries == 0 {
            return Err(
                Error::invalid("there is no canary to pause after").with_hint("ask for one with `canaries`")
            );
        }
        Ok(())
    }

    fn definition(&self, operator: &Operator) -> Result<Definition, Error> {
        let selection =
            serde_json::to_value(&self.selection).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(Definition {
            id: FleetMigrationId::random(),
            name: self.name.as_str().to_owned(),
            sql: self.sql.clone(),
            selection,
            canaries: self.canaries,
            wave_size: self.wave_size,
            concurrency: self.concurrency,
            snapshot_before: self.snapshot_before,
            statement_timeout_seconds: self.statement_timeout_seconds,
            lock_timeout_seconds: self.lock_timeout_seconds,
            busy_timeout_seconds: self.busy_timeout_seconds,
            stop_after_failures: self.stop_after_failures,
            pause_after_canary: self.pause_after_canary,
            requested_by: operator.actor.clone(),
        })
    }
}

/// Writes a migration down and enqueues it, in one transaction.
pub async fn create(
    world: &World,
    operator: &Operator,
    wanted: &Wanted,
) -> Result<(FleetMigration, JobId), Error> {
    wanted.check()?;
    let mut scoped = operator.begin(&world.db).await?;
    let selected = select(&mut scoped, &wanted.selection).await?;
    let definition = wanted.definition(operator)?;
    let id = definition.id;
    if fleet::insert(&mut scoped, &definition, &selected).await? == 0 {
        return Err(nobody_selected());
    }
    let job = jobs::enqueue(&mut scoped, &MigrateFleet { migration: id }, &operator.actor).await?;
    let detail = json!({ "migration": id, "name": wanted.name.as_str(), "selection": definition.selection });
    audit::record(&mut scoped, &operator.actor, "fleet_migration.requested", None, detail).await?;
    let shown = shown(&mut scoped, id).await?;
    scoped.commit().await?;
    Ok((shown, job))
}

/// Which tenants it would be and in which waves; with `trial` the migration is run on the first canary and taken back.
pub async fn plan(
    world: &World,
    operator: &Operator,
    wanted: &Wanted,
    trial: bool,
) -> Result<FleetPlan, Error> {
    wanted.check()?;
    let mut scoped = operator.begin(&world.db).await?;
    let selected = select(&mut scoped, &wanted.selection).await?;
    let tenants = fleet::plan(&mut scoped, &selected, wanted.canaries, wanted.wave_size).await?;
    if tenants.is_empty() {
        return Err(nobody_selected());
    }
    let first = tenants.iter().find(|tenant| tenant.wave.is_some());
    let trial = match first {
        Some(first) if trial => {
            let target = fleet::target(&mut scoped, first.tenant_id).await?;
            // Nothing stays of it, but it takes locks and time in somebody's database.
            let detail = json!({ "name": wanted.name.as_str() });
            let tenant = Some(target.tenant_id);
            audit::record(&mut scoped, &operator.actor, "fleet_migration.tried_out", tenant, detail).await?;
            scoped.commit().await?;
            Some(inside::try_out(world, &wanted.definition(operator)?, &target).await?)
        }
        _ => None,
    };
    let waves = tenants.iter().filter_map(|tenant| tenant.wave).max().unwrap_or(0);
    Ok(FleetPlan { tenants, waves, trial })
}

fn nobody_selected() -> Error {
    Error::invalid("no tenant is selected")
        .with_hint("`loomworks tenant list` shows them with tier and profile")
}

/// Turns what was asked for into what the database is asked for.
async fn select(scoped: &mut Scoped, selection: &Selection) -> Result<Selected, Error> {
    let Selection { tenants, tier, profile, all } = selection;
    let some = tier.is_some() || profile.is_some();
    if [*all, tenants.is_some(), some].iter().filter(|given| **given).count() != 1 {
        return Err(Error::invalid("say which tenants are meant")
            .with_hint("give `tenants`, or `tier` and `profile` or one of them, or `all`"));
    }
    let ids = match tenants {
        None => None,
        Some(names) => {
            let mut ids = Vec::with_capacity(names.len());
            for name in names {
                let id = tenants::find_id(scoped, &name.to_ascii_lowercase()).await?;
                ids.push(id.ok_or_else(|| Error::invalid(format!("there is no tenant `{name}`")))?.0);
            }
            Some(ids)
        }
    };
    Ok(Selected { tenants: ids, tier: tier.clone(), profile: profile.clone() })
}

async fn shown(scoped: &mut Scoped, id: FleetMigrationId) -> Result<FleetMigration, Error> {
    fleet::get(scoped, id).await?.ok_or(Error::NotFound("such fleet migration"))
}

pub async fn get(world: &World, operator: &Operator, id: FleetMigrationId) -> Result<FleetMigration, Error> {
    shown(&mut operator.begin(&world.db).await?, id).await
}

/// Migrations, newest first.
pub async fn list(
    world: &World,
    operator: &Operator,
    asked: &Asked<(jiff::Timestamp, Uuid)>,
) -> Result<Page<FleetMigration>, Error> {
    let mut scoped = operator.begin(&world.db).await?;
    let rows = fleet::list(&mut scoped, asked.after, asked.rows()).await?;
    Ok(asked.page(rows, |migration| (migration.created_at.to_jiff(), migration.id.0)))
}

/// A migration's tenants in their order. Whether one that was restored since still has it, its database is asked.
pub async fn tenants(
    world: &World,
    operator: &Operator,
    id: FleetMigrationId,
    state: Option<&str>,
    asked: &Asked<i32>,
) -> Result<Page<MigrationTenant>, Error> {
    const STATES: [&str; 5] = ["waiting", "running", "applied", "failed", "skipped"];
    if state.is_some_and(|state| !STATES.contains(&state)) {
        return Err(Error::invalid("a tenant of a fleet migration has no such state")
            .with_hint(format!("there are: {}", STATES.join(", "))));
    }
    let mut scoped = operator.begin(&world.db).await?;
    shown(&mut scoped, id).await?;
    let rows = fleet::tenants(&mut scoped, id, state, asked.after, asked.rows()).await?;
    drop(scoped);
    let mut page = asked.page(rows, |tenant| tenant.number);
    for tenant in page.items.iter_mut().filter(|tenant| tenant.state == "applied") {
        tenant.still_applied = match tenant.replaced {
            false => Some(true),
            // While it is being exchanged nobody can tell.
            true => inside::is_applied(&world.cluster, &tenant.database_name, id).await.ok(),
        };
    }
    Ok(page)
}

/// Goes on with one that was paused, was stopped, or failed with some tenants. If nobody waits in one that was stopped
/// (its job failed at the very end), what it comes to is only written down.
pub async fn resume(
    world: &World,
    operator: &Operator,
    id: FleetMigrationId,
    retry_failed: bool,
) -> Result<(FleetMigration, JobId), Error> {
    let work = MigrateFleet { migration: id };
    come_to_rest(world, &work).await?;
    let mut scoped = operator.begin(&world.db).await?;
    let standing = fleet::lock(&mut scoped, id).await?.ok_or(Error::NotFound("such fleet migration"))?;
    if !matches!(standing.state.as_str(), "paused" | "stopped" | "failed") {
        return Err(Error::conflict(format!(
            "a fleet migration that is {} cannot be resumed",
            standing.state
        )));
    }
    if job_rows::unfinished(&mut scoped, &work.dedup_key()).await?.is_some() {
        return Err(Error::conflict("tenants that were under way are still being migrated")
            .with_hint("ask again when they are done"));
    }
    if retry_failed {
        // They get new snapshots. The old ones become ready all the same.
        for (tenant, snapshot) in fleet::snapshots_of_failed(&mut scoped, id).await? {
            jobs::enqueue(&mut scoped, &TakeSnapshot { tenant, snapshot }, &operator.actor).await?;
        }
    }
    let again = fleet::go_on(&mut scoped, id, retry_failed).await?;
    if standing.state == "failed" && fleet::counts(&mut scoped, id).await?.waiting == 0 {
        return Err(Error::conflict("no tenant waits to be migrated")
            .with_hint("to try the failed tenants again: `retry_failed`, or --retry-failed"));
    }
    let job = jobs::enqueue(&mut scoped, &work, &operator.actor).await?;
    let detail = json!({ "migration": id, "retried": again });
    audit::record(&mut scoped, &operator.actor, "fleet_migration.resumed", None, detail).await?;
    let shown = shown(&mut scoped, id).await?;
    scoped.commit().await?;
    Ok((shown, job))
}

/// After a pause those that are under way are finished; that takes a moment, which nobody need wait for by hand.
async fn come_to_rest(world: &World, work: &MigrateFleet) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    let job = job_rows::unfinished(&mut mgmt, &work.dedup_key()).await?;
    let running = fleet::get(&mut mgmt, work.migration).await?.is_some_and(|shown| shown.state == "running");
    drop(mgmt);
    if let Some(job) = job.filter(|_| !running) {
        jobs::wait(world, job, COME_TO_REST).await?;
    }
    Ok(())
}

/// Begins no more tenants. Those that are under way are finished.
pub async fn pause(
    world: &World,
    operator: &Operator,
    id: FleetMigrationId,
) -> Result<FleetMigration, Error> {
    change(world, operator, id, "paused").await
}

/// Begins no more tenants, for good. Those that have it keep it.
pub async fn cancel(
    world: &World,
    operator: &Operator,
    id: FleetMigrationId,
) -> Result<FleetMigration, Error> {
    change(world, operator, id, "cancelled").await
}

/// Finds out what came of tenants that a job which failed for good has left under way.
async fn see_to_those_under_way(
    scoped: &mut Scoped,
    operator: &Operator,
    id: FleetMigrationId,
) -> Result<(), Error> {
    let work = MigrateFleet { migration: id };
    let nobody_works = job_rows::unfinished(scoped, &work.dedup_key()).await?.is_none();
    if nobody_works && fleet::counts(scoped, id).await?.running > 0 {
        jobs::enqueue(scoped, &work, &operator.actor).await?;
    }
    Ok(())
}

async fn change(
    world: &World,
    operator: &Operator,
    id: FleetMigrationId,
    to: &str,
) -> Result<FleetMigration, Error> {
    let mut scoped = operator.begin(&world.db).await?;
    let standing = fleet::lock(&mut scoped, id).await?.ok_or(Error::NotFound("such fleet migration"))?;
    let from = standing.state.as_str();
    let allowed = match to {
        "paused" => from == "running",
        _ => matches!(from, "running" | "paused" | "stopped"),
    };
    // What was asked for twice is done.
    if from != to {
        if !allowed {
            return Err(Error::conflict(format!("a fleet migration that is {from} cannot be {to}")));
        }
        fleet::set_state(&mut scoped, id, to, None).await?;
        if to == "cancelled" {
            fleet::skip_waiting(&mut scoped, id, CANCELLED).await?;
            see_to_those_under_way(&mut scoped, operator, id).await?;
        }
        let action = format!("fleet_migration.{to}");
        audit::record(&mut scoped, &operator.actor, &action, None, json!({ "migration": id })).await?;
    }
    let shown = shown(&mut scoped, id).await?;
    scoped.commit().await?;
    Ok(shown)
}
