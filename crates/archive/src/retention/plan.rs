//! The decision: what goes. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use loomworks_core::lsn::{Lsn, Segment};

use super::{BackupFacts, BackupSays, CopyFacts, ExpiryPlan, Inventory, Kept, Needed, Policy, Removal, Why};
use crate::backup::names;
use crate::lineage::Lineage;
use crate::store::Entry;

/// Manifests, what they name, packs, WAL.
const STAGES: usize = 4;
pub(super) const STAGE_OF_PACKS: usize = 2;

/// Segments that are kept around what is needed: a record may begin in one and end in the next.
const MARGIN: u64 = 1;

/// Decides what goes.
#[must_use]
pub fn plan(inventory: &Inventory, policy: Policy, now: Timestamp) -> ExpiryPlan {
    let mut facts = Facts::new(inventory, policy, now);
    facts.keep_window();
    facts.keep_needs();
    facts.keep_copies();
    facts.keep_unknown();
    facts.into_plan()
}

/// Segments of a timeline, both ends included.
type Range = (u64, u64);

struct Facts<'a> {
    inventory: &'a Inventory,
    /// Moments from here on can be brought back.
    window_start: Timestamp,
    /// What was written later is not touched.
    old: Timestamp,
    newest_of_label: HashMap<&'a str, Timestamp>,
    kept: BTreeMap<&'a str, Vec<String>>,
    wal: BTreeMap<u32, Vec<Range>>,
    held_back: Vec<String>,
}

impl<'a> Facts<'a> {
    fn new(inventory: &'a Inventory, policy: Policy, now: Timestamp) -> Self {
        let before = |span| now.checked_sub(span).unwrap_or(Timestamp::MIN);
        let mut newest_of_label = HashMap::new();
        for entry in &inventory.objects {
            if let Some(label) = label_of(&entry.name) {
                let newest = newest_of_label.entry(label).or_insert(entry.modified_at);
                *newest = entry.modified_at.max(*newest);
            }
        }
        Self {
            inventory,
            window_start: before(policy.window),
            old: before(policy.safety),
            newest_of_label,
            kept: BTreeMap::new(),
            wal: BTreeMap::new(),
            held_back: Vec::new(),
        }
    }

    /// The backups that can bring a timeline forward, oldest first.
    fn on(&self, lineage: &Lineage) -> Vec<(&'a BackupFacts, &'a BackupSays)> {
        let reach: HashMap<u32, Lsn> = lineage.timelines().collect();
        let all = self.inventory.backups.iter().filter_map(|backup| Some((backup, backup.says.as_ref()?)));
        let mut on: Vec<_> =
            all.filter(|(_, says)| reach.get(&says.timeline).is_some_and(|end| says.end <= *end)).collect();
        on.sort_by_key(|(_, says)| (says.end, says.finished_at));
        on
    }

    fn keep(&mut self, label: &'a str, why: String) {
        let reasons = self.kept.entry(label).or_default();
        if !reasons.contains(&why) {
            reasons.push(why);
        }
    }

    /// Keeps the WAL that brings a lineage from one position to another, or to its end.
    fn keep_wal(&mut self, lineage: &Lineage, from: Lsn, to: Option<Lsn>) {
        let bytes = self.inventory.segment_bytes;
        let number = |lsn: Lsn| lsn.0 / bytes;
        let (first, last) =
            (number(from).saturating_sub(MARGIN), to.map_or(u64::MAX, |to| number(to) + MARGIN));
        let timelines: Vec<(u32, Lsn)> = lineage.timelines().collect();
        for (place, &(timeline, end)) in timelines.iter().enumerate() {
            // Where it left the one before: both have that segment.
            let begin = timelines.get(place + 1).map_or(0, |&(_, end)| number(end).saturating_sub(MARGIN));
            let range = (first.max(begin), last.min(number(end).saturating_add(MARGIN)));
            if range.0 <= range.1 {
                self.wal.entry(timeline).or_default().push(range);
            }
        }
    }

    /// Whether anything was written on a timeline within the window. The newest one always counts.
    fn is_alive(&self, timeline: u32) -> bool {
        let newest = self.inventory.lineages.iter().map(Lineage::timeline).max();
        let prefix = format!("wal/{timeline:08X}/");
        let says = self.inventory.backups.iter().filter_map(|backup| backup.says.as_ref());
        newest == Some(timeline)
            || self.inventory.objects.iter().any(|entry| {
                entry.modified_at >= self.window_start
                    && entry.name.starts_with(&prefix)
                    && !entry.name.ends_with(".history")
            })
            || says.into_iter().any(|says| says.timeline == timeline && says.finished_at >= self.window_start)
    }

