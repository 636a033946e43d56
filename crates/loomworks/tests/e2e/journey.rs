//! The journey that `loomworks demo` shows, on a platform that has just been made.

use serde_json::Value;

use crate::platform::{App, Platform};

#[test]
fn the_demo_passes_on_a_new_platform_and_again_after_a_restart() {
    let mut platform = Platform::start(&App::Erp);
    for _ in 0..2 {
        let output = platform.try_cli(&["demo"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && report["ok"] == true, "{errors}{report:#}");
        let steps = report["steps"].as_array().expect("steps");
        assert_eq!(steps.len(), 15, "{report:#}");
        for step in steps {
            assert!(
                step["name"].is_string() && step["ok"] == true && step["milliseconds"].is_u64(),
                "{step:#}"
            );
        }
        platform.stop();
        platform.serve(None);
    }
    // A gateway is alive once it has said so.
    platform
        .wait_for("the doctor to find all well", |platform| platform.try_cli(&["doctor"]).status.success());
}
