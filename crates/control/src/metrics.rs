//! What is measured: each metric defined once, and the task that samples those which are states and not events.
//!
//! Sampling is apart from scraping, so that however many scrape, the management database is asked once in a while.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use loomworks_core::time;
use metrics::{Label, Unit};
use tokio::sync::watch;
use tracing::warn;

use crate::World;
use crate::db::jobs::Queue;
use crate::db::{audit as audit_rows, metrics as rows};
use crate::error::{Error, chain};

/// One metric, as it is described to whoever scrapes it and in the documentation.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// How something stands.
    Gauge,
    /// How often something has happened.
    Counter,
    /// How long it took, each time.
    Histogram,
}

const fn gauge(name: &'static str, unit: Unit, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, help }
}

pub const BUILD: Metric =
    gauge("loomworks_build_info", Unit::Count, "1, with the version of the program as a label.");
pub const JOBS: Metric = gauge("loomworks_jobs", Unit::Count, "Unfinished jobs by kind and state.");
pub const JOBS_FAILED: Metric =
    gauge("loomworks_jobs_failed_last_day", Unit::Count, "Jobs that failed for good in the last 24 hours.");
pub const JOB_AGE: Metric = gauge(
    "loomworks_job_age_seconds",
    Unit::Seconds,
    "Age of the oldest job by state and queue: waiting since it was due, running since it was asked for; 0 without one.",
);
pub const TENANTS: Metric = gauge("loomworks_tenants", Unit::Count, "Tenants by state.");
pub const QUOTAS: Metric = gauge(
    "loomworks_quota_tenants",
    Unit::Count,
    "Tenants by how much of a quota they have used when it was last measured.",
);
pub const POOL: Metric = gauge(
    "loomworks_db_pool_connections",
    Unit::Count,
    "Connections to the management database by pool, in use or idle.",
);
pub const POOL_MAX: Metric =
    gauge("loomworks_db_pool_connections_max", Unit::Count, "Connections a pool may have.");
pub const POSTGRESQL: Metric =
    gauge("loomworks_postgresql_up", Unit::Count, "1 while the management database answers, else 0.");
pub const ARCHIVE_AGE: Metric = gauge(
    "loomworks_archive_last_segment_age_seconds",
    Unit::Seconds,
    "Time since the last WAL segment was archived.",
);
pub const ARCHIVE_FAILING: Metric = gauge(
    "loomworks_archive_failing",
    Unit::Count,
    "1 while the newest try to archive a WAL segment is one that failed, else 0.",
);
pub const ARCHIVE_BEHIND: Metric = gauge(
    "loomworks_archive_behind_bytes",
    Unit::Bytes,
    "WAL that the server has written and the archive does not have.",
);
pub const RECOVERY_POINT: Metric = gauge(
    "loomworks_archive_recovery_point_seconds",
    Unit::Seconds,
    "What would be lost if the server were lost now: the age, at most, of the oldest WAL that is not archived.",
);
pub const ARCHIVER_BEHIND: Metric =
    gauge("loomworks_archiver_slot_behind_bytes", Unit::Bytes, "WAL that the archiver's slot keeps back.");
pub const BACKUPS: Metric = gauge("loomworks_backups", Unit::Count, "Base backups that can be restored.");
pub const BACKUP_AGE: Metric =
    gauge("loomworks_backup_age_seconds", Unit::Seconds, "Age of the newest base backup.");
pub const ARCHIVE_ALARMS: Metric =
    gauge("loomworks_archive_alarms", Unit::Count, "Alarms of `loomworks archive status`.");
pub const AUDIT_WAITING: Metric =
    gauge("loomworks_audit_unsealed", Unit::Count, "Lines of the audit log that have no seal yet.");
pub const AUDIT_LAG: Metric = gauge(
    "loomworks_audit_lag_seconds",
    Unit::Seconds,
    "For how long the oldest line of the audit log without a seal has waited for it.",
);
pub const AUDIT_SEALED: Metric =
    gauge("loomworks_audit_sealed", Unit::Count, "Lines of the audit log that are sealed.");
pub const AUDIT_HEAD: Metric = gauge(
    "loomworks_audit_head",
    Unit::Count,
    "The first 48 bits of the hash of the audit log's last seal: a copy of the head outside of the database.",
);
pub const API_REQUESTS: Metric = Metric {
    name: "loomworks_api_requests_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Requests answered by the API, by method, route and status.",
};
pub const API_SECONDS: Metric = Metric {
    name: "loomworks_api_request_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    help: "Time from a request's head to its answer's head, by method and route.",
};

