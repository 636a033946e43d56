//! The audit log through the command line: who, from where, what; and whether it is as it was written.

use crate::platform::{App, Platform};

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_who_did_what_from_where_and_finds_a_row_that_was_changed() {
    let platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    platform.cli(&["tenant", "suspend", "acme", "--reason", "unpaid"]);
    let page = platform.cli(&["audit", "list", "--tenant", "acme"]);
    let rows = page["items"].as_array().expect("rows");
    let of =
        |action: &str| rows.iter().find(|row| row["action"] == action).unwrap_or_else(|| panic!("{action}"));
    let (suspended, made) = (of("tenant.suspended"), of("tenant.provisioned"));
    assert_eq!(suspended["detail"]["before"], "active");
    assert_eq!(suspended["detail"]["after"], "suspended");
    let origin = suspended["origin"].as_str().expect("an origin");
    assert!(origin.starts_with("127.0.0.1 request "), "{origin}");
    assert!(made["origin"].as_str().expect("an origin").starts_with("job "), "{made}");

    let first = platform.cli(&["audit", "list", "--limit", "1"]);
    let cursor = first["next_cursor"].as_str().expect("more");
    let second = platform.cli(&["audit", "list", "--limit", "1", "--cursor", cursor]);
    assert!(second["items"][0]["id"].as_i64() < first["items"][0]["id"].as_i64());
    assert!(
        platform.cli(&["audit", "list", "--actor", "nobody & all"])["items"]
            .as_array()
            .expect("rows")
            .is_empty()
    );

    let verdict = platform.cli(&["audit", "verify"]);
    assert_eq!(verdict["intact"], true, "{verdict}");
    let head = verdict["head"].as_str().expect("a head").to_owned();
    platform.cli(&["tenant", "resume", "acme"]);
    let verdict = platform.cli(&["audit", "verify", "--expect", &head]);
    assert_eq!(verdict["intact"], true, "the noted head is on the way");
    let strange = "0".repeat(64);
    assert_eq!(platform.try_cli(&["audit", "verify", "--expect", &strange]).status.code(), Some(1));

    let tamper = "SET session_replication_role = replica; UPDATE public.audit SET actor = 'x' WHERE action = 'tenant.suspended'";
    platform.as_superuser("loomworks_mgmt", tamper).await;
    let refused = platform.try_cli(&["audit", "verify"]);
    assert_eq!(refused.status.code(), Some(1));
    let verdict: serde_json::Value = serde_json::from_slice(&refused.stdout).expect("JSON");
    assert_eq!(verdict["broken"]["kind"], "changed");
    assert_eq!(verdict["broken"]["id"], suspended["id"]);
}
