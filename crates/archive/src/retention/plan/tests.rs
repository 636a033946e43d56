use proptest::prelude::*;
use proptest::sample::Index;

use super::super::Need;
use super::*;

const SEGMENT: u64 = 1 << 20;
const HOUR: i64 = 3600;
const BEGIN: i64 = 1_700_000_000;
const SAFETY_HOURS: i64 = 24;

fn at(hours: i64) -> Timestamp {
    Timestamp::from_second(BEGIN + hours * HOUR).unwrap()
}

fn object(name: String, hours: i64) -> Entry {
    Entry { name, bytes: 1, modified_at: at(hours) }
}

/// A timeline as it was written: from a position on, a segment every few hours.
#[derive(Clone, Debug)]
struct Written {
    lineage: Lineage,
    first: u64,
    /// When each of its segments was full.
    hours: Vec<i64>,
}

impl Written {
    fn begin(&self) -> Lsn {
        self.lineage.timelines().nth(1).map_or(Lsn(0), |(_, end)| end)
    }

    fn end(&self) -> Lsn {
        Lsn((self.first + self.hours.len() as u64) * SEGMENT)
    }

    /// When a position had been reached.
    fn time(&self, lsn: Lsn) -> i64 {
        self.hours[(lsn.0.saturating_sub(1) / SEGMENT).saturating_sub(self.first) as usize]
    }

    fn position(&self, of: Index) -> Lsn {
        let room = self.end().0 - self.begin().0 - 2;
        Lsn(self.begin().0 + 1 + of.index(room as usize) as u64)
    }
}

#[derive(Clone, Debug)]
struct Shape {
    timelines: Vec<(usize, i64, Index, Index)>,
    backups: Vec<(Index, Index, Index, Vec<Index>)>,
    copies: Vec<(i64, Option<Index>)>,
    moments: Vec<(bool, Index, Index)>,
    restores: Vec<(Index, Option<Index>)>,
    window_hours: i64,
    later: i64,
}

prop_compose! {
    fn shape()(
        timelines in proptest::collection::vec((3..30_usize, 1..40_i64, any::<Index>(), any::<Index>()), 1..4),
        backups in proptest::collection::vec(
            (any::<Index>(), any::<Index>(), any::<Index>(), proptest::collection::vec(any::<Index>(), 0..3)), 0..12),
        copies in proptest::collection::vec((0..60_i64, proptest::option::of(any::<Index>())), 0..3),
        moments in proptest::collection::vec((any::<bool>(), any::<Index>(), any::<Index>()), 0..4),
        restores in proptest::collection::vec((any::<Index>(), proptest::option::of(any::<Index>())), 0..3),
        window_hours in 0..900_i64,
        later in 0..300_i64,
    ) -> Shape {
        Shape { timelines, backups, copies, moments, restores, window_hours, later }
    }
}