/// Every metric there is.
pub const ALL: &[Metric] = &[
    BUILD,
    JOBS,
    JOBS_FAILED,
    JOB_AGE,
    TENANTS,
    QUOTAS,
    POOL,
    POOL_MAX,
    POSTGRESQL,
    ARCHIVE_AGE,
    ARCHIVE_FAILING,
    ARCHIVE_BEHIND,
    RECOVERY_POINT,
    ARCHIVER_BEHIND,
    BACKUPS,
    BACKUP_AGE,
    ARCHIVE_ALARMS,
    AUDIT_WAITING,
    AUDIT_LAG,
    AUDIT_SEALED,
    AUDIT_HEAD,
    API_REQUESTS,
    API_SECONDS,
];

/// How often states are sampled.
pub const SAMPLED_EVERY: Duration = Duration::from_secs(5);

/// Tells the recorder what each metric is.
pub fn describe() {
    for Metric { name, kind, unit, help } in ALL {
        match kind {
            Kind::Gauge => metrics::describe_gauge!(*name, *unit, *help),
            Kind::Counter => metrics::describe_counter!(*name, *unit, *help),
            Kind::Histogram => metrics::describe_histogram!(*name, *unit, *help),
        }
    }
    metrics::gauge!(BUILD.name, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Samples until `stop` becomes true.
pub async fn run(world: World, mut stop: watch::Receiver<bool>) {
    let mut gauges = Gauges::default();
    while !*stop.borrow() {
        pools(&world, &mut gauges);
        let sampled = tokio::time::timeout(SAMPLED_EVERY, sample(&world, &mut gauges)).await;
        let answers = match sampled {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                warn!(error = chain(&error), "the platform could not be measured; it will be again");
                false
            }
            Err(_) => {
                warn!("the platform could not be measured in time; it will be again");
                false
            }
        };
        gauges.set(POSTGRESQL, &[], if answers { 1.0 } else { 0.0 });
        let _ = tokio::time::timeout(SAMPLED_EVERY, stop.wait_for(|stop| *stop)).await;
    }
}

fn pools(world: &World, gauges: &mut Gauges) {
    for (name, pool) in [("platform", &world.db.platform), ("tenants", &world.db.tenants)] {
        let (all, idle) = (f64::from(pool.size()), pool.num_idle() as f64);
        gauges.set(POOL, &[("pool", name), ("state", "idle")], idle);
        gauges.set(POOL, &[("pool", name), ("state", "in_use")], (all - idle).max(0.0));
        gauges.set(POOL_MAX, &[("pool", name)], f64::from(pool.options().get_max_connections()));
    }
}

async fn sample(world: &World, gauges: &mut Gauges) -> Result<(), Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    let jobs = rows::unfinished_jobs(&mut mgmt).await?;
    gauges.set_all(
        JOBS,
        ["kind", "state"],
        jobs.into_iter().map(|(kind, state, n)| ([kind, state], n as f64)),
    );
    gauges.set_all(JOB_AGE, ["state", "queue"], ages(rows::oldest_jobs(&mut mgmt).await?));
    let tenants = rows::tenants(&mut mgmt).await?;
    gauges.set_all(TENANTS, ["state"], tenants.into_iter().map(|(state, n)| ([state], n as f64)));
    let levels = rows::storage_levels(&mut mgmt).await?;
    let levels = levels.into_iter().map(|(level, n)| (["storage".to_owned(), level], n as f64));
    gauges.set_all(QUOTAS, ["quota", "level"], levels);
    gauges.set(JOBS_FAILED, &[], rows::failed_jobs(&mut mgmt).await? as f64);
    let (age, failing) = rows::archiver(&mut mgmt).await?;
    gauges.set(ARCHIVE_AGE, &[], age);
    gauges.set(ARCHIVE_FAILING, &[], f64::from(u8::from(failing)));
    drop(mgmt);
    archive(world, gauges).await?;
    let mut mgmt = world.db.platform.acquire().await?;
    let (waiting, lag) = audit_rows::lag(&mut mgmt).await?;
    gauges.set(AUDIT_WAITING, &[], waiting as f64);
    gauges.set(AUDIT_LAG, &[], lag);
    let head = audit_rows::head(&mut mgmt).await?;
    gauges.set(AUDIT_SEALED, &[], head.place as f64);
    // What a number of this kind holds exactly; a label would make a series of each head.
    let bits = head.hash.iter().take(6).fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    gauges.set(AUDIT_HEAD, &[], bits as f64);
    Ok(())
}

async fn archive(world: &World, gauges: &mut Gauges) -> Result<(), Error> {
    let status = crate::archive::look(world).await?;
    gauges.set(ARCHIVE_BEHIND, &[], status.behind_bytes as f64);
    gauges.set(RECOVERY_POINT, &[], status.recovery_point_seconds as f64);
    gauges.set(ARCHIVER_BEHIND, &[], status.slot.map_or(0.0, |slot| slot.behind_bytes as f64));
    gauges.set(BACKUPS, &[], status.backups as f64);
    let age = status.newest_backup_at.map(|at| time::now().duration_since(at).as_secs_f64());
    gauges.set(BACKUP_AGE, &[], age.unwrap_or(0.0));
    gauges.set(ARCHIVE_ALARMS, &[], status.alarms.len() as f64);
    Ok(())
}

