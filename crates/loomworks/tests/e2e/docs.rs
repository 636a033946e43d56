//! What a page tells people to type does what the page says.

use std::process::Command;

use crate::platform::{App, Platform};

const PAGE: &str = include_str!("../../../../docs/how-to/manage-tenants.md");

/// The page's commands in their order, but for those that say what the reader has to put in.
fn commands() -> String {
    let blocks = PAGE.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("\n```"));
    let mut commands = "set -euo pipefail\n".to_owned();
    for (block, _) in blocks.filter(|(block, _)| !block.contains('…')) {
        commands.push_str(block);
        commands.push('\n');
    }
    commands
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requests_of_a_tenants_whole_life_work_as_they_are_written_down() {
    let platform = Platform::start(&App::OneTable);
    let output = Command::new("bash")
        .args(["-c", &commands()])
        .env("KEY", platform.operator_key())
        .env("API", platform.url("/v1"))
        .output()
        .expect("run bash");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("\"state\": \"active\"") && said.contains("75\n50\n"), "{said}");
    assert!(said.contains("[\n  \"initech\"\n]") && said.contains("\"unpaid since May\""), "{said}");
    assert!(said.ends_with("\ntrue\n"), "all of it is gone: {said}");
}
