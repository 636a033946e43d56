//! Whether a row was there when it says, by what was sealed before it.
//!
//! The sealer chains whatever it finds, also what somebody wrote with a date of his choice between old rows. But each
//! sealing notes its transaction, whose number it took after it had read. So a row whose transaction has a larger number
//! began to be written after that sealing:
//!
//! ```text
//! row 41, 42  ◄─ sealed by transaction 900
//!                row 30, transaction 950: why was its id not given out by then, 12 rows ago?
//! row 40      ◄─ sealed by 960; transaction 890: it was under way when 900 sealed, and is as it should be
//! ```

use crate::db::audit::{Sealable, Sealing};

/// For how long a transaction may have been under way before it wrote: a row has the moment at which its transaction
/// began. Microseconds.
const LONGEST: i64 = 3_600_000_000;

/// What had been sealed at some moment.
#[derive(Clone, Copy, Debug)]
struct Known {
    sealing: Sealing,
    /// Of the rows that were sealed by then.
    largest_id: i64,
}

/// The sealings up to a place, in their order.
#[derive(Debug, Default)]
pub(super) struct History {
    known: Vec<Known>,
    /// The database was loaded from another cluster, where the numbers were larger; these are of the new one.
    is_moved: bool,
}

impl History {
    /// Adds a seal.
    pub(super) fn add(&mut self, sealing: Sealing, id: i64) {
        let mut largest_id = id;
        if let Some(last) = self.known.last_mut() {
            largest_id = id.max(last.largest_id);
            if last.sealing == sealing {
                last.largest_id = largest_id;
                return;
            }
            if last.sealing.xid >= sealing.xid {
                self.is_moved = true;
                self.known.clear();
            }
        }
        self.known.push(Known { sealing, largest_id });
    }

    /// Whether something that was sealed before has a later date.
    pub(super) fn was_sealed_later(&self, sealing: Sealing) -> bool {
        self.known.last().is_some_and(|last| last.sealing.sealed_at > sealing.sealed_at)
    }

    /// Why a row that follows cannot have been written when it says, for people.
    pub(super) fn contradiction(&self, row: &Sealable, sealing: Sealing) -> Option<&'static str> {
        let xid: i64 = row.xid.parse().ok()?;
        if xid >= sealing.xid {
            // Rows that were written in another cluster and sealed in this one, by its first sealing.
            let is_from_elsewhere = match &self.known[..] {
                [only] if only.sealing == sealing => self.is_moved,
                [.., last] => last.sealing.xid > sealing.xid,
                [] => false,
            };
            let why = "it names a transaction that had not begun when it was sealed";
            return (!is_from_elsewhere).then_some(why);
        }
        let place = self.known.partition_point(|known| known.sealing.xid <= xid).checked_sub(1)?;
        let before = self.known[place];
        if row.id < before.largest_id {
            return Some("its number lies below numbers that were sealed before it was written");
        }
        // A date that is that of the sealing before says that the clock was set back.
        let last = self.known.iter().rev().find(|known| known.sealing != sealing)?;
        let is_set_back = last.sealing.sealed_at == sealing.sealed_at;
        let is_old = row.at < before.sealing.sealed_at - LONGEST;
        (is_old && !is_set_back).then_some("its date lies long before what was sealed before it was written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = LONGEST;

    fn sealing(xid: i64, sealed_at: i64) -> Sealing {
        Sealing { sealed_at, xid }
    }

    fn row(id: i64, xid: i64, at: i64) -> Sealable {
        Sealable {
            id,
            at,
            actor: "a".into(),
            action: "b".into(),
            tenant_id: None,
            detail: "{}".into(),
            origin: String::new(),
            xid: xid.to_string(),
        }
    }

    fn history(seals: &[(Sealing, i64)]) -> History {
        let mut history = History::default();
        for (sealing, id) in seals {
            history.add(*sealing, *id);
        }
        history
    }

    #[test]
    fn a_row_that_was_under_way_is_as_it_should_be_and_one_that_began_later_is_not() {
        let history = history(&[(sealing(900, 10 * HOUR), 41), (sealing(900, 10 * HOUR), 42)]);
        let now = sealing(960, 10 * HOUR + 2);
        let why = |row| history.contradiction(&row, now);
        assert_eq!(why(row(40, 890, 0)), None, "its transaction had its number, and took its time");
        assert_eq!(why(row(43, 950, 10 * HOUR + 1)), None);
        assert_eq!(why(row(43, 950, 9 * HOUR + 1)), None, "it began long before it wrote");
        assert!(why(row(30, 950, 10 * HOUR + 1)).is_some_and(|why| why.contains("number lies below")));
        assert!(why(row(43, 950, 9 * HOUR - 1)).is_some_and(|why| why.contains("date")));
        assert!(why(row(30, 961, 10 * HOUR)).is_some_and(|why| why.contains("had not begun")));
    }

    #[test]
    fn what_waited_long_for_its_seal_and_a_clock_that_was_set_back_contradict_nothing() {
        // Two thousand rows that were there when the sealer came back after a day.
        let backlog = history(&[(sealing(10, 0), 1), (sealing(5000, 24 * HOUR), 1001)]);
        assert_eq!(backlog.contradiction(&row(1002, 1500, HOUR), sealing(5001, 24 * HOUR + 1)), None);
        let set_back = history(&[(sealing(10, 24 * HOUR), 1)]);
        assert_eq!(set_back.contradiction(&row(2, 20, HOUR), sealing(30, 24 * HOUR)), None);
        assert!(!set_back.was_sealed_later(sealing(30, 24 * HOUR)));
        assert!(set_back.was_sealed_later(sealing(30, 24 * HOUR - 1)));
    }

    #[test]
    fn in_another_cluster_the_numbers_begin_anew() {
        let mut moved = history(&[(sealing(9000, 0), 7)]);
        assert_eq!(moved.contradiction(&row(8, 9001, 1), sealing(50, 10 * HOUR)), None, "written over there");
        moved.add(sealing(50, 10 * HOUR), 8);
        assert_eq!(moved.contradiction(&row(9, 9002, 1), sealing(50, 10 * HOUR)), None, "with that one");
        moved.add(sealing(50, 10 * HOUR), 9);
        assert_eq!(moved.contradiction(&row(10, 60, 10 * HOUR + 1), sealing(70, 10 * HOUR + 2)), None);
        assert!(moved.contradiction(&row(10, 9003, 1), sealing(70, 10 * HOUR + 2)).is_some());
        assert!(moved.contradiction(&row(3, 60, 1), sealing(70, 10 * HOUR + 2)).is_some());
    }
}
