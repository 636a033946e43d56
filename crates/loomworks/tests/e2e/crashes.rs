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
        jobs["items"].as_array().expect("jobs").iter().all(|job| job["state"] == "succeeded")
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
pub(crate) async fn survives_every_crash(
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
    assert_eq!(places, 3, "every step was cut");
}

/// Databases whose names begin so.
async fn databases(platform: &Platform, prefix: &str) -> i64 {
    let mut connection = platform.connect_as_app("acme").await;
    sqlx::query_scalar("SELECT count(*) FROM pg_database WHERE starts_with(datname::text, $1)")
        .bind(prefix)
        .fetch_one(&mut connection)
        .await
        .expect("count the databases")
}

/// Waits until one database waits for a tenant, and nobody makes more.
async fn wait_for_pool(platform: &mut Platform) {
    for _ in 0..600 {
        let jobs = platform.cli(&["job", "list"]);
        let idle = jobs["items"].as_array().expect("jobs").iter().all(|job| job["finished_at"].is_string());
        if idle && databases(platform, "lw_pool_").await == 1 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the pool was not filled");
}

#[tokio::test(flavor = "multi_thread")]
async fn making_a_tenant_of_a_waiting_database_survives_a_crash_at_every_step() {
    let mut platform = Platform::start(&App::Pooled);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    for (place, when) in
        [(0, "before-save"), (0, "after-save"), (1, "before-save"), (1, "after-save"), (2, "before-save")]
    {
        wait_for_pool(&mut platform).await;
        platform.stop();
        platform.serve(Some(&format!("provision/{place}/{when}")));
        let name = format!("t{place}-{}", &when[..5]);
        let created = platform.cli(&["tenant", "create", &name]);
        let job = text(&created["job"]);
        assert!(platform.died(&job), "{place} {when}");
        platform.serve(None);
        platform.finish(&job);
        assert_eq!(platform.cli(&["tenant", "show", &name])["state"], "active");
        assert_eq!(items(&platform, &name).await, (1001, 1000));
        let mut connection = platform.connect_as_app(&name).await;
        let password: String = sqlx::query_scalar("SELECT value FROM items WHERE id = -1")
            .fetch_one(&mut connection)
            .await
            .expect("the first user");
        assert_eq!(created["admin"]["password"], password);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filling_the_pool_survives_a_crash_at_every_step() {
    let mut platform = Platform::start(&App::Pooled);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    for (place, when) in
        [(0, "before-save"), (0, "after-save"), (1, "before-save"), (1, "after-save"), (2, "before-save")]
    {
        wait_for_pool(&mut platform).await;
        platform.stop();
        platform.serve(Some(&format!("fill_pool/{place}/{when}")));
        let name = format!("t{place}-{}", &when[..5]);
        // The one that waits is taken, so another is made: which ends the program, perhaps while it is asked.
        platform.try_cli(&["tenant", "create", &name]);
        platform.wait_for_death();
        platform.serve(None);
        wait_for_pool(&mut platform).await;
        assert_eq!(items(&platform, &name).await, (1001, 1000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn building_a_template_survives_a_crash_at_every_step_and_old_ones_go() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let places = (0..4).flat_map(|place| [(place, "before-save"), (place, "after-save")]);
    for (place, when) in places.filter(|place| *place != (3, "after-save")) {
        platform.stop();
        let name = format!("t{place}-{}", &when[..5]);
        let sql = format!(
            "-- {name}
             CREATE TABLE items (id int PRIMARY KEY, value text NOT NULL);
             INSERT INTO items SELECT n, 'as made' FROM generate_series(1, 1000) n;"
        );
        platform.write_profile("init.sql", &sql);
        platform.serve(Some(&format!("build_template/{place}/{when}")));
        platform.wait_for_death();
        platform.serve(None);
        platform.cli(&["tenant", "create", &name, "--wait"]);
        assert_eq!(items(&platform, &name).await, (1000, 1000));
    }
    for _ in 0..1200 {
        if databases(&platform, "lw_template_").await == 1 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("old templates are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn changing_a_password_survives_a_crash_at_every_step() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let before = platform.app_credentials("acme");
    let start = async |platform: &Platform, _: &str| {
        text(&platform.cli(&["tenant", "rotate-credentials", "acme", "--no-wait"])["job"])
    };
    let check = async |platform: &Platform, _: &str| {
        assert_eq!(items(platform, "acme").await, (1000, 1000), "the app has its password");
        let [host, port, user, password] = platform.app_credentials("acme");
        assert_ne!([&host, &port, &user, &password], [&before[0], &before[1], &before[2], &before[3]]);
        let audit = platform.cli(&["audit", "list", "--action", "credentials", "--limit", "1000"]);
        let count = |action: &str| {
            audit["items"].as_array().expect("rows").iter().filter(|row| row["action"] == action).count()
        };
        let (asked, done) = (count("credentials.rotation_requested"), count("credentials.rotated"));
        assert_eq!(asked, done, "each was done exactly once");
    };
    let places = survives_every_crash(&mut platform, "rotate_credentials", start, check).await;
    assert_eq!(places, 7, "every step was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn changing_the_master_key_survives_a_crash_at_every_step() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let start = async |platform: &Platform, _: &str| {
        let rotate = ["master-key", "rotate", "--forget-former", "--yes", "--no-wait"];
        text(&platform.cli(&rotate)["job"])
    };
    let seen = std::cell::RefCell::new(vec![platform.cli(&["master-key", "show"])["current"].clone()]);
    let check = async |platform: &Platform, _: &str| {
        let keys = platform.cli(&["master-key", "show"]);
        assert!(!seen.borrow().contains(&keys["current"]), "a new one each time: {keys}");
        assert_eq!(keys["former"].as_array().expect("a list").len(), 0, "{keys}");
        for column in keys["wrapped"].as_array().expect("a list") {
            assert_eq!(column["former"], 0, "{column}");
        }
        seen.borrow_mut().push(keys["current"].clone());
        // The platform was started with the new key: the app's file is written from what it opens.
        assert_eq!(items(platform, "acme").await, (1000, 1000));
    };
    let places = survives_every_crash(&mut platform, "rotate_master_key", start, check).await;
    assert_eq!(places, 4, "every step was cut");
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
async fn archiving_and_taking_back_survive_a_crash_at_every_step() {
    let mut platform = Platform::start(&App::OneTable);
    for tenant in ["acme", "globex"] {
        platform.cli(&["tenant", "create", tenant, "--wait"]);
    }
    let state = |platform: &Platform| text(&platform.cli(&["tenant", "show", "acme"])["state"]);
    let start = async |platform: &Platform, _: &str| {
        if state(platform) == "archived" {
            platform.cli(&["tenant", "unarchive", "acme"]);
        }
        text(&platform.cli(&["tenant", "archive", "acme", "--yes", "--no-wait"])["job"])
    };
    let check = async |platform: &Platform, _: &str| {
        assert_eq!(state(platform), "archived");
        let snapshots = platform.cli(&["snapshot", "list", "acme"]);
        assert_eq!(snapshots[0]["state"], "ready", "its last snapshot");
        assert_eq!(items(platform, "globex").await, (1000, 1000));
    };
    let places = survives_every_crash(&mut platform, "archive", start, check).await;
    assert_eq!(places, 5, "every step was cut");

    let start = async |platform: &Platform, _: &str| {
        if state(platform) != "archived" {
            platform.cli(&["tenant", "archive", "acme", "--yes"]);
        }
        text(&platform.cli(&["tenant", "unarchive", "acme", "--no-wait"])["job"])
    };
    let check = async |platform: &Platform, _: &str| {
        assert_eq!(state(platform), "active");
        assert_eq!(items(platform, "acme").await, (1000, 1000));
    };
    let places = survives_every_crash(&mut platform, "unarchive", start, check).await;
    assert_eq!(places, 3, "every step was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn destroying_a_tenant_survives_a_crash_at_every_step() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "globex", "--wait"]);
    let id = std::cell::RefCell::new(String::new());
    let start = async |platform: &Platform, _: &str| {
        // The name is free again each time.
        id.replace(text(&platform.cli(&["tenant", "create", "acme", "--wait"])["id"]));
        platform.cli(&["tenant", "archive", "acme", "--yes"]);
        let destroy = ["tenant", "destroy", "acme", "--before-retention-ends", "--yes", "--no-wait"];
        text(&platform.cli(&destroy)["job"])
    };
    let check = async |platform: &Platform, _: &str| {
        let report = platform.cli(&["tenant", "erasure", &id.borrow()]);
        assert_eq!(report["complete"], true, "{report:#}");
        assert_eq!(items(platform, "globex").await, (1000, 1000));
    };
    let places = survives_every_crash(&mut platform, "destroy", start, check).await;
    assert!(places >= 9, "every step was cut, not only {places}");
}

#[tokio::test(flavor = "multi_thread")]
async fn making_an_export_survives_a_crash_at_every_step() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let acme = text(&platform.cli(&["tenant", "show", "acme"])["id"]);
    let place = tempfile::tempdir().expect("a directory");
    let http = reqwest::Client::new();
    let start = async |platform: &Platform, _: &str| {
        let url = platform.url("/v1/tenants/acme/exports");
        let request = http.post(url).bearer_auth(platform.operator_key());
        let answer: serde_json::Value = request.send().await.expect("ask").json().await.expect("JSON");
        text(&answer["job"])
    };
    let check = async |platform: &Platform, name: &str| {
        let exports = platform.cli(&["tenant", "exports", "acme"]);
        let exports = exports.as_array().expect("exports");
        assert!(exports.iter().all(|export| export["state"] == "ready"), "{exports:#?}");
        let (id, output) = (text(&exports[0]["id"]), place.path().join(name));
        let output = output.to_str().expect("a path");
        platform.cli(&["tenant", "export", "acme", "--export", &id, "--output", output]);
        let directory = platform.data().join("exports").join(&acme);
        let files = std::fs::read_dir(directory).expect("list it").count();
        assert_eq!(files, exports.len(), "a sealed file for each, and nothing that can be read");
    };
    let places = survives_every_crash(&mut platform, "export", start, check).await;
    assert_eq!(places, 3, "every step was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_refused_and_the_tenant_goes_on() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let snapshot = text(&platform.cli(&["snapshot", "create", "acme"])[0]["id"]);
    // Of what all databases share: every restore needs it.
    let packs = std::fs::read_dir(platform.data().join("repository/packs/0")).expect("list the packs");
    for pack in packs.map(|entry| entry.expect("an entry").path()) {
        let mut content = std::fs::read(&pack).expect("read a pack");
        content.iter_mut().skip(64).step_by(97).for_each(|byte| *byte ^= 1);
        let mut file = std::fs::OpenOptions::new().write(true).open(&pack).expect("open a pack");
        std::io::Write::write_all(&mut file, &content).expect("damage the backup");
    }

    let run = ["restore", "run", "acme", "--snapshot", &snapshot, "--yes"];
    let refused = platform.try_cli(&run);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("is damaged") && said.contains("hint"), "{said}");
    platform.wait_for("what is left to be removed", |platform| {
        let jobs = platform.cli(&["job", "list"]);
        let mut jobs = jobs["items"].as_array().expect("jobs").iter();
        jobs.any(|job| job["kind"] == "remove_remains" && job["state"] == "succeeded")
    });
    assert_eq!(std::fs::read_dir(platform.data().join("side")).expect("list it").count(), 0);
    assert_eq!(items(&platform, "acme").await, (1000, 1000));
    let told = platform.cli(&["notification", "list", "--tenant", "acme", "--event", "job.failed"]);
    assert_eq!(told["items"][0]["detail"]["kind"], "restore", "{told}");
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
                    let mut jobs = jobs["items"].as_array().expect("jobs").iter();
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
