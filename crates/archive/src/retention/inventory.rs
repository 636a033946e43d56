//! Saying what is in the repository.

use std::collections::{BTreeMap, BTreeSet};

use super::{BackupFacts, BackupSays, CopyFacts, Inventory, Need};
use crate::backup::names;
use crate::repository::{Repository, RepositoryError};
use crate::store::Entry;

impl Repository {
    /// Lists the repository and reads what refers to other objects. `needs`: what must stay beside the window.
    pub async fn inventory(&self, needs: Vec<Need>) -> Result<Inventory, RepositoryError> {
        // Packs first: what refers to one that is listed later is younger than any that may go.
        let mut objects = self.store.list(names::PACKS).await?;
        objects.extend(self.store.list("wal").await?);
        let of_backups = self.store.list(names::BACKUPS).await?;
        let mut by_label: BTreeMap<String, Vec<&Entry>> = BTreeMap::new();
        for entry in &of_backups {
            if let Some(label) = entry.name.split('/').nth(1) {
                by_label.entry(label.to_owned()).or_default().push(entry);
            }
        }
        let (mut backups, mut copies) = (Vec::new(), Vec::new());
        for (label, entries) in by_label {
            let manifest = names::manifest(&label);
            match entries.iter().any(|entry| entry.name == manifest) {
                true => backups.push(self.facts(label, &manifest).await?),
                false => copies.push(self.copy_facts(label, &entries).await?),
            }
        }
        let mut timelines: BTreeSet<u32> =
            backups.iter().filter_map(|backup| Some(backup.says.as_ref()?.timeline)).collect();
        timelines.extend(copies.iter().filter_map(|copy| Some(copy.start?.0)));
        timelines.extend(objects.iter().filter_map(|entry| timeline_of(&entry.name)));
        let mut lineages = Vec::new();
        for timeline in timelines {
            lineages.push(self.lineage(timeline).await?);
        }
        objects.extend(of_backups);
        Ok(Inventory { segment_bytes: self.cluster.segment_bytes, lineages, backups, copies, objects, needs })
    }

    async fn facts(&self, label: String, manifest: &str) -> Result<BackupFacts, RepositoryError> {
        let Some(backup) = readable(self.read_backup(manifest).await)?.flatten() else {
            return Ok(BackupFacts { label, says: None, packs: None });
        };
        let packs = self.packs_of(&label, &backup.attempt).await?;
        let says = BackupSays {
            attempt: backup.attempt,
            timeline: backup.timeline,
            start: backup.start,
            end: backup.end,
            finished_at: backup.finished_at,
        };
        Ok(BackupFacts { label, says: Some(says), packs })
    }

    async fn copy_facts(&self, label: String, entries: &[&Entry]) -> Result<CopyFacts, RepositoryError> {
        let mut facts = CopyFacts {
            label: label.clone(),
            start: None,
            packs: BTreeSet::new(),
            previous: BTreeSet::new(),
            damaged: false,
        };
        for entry in entries.iter().filter(|entry| names::is_begun(&entry.name)) {
            match readable(self.read_sealed(self.keys.shared(), &entry.name).await)? {
                Some(Some(previous)) if previous.is_empty() => {}
                Some(Some(previous)) => {
                    facts.previous.insert(String::from_utf8_lossy(&previous).into_owned());
                }
                Some(None) => {}
                None => facts.damaged = true,
            }
        }
        match readable(self.read_backup(&names::copied(&label)).await)? {
            Some(Some(backup)) => {
                facts.start = Some((backup.timeline, backup.start));
                match self.packs_of(&label, &backup.attempt).await? {
                    Some(packs) => facts.packs = packs,
                    None => facts.damaged = true,
                }
            }
            Some(None) => {}
            None => facts.damaged = true,
        }
        Ok(facts)
    }

    async fn packs_of(
        &self,
        label: &str,
        attempt: &str,
    ) -> Result<Option<BTreeSet<String>>, RepositoryError> {
        let content =
            readable(self.read_sealed(self.keys.shared(), &names::packs(label, attempt)).await)?.flatten();
        let text = content.and_then(|content| String::from_utf8(content).ok());
        Ok(text.map(|text| text.lines().map(str::to_owned).collect()))
    }
}

/// `None`: it is damaged. What the store does not answer stays an error.
fn readable<T>(read: Result<T, RepositoryError>) -> Result<Option<T>, RepositoryError> {
    match read {
        Ok(content) => Ok(Some(content)),
        Err(RepositoryError::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn timeline_of(name: &str) -> Option<u32> {
    let timeline = name.strip_prefix("wal/")?.split('/').next()?;
    u32::from_str_radix(timeline, 16).ok()
}
