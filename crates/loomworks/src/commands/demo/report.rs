//! What the demo tells: each step with its time and its comparisons.

use std::time::Instant;

use serde::Serialize;

use crate::output::{self, Failure};

/// One step of the journey.
#[derive(Serialize)]
pub(super) struct Step {
    name: &'static str,
    ok: bool,
    milliseconds: u64,
    notes: Vec<String>,
    checks: Vec<Check>,
    #[serde(skip)]
    began: Option<Instant>,
}

/// Something that must be so.
#[derive(Serialize)]
struct Check {
    what: String,
    ok: bool,
    expected: String,
    found: String,
}

/// All steps so far.
pub(super) struct Report {
    json: bool,
    steps: Vec<Step>,
}

impl Step {
    pub(super) fn begin(name: &'static str) -> Self {
        Self { name, ok: true, milliseconds: 0, notes: vec![], checks: vec![], began: Some(Instant::now()) }
    }

    /// Ends the step's time before the checks, so that comparing is not counted as doing.
    pub(super) fn stop_clock(&mut self) {
        if let Some(began) = self.began.take() {
            self.milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Both must be the same.
    pub(super) fn same(&mut self, what: impl Into<String>, expected: impl ToString, found: impl ToString) {
        let (expected, found) = (expected.to_string(), found.to_string());
        let ok = expected == found;
        self.ok &= ok;
        self.checks.push(Check { what: what.into(), ok, expected, found });
    }
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self { json, steps: vec![] }
    }

    /// Takes a step that has ended and tells about it.
    pub(super) fn add(&mut self, mut step: Step) {
        step.stop_clock();
        if !self.json {
            let mark = if step.ok { "ok " } else { "BAD" };
            output::line(format!("{mark}  {:>7} ms  {}", step.milliseconds, step.name));
            for note in &step.notes {
                output::line(format!("                 {note}"));
            }
            for check in &step.checks {
                let result = if check.ok { "same" } else { "DIFFERENT" };
                output::line(format!("                 {}: {result} ({})", check.what, check.found));
                if !check.ok {
                    output::line(format!("                     expected {}", check.expected));
                }
            }
        }
        self.steps.push(step);
    }

    /// Whether all is well.
    pub(super) fn finish(&self) -> Result<bool, Failure> {
        let ok = self.steps.iter().all(|step| step.ok);
        if self.json {
            output::json(&serde_json::json!({ "ok": ok, "steps": self.steps }))?;
        } else if ok {
            output::line("All of it holds.");
        }
        Ok(ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_difference_makes_the_whole_bad() {
        let mut report = Report::new(false);
        let mut step = Step::begin("undo");
        step.same("contents", "a", "a");
        report.add(step);
        assert!(report.finish().unwrap());
        let mut step = Step::begin("restore");
        step.same("contents", "a", "b");
        step.same("contents", "a", "a");
        report.add(step);
        assert!(!report.finish().unwrap());
    }
}