/// Writes a history down and says when it ends.
fn history(shape: &Shape) -> (Inventory, Vec<Written>, i64) {
    let mut now = 0;
    let mut written: Vec<Written> = Vec::new();
    let mut objects = Vec::new();
    for (number, (segments, step, parent, branch)) in (1_u32..).zip(&shape.timelines) {
        let (lineage, first) = match written.is_empty() {
            true => (Lineage::first(number), 0),
            false => {
                let parent = &written[parent.index(written.len())];
                let left = parent.position(*branch);
                let mut ancestors: Vec<String> = parent
                    .lineage
                    .timelines()
                    .skip(1)
                    .map(|(timeline, end)| format!("{timeline}\t{end}\tx"))
                    .collect();
                ancestors.reverse();
                ancestors.push(format!("{}\t{left}\tx", parent.lineage.timeline()));
                objects.push(object(format!("wal/{number:08X}/{number:08X}.history"), now));
                (Lineage::from_history(number, &ancestors.join("\n")).unwrap(), left.0 / SEGMENT)
            }
        };
        let hours: Vec<i64> = (1..=*segments as i64).map(|n| now + n * step).collect();
        for (n, &hours) in (first..).zip(&hours) {
            let file = Segment { timeline: number, number: n }.file_name(SEGMENT);
            objects.push(object(format!("wal/{number:08X}/{file}"), hours));
            objects.push(object(format!("wal/{number:08X}/{file}.pieces/0"), hours));
        }
        now = *hours.last().unwrap();
        written.push(Written { lineage, first, hours });
    }
    let mut backups: Vec<BackupFacts> = Vec::new();
    for (number, (timeline, from, to, packs)) in shape.backups.iter().enumerate() {
        let of = &written[timeline.index(written.len())];
        let (a, b) = (of.position(*from), of.position(*to));
        let (start, end) = (a.min(b), Lsn(a.max(b).0 + 1));
        let (label, hours) = (format!("b{number}"), of.time(end));
        let mut all: BTreeSet<String> = [format!("packs/7/{label}.0")].into();
        all.extend(packs.iter().filter(|_| number > 0).map(|p| format!("packs/7/b{}.0", p.index(number))));
        objects.push(object(format!("packs/7/{label}.0"), hours));
        for name in
            ["manifest", "copied", "begun-1", "packs-1", "groups-1/0", "groups-1/7", "begun-0", "groups-0/7"]
        {
            objects.push(object(format!("backups/{label}/{name}"), hours));
        }
        let timeline = of.lineage.timeline();
        let says = BackupSays { attempt: "1".into(), timeline, start, end, finished_at: at(hours) };
        backups.push(BackupFacts { label, says: Some(says), packs: Some(all) });
    }
    let mut copies = Vec::new();
    for (number, (age, previous)) in shape.copies.iter().enumerate() {
        let (label, hours) = (format!("c{number}"), now + shape.later - age);
        objects.push(object(format!("backups/{label}/begun-1"), hours));
        // Of a former try.
        objects.push(object(format!("packs/7/{label}.0"), hours - 2 * SAFETY_HOURS));
        let previous =
            previous.filter(|_| !backups.is_empty()).map(|of| backups[of.index(backups.len())].label.clone());
        let previous = previous.into_iter().collect();
        copies.push(CopyFacts { label, start: None, packs: BTreeSet::new(), previous, damaged: false });
    }
    let mut needs = Vec::new();
    for (on_one, timeline, position) in &shape.moments {
        let of = &written[timeline.index(written.len())];
        let needed =
            Needed::Moment { timeline: on_one.then(|| of.lineage.timeline()), lsn: of.position(*position) };
        needs.push(Need { what: "snapshot".into(), needed });
    }
    for (backup, room) in shape.restores.iter().filter(|_| !backups.is_empty()) {
        let backup = &backups[backup.index(backups.len())];
        let end = backup.says.as_ref().unwrap().end;
        let up_to = room.map(|room| Lsn(end.0 + room.index(5 * SEGMENT as usize) as u64));
        needs.push(Need {
            what: "restore".into(),
            needed: Needed::Backup { label: backup.label.clone(), up_to },
        });
    }
    let lineages = written.iter().map(|w| w.lineage.clone()).collect();
    (
        Inventory { segment_bytes: SEGMENT, lineages, backups, copies, objects, needs },
        written,
        now + shape.later,
    )
}

/// What is left when a plan was carried out.
fn without(inventory: &Inventory, plan: &ExpiryPlan) -> Inventory {
    let gone: BTreeSet<&str> = plan.removals().map(|removal| removal.name.as_str()).collect();
    let mut left = inventory.clone();
    left.objects.retain(|entry| !gone.contains(entry.name.as_str()));
    left.backups.retain(|backup| !gone.contains(names::manifest(&backup.label).as_str()));
    left.copies.retain(|copy| left.objects.iter().any(|entry| label_of(&entry.name) == Some(&copy.label)));
    left
}

struct There<'a> {
    names: BTreeSet<&'a str>,
    inventory: &'a Inventory,
}

impl<'a> There<'a> {
    fn of(inventory: &'a Inventory) -> Self {
        Self { names: inventory.objects.iter().map(|entry| entry.name.as_str()).collect(), inventory }
    }

    fn has_wal(&self, lineage: &Lineage, from: Lsn, to: Lsn) -> bool {
        (from.0 / SEGMENT..=to.0.saturating_sub(1) / SEGMENT).all(|number| {
            let timeline = lineage.of_segment(number, SEGMENT);
            let file = Segment { timeline, number }.file_name(SEGMENT);
            self.names.contains(format!("wal/{timeline:08X}/{file}").as_str())
                && self.names.contains(format!("wal/{timeline:08X}/{file}.pieces/0").as_str())
        })
    }

