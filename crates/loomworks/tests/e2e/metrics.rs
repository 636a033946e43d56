//! What is measured, as a Prometheus server would scrape it, and the log as a collector would read it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::platform::{App, Platform};

/// The samples of the text format by name and labels. Fails on what is not valid in it.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let (mut samples, mut described, mut typed) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (word, name, rest) = (words.next(), words.next(), words.next());
            let name = name.expect("a name").to_owned();
            assert!(rest.is_some_and(|rest| !rest.is_empty()), "{line}");
            match word {
                Some("HELP") => assert!(described.insert(name), "described twice: {line}"),
                Some("TYPE") => assert!(typed.insert(name), "two types: {line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a sample");
        let family = series.split('{').next().expect("a name");
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| family.strip_suffix(end));
        let known = |names: &BTreeSet<String>| {
            names.contains(family) || base.is_some_and(|base| names.contains(base))
        };
        assert!(known(&described) && known(&typed), "neither described nor typed: {line}");
        let value: f64 = value.parse().expect("a number");
        assert!(samples.insert(series.to_owned(), value).is_none(), "there twice: {series}");
    }
    samples
}

async fn scrape(platform: &Platform) -> BTreeMap<String, f64> {
    let url = format!("http://127.0.0.1:{}/metrics", platform.metrics);
    let answer = reqwest::get(url).await.expect("scrape");
    assert!(answer.headers()["content-type"].to_str().expect("text").starts_with("text/plain"));
    parse(&answer.text().await.expect("a body"))
}

/// Scrapes until a series has a value. States are sampled every few seconds.
async fn scrape_until(platform: &Platform, series: &str, value: f64) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    for _ in 0..600 {
        samples = scrape(platform).await;
        if samples.get(series) == Some(&value) {
            return samples;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{series} is not {value}: {samples:#?}");
}

/// Whether the platform says that it is ready, and what it says.
async fn ready(platform: &Platform) -> (u16, String) {
    let answer = reqwest::get(platform.url("/health/ready")).await.expect("ask");
    (answer.status().as_u16(), answer.text().await.expect("a body"))
}

/// Asks until the platform is ready, or is not; gives what it said.
async fn ready_until(platform: &Platform, wanted: u16) -> String {
    let mut said = (0, String::new());
    for _ in 0..600 {
        said = ready(platform).await;
        if said.0 == wanted {
            return said.1;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("not {wanted} but {said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_follow_what_happens_and_the_log_is_json() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let samples = scrape_until(&platform, r#"loomworks_tenants{state="active"}"#, 1.0).await;
    assert_eq!(samples.get("loomworks_postgresql_up"), Some(&1.0));
    for state in ["waiting", "running"] {
        for queue in ["high_priority", "default", "low_priority"] {
            let age = format!(r#"loomworks_job_age_seconds{{state="{state}",queue="{queue}"}}"#);
            assert!(samples.get(&age).is_some_and(|age| *age >= 0.0), "{age}: {samples:#?}");
        }
    }
    for level in ["nearly_full", "full"] {
        let tenants = format!(r#"loomworks_quota_tenants{{quota="storage",level="{level}"}}"#);
        assert_eq!(samples.get(&tenants), Some(&0.0), "{samples:#?}");
    }
    let created = r#"loomworks_api_requests_total{method="POST",route="/v1/tenants",status="202"}"#;
    assert_eq!(samples.get(created), Some(&1.0), "{samples:#?}");
    assert!(!format!("{samples:?}").contains("acme"), "a tenant's name is a label");

    let full = "INSERT INTO tenant_usage (tenant_id, storage_level) SELECT id, 'full' FROM tenants
                ON CONFLICT (tenant_id) DO UPDATE SET storage_level = 'full'";
    platform.as_superuser("loomworks_mgmt", full).await;
    scrape_until(&platform, r#"loomworks_quota_tenants{quota="storage",level="full"}"#, 1.0).await;

    // PostgreSQL away, and not to be started for a while: alive, not ready, and both are said.
    ready_until(&platform, 204).await;
    let (control, aside) =
        (platform.data().join("pg/global/pg_control"), platform.data().join("pg/pg_control.aside"));
    loomworks_core::durable::rename(&control, &aside).expect("stand in the way");
    platform.kill_postgresql();
    let problem = ready_until(&platform, 503).await;
    let problem: Value = serde_json::from_str(&problem).expect("JSON");
    assert_eq!(problem["code"], "not_ready", "{problem}");
    assert!(problem.to_string().contains("the management database"), "{problem}");
    let samples = scrape_until(&platform, "loomworks_postgresql_up", 0.0).await;
    assert_eq!(samples.get(r#"loomworks_tenants{state="active"}"#), Some(&1.0), "as it was: {samples:#?}");
    let live = reqwest::get(platform.url("/health/live")).await.expect("ask");
    assert_eq!(live.status().as_u16(), 204);
    loomworks_core::durable::rename(&aside, &control).expect("stand aside");
    ready_until(&platform, 204).await;
    scrape_until(&platform, "loomworks_postgresql_up", 1.0).await;

    platform.stop();
    let log = platform.json_log();
    assert!(!log.is_empty());
    for line in &log {
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
    let answered: Vec<&Value> = log.iter().filter(|line| line["fields"]["route"] == "/v1/tenants").collect();
    assert!(!answered.is_empty() && answered.iter().all(|line| line["fields"]["request_id"].is_string()));
}
