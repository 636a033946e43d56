//! Looking the platform over: what is well, what is not, and what to do about it.

use std::time::Duration;

use loomworks_core::time;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use crate::World;
use crate::access::Operator;
use crate::db::{jobs, routes};
use crate::error::{Error, chain};

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

/// Looks at the server, the archive, the backups, the queue and the gateways.
pub async fn examine(world: &World, _: &Operator) -> Result<Vec<Finding>, Error> {
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

    let backups = world.repository.backups().await?;
    let newest = backups.last().map(|backup| backup.finished_at);
    let fresh = newest.is_some_and(|at| time::now().duration_since(at).as_hours() < 26);
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