    fn is_whole(&self, backup: &BackupFacts) -> bool {
        let objects = ["manifest", "packs-1", "groups-1/0", "groups-1/7"];
        objects.iter().all(|name| self.names.contains(format!("backups/{}/{name}", backup.label).as_str()))
            && backup.packs.iter().flatten().all(|pack| self.names.contains(pack.as_str()))
    }

    /// Whether a position can be brought back, found without what the plan is made with.
    fn restores(&self, lineage: &Lineage, lsn: Lsn) -> bool {
        self.inventory.backups.iter().any(|backup| {
            let says = backup.says.as_ref().unwrap();
            let on = lineage.timelines().any(|(timeline, end)| timeline == says.timeline && says.end <= end);
            on && says.end <= lsn && self.is_whole(backup) && self.has_wal(lineage, says.start, lsn)
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn nothing_that_is_needed_goes_and_nothing_young(shape in shape()) {
        let (inventory, written, now) = history(&shape);
        let hours = jiff::SignedDuration::from_hours;
        let policy = Policy { window: hours(shape.window_hours), safety: hours(SAFETY_HOURS) };
        let made = plan(&inventory, policy, at(now));
        let left = without(&inventory, &made);
        let (before, after) = (There::of(&inventory), There::of(&left));

        for of in &written {
            for (number, &hours) in (of.first..).zip(&of.hours) {
                let lsn = Lsn((number + 1) * SEGMENT);
                if hours >= now - shape.window_hours && before.restores(&of.lineage, lsn) {
                    prop_assert!(after.restores(&of.lineage, lsn), "{lsn} in the window");
                }
            }
        }
        for need in &inventory.needs {
            match &need.needed {
                Needed::Moment { timeline, lsn } => {
                    for of in written.iter().filter(|of| timeline.is_none_or(|on| on == of.lineage.timeline())) {
                        if before.restores(&of.lineage, *lsn) {
                            prop_assert!(after.restores(&of.lineage, *lsn), "{lsn} of a snapshot");
                        }
                    }
                }
                Needed::Backup { label, up_to } => {
                    let backup = left.backups.iter().find(|backup| backup.label == *label);
                    prop_assert!(backup.is_some_and(|backup| after.is_whole(backup)), "{label} of a restore");
                    let says = backup.unwrap().says.as_ref().unwrap();
                    let own = inventory.lineages.iter().find(|l| l.timeline() == says.timeline).unwrap();
                    let to = up_to.unwrap_or(written.iter().find(|w| w.lineage == *own).unwrap().end());
                    if before.has_wal(own, says.start, to) {
                        prop_assert!(after.has_wal(own, says.start, to), "WAL of a restore of {label}");
                    }
                }
            }
        }
        for backup in &left.backups {
            prop_assert!(after.is_whole(backup), "{} is in pieces", backup.label);
            let says = backup.says.as_ref().unwrap();
            let own = inventory.lineages.iter().find(|l| l.timeline() == says.timeline).unwrap();
            prop_assert!(after.has_wal(own, says.start, says.end), "{} is without its WAL", backup.label);
        }
        for copy in &inventory.copies {
            let young = inventory.objects.iter().any(|entry| {
                label_of(&entry.name) == Some(&copy.label) && entry.modified_at > at(now - SAFETY_HOURS)
            });
            if young {
                let pack = format!("packs/7/{}.0", copy.label);
                prop_assert!(after.names.contains(pack.as_str()));
                let previous = left.backups.iter().filter(|backup| copy.previous.contains(&backup.label));
                prop_assert_eq!(previous.count(), copy.previous.len());
            }
        }
        let young = inventory.objects.iter().filter(|entry| entry.modified_at > at(now - SAFETY_HOURS));
        prop_assert!(young.into_iter().all(|entry| after.names.contains(entry.name.as_str())));
        let histories = inventory.objects.iter().filter(|entry| entry.name.ends_with(".history"));
        prop_assert!(histories.into_iter().all(|entry| after.names.contains(entry.name.as_str())));
        if !inventory.backups.is_empty() {
            prop_assert!(!left.backups.is_empty());
        }
        prop_assert!(plan(&left, policy, at(now)).is_empty(), "the second plan has nothing left to do");
    }

    #[test]
    fn what_is_not_known_holds_everything_back(shape in shape(), which: Index, packs: bool) {
        let (mut inventory, _, now) = history(&shape);
        prop_assume!(!inventory.backups.is_empty());
        let policy = Policy::default();
        let damaged = which.index(inventory.backups.len());
        let kept = plan(&inventory, policy, at(now)).kept.iter().any(|k| k.label == inventory.backups[damaged].label);
        prop_assume!(kept || !packs);
        match packs {
            true => inventory.backups[damaged].packs = None,
            false => inventory.backups[damaged].says = None,
        }
        let made = plan(&inventory, policy, at(now));
        prop_assert!(!made.held_back.is_empty());
        prop_assert!(made.removals().all(|removal| matches!(removal.why, Why::NeverFinished | Why::CutOff)));
    }
}

/// One timeline, a segment a day, a backup each tenth day, for a hundred days.
fn hundred_days() -> (Inventory, i64) {
    let day = 24;
    let mut objects = Vec::new();
    let mut backups = Vec::new();
    for number in 0..100 {
        let file = Segment { timeline: 1, number }.file_name(SEGMENT);
        objects.push(object(format!("wal/00000001/{file}"), day * (number as i64 + 1)));
    }
    for tenth in 0..10_u64 {
        let (label, hours) = (format!("day{tenth}0"), day * (tenth as i64 * 10 + 1));
        let start = Lsn(tenth * 10 * SEGMENT + 100);
        for name in ["manifest", "groups-1/0"] {
            objects.push(object(format!("backups/{label}/{name}"), hours));
        }
        objects.push(object(format!("packs/0/{label}.0"), hours));
        let packs = [format!("packs/0/{label}.0"), "packs/0/day00.0".into()].into();
        let says = BackupSays {
            attempt: "1".into(),
            timeline: 1,
            start,
            end: Lsn(start.0 + 100),
            finished_at: at(hours),
        };
        backups.push(BackupFacts { label, says: Some(says), packs: Some(packs) });
    }
    let lineages = vec![Lineage::first(1)];
    let inventory =
        Inventory { segment_bytes: SEGMENT, lineages, backups, copies: vec![], objects, needs: vec![] };
    (inventory, day * 100)
}

fn labels(plan: &ExpiryPlan) -> Vec<&str> {
    plan.kept.iter().map(|kept| kept.label.as_str()).collect()
}

fn goes(plan: &ExpiryPlan, name: &str) -> bool {
    plan.removals().any(|removal| removal.name == name)
}

#[test]
fn thirty_days_begin_with_the_newest_backup_before_them() {
    let (inventory, now) = hundred_days();
    let made = plan(&inventory, Policy::default(), at(now));
    assert_eq!(labels(&made), ["day60", "day70", "day80", "day90"]);
    assert_eq!(made.kept[0].why, ["the oldest moments in the window begin with it"]);
    assert!(goes(&made, "backups/day50/manifest") && goes(&made, "packs/0/day50.0"));
    assert!(!goes(&made, "packs/0/day00.0"), "later backups refer to it");
    let wal = made.stages[3].len();
    assert_eq!(wal, 59, "all before the segment of the start of day60, and one more is kept");
    let stage =
        |name: &str| made.stages.iter().position(|stage| stage.iter().any(|r| r.name == name)).unwrap();
    assert!(stage("backups/day50/manifest") < stage("backups/day50/groups-1/0"));
    assert!(stage("backups/day50/groups-1/0") < stage("packs/0/day50.0"));
}

#[test]
fn a_kept_snapshot_keeps_its_backup_and_the_wal_up_to_it() {
    let (mut inventory, now) = hundred_days();
    let lsn = Lsn(25 * SEGMENT + 5);
    inventory.needs =
        vec![Need { what: "snapshot x".into(), needed: Needed::Moment { timeline: None, lsn } }];
    let made = plan(&inventory, Policy::default(), at(now));
    assert_eq!(labels(&made), ["day20", "day60", "day70", "day80", "day90"]);
    assert_eq!(made.kept[0].why, ["snapshot x"]);
    let segment = |number| format!("wal/00000001/{}", Segment { timeline: 1, number }.file_name(SEGMENT));
    assert!(goes(&made, &segment(18)) && goes(&made, &segment(27)));
    assert!((19..=26).all(|number| !goes(&made, &segment(number))));
}
