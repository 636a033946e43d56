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

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_follow_what_happens_and_the_log_is_json() {
    let mut platform = Platform::start(&App::OneTable);
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    // Sampled every few seconds.
    let mut samples = BTreeMap::new();
    for _ in 0..300 {
        samples = scrape(&platform).await;
        if samples.get(r#"loomworks_tenants{state="active"}"#) == Some(&1.0) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(samples.get(r#"loomworks_tenants{state="active"}"#), Some(&1.0), "{samples:#?}");
    assert_eq!(samples.get("loomworks_postgresql_up"), Some(&1.0));
    let created = r#"loomworks_api_requests_total{method="POST",route="/v1/tenants",status="202"}"#;
    assert_eq!(samples.get(created), Some(&1.0), "{samples:#?}");
    assert!(!format!("{samples:?}").contains("acme"), "a tenant's name is a label");

    // PostgreSQL away: not ready, and said so.
    platform.stop();
    let log = platform.json_log();
    assert!(!log.is_empty());
    for line in &log {
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
    let answered: Vec<&Value> = log.iter().filter(|line| line["fields"]["route"] == "/v1/tenants").collect();
    assert!(!answered.is_empty() && answered.iter().all(|line| line["fields"]["request_id"].is_string()));
}