    /// For every timeline on which somebody may go back: the newest backup from before the window, and all later ones.
    fn keep_window(&mut self) {
        for lineage in &self.inventory.lineages {
            if !self.is_alive(lineage.timeline()) {
                continue;
            }
            let on = self.on(lineage);
            let before = on.iter().rposition(|(_, says)| says.finished_at <= self.window_start);
            match before {
                Some(place) => {
                    let (backup, says) = on[place];
                    self.keep(&backup.label, "the oldest moments in the window begin with it".into());
                    self.keep_wal(lineage, says.start, None);
                }
                None => {
                    // Nothing can be brought back from before the first one; until there is one, all WAL stays.
                    let from = on.iter().map(|(_, says)| says.start).min().unwrap_or(Lsn(0));
                    self.keep_wal(lineage, from, None);
                }
            }
        }
        let newest = self.inventory.backups.iter().filter(|backup| backup.says.is_some());
        let newest =
            newest.max_by_key(|backup| backup.says.as_ref().map(|says| (says.finished_at, &backup.label)));
        if let Some(newest) = newest {
            self.keep(&newest.label, "it is the newest".into());
        }
        for backup in &self.inventory.backups {
            if backup.says.as_ref().is_some_and(|says| says.finished_at >= self.window_start) {
                self.keep(&backup.label, "it was taken within the window".into());
            }
            if self.is_young(&names::manifest(&backup.label)) {
                self.keep(&backup.label, "it is too young to be removed".into());
            }
        }
    }

    /// Keeps what a backup needs to become consistent.
    fn keep_own_wal(&mut self, says: &BackupSays) {
        if let Some(lineage) = self.lineage(says.timeline) {
            self.keep_wal(&lineage, says.start, Some(says.end));
        }
    }

    fn lineage(&self, timeline: u32) -> Option<Lineage> {
        self.inventory.lineages.iter().find(|lineage| lineage.timeline() == timeline).cloned()
    }

    fn is_young(&self, name: &str) -> bool {
        self.inventory.objects.iter().any(|entry| entry.name == name && entry.modified_at > self.old)
    }

    fn keep_needs(&mut self) {
        for need in &self.inventory.needs {
            match &need.needed {
                Needed::Moment { timeline, lsn } => {
                    let lineages = self.inventory.lineages.iter();
                    for lineage in
                        lineages.filter(|lineage| timeline.is_none_or(|of| of == lineage.timeline()))
                    {
                        let on = self.on(lineage);
                        if let Some((backup, says)) = on.iter().rev().find(|(_, says)| says.end <= *lsn) {
                            self.keep(&backup.label, need.what.clone());
                            self.keep_wal(lineage, says.start, Some(*lsn));
                        }
                    }
                }
                Needed::Backup { label, up_to } => {
                    let Some(backup) = self.inventory.backups.iter().find(|backup| backup.label == *label)
                    else {
                        continue;
                    };
                    self.keep(&backup.label, need.what.clone());
                    let Some(says) = &backup.says else { continue };
                    for lineage in &self.inventory.lineages {
                        if self.on(lineage).iter().any(|(other, _)| other.label == *label) {
                            self.keep_wal(lineage, says.start, *up_to);
                        }
                    }
                }
            }
        }
    }

    /// Whether somebody may be at work with a copy.
    fn is_wanted(&self, copy: &CopyFacts) -> bool {
        let young = self.newest_of_label.get(copy.label.as_str()).is_some_and(|newest| *newest > self.old);
        let needed = |needed: &Needed| matches!(needed, Needed::Backup { label, .. } if *label == copy.label);
        young || self.inventory.needs.iter().any(|need| needed(&need.needed))
    }

    /// A copy that is at work may refer to the backup that was the newest when it began.
    fn keep_copies(&mut self) {
        for copy in &self.inventory.copies {
            if !self.is_wanted(copy) {
                continue;
            }
            for previous in &copy.previous {
                if let Some(backup) = self.inventory.backups.iter().find(|backup| backup.label == *previous) {
                    self.keep(&backup.label, format!("backup {} refers to it", copy.label));
                }
            }
            if let Some((timeline, start)) = copy.start
                && let Some(lineage) = self.lineage(timeline)
            {
                self.keep_wal(&lineage, start, None);
            }
            if copy.damaged {
                self.held_back.push(format!("what backup {} refers to cannot be read", copy.label));
            }
        }
    }

    fn keep_unknown(&mut self) {
        for backup in &self.inventory.backups {
            if backup.says.is_none() {
                self.keep(&backup.label, "its manifest is damaged: what it needs is not known".into());
                let why = format!(
                    "the manifest of backup {} is damaged; bring it back, or remove it",
                    backup.label
                );
                self.held_back.push(why);
            } else if backup.packs.is_none() && self.kept.contains_key(backup.label.as_str()) {
                let why =
                    format!("which packs backup {} needs cannot be read; take a full backup", backup.label);
                self.held_back.push(why);
            }
        }
        let kept: Vec<&BackupSays> = self
            .inventory
            .backups
            .iter()
            .filter(|backup| self.kept.contains_key(backup.label.as_str()))
            .filter_map(|backup| backup.says.as_ref())
            .collect();
        for says in kept {
            self.keep_own_wal(says);
        }
    }

