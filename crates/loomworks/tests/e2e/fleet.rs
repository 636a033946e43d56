//! One SQL migration over many tenants: in waves, exactly once whatever happens, and with no more rights than the app.

use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};

use crate::crashes::survives_every_crash;
use crate::platform::{App, Platform};

/// A platform with tenants of these names.
fn platform(tenants: &[&str]) -> Platform {
    let platform = Platform::start(&App::OneTable);
    for tenant in tenants {
        platform.cli(&["tenant", "create", tenant, "--wait"]);
    }
    platform
}

/// A file with this SQL.
fn file(platform: &Platform, sql: &str) -> String {
    let path = platform.data().join(format!("{}.sql", uuid::Uuid::new_v4().simple()));
    loomworks_core::durable::write(&path, sql.as_bytes()).expect("write the SQL");
    path.to_string_lossy().into_owned()
}

/// Runs a migration until it rests; gives the answer and whether the command succeeded.
fn migrate(platform: &Platform, sql: &str, arguments: &[&str]) -> (Value, bool) {
    let file = file(platform, sql);
    let run = [&["fleet", "run", &file, "--yes"], arguments].concat();
    let output = platform.try_cli(&run);
    let error = String::from_utf8_lossy(&output.stderr);
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{run:?}: {error}"));
    (answer, output.status.success())
}

/// Begins a migration and does not wait; gives its id and its job's.
fn begin(platform: &Platform, sql: &str, arguments: &[&str]) -> (String, String) {
    let file = file(platform, sql);
    let answer = platform.cli(&[&["fleet", "run", &file, "--yes", "--no-wait"], arguments].concat());
    let text = |value: &Value| value.as_str().expect("an id").to_owned();
    (text(&answer["migration"]["id"]), text(&answer["job"]))
}

/// Each tenant's state, in their order.
fn states(answer: &Value) -> Vec<&str> {
    let tenants = answer["tenants"].as_array().expect("tenants");
    tenants.iter().map(|tenant| tenant["state"].as_str().expect("a state")).collect()
}

fn id(answer: &Value) -> String {
    answer["migration"]["id"].as_str().expect("an id").to_owned()
}

/// What the app finds with a question that has a number as its answer.
async fn number(platform: &Platform, database: &str, sql: &str) -> i64 {
    let mut app = platform.connect_as_app(database).await;
    sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(&mut app).await.expect("ask").get(0)
}

const HAS_NOTE: &str =
    "SELECT count(*) FROM information_schema.columns WHERE table_name = 'items' AND column_name = 'note'";
const FLEET_ROWS: &str = "SELECT count(*) FROM items WHERE value = 'by the fleet'";

/// Cannot be run twice without being noticed.
const ADD_A_ROW: &str = "INSERT INTO items SELECT max(id) + 1, 'by the fleet' FROM items";

