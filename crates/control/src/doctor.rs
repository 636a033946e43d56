//! Looking the platform over: what is well, what is not, and what to do about it.

use std::time::Duration;

use loomworks_archive::store::Store;
use loomworks_archive::store::probe::{Fit, probe};
use loomworks_core::time;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use crate::access::Operator;
use crate::db::{jobs, routes};
use crate::error::{Error, chain};
use crate::master_key::rotation::{self, RepositoryKeys};
use crate::{World, archive};

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Finding {
    pub name: String,
    pub ok: bool,
    /// What was seen.
    pub detail: String,
    pub hint: Option<String>,
}

fn finding(name: &str, ok: bool, detail: String, hint: &str) -> Finding {
    Finding { name: name.into(), ok, detail, hint: (!ok).then(|| hint.into()) }
}

/// Looks at the server, the archive, the repository and its keys, the backups, the queue and the gateways.
pub async fn examine(world: &World, operator: &Operator) -> Result<Vec<Finding>, Error> {
    let mut findings = Vec::new();
    let mut admin = world.cluster.connect("postgres").await?;
    let row = sqlx::query(
        "SELECT current_setting('server_version'), current_setting('data_checksums'), current_setting('archive_mode'),
             failed_count, coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL),
             coalesce(last_archived_wal, 'none')
         FROM pg_stat_archiver",
    )
    .fetch_one(&mut admin)
    .await?;
    let (version, checksums, archiving) =
        (row.get::<String, _>(0), row.get::<String, _>(1), row.get::<String, _>(2));
    findings.push(finding("postgresql", true, format!("version {version}"), ""));
    findings.push(finding(
        "data checksums",
        checksums == "on",
        checksums,
        "enable them with `pg_checksums --enable` while the server is stopped",
    ));
    let failing: bool = row.get(4);
    let detail = format!(
        "archive_mode {archiving}, newest {}, {} failures so far",
        row.get::<String, _>(5),
        row.get::<i64, _>(3)
    );
    let hint = "look at the server's log for what `loomworks wal push` said";
    findings.push(finding("wal archive", archiving == "on" && !failing, detail, hint));

    findings.push(repository_store(world.repository.store()).await);
    findings.extend(keys(world, operator).await);

    let backups = world.repository.backups().await?;
    let newest = backups.last().map(|backup| backup.finished_at);
    let fresh = newest.is_some_and(|at| !archive::is_late(at, time::now()));
    let detail = newest.map_or("none".into(), |at| format!("{} in all, newest of {at}", backups.len()));
    findings.push(finding("base backups", fresh, detail, "take one with `loomworks backup run`"));

    let mut mgmt = world.db.platform.acquire().await?;
    let (failed, unfinished) = jobs::counts(&mut mgmt).await?;
    let detail = format!("{unfinished} unfinished, {failed} failed in the last day");
    findings.push(finding("jobs", failed == 0, detail, "see them with `loomworks job list`"));

    let gateways = routes::gateways_alive(&mut mgmt).await?;
    findings.push(finding(
        "gateways",
        gateways > 0,
        format!("{gateways} alive"),
        "start `loomworks serve` with the role `gateway`",
    ));
    Ok(findings)
}

/// Whether the repository's store keeps what this platform relies on.
pub async fn repository_store(store: &Store) -> Finding {
    const NAME: &str = "repository_store";
    match probe(store).await {
        Ok(Fit { keeps_versions: false }) => {
            finding(NAME, true, format!("`{}` is fit", store.location()), "")
        }
        Ok(Fit { keeps_versions: true }) => {
            let detail = format!("`{}` is fit; it keeps former versions of objects", store.location());
            let hint = "a deleted key is in them still: have them expire, see docs/operate/repository.md";
            Finding { hint: Some(hint.into()), ..finding(NAME, true, detail, "") }
        }
        Err(unfit) => {
            let detail = format!("`{}`: {}", store.location(), chain(&unfit));
            finding(NAME, false, detail, unfit.hint())
        }
    }
}

/// Whether every stored secret and every key of the repository opens, and what still needs a former master key.
async fn keys(world: &World, operator: &Operator) -> Vec<Finding> {
    let status = match rotation::status(world, operator).await {
        Ok(status) => status,
        Err(error) => {
            let hint = error.hint().unwrap_or_else(|| "see docs/operate/key-management.md".into());
            return vec![finding("repository_keys", false, chain(&error), &hint)];
        }
    };
    let RepositoryKeys { current, former, erased, unopened } = status.repository;
    let mut detail = format!("{} open, {erased} deleted", current + former);
    if let Some(first) = unopened.first() {
        detail += &format!(", {} do not open, the first is `{first}`", unopened.len());
    }
    let hint = "what they have sealed cannot be read: put the master key that wrapped them behind the others, see \
                docs/operate/key-management.md";
    let keys = finding("repository_keys", unopened.is_empty(), detail, hint);
    let needed = status.wrapped.iter().filter(|place| place.former > 0);
    let mut needed: Vec<String> =
        needed.map(|place| format!("{} of {}", place.former, place.column)).collect();
    if former > 0 {
        needed.push(format!("{former} of the repository's keys"));
    }
    let detail = match (status.former.len(), needed.is_empty()) {
        (0, true) => format!("{} wraps everything", status.current),
        (former, true) => format!("{} wraps everything; {former} former keys are kept", status.current),
        _ => format!("{} wraps; by a former key: {}", status.current, needed.join(", ")),
    };
    let hint = "wrap it anew with `loomworks master-key rotate`";
    vec![keys, finding("master_key", needed.is_empty(), detail, hint)]
}

/// How long a question whether the platform is ready may take.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// What keeps the platform from answering requests, in words for whoever probes. Nothing: it is ready.
pub async fn not_ready(world: &World) -> Option<String> {
    let asked = sqlx::query("SELECT FROM tenants LIMIT 1").execute(&world.db.platform);
    match tokio::time::timeout(READY_WITHIN, asked).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!("the management database refuses: {}", chain(&error))),
        Err(_) => Some("the management database does not answer".into()),
    }
}