    fn into_plan(self) -> ExpiryPlan {
        let inventory = self.inventory;
        let mut backups: HashMap<&str, &BackupFacts> = HashMap::new();
        let mut packs: BTreeSet<&str> = BTreeSet::new();
        for backup in &inventory.backups {
            backups.insert(&backup.label, backup);
            if self.kept.contains_key(backup.label.as_str()) {
                packs.extend(backup.packs.iter().flatten().map(String::as_str));
            }
        }
        let mut wanted_copies: BTreeSet<&str> = BTreeSet::new();
        for copy in inventory.copies.iter().filter(|copy| self.is_wanted(copy)) {
            wanted_copies.insert(&copy.label);
            packs.extend(copy.packs.iter().map(String::as_str));
        }
        // Where something is not known, only what never became a backup goes.
        let careful = !self.held_back.is_empty();
        let mut stages = vec![Vec::new(); STAGES];
        for entry in inventory.objects.iter().filter(|entry| entry.modified_at <= self.old) {
            let goes = match entry.name.split('/').next() {
                Some(names::BACKUPS) => self
                    .of_backup(entry, &backups, &wanted_copies)
                    .filter(|(_, why)| !careful || *why != Why::BackupNotNeeded),
                Some(names::PACKS) if !careful => {
                    let needed = packs.contains(entry.name.as_str())
                        || label_of_pack(&entry.name).is_none_or(|label| wanted_copies.contains(label));
                    (!needed).then_some((STAGE_OF_PACKS, Why::PackNotNeeded))
                }
                Some("wal") if !careful => self.of_wal(entry).then_some((STAGES - 1, Why::WalNotNeeded)),
                _ => None,
            };
            if let Some((stage, why)) = goes {
                stages[stage].push(Removal { name: entry.name.clone(), bytes: entry.bytes, why });
            }
        }
        let mut kept: Vec<_> = self.kept.into_iter().collect();
        let finished = |label: &str| Some(backups.get(label)?.says.as_ref()?.finished_at);
        kept.sort_by_key(|(label, _)| finished(label));
        let kept = kept.into_iter().map(|(label, why)| Kept { label: label.to_owned(), why }).collect();
        let tries = inventory.objects.iter().map(|entry| &entry.name).filter(|name| names::is_begun(name));
        ExpiryPlan { kept, stages, held_back: self.held_back, tries: tries.cloned().collect() }
    }

    /// Whether an object of a backup or a copy goes, and in which stage.
    fn of_backup(
        &self,
        entry: &Entry,
        backups: &HashMap<&str, &BackupFacts>,
        wanted_copies: &BTreeSet<&str>,
    ) -> Option<(usize, Why)> {
        let label = label_of(&entry.name)?;
        let counts = entry.name == names::manifest(label) || entry.name == names::copied(label);
        let stage = usize::from(!counts);
        let Some(backup) = backups.get(label) else {
            return (!wanted_copies.contains(label)).then_some((stage, Why::NeverFinished));
        };
        if !self.kept.contains_key(label) {
            return Some((stage, Why::BackupNotNeeded));
        }
        let attempt = &backup.says.as_ref()?.attempt;
        let of_try = entry.name.split('/').nth(2)?.rsplit_once('-').map(|(_, attempt)| attempt);
        (of_try.is_some_and(|of| of != attempt)).then_some((stage, Why::CutOff))
    }

    /// Whether a segment, or a part of one, goes. Histories stay, and what is not known.
    fn of_wal(&self, entry: &Entry) -> bool {
        let Some(segment) = segment_of(&entry.name, self.inventory.segment_bytes) else { return false };
        let ranges = self.wal.get(&segment.timeline);
        !ranges.into_iter().flatten().any(|&(first, last)| (first..=last).contains(&segment.number))
    }
}

/// `backups/<label>/…`
fn label_of(name: &str) -> Option<&str> {
    let (label, _) = name.strip_prefix(names::BACKUPS)?.strip_prefix('/')?.split_once('/')?;
    Some(label)
}

/// `packs/<oid>/<label>.<id>`
fn label_of_pack(name: &str) -> Option<&str> {
    let (label, _) = name.rsplit('/').next()?.split_once('.')?;
    Some(label)
}

/// `wal/<timeline>/<segment>` and `wal/<timeline>/<segment>.…/…`
fn segment_of(name: &str, segment_bytes: u64) -> Option<Segment> {
    let mut parts = name.strip_prefix("wal/")?.split('/');
    let timeline = parts.next()?;
    let file = parts.next()?.split('.').next()?;
    Segment::from_file_name(file, segment_bytes)
        .filter(|segment| format!("{:08X}", segment.timeline) == timeline)
}

#[cfg(test)]
mod tests;
