//! When something that happens once a day is due.

use jiff::{Timestamp, civil, tz::TimeZone};

/// A time of day in UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Daily(pub civil::Time);

impl Default for Daily {
    /// 02:00 UTC, when base backups are taken unless told otherwise.
    fn default() -> Self {
        Self(civil::time(2, 0, 0, 0))
    }
}

impl Daily {
    /// The latest moment at or before `now` at which it was due.
    #[must_use]
    pub fn last_due(self, now: Timestamp) -> Timestamp {
        let today = now.to_zoned(TimeZone::UTC).date();
        let at = |date: civil::Date| {
            let moment = date.to_datetime(self.0).to_zoned(TimeZone::UTC);
            moment.map_or(Timestamp::MIN, |zoned| zoned.timestamp())
        };
        let due_today = at(today);
        if due_today <= now { due_today } else { today.yesterday().map_or(Timestamp::MIN, at) }
    }

    /// Whether it is due now, given when it was last done.
    #[must_use]
    pub fn is_due(self, last_done: Option<Timestamp>, now: Timestamp) -> bool {
        last_done.is_none_or(|done| done < self.last_due(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn it_is_due_once_a_day_after_its_time() {
        let daily = Daily::default();
        let now = at("2026-03-10T03:00:00Z");
        assert_eq!(daily.last_due(now), at("2026-03-10T02:00:00Z"));
        assert!(daily.is_due(Some(at("2026-03-10T01:59:59Z")), now));
        assert!(!daily.is_due(Some(at("2026-03-10T02:00:00Z")), now));
    }

    #[test]
    fn before_its_time_yesterdays_counts() {
        assert_eq!(Daily::default().last_due(at("2026-03-01T01:00:00Z")), at("2026-02-28T02:00:00Z"));
    }

    #[test]
    fn what_was_never_done_is_due() {
        assert!(Daily::default().is_due(None, at("2026-03-10T00:00:00Z")));
    }
}
