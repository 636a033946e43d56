//! The whole platform brought back from the repository and the master key.

use sqlx::Row;

use crate::platform::{App, Platform};

async fn as_written(platform: &Platform, database: &str, value: &str) -> i64 {
    let mut connection = platform.connect_as_app(database).await;
    let sql = "SELECT count(*) FROM items WHERE value = $1";
    sqlx::query(sql).bind(value).fetch_one(&mut connection).await.expect("count the items").get(0)
}

async fn write(platform: &Platform, database: &str, value: &str) {
    let mut connection = platform.connect_as_app(database).await;
    let sql = "UPDATE items SET value = $1";
    sqlx::query(sql).bind(value).execute(&mut connection).await.expect("write the items");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_gone_comes_back_and_goes_on() {
    let mut platform = Platform::start(&App::OneTable);
    for name in ["acme", "globex", "gone"] {
        platform.cli(&["tenant", "create", name, "--wait"]);
    }
    platform.cli(&["snapshot", "create", "acme"]);
    // With the tenant that will be gone.
    platform.cli(&["backup", "run"]);
    write(&platform, "acme", "after the backup").await;
    platform.cli(&["tenant", "archive", "gone", "--reason", "test", "--yes"]);
    platform.cli(&["tenant", "destroy", "gone", "--before-retention-ends", "--yes"]);
    // Everything before it is archived with it.
    platform.cli(&["snapshot", "create", "globex"]);
    let data = platform.data();
    let directory = data.to_str().expect("a path");

    let there = platform.try_cli(&["recover", "--data", directory]);
    assert!(!there.status.success(), "it is served");
    platform.stop();
    let there = platform.try_cli(&["recover", "--data", directory]);
    let said = String::from_utf8_lossy(&there.stderr).into_owned();
    assert!(said.contains("there is a cluster") && said.contains("hint"), "{said}");

    // The machine is gone, but for what the runbook says must be kept.
    for entry in std::fs::read_dir(&data).expect("list it").map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_name().and_then(|name| name.to_str()).expect("a name");
        if !["repository", "master.key", "port", "client.json"].contains(&name) {
            let removed =
                if entry.is_dir() { std::fs::remove_dir_all(&entry) } else { std::fs::remove_file(&entry) };
            removed.expect("lose it");
        }
    }
    let plan = platform.cli(&["recover", "--data", directory, "--dry-run"]);
    assert!(plan["erased"].as_array().is_some_and(|erased| !erased.is_empty()), "{plan}");
    assert!(!data.join("pg").exists(), "a plan changes nothing");
    platform.cli(&["recover", "--data", directory]);
    platform.serve(None);

    assert_eq!(as_written(&platform, "acme", "after the backup").await, 1000);
    assert_eq!(as_written(&platform, "globex", "as made").await, 1000);
    assert_eq!(platform.sql("SELECT timeline_id FROM pg_control_checkpoint()").await.trim(), "2");
    let tenants = platform.cli(&["tenant", "list"]);
    assert!(tenants.to_string().contains("globex"), "{tenants}");
    // It is archived, backed up and restored as before, on its new timeline.
    platform.wait_for("a backup of the new timeline", |platform| {
        platform.cli(&["backup", "list"]).as_array().is_some_and(|backups| backups.len() > 2)
    });
    let snapshot = platform.cli(&["snapshot", "create", "acme"])[0]["id"].clone();
    write(&platform, "acme", "spoilt").await;
    platform.cli(&["restore", "run", "acme", "--snapshot", snapshot.as_str().expect("an id"), "--yes"]);
    assert_eq!(as_written(&platform, "acme", "after the backup").await, 1000);
    let status = platform.cli(&["archive", "status"]);
    assert_eq!(status["timeline"], 2, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_of_the_first_version_is_kept_aside() {
    let mut platform = Platform::start(&App::OneTable);
    platform.stop();
    let repository = platform.data().join("repository");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(repository.join("repository.json"))
        .expect("open it");
    std::io::Write::write_all(&mut file, br#"{"version": 1, "system_identifier": 1}"#).expect("write it");
    platform.serve(None);
    assert!(platform.data().join("repository.v1/repository.json").exists());
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    platform.cli(&["snapshot", "create", "acme"]);
}
