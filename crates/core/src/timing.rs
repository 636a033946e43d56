//! When something that is done again and again is next due, all in UTC.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{self, Date};
use jiff::{SignedDuration, Timestamp, ToSpan as _, tz::TimeZone};

/// `every 6h`, or five fields as cron has them: minute, hour, day of the month, month, day of the week.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    text: String,
    rule: Rule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Every(SignedDuration),
    Cron { minutes: Set, hours: Set, days: Set, months: Set, weekdays: Set },
}

/// Numbers below 64, and whether that is all the field can have (`*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set {
    bits: u64,
    all: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoTiming(String);

impl fmt::Display for NoTiming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is neither `every 6h` (s, m, h, d) nor five fields such as `10 3 * * 1-5`", self.0)
    }
}

impl std::error::Error for NoTiming {}

/// A rule that never comes (the 31st of February) is found out after so many days: a leap day may be eight years off.
const DAYS_MAX: usize = 9 * 366;

impl Timing {
    /// Each day at this time.
    #[must_use]
    pub fn daily(at: civil::Time) -> Self {
        let (minute, hour) = (at.minute().cast_unsigned(), at.hour().cast_unsigned());
        let one = |number: u8| Set { bits: 1 << number, all: false };
        let rule = Rule::Cron {
            minutes: one(minute),
            hours: one(hour),
            days: Set::all(1, 31),
            months: Set::all(1, 12),
            weekdays: Set::all(0, 7),
        };
        Self { text: format!("{minute} {hour} * * *"), rule }
    }

    /// The first moment after `now` at which it is due. `None`: there is none.
    #[must_use]
    pub fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        match &self.rule {
            // Counted from the epoch, so that it does not wander with the moments at which it is asked.
            Rule::Every(interval) => {
                let turns = now.as_second().div_euclid(interval.as_secs()) + 1;
                Timestamp::from_second(turns.checked_mul(interval.as_secs())?).ok()
            }
            Rule::Cron { minutes, hours, days, months, weekdays } => {
                let start = (now + SignedDuration::from_mins(1)).to_zoned(TimeZone::UTC).datetime();
                let mut date = start.date();
                let mut earliest = (start.hour(), start.minute());
                for _ in 0..DAYS_MAX {
                    if months.has(date.month()) && is_day(date, days, weekdays) {
                        let times = (0..24).flat_map(|hour| (0..60).map(move |minute| (hour, minute)));
                        let mut fits =
                            times.filter(|(hour, minute)| hours.has(*hour) && minutes.has(*minute));
                        if let Some((hour, minute)) = fits.find(|time| *time >= earliest) {
                            let moment = date.at(hour, minute, 0, 0).to_zoned(TimeZone::UTC).ok()?;
                            return Some(moment.timestamp());
                        }
                    }
                    date = date.checked_add(1.day()).ok()?;
                    earliest = (0, 0);
                }
                None
            }
        }
    }
}

/// As cron has it: where both kinds of day are named, either will do.
fn is_day(date: Date, days: &Set, weekdays: &Set) -> bool {
    let day = days.has(date.day());
    let weekday = weekdays.has(date.weekday().to_sunday_zero_offset());
    if days.all || weekdays.all { day && weekday } else { day || weekday }
}

impl Set {
    fn has(&self, number: i8) -> bool {
        self.bits & (1 << number) != 0
    }

    fn all(lowest: u8, highest: u8) -> Self {
        Self { bits: (lowest..=highest).fold(0, |bits, number| bits | 1 << number), all: true }
    }

    /// Reads `*`, `5`, `1-5`, `*/10`, `0-30/5` and lists of these.
    fn parse(text: &str, lowest: u8, highest: u8) -> Option<Self> {
        let mut bits = 0;
        for part in text.split(',') {
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, number(step)?),
                None => (part, 1),
            };
            let (from, to) = match range.split_once('-') {
                _ if range == "*" => (lowest, highest),
                Some((from, to)) => (number(from)?, number(to)?),
                None => (number(range)?, number(range)?),
            };
            if step == 0 || from < lowest || to > highest || from > to {
                return None;
            }
            bits |= (from..=to).step_by(usize::from(step)).fold(0, |bits, number| bits | 1_u64 << number);
        }
        Some(Self { bits, all: text == "*" })
    }
}