#[tokio::test(flavor = "multi_thread")]
async fn a_column_reaches_those_selected_in_waves_and_agents_changes_of_it_can_be_undone() {
    let mut platform = platform(&["t-a", "t-b", "t-c", "t-d", "t-e"]);
    platform.cli(&["tenant", "suspend", "t-c"]);
    let select = ["--tenant", "t-b,t-a,t-c,t-d", "--wave-size", "2", "--concurrency", "2"];
    let sql =
        "ALTER TABLE items ADD COLUMN note text DEFAULT 'none';\nCREATE INDEX items_note ON items (note)";
    let (plan, answer, done) = {
        let file = file(&platform, sql);
        let plan = platform.cli(&[&["fleet", "run", &file, "--dry-run=canary"], &select[..]].concat());
        assert_eq!(number(&platform, "t-b", HAS_NOTE).await, 0, "the trial was taken back");
        let (answer, done) = migrate(&platform, sql, &select);
        (plan, answer, done)
    };
    let locks = plan["trial"]["locks"].to_string();
    assert!(locks.contains("public.items") && locks.contains("AccessExclusiveLock"), "{plan:#}");
    assert_eq!(plan["waves"], 2);

    assert!(done, "{answer:#}");
    assert_eq!(answer["migration"]["state"], "succeeded");
    assert_eq!(answer["migration"]["progress"], "4 of 4 tenants");
    let tenants = answer["tenants"].as_array().expect("tenants");
    let waves: Vec<_> = tenants
        .iter()
        .map(|tenant| {
            (tenant["subdomain"].as_str().expect("a name"), tenant["wave"].as_i64().expect("a wave"))
        })
        .collect();
    assert_eq!(waves, [("t-b", 0), ("t-a", 1), ("t-c", 1), ("t-d", 2)]);
    let ended = |wave: i64| {
        let of_wave = tenants.iter().filter(move |tenant| tenant["wave"] == wave);
        of_wave.map(|tenant| tenant["finished_at"].as_str().expect("a moment").to_owned())
    };
    assert!(ended(0).max() < ended(1).min() && ended(1).max() < ended(2).min(), "{answer:#}");
    for (tenant, has) in [("t-a", 1), ("t-b", 1), ("t-c", 1), ("t-d", 1), ("t-e", 0)] {
        assert_eq!(number(&platform, tenant, HAS_NOTE).await, has, "{tenant}");
    }
    let owner = "SELECT count(*) FROM pg_class WHERE relname = 'items_note' AND pg_get_userbyid(relowner) LIKE '%_owner'";
    assert_eq!(number(&platform, "t-a", owner).await, 1, "what it makes is the owner's");

    // The new column is recorded and comes back.
    let opened = platform.cli(&["ai-session", "open", "t-a", "--agent", "cleaner"]);
    let options: PgConnectOptions =
        opened["connection_string"].as_str().expect("one").parse().expect("options");
    let mut agent = options.ssl_mode(PgSslMode::Disable).connect().await.expect("connect");
    agent.execute("UPDATE items SET note = 'spoilt' WHERE id <= 10").await.expect("spoil");
    let refused = agent.execute("SELECT loomworks.mark_migration(gen_random_uuid())").await;
    assert!(refused.is_err(), "an agent marks a migration");
    let operations = platform.cli(&["ops", "list", "t-a"]);
    let operation = operations[0]["id"].to_string();
    platform.cli(&["ops", "undo", "t-a", &operation]);
    assert_eq!(number(&platform, "t-a", "SELECT count(*) FROM items WHERE note = 'none'").await, 1000);

    // Brought back to before it, the tenant does not have it, and that can be seen.
    let migration = id(&answer);
    let snapshot = tenants[3]["snapshot_id"].as_str().expect("a snapshot").to_owned();
    platform.wait_for("the snapshots to be ready", |platform| {
        ["t-a", "t-b", "t-c", "t-d"].iter().all(|tenant| {
            let snapshots = platform.cli(&["snapshot", "list", tenant]);
            snapshots.as_array().expect("snapshots").iter().all(|snapshot| snapshot["state"] == "ready")
        })
    });
    platform.cli(&["restore", "run", "t-d", "--snapshot", &snapshot, "--yes"]);
    assert_eq!(number(&platform, "t-d", HAS_NOTE).await, 0);
    let shown = platform.cli(&["fleet", "show", &migration]);
    let still: Vec<_> =
        shown["tenants"].as_array().expect("tenants").iter().map(|t| &t["still_applied"]).collect();
    assert_eq!(still, [true, true, true, false]);
    platform.cli(&["restore", "swap-back", "t-d", "--yes"]);
    assert_eq!(platform.cli(&["fleet", "show", &migration])["tenants"][3]["still_applied"], true);
    // A copy has the marks of its original.
    let after = platform.cli(&["snapshot", "create", "t-b"])[0]["id"].as_str().expect("an id").to_owned();
    platform.cli(&["restore", "run", "t-b", "--snapshot", &after, "--yes"]);
    assert_eq!(platform.cli(&["fleet", "show", &migration])["tenants"][0]["still_applied"], true);
    let (again, _) = migrate(&platform, ADD_A_ROW, &["--tenant", "t-b", "--no-snapshot"]);
    assert_eq!(states(&again), ["applied"], "the mark can be made in a restored database");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_at_a_failure_and_goes_on_when_told() {
    let platform = platform(&["t-a", "t-b", "t-c", "t-d"]);
    let mut app = platform.connect_as_app("t-b").await;
    app.execute("ALTER TABLE items ADD COLUMN note int").await.expect("stand in the way");
    let sql = "SELECT 1;\nALTER TABLE items ADD COLUMN note text";
    let one_by_one = ["--all", "--concurrency", "1", "--no-snapshot"];
    let (answer, done) = migrate(&platform, sql, &one_by_one);
    assert!(!done, "tenants failed");
    assert_eq!(answer["migration"]["state"], "stopped");
    assert_eq!(states(&answer), ["applied", "failed", "waiting", "waiting"]);
    let failed = &answer["tenants"][1];
    assert_eq!(failed["sqlstate"], "42701");
    assert!(
        failed["error"].as_str().expect("an error").contains("\"note\" of relation \"items\" already exists")
    );
    let migration = id(&answer);

    // In spite of it.
    let resumed = platform.try_cli(&["fleet", "resume", &migration]);
    let resumed: Value = serde_json::from_slice(&resumed.stdout).expect("JSON");
    assert_eq!(states(&resumed), ["applied", "failed", "applied", "applied"]);
    assert_eq!(resumed["migration"]["state"], "failed");
    let refused = platform.try_cli(&["fleet", "resume", &migration]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--retry-failed"), "nobody waits");

    app.execute("ALTER TABLE items DROP COLUMN note").await.expect("stand aside");
    let resumed = platform.cli(&["fleet", "resume", &migration, "--retry-failed"]);
    assert_eq!(states(&resumed), ["applied"; 4]);
    assert_eq!(resumed["migration"]["state"], "succeeded");
    for tenant in ["t-a", "t-b", "t-c", "t-d"] {
        assert_eq!(number(&platform, tenant, HAS_NOTE).await, 1, "{tenant}");
    }
    let told = platform.try_cli(&["fleet", "resume", &migration]);
    assert!(String::from_utf8_lossy(&told.stderr).contains("succeeded cannot be resumed"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_pauses_after_the_canary_and_when_told_and_is_cancelled() {
    let mut platform = platform(&["t-a", "t-b", "t-c", "t-d"]);
    let slowly = format!("SELECT pg_sleep(0.7); {ADD_A_ROW}");
    let one_by_one = ["--all", "--concurrency", "1", "--no-snapshot"];
    let (answer, done) = migrate(&platform, &slowly, &[&one_by_one[..], &["--pause-after-canary"]].concat());
    assert!(done);
    assert_eq!(answer["migration"]["state"], "paused");
    assert_eq!(states(&answer), ["applied", "waiting", "waiting", "waiting"]);
    let migration = id(&answer);

    platform.cli(&["fleet", "resume", &migration, "--no-wait"]);
    platform.wait_for("the second to be under way", |platform| {
        platform.cli(&["fleet", "show", &migration])["tenants"][1]["state"] == "running"
    });
    platform.cli(&["fleet", "pause", &migration]);
    let rests = platform.cli(&["fleet", "follow", &migration]);
    assert_eq!(
        states(&rests),
        ["applied", "applied", "waiting", "waiting"],
        "the one under way was finished"
    );

    platform.cli(&["fleet", "resume", &migration, "--no-wait"]);
    platform.wait_for("the third to be under way", |platform| {
        platform.cli(&["fleet", "show", &migration])["tenants"][2]["state"] == "running"
    });
    platform.cli(&["fleet", "cancel", &migration, "--yes"]);
    let ended = platform.cli(&["fleet", "follow", &migration]);
    assert_eq!(ended["migration"]["state"], "cancelled");
    assert_eq!(states(&ended), ["applied", "applied", "applied", "skipped"]);
    for (tenant, rows) in [("t-a", 1), ("t-b", 1), ("t-c", 1), ("t-d", 0)] {
        assert_eq!(number(&platform, tenant, FLEET_ROWS).await, rows, "{tenant}");
    }
    let refused = platform.try_cli(&["fleet", "resume", &migration]);
    assert!(!refused.status.success(), "what is cancelled stays so");
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_that_leaves_its_transaction_or_its_role_is_refused_and_leaves_nothing() {
    let platform = platform(&["t-a", "t-b"]);
    let mark = "SELECT loomworks.mark_migration('00000000-0000-4000-8000-000000000000')";
    let refused = [
        ("COMMIT", "controls transactions"),
        ("COMMIT; BEGIN", "controls transactions"),
        ("ROLLBACK; BEGIN", "controls transactions"),
        ("ABORT", "controls transactions"),
        ("SAVEPOINT s", "controls transactions"),
        ("PREPARE TRANSACTION 'x'", "controls transactions"),
        ("CREATE INDEX CONCURRENTLY i ON items (value)", "cannot"),
        ("VACUUM items", "cannot"),
        ("COPY items FROM STDIN", ""),
        ("SET ROLE postgres", "permission denied"),
        ("RESET ROLE; SET ROLE NONE; CREATE ROLE mine", "permission denied"),
        ("SET SESSION AUTHORIZATION postgres", "permission denied"),
        ("ALTER DATABASE \"t-a\" RENAME TO mine", ""),
        ("COPY items TO PROGRAM 'true'", "external program"),
        ("DROP EVENT TRIGGER loomworks_on_ddl", "must be owner"),
        ("DELETE FROM loomworks.fleet_migration", "permission denied"),
        ("DROP TABLE loomworks.fleet_migration", "must be owner"),
        ("\n\nSELECT nothing", "line 3"),
        ("SELECT 'unended", "unterminated"),
        ("SELECT pg_sleep(5)", "statement timeout"),
    ];
    for (statement, wanted) in refused {
        let sql = format!("{ADD_A_ROW}; {statement}");
        let select = ["--all", "--no-snapshot", "--statement-timeout", "2"];
        let (answer, done) = migrate(&platform, &sql, &select);
        let error = answer["tenants"][0]["error"].as_str().unwrap_or_default();
        assert!(!done && error.contains(wanted), "{statement}: {answer:#}");
        assert_eq!(answer["migration"]["reason"], "a canary failed", "{statement}");
        assert_eq!(number(&platform, "t-a", FLEET_ROWS).await, 0, "{statement}");
        assert_eq!(number(&platform, "t-b", FLEET_ROWS).await, 0, "{statement}");
    }
    // A mark of another migration is its owner's own affair; quotes and dollars are text like any other.
    let odd = format!(r"{mark}; SELECT $$it's$$, E'\'', $x$ $$ $x$; -- END; COMMIT");
    let (answer, done) = migrate(&platform, &format!("{odd}\n; {ADD_A_ROW}"), &["--all", "--no-snapshot"]);
    assert!(done, "{answer:#}");
    assert_eq!(number(&platform, "t-a", FLEET_ROWS).await, 1);

    for (arguments, wanted) in [
        (&["--tenant", "nobody"][..], "there is no tenant `nobody`"),
        (&["--tier", "pro"], "no tenant is selected"),
        (&["--all", "--concurrency", "33"], "1 to 32"),
        (&["--all", "--canaries", "0", "--pause-after-canary"], "no canary"),
    ] {
        let file = file(&platform, "SELECT 1");
        let output = platform.try_cli(&[&["fleet", "run", &file, "--yes"], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(wanted) && error.contains("hint"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_locked_or_held_holds_nobody_up() {
    let platform = platform(&["t-a", "t-b", "t-c", "t-d", "t-e"]);
    let mut visitor = platform.connect_as_app("t-b").await;
    visitor.execute("BEGIN; LOCK TABLE items").await.expect("lock");
    let hold = "UPDATE tenants SET held_by = gen_random_uuid() WHERE subdomain = 't-c'";
    platform.as_superuser("loomworks_mgmt", hold).await;
    // Nobody can open this one's password, and none connects to it.
    let wrapped = "SELECT app_password_wrapped FROM tenant_credentials JOIN tenants ON id = tenant_id WHERE subdomain = 't-e'";
    let wrapped = platform.sql(wrapped).await;
    let set_password = async |to: &str| {
        let sql = format!(
            "UPDATE tenant_credentials SET app_password_wrapped = '{to}'
             FROM tenants WHERE id = tenant_id AND subdomain = 't-e'"
        );
        platform.as_superuser("loomworks_mgmt", &sql).await;
    };
    set_password("\\x00").await;

    let patience =
        ["--all", "--lock-timeout", "1", "--busy-timeout", "1", "--stop-after", "0", "--no-snapshot"];
    let (answer, done) = migrate(&platform, ADD_A_ROW, &[&patience[..], &["--concurrency", "2"]].concat());
    assert!(!done);
    assert_eq!(states(&answer), ["applied", "failed", "failed", "applied", "failed"]);
    assert_eq!(answer["migration"]["state"], "failed");
    let errors: Vec<_> =
        [1, 2, 4].map(|tenant| answer["tenants"][tenant]["error"].as_str().expect("one")).into();
    assert!(errors[0].contains("lock") && errors[1] == "the tenant is being restored", "{errors:?}");
    assert!(errors[2].contains("password"), "{errors:?}");

    set_password(&wrapped).await;
    visitor.execute("ROLLBACK").await.expect("unlock");
    let release = "UPDATE tenants SET held_by = NULL WHERE subdomain = 't-c'";
    platform.as_superuser("loomworks_mgmt", release).await;
    let resumed = platform.cli(&["fleet", "resume", &id(&answer), "--retry-failed"]);
    assert_eq!(states(&resumed), ["applied"; 5]);
    for tenant in ["t-a", "t-b", "t-c", "t-d", "t-e"] {
        assert_eq!(number(&platform, tenant, FLEET_ROWS).await, 1, "{tenant}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_wave_begins_while_the_archive_does_not_have_the_snapshots_so_far() {
    let mut platform = platform(&["t-a", "t-b", "t-c"]);
    // The first one needs a base backup, which needs the archive.
    platform.cli(&["snapshot", "create", "t-a"]);
    let archive = async |platform: &Platform, works: bool| {
        let command = if works { "RESET archive_command" } else { "SET archive_command = 'false'" };
        platform.as_superuser("postgres", &format!("ALTER SYSTEM {command}")).await;
        // What is streamed comes over a connection of its own kind, which is not let in any more.
        let file = platform.as_superuser("postgres", "SHOW hba_file").await;
        let (from, to) = match works {
            true => ("# replication", "local  replication"),
            false => ("local  replication", "# replication"),
        };
        let edit = format!(
            "COPY (SELECT) TO PROGRAM 'grep -q \"^{from}\" {file} && sed -i \"s/^{from}/{to}/\" {file}'"
        );
        platform.as_superuser("postgres", &edit).await;
        platform.as_superuser("postgres", "SELECT pg_reload_conf()").await;
    };
    archive(&platform, false).await;
    // The archiver hears of it some time, and so does who is connected.
    let failed = "SELECT failed_count FROM pg_stat_archiver";
    let streaming = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication";
    let mut quiet = 0;
    for _ in 0..1800 {
        quiet = if platform.as_superuser("postgres", streaming).await == "0" { quiet + 1 } else { 0 };
        if platform.sql(failed).await != "0" && quiet > 20 {
            break;
        }
        let switch = "SELECT pg_create_restore_point('test'), pg_switch_wal()";
        platform.as_superuser("postgres", switch).await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_ne!(platform.sql(failed).await, "0", "the archive does not work");
    assert!(quiet > 20, "nothing is streamed");
    let (migration, job) = begin(&platform, ADD_A_ROW, &["--all"]);
    platform.wait_for("the wait for the archive", |platform| {
        let words = platform.job(&job).unwrap_or_default()["progress"].clone();
        words == "waiting for the archive to have the snapshots so far"
    });
    assert_eq!(states(&platform.cli(&["fleet", "show", &migration])), ["applied", "waiting", "waiting"]);

    platform.cli(&["fleet", "pause", &migration]);
    platform.finish(&job);
    assert_eq!(states(&platform.cli(&["fleet", "follow", &migration])), ["applied", "waiting", "waiting"]);
    let job = platform.cli(&["fleet", "resume", &migration, "--no-wait"])["job"].clone();
    let job = job.as_str().expect("an id");
    platform.wait_for("the wait again", |platform| {
        let words = platform.job(job).unwrap_or_default()["progress"].clone();
        words == "waiting for the archive to have the snapshots so far"
    });
    archive(&platform, true).await;
    assert_eq!(states(&platform.cli(&["fleet", "follow", &migration])), ["applied"; 3]);
    platform.wait_for("the last snapshots", |platform| {
        ["t-a", "t-b", "t-c"].iter().all(|tenant| {
            let snapshots = platform.cli(&["snapshot", "list", tenant]);
            snapshots.as_array().expect("snapshots").iter().all(|snapshot| snapshot["state"] == "ready")
        })
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_that_failed_for_good_has_left_running_is_ended_and_seen_to() {
    let mut platform = platform(&["t-a", "t-b"]);
    // For the canary it takes for ever, until somebody takes the row away: the session that waits does not see that.
    let sql = format!("SELECT pg_sleep(100000) FROM items WHERE value = 'slow'; {ADD_A_ROW}");
    let patience = ["--all", "--no-snapshot", "--statement-timeout", "86400"];
    for (end, row) in [("resume", 0), ("cancel", -2)] {
        let mut app = platform.connect_as_app("t-a").await;
        let slow = format!("INSERT INTO items VALUES ({row}, 'slow')");
        app.execute(AssertSqlSafe(slow)).await.expect("slow down");
        let (migration, job) = begin(&platform, &sql, &patience);
        let sessions = "SELECT count(DISTINCT pid) FROM pg_stat_activity JOIN pg_locks USING (pid)
                        WHERE application_name LIKE 'loomworks fleet%' AND relation = 'items'::regclass";
        for _ in 0..1800 {
            if number(&platform, "t-a", sessions).await == 1 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert_eq!(number(&platform, "t-a", sessions).await, 1, "it sleeps");
        platform.kill();
        let last_try = format!("UPDATE jobs SET attempts = max_attempts WHERE id = '{job}'");
        platform.sql(&last_try).await;
        app.execute("DELETE FROM items WHERE value = 'slow'").await.expect("speed up");
        platform.serve(None);
        let rests = platform.try_cli(&["fleet", "follow", &migration]);
        let rests: Value = serde_json::from_slice(&rests.stdout).expect("JSON");
        assert_eq!(rests["migration"]["reason"], "its job failed", "{rests:#}");
        assert_eq!(states(&rests), ["running", "waiting"]);
        assert_eq!(number(&platform, "t-a", sessions).await, 1, "nobody has ended it yet");

        let ended = match end {
            "resume" => platform.cli(&["fleet", "resume", &migration]),
            _ => {
                platform.cli(&["fleet", "cancel", &migration, "--yes"]);
                platform.cli(&["fleet", "follow", &migration])
            }
        };
        assert_eq!(number(&platform, "t-a", sessions).await, 0, "what was left is ended");
        let (state, tenants) = match end {
            "resume" => ("succeeded", ["applied"; 2]),
            _ => ("cancelled", ["skipped"; 2]),
        };
        assert_eq!(ended["migration"]["state"], state, "{ended:#}");
        assert_eq!(states(&ended), tenants);
        // The second run has added nothing.
        for tenant in ["t-a", "t-b"] {
            assert_eq!(number(&platform, tenant, FLEET_ROWS).await, 1, "{tenant}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_migration_survives_a_crash_at_every_step() {
    let names = ["t-a", "t-b", "t-c", "t-d"];
    let mut platform = platform(&names);
    // One less than what was begun would show, and so would one more.
    let begun = std::cell::Cell::new(0);
    let start = async |platform: &Platform, _: &str| {
        begun.set(begun.get() + 1);
        begin(platform, ADD_A_ROW, &["--all", "--wave-size", "2"]).1
    };
    let check = async |platform: &Platform, _: &str| {
        for tenant in names {
            assert_eq!(number(platform, tenant, FLEET_ROWS).await, begun.get(), "{tenant}");
        }
        assert_eq!(platform.cli(&["fleet", "list", "--limit", "1"])[0]["state"], "succeeded");
    };
    let places = survives_every_crash(&mut platform, "fleet_migration", start, check).await;
    assert_eq!(places, 7, "planning, the canary, two waves and the waits before them, the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_wave_it_is_applied_exactly_once_to_each() {
    let names = ["t-a", "t-b", "t-c", "t-d", "t-e", "t-f"];
    let mut platform = platform(&names);
    let slowly = format!("SELECT pg_sleep(0.3); {ADD_A_ROW}; SELECT pg_sleep(0.3)");
    for (run, with_server) in [(1, false), (2, true)] {
        let (migration, job) =
            begin(&platform, &slowly, &["--all", "--canaries", "0", "--concurrency", "2", "--no-snapshot"]);
        for applied in [1, 3] {
            platform.wait_for("some to have it", |platform| {
                let shown = platform.cli(&["fleet", "show", &migration]);
                shown["migration"]["applied"].as_i64().expect("a number") >= applied
            });
            platform.kill();
            if with_server {
                platform.kill_postgresql();
            }
            platform.serve(None);
        }
        platform.finish(&job);
        let shown = platform.cli(&["fleet", "show", &migration]);
        assert_eq!(states(&shown), ["applied"; 6]);
        for tenant in names {
            assert_eq!(number(&platform, tenant, FLEET_ROWS).await, run, "{tenant}");
        }
    }
}
