//! No secret is where others can read it: logs, output, process lists, what the API shows afterwards.

use std::path::{Path, PathBuf};

use crate::platform::{App, Platform};

/// Every file below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn command_lines() -> String {
    let processes =
        std::fs::read_dir("/proc").expect("list processes").filter_map(|entry| Some(entry.ok()?.path()));
    processes.filter_map(|path| std::fs::read_to_string(path.join("cmdline")).ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_no_log_no_process_list_and_no_answer() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let opened = platform.cli(&["ai-session", "open", "acme", "--agent", "tester"]);
    let connection = opened["connection_string"].as_str().expect("a connection string").to_owned();
    let agents_password = connection.split(['/', ':', '@']).nth(4).expect("a password").to_owned();
    let [_, _, _, apps_password] = platform.app_credentials("acme");
    let secrets = [platform.operator_key(), agents_password, apps_password];
    assert!(secrets.iter().all(|secret| secret.len() >= 30), "they are what they should be");
    // A statement that fails, a log-in that is refused, a request that is refused: what loves to print secrets.
    let mut app = platform.connect_as_app("acme").await;
    assert!(sqlx::query("SELECT 1 / 0").execute(&mut app).await.is_err());
    let wrong =
        reqwest::Client::new().get(platform.url("/v1/tenants")).bearer_auth(format!("{}x", secrets[0]));
    assert_eq!(wrong.send().await.expect("ask").status(), 401);
    assert!(!platform.try_cli(&["tenant", "create", "acme"]).status.success());

    let lists = command_lines();
    let mut shown = String::new();
    for command in
        [&["job", "list"][..], &["ai-session", "list", "acme"], &["tenant", "show", "acme"], &["doctor"]]
    {
        shown += &String::from_utf8_lossy(&platform.try_cli(command).stdout);
    }
    platform.stop();
    let mut logs = platform.logs();
    logs.extend(files(&platform.data().join("log")));
    logs.push(platform.data().join("pg/start.log"));
    logs.push(platform.data().join("routes.json"));
    for secret in &secrets {
        for log in &logs {
            let content = std::fs::read(log).unwrap_or_default();
            let found = content.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "a secret is in {}", log.display());
        }
        assert!(!lists.contains(secret.as_str()), "a secret is in the process list");
        assert!(!shown.contains(secret.as_str()), "a secret is in an answer");
    }
    // What does hold secrets is for its owner only.
    for private in ["client.json", "master.key", "apps/erp/pgpass", "pg", "repository", "run"] {
        let mode = std::fs::metadata(platform.data().join(private)).expect("look at it");
        let mode = std::os::unix::fs::PermissionsExt::mode(&mode.permissions());
        assert_eq!(mode & 0o077, 0, "{private} is open to others: {mode:o}");
    }
}
