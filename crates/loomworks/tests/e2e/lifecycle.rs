//! A tenant's whole life, from its draft to the proof that nothing is left of it, and a neighbour that notices nothing.

use std::path::Path;

use serde_json::{Value, json};
use sqlx::{Connection, Row};

use crate::platform::{App, Platform};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The rows of the tenant's table, read as its app reads them.
async fn items(platform: &Platform, database: &str) -> i64 {
    let mut connection = platform.connect_as_app(database).await;
    let sql = "SELECT count(*) FROM items WHERE value = 'as made'";
    sqlx::query(sql).fetch_one(&mut connection).await.expect("count the items").get(0)
}

/// What the command line says when it refuses.
fn refusal(platform: &Platform, arguments: &[&str]) -> String {
    let output = platform.try_cli(arguments);
    assert!(!output.status.success(), "{arguments:?} is refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_routed(platform: &Platform, subdomain: &str) -> bool {
    let routes = std::fs::read_to_string(platform.data().join("routes.json")).unwrap_or_default();
    routes.contains(&format!("\"{subdomain}\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_lives_from_its_draft_to_its_end_and_its_neighbour_notices_nothing() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "globex", "--wait"]);

    // A draft has no database, and becomes a tenant when it is provisioned.
    let draft = platform.cli(&["tenant", "create", "acme", "--draft", "--tier", "pro"]);
    assert_eq!((&draft["tenant"]["state"], &draft["job"]), (&json!("draft"), &Value::Null));
    assert!(refusal(&platform, &["snapshot", "create", "acme"]).contains("is a draft"));
    let made = platform.cli(&["tenant", "provision", "acme", "--wait"]);
    assert_eq!((&made["state"], &made["max_users"]), (&json!("active"), &json!(50)), "{made}");
    let id = text(&made["id"]);
    let settings = r#"{"region": "eu"}"#;
    let own = platform.cli(&["tenant", "update", "acme", "--max-users", "7", "--settings", settings]);
    assert_eq!((&own["max_users"], &own["settings"]["region"]), (&json!(7), &json!("eu")), "{own}");
    let own = platform.cli(&["tenant", "update", "acme", "--max-users", "tier", "--name", "Acme GmbH"]);
    assert_eq!((&own["max_users"], &own["name"]), (&json!(50), &json!("Acme GmbH")));

    // Not yet: it is served.
    let error = refusal(&platform, &["tenant", "destroy", "acme", "--yes"]);
    assert!(error.contains("a tenant that is active cannot be destroyed"), "{error}");
    assert!(
        refusal(&platform, &["tenant", "archive", "acme"]).contains("--yes"),
        "nobody is there to answer"
    );

    // Suspended, archived and taken back it is suspended still, with the reason.
    let suspended = platform.cli(&["tenant", "suspend", "acme", "--reason", "unpaid"]);
    assert_eq!(
        (&suspended["suspension_reason"], &suspended["suspended_by"]),
        (&json!("unpaid"), &json!("first operator"))
    );
    let session = platform.cli(&["ai-session", "open", "acme", "--agent", "cleaner"]);
    let mut app = platform.connect_as_app("acme").await;
    let archived = platform.cli(&["tenant", "archive", "acme", "--reason", "left us", "--yes"]);
    assert_eq!((&archived["state"], &archived["archive_reason"]), (&json!("archived"), &json!("left us")));
    assert!(archived["archived_until"].is_string());
    platform.wait_for("its route to go", |platform| !is_routed(platform, "acme"));
    assert!(sqlx::query("SELECT 1").execute(&mut app).await.is_err(), "its app's connection has ended");
    let sessions = platform.cli(&["ai-session", "list", "acme"]);
    assert_eq!((&sessions[0]["id"], &sessions[0]["state"]), (&session["id"], &json!("closed")));
    for refused in [
        &["snapshot", "create", "acme"][..],
        &["ai-session", "open", "acme", "--agent", "x"],
        &["ops", "list", "acme"],
        &["restore", "swap-back", "acme", "--yes"],
    ] {
        assert!(refusal(&platform, refused).contains("the tenant is archived"), "{refused:?}");
    }
    assert!(refusal(&platform, &["tenant", "resume", "acme"]).contains("archived cannot be resumed"));
    let back = platform.cli(&["tenant", "unarchive", "acme"]);
    assert_eq!((&back["state"], &back["suspension_reason"]), (&json!("suspended"), &json!("unpaid")));
    platform.cli(&["tenant", "resume", "acme"]);
    platform.wait_for("its route", |platform| is_routed(platform, "acme"));
    assert_eq!(items(&platform, "acme").await, 1000);

    // Archived for good.
    let credentials = platform.app_credentials("acme");
    platform.cli(&["tenant", "archive", "acme", "--yes"]);
    let error = refusal(&platform, &["tenant", "destroy", "acme", "--yes"]);
    assert!(error.contains("is kept until") && error.contains("before_retention_ends"), "{error}");
    let plan = platform.cli(&["tenant", "destroy", "acme", "--dry-run"]);
    assert_eq!(
        (&plan["allowed"], &plan["databases"][0]["name"]),
        (&json!(false), &json!("acme")),
        "{plan:#}"
    );
    assert!(plan["rows"].as_array().is_some_and(|rows| rows.len() > 3), "{plan:#}");
    let before = platform.cli(&["tenant", "erasure", &id]);
    let left: Vec<&Value> =
        before["checks"].as_array().expect("checks").iter().filter(|check| check["gone"] == false).collect();
    assert!(before["complete"] == false && left.len() >= 4, "what is there is found: {before:#}");

    let report = platform.cli(&["tenant", "destroy", "acme", "--before-retention-ends", "--yes"]);
    assert_eq!(report["complete"], true, "{report:#}");
    assert!(refusal(&platform, &["tenant", "show", "acme"]).contains("no such tenant"));
    assert!(refusal(&platform, &["tenant", "show", &id]).contains("no such tenant"));
    let tombs = platform.cli(&["tenant", "list", "--state", "destroyed"]);
    assert_eq!((&tombs[0]["id"], &tombs[0]["name"]), (&json!(id), &json!("(destroyed)")));
    assert_eq!(tombs[0]["settings"], json!({}));
    let [host, port, user, password] = credentials;
    let gone = sqlx::PgConnection::connect(&format!("postgres://{user}:{password}@{host}:{port}/acme")).await;
    assert!(gone.is_err(), "its app is let in");

    // The name is free; the report on the first one does not take the second for it.
    let again = platform.cli(&["tenant", "create", "acme", "--wait"]);
    assert_ne!(again["id"], json!(id));
    assert_eq!(platform.cli(&["tenant", "erasure", &id])["complete"], true);

    // The neighbour has all that it had.
    assert_eq!(platform.cli(&["tenant", "show", "globex"])["state"], "active");
    assert_eq!(items(&platform, "globex").await, 1000);
    let jobs = platform.cli(&["job", "list", "--limit", "200"]);
    assert!(
        jobs["items"].as_array().expect("jobs").iter().all(|job| job["state"] == "succeeded"),
        "{jobs:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_that_nobody_wants_is_destroyed_at_once() {
    let platform = Platform::start(&App::OneTable);
    let draft = platform.cli(&["tenant", "create", "acme", "--draft"]);
    let report = platform.cli(&["tenant", "destroy", "acme", "--yes"]);
    assert_eq!(report["complete"], true, "{report:#}");
    assert_eq!(report["tenant"], draft["tenant"]["id"]);
    assert_eq!(platform.cli(&["tenant", "list"]), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_of_which_something_is_left_is_not_called_destroyed_and_no_answer_about_it_is_kept() {
    let mut platform = Platform::start(&App::OneTable);
    let (http, key) = (reqwest::Client::new(), platform.operator_key());
    let create = async |platform: &Platform| {
        let request =
            http.post(platform.url("/v1/tenants")).bearer_auth(&key).header("idempotency-key", "one");
        request
            .json(&json!({ "name": "Acme", "subdomain": "acme", "draft": true }))
            .send()
            .await
            .expect("ask")
    };
    let first: Value = create(&platform).await.json().await.expect("JSON");
    let id = text(&first["tenant"]["id"]);
    let again = create(&platform).await;
    assert!(again.headers().contains_key("idempotency-replayed"), "the answer is repeated: {again:?}");

    let stray = format!("lwt_{}_stray", &id.replace('-', "")[..12]);
    // A role that cannot be dropped, because something is its that is no tenant's.
    let owning = format!(
        "CREATE ROLE {stray}; CREATE TABLE public.stray (); ALTER TABLE public.stray OWNER TO {stray}"
    );
    platform.as_superuser("postgres", &owning).await;
    let job = platform.cli(&["tenant", "destroy", "acme", "--yes", "--no-wait"]);
    let job = text(&job["job"]);
    platform.wait_for("the job to say what is left", |platform| {
        platform.job(&job).is_some_and(|job| text(&job["error"]).contains(&stray))
    });
    assert_eq!(platform.cli(&["tenant", "list", "--state", "destroyed"]), json!([]));
    let refused = create(&platform).await;
    assert!(
        !refused.headers().contains_key("idempotency-replayed") && refused.status() == 409,
        "{refused:?}"
    );

    platform.as_superuser("postgres", "DROP TABLE public.stray").await;
    platform.finish(&job);
    let destroyed = platform.cli(&["tenant", "list", "--state", "destroyed"]);
    assert_eq!(destroyed[0]["id"], json!(id));
    let anew: Value = create(&platform).await.json().await.expect("JSON");
    assert_ne!(
        anew["tenant"]["id"],
        json!(id),
        "the first answer is gone, and so the request is carried out"
    );
}

/// The files of an archive by name.
fn unpack(archive: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(archive).expect("open the archive");
    let mut archive = tar::Archive::new(zstd::Decoder::new(file).expect("decompress"));
    let mut files = std::collections::BTreeMap::new();
    for entry in archive.entries().expect("read the archive") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("its name").to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("read it");
        files.insert(name, content);
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_everything_no_secret_and_cannot_be_read_once_the_tenant_is_gone() {
    let platform = Platform::start(&App::OneTable);
    for tenant in ["acme", "globex"] {
        platform.cli(&["tenant", "create", tenant, "--wait"]);
    }
    let opened = platform.cli(&["ai-session", "open", "acme", "--agent", "cleaner"]);
    let connection = opened["connection_string"].as_str().expect("a connection string");
    let options: sqlx::postgres::PgConnectOptions = connection.parse().expect("connect options");
    let options = options.ssl_mode(sqlx::postgres::PgSslMode::Disable);
    let mut agent = sqlx::ConnectOptions::connect(&options).await.expect("connect as the agent");
    sqlx::query("UPDATE items SET value = 'swept' WHERE id < 10").execute(&mut agent).await.expect("change");

    // As a restore leaves the database that it has replaced.
    let id = text(&platform.cli(&["tenant", "show", "acme"])["id"]);
    let former = format!("lwt_{}_former_1", &id.replace('-', "")[..12]);
    platform.as_superuser("postgres", &format!("CREATE DATABASE {former}")).await;
    let note = format!(
        "INSERT INTO public.tenant_databases (oid, tenant_id, name, role, former_since, drop_after)
         SELECT oid::int8, '{id}', datname, 'former', now(), now() + interval '7 days' FROM pg_database
         WHERE datname = '{former}'"
    );
    platform.as_superuser("loomworks_mgmt", &note).await;

    let place = tempfile::tempdir().expect("a directory");
    let output = place.path().join("acme.tar.zst");
    let manifest = platform.cli(&["tenant", "export", "acme", "--output", output.to_str().expect("a path")]);
    let files = unpack(&output);
    let members = manifest["members"].as_array().expect("members");
    assert_eq!(files.len(), members.len() + 1, "the members and the manifest");
    let lines = |name: &str| String::from_utf8(files[name].clone()).expect("text");
    assert!(lines("operations.jsonl").contains("UPDATE items SET value = 'swept'"));
    for dump in ["database.dump", &format!("former/{former}.dump")] {
        assert!(files[dump].starts_with(b"PGDMP"), "{dump}");
    }
    let left_out = manifest["left_out"].as_array().expect("columns");
    assert!(left_out.contains(&json!("webhook_secrets.secret_wrapped")), "{left_out:?}");
    assert!(lines("records/tenants.jsonl").contains("\"acme\""));
    assert!(lines("records/ai_sessions.jsonl").contains("cleaner"));
    let password = platform.app_credentials("acme")[3].clone();
    for (name, content) in &files {
        let text = String::from_utf8_lossy(content);
        assert!(!text.contains("globex"), "{name} has the neighbour's");
        assert!(!text.contains(&password) && !text.contains("SCRAM-SHA-256"), "{name} has a secret");
    }

    // On disk there is nothing to read: neither the dump nor any word of it.
    let export = platform.cli(&["tenant", "exports", "acme"])[0].clone();
    let sealed = platform.data().join("exports").join(&id).join(format!("{}.sealed", text(&export["id"])));
    let stored = std::fs::read(&sealed).expect("the sealed file");
    assert!(!stored.windows(5).any(|window| window == b"PGDMP"));
    assert_eq!(std::fs::read_dir(sealed.parent().expect("a directory")).expect("list it").count(), 1);

    // A byte of it changed on disk is found out, and nothing that is wrong gets a name.
    let mut changed = stored.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    overwrite(&sealed, &changed);
    let second = place.path().join("second.tar.zst");
    let again = ["tenant", "export", "acme", "--export", export["id"].as_str().expect("an id"), "--output"];
    let arguments = [&again[..], &[second.to_str().expect("a path")]].concat();
    refusal(&platform, &arguments);
    assert!(!second.exists());
    assert_eq!(std::fs::read_dir(place.path()).expect("list it").count(), 1, "no part of it is left");
    overwrite(&sealed, &stored);
    platform.cli(&arguments);

    // An archived tenant's data is still its own. Once it is destroyed, a copy that somebody kept opens for nobody.
    platform.cli(&["tenant", "archive", "acme", "--yes"]);
    let third = place.path().join("third.tar.zst");
    platform.cli(&["tenant", "export", "acme", "--output", third.to_str().expect("a path")]);
    let copy = place.path().join("kept.sealed");
    std::fs::copy(&sealed, &copy).expect("keep a copy");
    let report = platform.cli(&["tenant", "erasure", "acme"]);
    let readable = report["checks"].as_array().expect("checks").iter();
    let readable =
        readable.filter(|check| text(&check["what"]).starts_with("its exports")).collect::<Vec<_>>();
    assert_eq!(
        readable[0]["found"].as_array().map(Vec::len),
        Some(2),
        "both open while it is there: {report:#}"
    );
    let report = platform.cli(&["tenant", "destroy", "acme", "--before-retention-ends", "--yes"]);
    assert_eq!(report["complete"], true, "{report:#}");
    assert!(!sealed.exists(), "the sealed file is gone");
    std::fs::create_dir_all(sealed.parent().expect("a directory")).expect("make it again");
    std::fs::copy(&copy, &sealed).expect("put the copy back");
    let fourth = place.path().join("fourth.tar.zst");
    let error = refusal(&platform, &[&again[..], &[fourth.to_str().expect("a path")]].concat());
    assert!(error.contains("no such tenant") && !fourth.exists(), "{error}");
    let report = platform.cli(&["tenant", "erasure", &id]);
    assert_eq!(report["complete"], false, "the report finds the file that was put back: {report:#}");
    let found = |word: &str| {
        let checks = report["checks"].as_array().expect("checks");
        let check = checks.iter().find(|check| text(&check["what"]).starts_with(word));
        check.unwrap_or_else(|| panic!("no check of {word}: {report:#}"))["gone"] == false
    };
    assert!(
        found("its files") && !found("its exports") && !found("its data key"),
        "it opens for nobody: {report:#}"
    );
}

fn overwrite(path: &Path, content: &[u8]) {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).expect("open it");
    std::io::Write::write_all(&mut file, content).expect("write it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_ended_suspends_and_a_longer_one_resumes() {
    let mut platform = Platform::start(&App::OneTable);
    for tenant in ["acme", "globex"] {
        platform.cli(&["tenant", "create", tenant, "--wait"]);
    }
    let state = |platform: &Platform, tenant: &str| text(&platform.cli(&["tenant", "show", tenant])["state"]);
    platform.cli(&["tenant", "update", "acme", "--expires", "2020-01-01"]);
    platform.wait_for("the suspension", |platform| state(platform, "acme") == "suspended");
    let shown = platform.cli(&["tenant", "show", "acme"]);
    assert_eq!(shown["suspension_cause"], "subscription");
    assert!(text(&shown["suspension_reason"]).contains("2020-01-01"), "{shown}");
    platform.cli(&["tenant", "update", "acme", "--expires", "2999-01-01"]);
    platform.wait_for("the tenant to be served", |platform| state(platform, "acme") == "active");

    // By hand is by hand.
    platform.cli(&["tenant", "suspend", "globex", "--reason", "abuse"]);
    platform.cli(&["tenant", "update", "globex", "--expires", "never"]);
    platform.cli(&["tenant", "update", "globex", "--expires", "2999-01-01"]);
    platform.wait_for("its jobs", |platform| {
        let jobs = platform.cli(&["job", "list"]);
        jobs["items"].as_array().expect("jobs").iter().all(|job| job["state"] == "succeeded")
    });
    assert_eq!(state(&platform, "globex"), "suspended");
}
