//! The reference pages, made from the program itself.
//!
//! `LOOMWORKS_UPDATE_REFERENCE=1 cargo test -p loomworks reference` writes them; otherwise these tests fail when a page
//! and the program say different things.

use std::fmt::Write;
use std::path::Path;

use clap::{Command, CommandFactory};

use crate::settings::Arguments;

#[test]
fn the_command_line_is_as_its_reference_says() {
    let mut command = Arguments::command().term_width(100);
    command.clone().debug_assert();
    command.build();
    let mut page = String::from("# The command line\n\nMade by a test from the program itself.\n");
    describe(&mut command, &mut page);
    check("cli.md", &page);
}

#[test]
fn the_version_is_the_one_of_the_version_file() {
    let file = include_str!("../../../VERSION");
    assert_eq!(file.lines().next(), Some(concat!("LOOMWORKS_VERSION=", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn the_api_is_as_its_reference_says() {
    let document = serde_json::to_string_pretty(&loomworks_web::openapi()).expect("JSON");
    check("openapi.json", &(document + "\n"));
}

/// A command, then the ones below it.
fn describe(command: &mut Command, page: &mut String) {
    let name = command.get_bin_name().unwrap_or("loomworks").to_owned();
    // What is set where the page is made is nobody's business.
    *command = command.clone().mut_args(|argument| argument.hide_env_values(true));
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(page, "\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    for below in command.get_subcommands_mut().filter(|below| below.get_name() != "help") {
        describe(below, page);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test is told by its environment to write instead of compare"
)]
fn check(name: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(name);
    if std::env::var("LOOMWORKS_UPDATE_REFERENCE").is_ok() {
        std::fs::write(&path, made).expect("write the page");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == made,
        "docs/reference/{name} is out of date: run `LOOMWORKS_UPDATE_REFERENCE=1 cargo test -p loomworks reference`"
    );
}
