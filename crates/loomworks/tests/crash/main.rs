//! Every kind of job, cut before and after each of its saves and finished by another worker: the end is the same as
//! that of a run which nobody disturbed.
//!
//! ```text
//! cargo test -p loomworks --test crash               all kinds
//! cargo test -p loomworks --test crash -- restore    those whose names contain it
//! ```
//!
//! Workers are not processes here, which would take an hour, but whole runners in this one. One whose job has come to
//! its cut saves nothing any more and is dropped with all that it has in hand; its lease ends; a runner with another
//! name, a key of its own read from the file and nothing else in its memory goes on. PostgreSQL, the archive, side
//! clusters and files are real. That a process may die is what `e2e/crashes.rs` and `control`'s `stress` are about.
#![allow(clippy::print_stdout, reason = "how many cuts there were is told")]

mod cases;
mod end;
mod stage;

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use loomworks_control::jobs::CrashWhen;
use loomworks_core::durable;
use loomworks_postgres::cluster::account;

use cases::{CASES, Case};
use end::{End, Inventory};
use stage::{Node, Stage};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|word| word == "--list") {
        return;
    }
    let (words, options): (Vec<String>, Vec<String>) =
        arguments.into_iter().partition(|word| !word.starts_with('-'));
    // An exact name is another program's test.
    let wanted = |case: &&Case| words.is_empty() || words.iter().any(|word| case.kind.contains(word));
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    if cases.is_empty() || options.iter().any(|option| option == "--ignored") {
        return;
    }
    leave_root();
    // That a step is tried again is what this is about. What ends a job explains what is not done.
    tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let stage = Stage::set().await;
        every_kind_has_a_case(&stage);
        for case in cases {
            survives_every_cut(&stage, case).await;
        }
    });
}

/// What the name begins with of the directory with root's copies.
const COPIES: &str = "loomworks-crash-";

/// PostgreSQL refuses to run as root, and steps make files that it reads. Goes on as its account, from a copy that it
/// can reach, and does not return.
fn leave_root() {
    let program = std::env::current_exe().expect("this program");
    if !rustix::process::geteuid().is_root() {
        // What root copied for us is needed no more once it runs.
        let is_copy =
            |place: &&Path| place.file_name().is_some_and(|name| name.to_string_lossy().starts_with(COPIES));
        if let Some(place) = program.parent().filter(is_copy) {
            durable::rename(&place.join("loomworks"), &stage::copied_program()).expect("keep the program");
            std::fs::remove_dir_all(place).expect("remove the copy");
        } else {
            std::fs::copy(env!("CARGO_BIN_EXE_loomworks"), stage::copied_program())
                .expect("copy the program");
        }
        return;
    }
    let account = account("postgres").expect("a user `postgres`, made by the package");
    let place = tempfile::Builder::new().prefix(COPIES).tempdir_in("/tmp").expect("a directory").keep();
    let copy = place.join("crash");
    for (from, to) in
        [(program.as_path(), &copy), (Path::new(env!("CARGO_BIN_EXE_loomworks")), &place.join("loomworks"))]
    {
        std::fs::copy(from, to).expect("copy a program");
        chown(to, Some(account.uid), Some(account.gid)).expect("give it away");
    }
    chown(&place, Some(account.uid), Some(account.gid)).expect("give it away");
    let mut command = Command::new(&copy);
    command.args(std::env::args_os().skip(1)).env("HOME", "/tmp").current_dir("/tmp");
    let error = command.uid(account.uid).gid(account.gid).exec();
    panic!("go on as user `postgres`: {error}");
}

/// Who adds a kind adds it to the table.
fn every_kind_has_a_case(stage: &Stage) {
    let mut cases: Vec<&str> = CASES.iter().map(|case| case.kind).collect();
    cases.sort_unstable();
    cases.dedup();
    let kinds: Vec<&str> = stage.world("nobody").kinds.names().collect();
    assert_eq!(cases, kinds, "the table of cases and the kinds that the program knows");
}

async fn survives_every_cut(stage: &Stage, case: &Case) {
    let begun = Instant::now();
    // A run that was cut may have fewer saves: who finds everything done needs no turn for it.
    let (undisturbed, saves) = run(stage, case, None).await;
    let mut cuts = 0;
    // One save after each step; the last is the end, after which nothing is left to be cut.
    for place in case.from..=saves {
        for when in [CrashWhen::BeforeSave, CrashWhen::AfterSave] {
            if place == saves && when == CrashWhen::AfterSave {
                break;
            }
            let (cut, _) = run(stage, case, Some((place, when))).await;
            assert_eq!(cut, undisturbed, "{} was cut at its step {place}, {when:?}", case.kind);
            cuts += 1;
        }
    }
    println!("{}: {cuts} cuts in {:.1} s", case.kind, begun.elapsed().as_secs_f64());
}

/// Starts what the case is about, cuts it there, lets another worker finish it, and looks at the end.
///
/// Gives with it how often the job was saved before its end.
async fn run(stage: &Stage, case: &Case, cut: Option<(i32, CrashWhen)>) -> (End, i32) {
    let begun = (case.start)(stage).await;
    let before = Inventory::take(stage).await;
    let told = cut.map(|(place, when)| stage.cut.ask(begun.job, place, when));
    let first = Node::start(stage, "first");
    match told {
        None => {
            stage.until_all_have_ended(begun.job).await;
            first.stop().await;
        }
        Some(told) => {
            tokio::select! {
                told = told => told.expect("nobody else asks"),
                () = stage.until_ended(begun.job) => panic!("{} did not come to {cut:?}", case.kind),
            }
            first.die().await;
            stage.leases_run_out().await;
            let second = Node::start(stage, "second");
            stage.until_all_have_ended(begun.job).await;
            assert_eq!(stage.finished_by(begun.job).await, "second", "{}", case.kind);
            second.stop().await;
        }
    }
    let after = Inventory::take(stage).await;
    (End::of(stage, &begun, after.since(before)).await, stage.saves_of(begun.job).await)
}
