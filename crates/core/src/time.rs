//! The clock, in one place.

use jiff::Timestamp;

/// The time now. Decisions take the time as an argument; this is for whoever calls them.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub fn now() -> Timestamp {
    Timestamp::now()
}
