//! How far back a tenant can go, and the snapshot that an import leads to.

use serde_json::{Value, json};

use super::platform::{App, Platform};

/// The window of the repository, and because of whom.
fn in_force(platform: &Platform) -> (Value, String) {
    let plan = platform.cli(&["archive", "expiry"]);
    let why = plan["recovery_days_because"].as_str().expect("a reason").to_owned();
    (plan["recovery_days"].clone(), why)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_says_how_far_back_its_tenants_can_go_and_the_longest_keeps_the_repository() {
    let platform = Platform::start(&App::OneTable);
    for (tenant, tier) in [("acme", "basic"), ("globex", "pro")] {
        platform.cli(&["tenant", "create", tenant, "--tier", tier, "--wait"]);
    }
    platform.cli(&["backup", "run"]);
    let days = |tenant: &str| platform.cli(&["restore", "window", tenant])["recovery_days"].clone();
    assert_eq!((days("acme"), days("globex")), (json!(30), json!(30)));
    let limits = ["--max-users", "10", "--max-storage-gb", "5", "--max-ai-operations-daily", "100"];
    let set = |recovery: &[&str]| platform.cli(&[&["tier", "set", "basic"], &limits[..], recovery].concat());
    assert_eq!(set(&["--recovery-days", "7"])[0]["recovery_days"], 7);
    // Not named it stays: nobody loses his past by a change of something else.
    assert_eq!(set(&[])[0]["recovery_days"], 7);
    assert_eq!((days("acme"), days("globex")), (json!(7), json!(30)));
    let (window, why) = in_force(&platform);
    assert!(window == 30 && why.contains("the platform is set to it"), "{window}: {why}");

    platform.cli(&["tenant", "update", "acme", "--recovery-days", "60"]);
    assert_eq!(days("acme"), 60);
    let (window, why) = in_force(&platform);
    assert!(window == 60 && why.contains("tenant `acme` has a limit of its own"), "{window}: {why}");
    let status = platform.cli(&["archive", "status"]);
    let windows = status["windows"].as_array().expect("windows").iter();
    let windows: Vec<_> = windows.map(|one| (one["recovery_days"].clone(), one["tenants"].clone())).collect();
    assert_eq!(windows, [(json!(60), json!(1)), (json!(30), json!(1))]);

    for days in ["0", "3651"] {
        let refused = platform.try_cli(&["tenant", "update", "acme", "--recovery-days", days]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("recovery_days must be 1 to 3650"), "{said}");
    }
    platform.cli(&["tenant", "update", "acme", "--recovery-days", "tier"]);
    assert_eq!(days("acme"), 7);
    assert_eq!(set(&["--recovery-days", "platform"])[0]["recovery_days"], Value::Null);
    assert_eq!(days("acme"), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_import_there_is_a_snapshot_and_a_restore_to_it_leads_to_no_other() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    platform.cli(&["backup", "run"]);
    let import =
        "INSERT INTO public.items (id, value) SELECT n, 'imported' FROM generate_series(2001, 122000) n";
    platform.as_superuser("acme", import).await;
    let taken = |platform: &Platform| -> Vec<Value> {
        let all = platform.cli(&["snapshot", "list", "acme"]).as_array().cloned().unwrap_or_default();
        let by_itself = |one: &Value| one["name"].as_str().is_some_and(|name| name.starts_with("after "));
        all.into_iter().filter(by_itself).collect()
    };
    let measure = "UPDATE public.tenant_usage SET measured_at = '-infinity'";
    for _ in 0..60 {
        platform.as_superuser("loomworks_mgmt", measure).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        if !taken(&platform).is_empty() {
            break;
        }
    }
    platform.wait_for("the snapshot to be ready", |platform| {
        taken(platform).first().is_some_and(|one| one["state"] == "ready")
    });
    let snapshot = taken(&platform).remove(0);
    assert_eq!(snapshot["snapshot_type"], "auto");
    let id = snapshot["id"].as_str().expect("an id").to_owned();
    platform.as_superuser("acme", "DELETE FROM public.items").await;
    platform.cli(&["restore", "run", "acme", "--snapshot", &id, "--yes"]);
    let count =
        platform.as_superuser("acme", "SELECT count(*)::text FROM public.items WHERE id > 2000").await;
    assert_eq!(count, "120000");
    // Neither what was deleted before the restore nor what it brought back is counted, however long ago the last one was.
    let earlier = "UPDATE public.snapshots SET created_at = created_at - interval '1 hour'";
    platform.as_superuser("loomworks_mgmt", earlier).await;
    for _ in 0..2 {
        platform.as_superuser("loomworks_mgmt", measure).await;
        platform.wait_for("the tenant to be measured", |platform| {
            let waiting = "SELECT count(*)::text FROM tenant_usage WHERE measured_at = '-infinity'";
            let busy = "SELECT count(*)::text FROM jobs WHERE kind = 'measure_usage' AND finished_at IS NULL";
            platform.management_query(waiting) == "0" && platform.management_query(busy) == "0"
        });
    }
    assert_eq!(taken(&platform).len(), 1);
}
