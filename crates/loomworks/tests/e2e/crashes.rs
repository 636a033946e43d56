//! A crash at every step of making a tenant and of bringing one back, and at random moments: the next start goes on,
//! and the end is the same.

use sqlx::Row;

use crate::platform::{App, Platform};

/// The number of rows, and how many of them are as they were made.
async fn items(platform: &Platform, database: &str) -> (i64, i64) {
    let mut connection = platform.connect_as_app(database).await;
    let row = sqlx::query("SELECT count(*), count(*) FILTER (WHERE value = 'as made') FROM items")
        .fetch_one(&mut connection)
        .await
        .expect("count the items");
    (row.get(0), row.get(1))
}

async fn spoil(platform: &Platform, database: &str) {
    let mut connection = platform.connect_as_app(database).await;
    sqlx::query("UPDATE items SET value = 'spoilt'").execute(&mut connection).await.expect("spoil the items");
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What must hold after any job, whatever happened to it.
fn check_nothing_is_left(platform: &mut Platform) {
    platform.wait_for("all jobs to end", |platform| {
        let jobs = platform.cli(&["job", "list"]);
        jobs.as_array().expect("jobs").iter().all(|job| job["state"] == "succeeded")
    });
    let side = platform.data().join("side");
    assert_eq!(std::fs::read_dir(side).expect("list it").count(), 0, "a side cluster is left");
    let backups = platform.data().join("repository/backups");
    for entry in std::fs::read_dir(backups).expect("list it") {
        let name = entry.expect("an entry").file_name();
        assert!(!name.to_string_lossy().ends_with(".partial"), "{name:?} is left");
    }
}

/// Cuts a job at each place in turn, before and after the next step is saved, until there is no such place.
async fn survives_every_crash(
    platform: &mut Platform,
    kind: &str,
    start: impl AsyncFn(&Platform, &str) -> String,
    check: impl AsyncFn(&Platform, &str),
) -> usize {
    for place in 0.. {
        let mut reached = false;
        for when in ["before-save", "after-save"] {
            platform.stop();
            platform.serve(Some(&format!("{kind}/{place}/{when}")));
            let name = format!("t{place}-{}", &when[..5]).trim_end_matches('-').to_owned();
            let job = start(platform, &name).await;
            reached |= platform.died(&job);
            platform.kill();
            platform.serve(None);
            platform.finish(&job);
            check(platform, &name).await;
            check_nothing_is_left(platform);
        }
        if !reached {
            return place;
        }
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread")]
async fn making_a_tenant_survives_a_crash_at_every_step() {
    let mut platform = Platform::start(&App::OneTable);
    let start =
        async |platform: &Platform, name: &str| text(&platform.cli(&["tenant", "create", name])["job"]);
    let check = async |platform: &Platform, name: &str| {
        assert_eq!(platform.cli(&["tenant", "show", name])["state"], "active");
        assert_eq!(items(platform, name).await, (1000, 1000));
    };
    let places = survives_every_crash(&mut platform, "provision", start, check).await;
    assert_eq!(places, 6, "every step was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn bringing_a_tenant_back_survives_a_crash_at_every_step() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    platform.cli(&["tenant", "create", "globex", "--wait"]);
    let snapshot = text(&platform.cli(&["snapshot", "create", "acme"])[0]["id"]);
    spoil(&platform, "globex").await;

    let start = async |platform: &Platform, _: &str| {
        spoil(platform, "acme").await;
        let run = ["restore", "run", "acme", "--snapshot", &snapshot, "--yes", "--no-wait"];
        text(&platform.cli(&run)["job"])
    };
    let check = async |platform: &Platform, _: &str| {
        assert_eq!(items(platform, "acme").await, (1000, 1000), "acme is as at the snapshot");
        assert_eq!(items(platform, "globex").await, (1000, 0), "globex is as it was");
    };
    let places = survives_every_crash(&mut platform, "restore", start, check).await;
    assert!(places >= 12, "every step was cut, not only {places}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_refused_and_the_tenant_goes_on() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let snapshot = text(&platform.cli(&["snapshot", "create", "acme"])[0]["id"]);
    let label = text(&platform.cli(&["backup", "list"])[0]["label"]);
    let archive = platform.data().join("repository/backups").join(label).join("base.tar.zst");
    let mut content = std::fs::read(&archive).expect("read the backup");
    let middle = content.len() / 2;
    content[middle] ^= 1;
    let mut file = std::fs::OpenOptions::new().write(true).open(&archive).expect("open the backup");
    std::io::Write::write_all(&mut file, &content).expect("damage the backup");

    let run = ["restore", "run", "acme", "--snapshot", &snapshot, "--yes"];
    let refused = platform.try_cli(&run);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("is damaged") && said.contains("hint"), "{said}");
    platform.wait_for("what is left to be removed", |platform| {
        let jobs = platform.cli(&["job", "list"]);
        let mut jobs = jobs.as_array().expect("jobs").iter();
        jobs.any(|job| job["kind"] == "remove_remains" && job["state"] == "succeeded")
    });
    assert_eq!(std::fs::read_dir(platform.data().join("side")).expect("list it").count(), 0);
    assert_eq!(items(&platform, "acme").await, (1000, 1000));
    let routes = std::fs::read_to_string(platform.data().join("routes.json")).expect("the routes");
    assert!(!routes.contains("held"), "{routes}");
}

/// A number from a seed, so that a run that failed can be had again: the seed is in the message.
fn random(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "a run that failed is repeated with its seed")]
async fn kills_at_random_moments_of_every_long_job_end_in_the_same_state() {
    let mut seed = loomworks_core::time::now().as_second().unsigned_abs();
    println!("seed {seed}");
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let snapshot = text(&platform.cli(&["snapshot", "create", "acme"])[0]["id"]);
    for run in 0..3 {
        let new = format!("new-{run}");
        for job in ["provision", "snapshot", "backup", "restore"] {
            if job == "restore" {
                spoil(&platform, "acme").await;
            }
            let answer = match job {
                "provision" => platform.cli(&["tenant", "create", &new])["job"].clone(),
                "backup" => platform.cli(&["backup", "run", "--no-wait"])["job"].clone(),
                "snapshot" => {
                    platform.cli(&["snapshot", "create", "acme", "--no-wait"]);
                    let jobs = platform.cli(&["job", "list"]);
                    let mut jobs = jobs.as_array().expect("jobs").iter();
                    jobs.find(|job| job["kind"] == "snapshot").expect("its job")["id"].clone()
                }
                _ => platform.cli(&["restore", "run", "acme", "--snapshot", &snapshot, "--yes", "--no-wait"])
                    ["job"]
                    .clone(),
            };
            std::thread::sleep(std::time::Duration::from_millis(random(&mut seed, 1500)));
            platform.kill();
            // Every other time the database server goes with it.
            if random(&mut seed, 2) == 0 {
                platform.kill_postgresql();
            }
            platform.serve(None);
            platform.finish(&text(&answer));
        }
        assert_eq!(items(&platform, "acme").await, (1000, 1000), "run {run}");
        assert_eq!(items(&platform, &new).await, (1000, 1000), "run {run}");
        check_nothing_is_left(&mut platform);
    }
    let snapshots = platform.cli(&["snapshot", "list", "acme"]);
    let snapshots = snapshots.as_array().expect("snapshots");
    assert!(snapshots.iter().all(|snapshot| snapshot["state"] == "ready"), "{snapshots:#?}");
}
