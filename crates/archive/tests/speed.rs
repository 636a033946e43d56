//! How fast backups are, on a cluster like the one that other tools were measured on: 18 databases of pgbench's scale 5,
//! two of scale 30, about 2.5 GB.
//!
//! `cargo test --release -p loomworks-archive --test speed -- --ignored --nocapture`

#![expect(clippy::print_stdout, reason = "measurements are for who runs them")]

mod support;

use std::time::Instant;

use loomworks_archive::backup::{Backup, CopyOptions, Databases};
use support::{Fixture, QUIET, only, run};

async fn copied(fixture: &Fixture, label: &str, full: bool) -> Backup {
    let options = CopyOptions { full, workers: None };
    let (begun, cpu_begun) = (Instant::now(), cpu_seconds());
    let backup = fixture.repository.copy_backup(fixture.cluster(), label, options, QUIET).await.unwrap();
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu_begun);
    let (mb, new) = (backup.size_bytes as f64 / 1e6, backup.new_bytes as f64 / 1e6);
    println!(
        "{label}: {seconds:.2} s, {mb:.0} MB, {:.0} MB/s, stored {new:.2} MB, CPU {cpu:.2} s",
        mb / seconds
    );
    fixture.archive_wal(&backup).await;
    fixture.repository.commit_backup(&backup).await.unwrap();
    backup
}

/// Of this process.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures, and takes minutes"]
async fn speed() {
    let fixture = Fixture::new().await;
    let mut oids = Vec::new();
    for number in 0..20 {
        let name = format!("tenant{number}");
        oids.push(fixture.database(&name, 10).await);
        let scale = if number < 18 { "5" } else { "30" };
        let (socket, port) =
            (fixture.cluster().socket_directory.to_string_lossy(), fixture.cluster().port.to_string());
        let arguments = ["-i", "-q", "-s", scale, "-h", &socket, "-p", &port, "-U", "postgres", &name];
        fixture.cluster().installation.run("pgbench", arguments).await.unwrap();
    }
    run(&mut fixture.connect("postgres").await, "CHECKPOINT").await;
    copied(&fixture, "full", true).await;
    copied(&fixture, "full-again", true).await;
    copied(&fixture, "unchanged", false).await;
    copied(&fixture, "unchanged-again", false).await;
    for number in 0..20 {
        let change = "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 6100 = 0";
        run(&mut fixture.connect(&format!("tenant{number}")).await, change).await;
    }
    run(&mut fixture.connect("postgres").await, "CHECKPOINT").await;
    let backup = copied(&fixture, "one-percent", false).await;

    for (what, which) in [("all", Databases::All), ("small", only([oids[0]])), ("large", only([oids[19]]))] {
        let (begun, cpu_begun) = (Instant::now(), cpu_seconds());
        let (directory, laid_out) = fixture.lay_out(&backup, &which).await;
        let (seconds, mb) = (begun.elapsed().as_secs_f64(), laid_out.bytes as f64 / 1e6);
        let cpu = cpu_seconds() - cpu_begun;
        println!("lay out {what}: {seconds:.2} s, {mb:.0} MB, {:.0} MB/s, CPU {cpu:.2} s", mb / seconds);
        std::fs::remove_dir_all(directory).unwrap();
    }
    let (begun, cpu_begun) = (Instant::now(), cpu_seconds());
    let report = fixture.repository.verify_backup(&backup.label, QUIET).await.unwrap();
    let (seconds, mb) = (begun.elapsed().as_secs_f64(), report.bytes as f64 / 1e6);
    println!(
        "verify: {seconds:.2} s, {mb:.0} MB, {:.0} MB/s, CPU {:.2} s",
        mb / seconds,
        cpu_seconds() - cpu_begun
    );
    assert!(report.is_sound(), "{report:?}");
}