fn number(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

impl FromStr for Timing {
    type Err = NoTiming;

    fn from_str(text: &str) -> Result<Self, NoTiming> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let rule = match fields[..] {
            ["every", interval] => every(interval).map(Rule::Every),
            [minute, hour, day, month, weekday] => cron([minute, hour, day, month, weekday]),
            _ => None,
        };
        let rule = rule.ok_or_else(|| NoTiming(text.to_owned()))?;
        Ok(Self { text: fields.join(" "), rule })
    }
}

fn every(text: &str) -> Option<SignedDuration> {
    let unit = text.chars().last()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let count: i64 = text[..text.len() - 1].parse().ok()?;
    // A year at most: what comes less often has a day in the calendar.
    let seconds = count.checked_mul(seconds).filter(|seconds| (1..=366 * 86_400).contains(seconds))?;
    Some(SignedDuration::from_secs(seconds))
}

fn cron([minute, hour, day, month, weekday]: [&str; 5]) -> Option<Rule> {
    let mut weekdays = Set::parse(weekday, 0, 7)?;
    // Sunday is both 0 and 7.
    weekdays.bits |= u64::from(weekdays.has(7));
    Some(Rule::Cron {
        minutes: Set::parse(minute, 0, 59)?,
        hours: Set::parse(hour, 0, 23)?,
        days: Set::parse(day, 1, 31)?,
        months: Set::parse(month, 1, 12)?,
        weekdays,
    })
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(timing: &str, now: &str) -> String {
        let timing: Timing = timing.parse().unwrap();
        assert_eq!(timing.to_string().parse(), Ok(timing.clone()));
        timing.next_after(now.parse().unwrap()).map_or("never".into(), |next| next.to_string())
    }

    #[test]
    fn times_of_day() {
        assert_eq!(after("10 3 * * *", "2026-03-10T03:09:59Z"), "2026-03-10T03:10:00Z");
        assert_eq!(after("10 3 * * *", "2026-03-10T03:10:00Z"), "2026-03-11T03:10:00Z", "after, not at");
        assert_eq!(after("*/15 * * * *", "2026-12-31T23:50:00Z"), "2027-01-01T00:00:00Z");
        assert_eq!(after("5,35 8-9 * * *", "2026-03-10T09:06:00Z"), "2026-03-10T09:35:00Z");
        let daily = Timing::daily(civil::time(3, 10, 0, 0));
        assert_eq!(daily, "10 3 * * *".parse().unwrap());
    }

    #[test]
    fn days() {
        assert_eq!(after("0 0 29 2 *", "2026-03-10T00:00:00Z"), "2028-02-29T00:00:00Z");
        assert_eq!(after("0 0 31 2 *", "2026-03-10T00:00:00Z"), "never");
        // The 10th of March 2026 is a Tuesday.
        assert_eq!(after("0 6 * * 1-5", "2026-03-13T06:00:00Z"), "2026-03-16T06:00:00Z");
        assert_eq!(after("0 6 * * 7", "2026-03-10T00:00:00Z"), "2026-03-15T06:00:00Z");
        assert_eq!(after("0 6 12 * 0", "2026-03-10T00:00:00Z"), "2026-03-12T06:00:00Z", "either will do");
    }

    #[test]
    fn intervals_do_not_wander() {
        assert_eq!(after("every 6h", "2026-03-10T05:59:59Z"), "2026-03-10T06:00:00Z");
        assert_eq!(after("every 6h", "2026-03-10T06:00:00Z"), "2026-03-10T12:00:00Z");
        assert_eq!(after("every 90s", "1970-01-01T00:01:30Z"), "1970-01-01T00:03:00Z");
    }

    #[test]
    fn what_is_no_timing_is_refused() {
        let texts = ["", "every", "every 0s", "every 6x", "every -1h", "every 6é", "* * * *", "60 * * * *"];
        let more = ["* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "5-1 * * * *", "*/0 * * * *"];
        for text in
            texts.into_iter().chain(more).chain(["+5 * * * *", "1- * * * *", "a * * * *", "* * * * * *"])
        {
            assert!(text.parse::<Timing>().is_err(), "{text}");
        }
    }
}
