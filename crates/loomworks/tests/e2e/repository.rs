//! Where the repository and the master key are: a bucket, the environment, stores that are refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use loomworks_core::ExposeSecret;
use loomworks_testkit::S3;
use loomworks_testkit::s3::Feature;
use loomworks_testkit::transit::Engine;
use serde_json::Value;

use crate::platform::{App, Platform};

/// What doctor says of one thing.
fn finding(platform: &Platform, name: &str) -> Value {
    let output = platform.try_cli(&["doctor"]);
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    findings.into_iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("{name}"))
}

fn assert_well(platform: &Platform, name: &str) {
    let finding = finding(platform, name);
    assert_eq!(finding["ok"], true, "{finding}");
}

/// Has a segment archived, and waits for it.
async fn archive(platform: &mut Platform) {
    platform
        .as_superuser(
            "postgres",
            "SELECT pg_switch_wal(); SELECT pg_logical_emit_message(true, 'a', 'b'); SELECT pg_switch_wal()",
        )
        .await;
    platform.wait_for("WAL to be archived", |platform| {
        let finding = finding(platform, "wal archive");
        finding["ok"] == true
            && !finding["detail"].as_str().is_some_and(|detail| detail.contains("newest none"))
    });
}

async fn in_bucket(platform: &mut Platform, s3: &S3) {
    let options = s3.options();
    let lines = options.iter().map(|(name, value)| format!("{name} = '{}'\n", value.expose_secret()));
    let options = platform.write_private("s3.toml", &lines.collect::<String>()).await;
    platform.set("LOOMWORKS_REPOSITORY", s3.location.clone());
    platform.set("LOOMWORKS_REPOSITORY_OPTIONS", options.to_string_lossy());
}

#[tokio::test]
async fn a_repository_in_a_bucket_is_made_and_archived_to() {
    let (s3, mut platform) = (S3::start(), Platform::prepare(&App::OneTable));
    in_bucket(&mut platform, &s3).await;
    platform.serve(None);
    for name in ["repository_store", "repository_keys", "master_key"] {
        assert_well(&platform, name);
    }
    archive(&mut platform).await;
    assert!(!platform.data().join("repository").exists());
}

#[tokio::test]
async fn a_store_that_is_unfit_or_does_not_let_us_in_is_refused_with_a_hint() {
    let mut platform = Platform::prepare(&App::OneTable);
    let unfit = S3::with(&[Feature::Unconditional]);
    in_bucket(&mut platform, &unfit).await;
    let said = platform.refusal();
    assert!(said.contains("had won") && said.contains("If-None-Match"), "{said}");

    let s3 = S3::start();
    in_bucket(&mut platform, &s3).await;
    platform.set("LOOMWORKS_REPOSITORY", "s3://repository/elsewhere");
    let said = platform.refusal();
    assert!(said.contains("hint: ") && said.contains("credentials"), "{said}");
    platform.set("LOOMWORKS_REPOSITORY", "gs://x");
    let said = platform.refusal();
    assert!(said.contains("s3://bucket/prefix"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_wraps_the_key_and_is_asked_at_the_start_alone() {
    let mut platform = Platform::prepare(&App::OneTable);
    let service = Engine::start().await;
    service.rotate("loomworks");
    service.renew_token("right");
    let token = platform.write_private("token", "wrong").await;
    platform.set("LOOMWORKS_MASTER_KEY_TRANSIT", service.url.clone());
    platform.set("LOOMWORKS_MASTER_KEY_TRANSIT_KEY", "loomworks");
    platform.set("LOOMWORKS_MASTER_KEY_TRANSIT_TOKEN_FILE", token.to_string_lossy());
    let said = platform.refusal();
    assert!(said.contains("refuses the token") && said.contains("hint: "), "{said}");
    platform.write_private("token", "right").await;
    platform.serve(None);
    archive(&mut platform).await;
    assert!(!platform.data().join("master.key").exists());
    assert!(platform.data().join("master.key.wrapped").exists());
    // While it is away secrets are still read and written.
    service.seal(1_000_000);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    service.seal(0);
    service.rotate("loomworks");
    let status = platform.cli(&["master-key", "rotate"]);
    assert_eq!(status["repository"]["former"], 0, "{status}");
    platform.stop();
    std::fs::remove_file(platform.data().join("master.key.wrapped")).expect("lose it");
    platform.serve(None);
    for name in ["repository_keys", "master_key"] {
        assert_well(&platform, name);
    }
    platform.stop();
    platform.environment.clear();
    let said = platform.refusal();
    assert!(said.contains("wrapped by a service") && said.contains("--master-key-transit"), "{said}");
}

#[tokio::test]
async fn a_key_from_the_environment_reaches_what_postgresql_calls_and_is_rotated_there() {
    let key = |byte: u8| BASE64.encode([byte; 32]);
    let mut platform = Platform::prepare(&App::OneTable);
    platform.set("LOOMWORKS_MASTER_KEY", key(1));
    platform.serve(None);
    archive(&mut platform).await;
    assert!(!platform.data().join("master.key").exists());
    let refused = platform.try_cli(&["master-key", "rotate"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("LOOMWORKS_MASTER_KEY"), "{said}");

    // PostgreSQL goes on with the former key, until the platform is there again with another in front.
    platform.kill();
    platform.set("LOOMWORKS_MASTER_KEY", format!("{},{}", key(2), key(1)));
    platform.serve(None);
    assert_eq!(finding(&platform, "master_key")["ok"], false, "the former one is needed still");
    let status = platform.cli(&["master-key", "rotate"]);
    assert_eq!(status["repository"]["former"], 0, "{status}");
    assert_well(&platform, "master_key");
    platform.stop();
    platform.set("LOOMWORKS_MASTER_KEY", key(2));
    platform.serve(None);
    archive(&mut platform).await;
    for name in ["repository_keys", "master_key"] {
        assert_well(&platform, name);
    }
    platform.stop();
    platform.set("LOOMWORKS_MASTER_KEY", key(3));
    let said = platform.refusal();
    assert!(said.contains("does not open") && said.contains("master key that"), "{said}");
    platform.set("LOOMWORKS_MASTER_KEY_FILE", "/nowhere");
    let said = platform.refusal();
    assert!(said.contains("more than one place"), "{said}");
}
