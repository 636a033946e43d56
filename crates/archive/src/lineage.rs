//! Timelines: which came before which, and up to where each counts.

use loomworks_core::lsn::Lsn;

/// A timeline and those that it came from, newest first.
///
/// What an older timeline holds counts up to the position where the next one left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage(Vec<(u32, Lsn)>);

impl Lineage {
    /// A timeline that came from none.
    #[must_use]
    pub fn first(timeline: u32) -> Self {
        Self(vec![(timeline, Lsn(u64::MAX))])
    }

    /// Reads a timeline's history file: `parent<TAB>position<TAB>reason` in a line each, oldest first. Source:
    /// PostgreSQL `src/backend/access/transam/timeline.c`.
    #[must_use]
    pub fn from_history(timeline: u32, content: &str) -> Option<Self> {
        let mut ancestors = Vec::new();
        let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            let mut fields = line.split_whitespace();
            let parent: u32 = fields.next()?.parse().ok()?;
            let end: Lsn = fields.next()?.parse().ok()?;
            if parent >= timeline
                || ancestors.last().is_some_and(|&(before, at)| before >= parent || at > end)
            {
                return None;
            }
            ancestors.push((parent, end));
        }
        let mut all = vec![(timeline, Lsn(u64::MAX))];
        all.extend(ancestors.into_iter().rev());
        Some(Self(all))
    }

    #[must_use]
    pub fn timeline(&self) -> u32 {
        self.0[0].0
    }

    /// The timelines, newest first, each with the position up to which it counts.
    pub fn timelines(&self) -> impl DoubleEndedIterator<Item = (u32, Lsn)> + '_ {
        self.0.iter().copied()
    }

    /// The timeline that the segment holding `lsn` is read from: the newest that has it. Its first segment repeats what
    /// the one before it had of that segment.
    #[must_use]
    pub fn of_segment(&self, number: u64, segment_bytes: u64) -> u32 {
        let last = self.0.iter().rev().find(|(_, end)| end.0 / segment_bytes > number);
        last.map_or(self.timeline(), |&(timeline, _)| timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_newest_first() {
        let history =
            "1\t0/3000148\tno recovery target specified\n\n# a comment\n2\t0/5000000\tbefore 2026\n";
        let lineage = Lineage::from_history(4, history).unwrap();
        let all: Vec<_> = lineage.timelines().collect();
        assert_eq!(all, [(4, Lsn(u64::MAX)), (2, Lsn(0x500_0000)), (1, Lsn(0x300_0148))]);
    }

    #[test]
    fn each_segment_is_of_the_newest_timeline_that_has_it() {
        let lineage = Lineage::from_history(3, "1\t0/3000148\tx\n2\t0/5000000\tx\n").unwrap();
        let of = |number| lineage.of_segment(number, 16 << 20);
        assert_eq!((1..=2).map(of).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(of(3), 2, "the segment in which timeline 2 began");
        assert_eq!(of(4), 2);
        assert_eq!(of(5), 3, "it left timeline 2 where segment 5 begins");
        assert_eq!(Lineage::first(7).of_segment(99, 1 << 20), 7);
    }

    #[test]
    fn what_is_no_history_is_refused() {
        for text in ["x", "1", "1 y", "5 0/1", "2 0/5\n1 0/6", "1 0/6\n2 0/5"] {
            assert_eq!(Lineage::from_history(4, text), None, "{text:?}");
        }
    }
}
