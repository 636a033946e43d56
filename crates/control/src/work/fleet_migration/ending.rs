//! How a fleet migration ends: by what is left of it, and by what somebody has said. Decisions alone.

use serde_json::Value;

use crate::db::fleet::{Counts, Definition, FleetMigration, Standing};
use crate::db::notifications::Severity;
use crate::notifications::Notice;

/// How many tenants have failed that nobody has seen, when that is as many as may.
pub(super) fn too_many_failed(definition: &Definition, standing: &Standing, counts: &Counts) -> Option<i64> {
    let new = counts.failed - i64::from(standing.failures_accepted);
    let limit = i64::from(definition.stop_after_failures);
    (limit > 0 && new >= limit).then_some(new)
}

/// What a migration is when its job is at its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    State(&'static str, Option<String>),
    /// As somebody has said meanwhile, or as the last wave left it.
    AsItIs,
    /// It was resumed a moment ago.
    NotYet,
}

pub(super) fn end(definition: &Definition, standing: &Standing, counts: &Counts) -> End {
    match (standing.state.as_str(), counts.waiting + counts.running, counts.failed) {
        // A pause that came when there was nobody left to wait is none.
        ("running" | "paused", 0, 0) => End::State("succeeded", None),
        ("running" | "paused", 0, failed) => End::State("failed", Some(format!("{failed} tenants failed"))),
        ("running", _, _) => match too_many_failed(definition, standing, counts) {
            Some(new) => End::State("stopped", Some(format!("{new} tenants failed"))),
            None => End::NotYet,
        },
        _ => End::AsItIs,
    }
}

/// What people are told of it.
pub(super) fn notice(shown: &FleetMigration, detail: Value) -> Notice {
    let severity = match shown.state.as_str() {
        "stopped" | "failed" => Severity::Warning,
        _ => Severity::Info,
    };
    let reason = shown.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let message = format!("fleet migration `{}` is {}{reason}: {}", shown.name, shown.state, shown.progress);
    Notice { event: "fleet_migration.ended", severity, message, detail }
}

#[cfg(test)]
mod tests {
    use loomworks_core::ids::FleetMigrationId;
    use serde_json::json;

    use super::*;

    fn definition(stop_after_failures: i32) -> Definition {
        Definition {
            id: FleetMigrationId::random(),
            name: "test".into(),
            sql: "SELECT 1".into(),
            selection: json!({}),
            canaries: 1,
            wave_size: 1,
            concurrency: 1,
            snapshot_before: false,
            statement_timeout_seconds: 1,
            lock_timeout_seconds: 1,
            busy_timeout_seconds: 1,
            stop_after_failures,
            pause_after_canary: false,
            requested_by: "test".into(),
        }
    }

    #[test]
    fn a_migration_ends_by_what_is_left_and_by_what_somebody_said() {
        let end_of = |state: &str, waiting, failed, accepted| {
            let standing = Standing { state: state.into(), failures_accepted: accepted };
            let counts = Counts { waiting, running: 0, applied: 1, failed, skipped: 0, failed_canaries: 0 };
            match end(&definition(2), &standing, &counts) {
                End::State(state, _) => state,
                End::AsItIs => "as it is",
                End::NotYet => "not yet",
            }
        };
        assert_eq!(end_of("running", 0, 0, 0), "succeeded");
        assert_eq!(end_of("running", 0, 1, 0), "failed");
        assert_eq!(end_of("running", 3, 2, 0), "stopped");
        assert_eq!(end_of("running", 3, 2, 1), "not yet");
        assert_eq!(end_of("paused", 3, 2, 0), "as it is");
        assert_eq!(end_of("paused", 0, 0, 0), "succeeded");
        assert_eq!(end_of("paused", 0, 1, 0), "failed");
        for state in ["stopped", "cancelled"] {
            assert_eq!(end_of(state, 0, 0, 0), "as it is");
        }
    }
}