/// An age for each state and queue: a series that is not there says less than one that is 0.
fn ages(oldest: Vec<(String, String, f64)>) -> Vec<([String; 2], f64)> {
    let mut oldest: HashMap<_, _> =
        oldest.into_iter().map(|(state, queue, age)| ([state, queue], age)).collect();
    for state in ["waiting", "running"] {
        for queue in Queue::ALL {
            oldest.entry([state.to_owned(), queue.as_str().to_owned()]).or_insert(0.0);
        }
    }
    oldest.into_iter().collect()
}

/// The gauges whose labels come from rows, so that one whose rows are gone becomes 0 and does not stand as it was for
/// ever.
#[derive(Default)]
struct Gauges(HashMap<&'static str, HashSet<Vec<Label>>>);

impl Gauges {
    fn set(&mut self, metric: Metric, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned()));
        metrics::gauge!(metric.name, labels.collect::<Vec<_>>()).set(value);
    }

    /// Sets all of a metric's series. Only those that are not among them any more are 0, and none is so in between:
    /// whoever scrapes meanwhile reads what was or what is.
    fn set_all<const N: usize>(
        &mut self,
        metric: Metric,
        names: [&'static str; N],
        rows: impl IntoIterator<Item = ([String; N], f64)>,
    ) {
        let mut there = HashSet::new();
        for (values, value) in rows {
            let labels: Vec<Label> =
                names.into_iter().zip(values).map(|(name, value)| Label::new(name, value)).collect();
            metrics::gauge!(metric.name, labels.clone()).set(value);
            there.insert(labels);
        }
        let before = self.0.insert(metric.name, there).unwrap_or_default();
        for labels in before.difference(&self.0[metric.name]) {
            metrics::gauge!(metric.name, labels.clone()).set(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use metrics::{Key, KeyName, Metadata, SharedString};

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names: Vec<&str> = ALL.iter().map(|metric| metric.name).collect();
        for Metric { name, kind, unit, help } in ALL {
            let valid = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
            assert!(name.starts_with("loomworks_") && name.chars().all(valid), "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert_eq!(*unit == Unit::Seconds, name.ends_with("_seconds"), "{name}");
            assert!(help.ends_with('.'), "{name}: {help}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len(), "a name is there twice");
    }

    /// Remembers what a gauge was set to, in order.
    #[derive(Default)]
    struct Sets(Arc<Mutex<Vec<(String, f64)>>>);

    struct Series(String, Arc<Mutex<Vec<(String, f64)>>>);

    impl metrics::GaugeFn for Series {
        fn increment(&self, _: f64) {}
        fn decrement(&self, _: f64) {}
        fn set(&self, value: f64) {
            self.1.lock().expect("the list").push((self.0.clone(), value));
        }
    }

    impl metrics::Recorder for Sets {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> metrics::Counter {
            metrics::Counter::noop()
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> metrics::Gauge {
            let labels: Vec<&str> = key.labels().map(Label::value).collect();
            metrics::Gauge::from_arc(Arc::new(Series(labels.join(" "), self.0.clone())))
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> metrics::Histogram {
            metrics::Histogram::noop()
        }
    }

    #[test]
    fn only_a_series_whose_rows_are_gone_becomes_nothing() {
        let sets = Sets::default();
        let mut gauges = Gauges::default();
        metrics::with_local_recorder(&sets, || {
            for states in [&["active", "draft"][..], &["active"], &["active"]] {
                let rows = states.iter().map(|state| ([(*state).to_owned()], 1.0));
                gauges.set_all(TENANTS, ["state"], rows);
            }
        });
        let sets = sets.0.lock().expect("the list");
        let sets: Vec<_> = sets.iter().map(|(state, value)| (state.as_str(), *value)).collect();
        let wanted = [("active", 1.0), ("draft", 1.0), ("active", 1.0), ("draft", 0.0), ("active", 1.0)];
        assert_eq!(sets, wanted, "a scrape in between reads no 0 of what is there");
    }

    #[test]
    fn every_state_and_queue_has_an_age() {
        let ages = ages(vec![("waiting".into(), "default".into(), 7.0)]);
        assert_eq!(ages.len(), 6);
        assert_eq!(ages.iter().map(|(_, age)| age).sum::<f64>(), 7.0);
    }

    #[test]
    fn every_metric_is_documented() {
        let page = include_str!("../../../docs/operate/monitoring.md");
        for Metric { name, .. } in ALL {
            assert!(page.contains(&format!("| `{name}` |")), "{name} is not in docs/operate/monitoring.md");
        }
    }
}
