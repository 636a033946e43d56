//! What may be removed from the repository, and removing it.
//!
//! First [`Repository::inventory`] says what is there, then [`fn@plan`] decides, without looking at anything else, and its
//! plan can be shown; then [`Repository::expire`] carries it out. Manifests go before what they name, so whatever is
//! left when it is cut off is whole; the next plan finds the rest.
//!
//! Three things are never removed: what brings back a moment in the window, what a kept snapshot or a running restore
//! needs, and what is so young that somebody may still be at work with it.

mod inventory;
mod plan;

use std::collections::BTreeSet;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use loomworks_core::lsn::Lsn;
use serde::{Deserialize, Serialize};

pub use self::plan::plan;
use crate::backup::names;
use crate::lineage::Lineage;
use crate::repository::{Repository, RepositoryError};
use crate::store::Entry;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Every moment of so long can be brought back.
    pub window: SignedDuration,
    /// Nothing younger is removed, whatever nobody seems to need. It must be longer than the longest job.
    pub safety: SignedDuration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { window: SignedDuration::from_hours(30 * 24), safety: SignedDuration::from_hours(24) }
    }
}

/// Something beside the window that must stay restorable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// For people: `snapshot before-upgrade`.
    pub what: String,
    pub needed: Needed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Needed {
    /// A kept snapshot: a backup before it, and the WAL from there. Without a timeline it is kept on all that have it.
    Moment { timeline: Option<u32>, lsn: Lsn },
    /// A running restore, or a backup that is being taken: it, and the WAL from its start up to a position or the end.
    Backup { label: String, up_to: Option<Lsn> },
}

/// What is in the repository.
#[derive(Clone, Debug)]
pub struct Inventory {
    pub segment_bytes: u64,
    /// Of every timeline of which there is anything.
    pub lineages: Vec<Lineage>,
    /// With a manifest.
    pub backups: Vec<BackupFacts>,
    /// Without one.
    pub copies: Vec<CopyFacts>,
    /// All objects below `backups/`, `packs/` and `wal/`.
    pub objects: Vec<Entry>,
    pub needs: Vec<Need>,
}

/// What counts of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupFacts {
    pub label: String,
    /// What its manifest says. `None`: it is damaged.
    pub says: Option<BackupSays>,
    /// The packs that it consists of. `None`: the object that names them is missing or damaged.
    pub packs: Option<BTreeSet<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSays {
    pub attempt: String,
    pub timeline: u32,
    pub start: Lsn,
    pub end: Lsn,
    pub finished_at: Timestamp,
}

/// What counts of a copy that is no backup (yet).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyFacts {
    pub label: String,
    /// Where the WAL that it needs begins, if it is complete.
    pub start: Option<(u32, Lsn)>,
    /// Packs that a complete copy names.
    pub packs: BTreeSet<String>,
    /// The backups whose chunks its tries may refer to.
    pub previous: BTreeSet<String>,
    /// Something of it could not be read.
    pub damaged: bool,
}

/// Why a backup stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub label: String,
    pub why: Vec<String>,
}

/// An object that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    pub name: String,
    pub bytes: u64,
    pub why: Why,
}

/// Why an object goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// No moment in the window and nothing that is kept needs the backup.
    BackupNotNeeded,
    /// It is of a copy that never became a backup.
    NeverFinished,
    /// It is of a try that was cut off; a later one became the backup.
    CutOff,
    /// No backup that stays refers to the pack.
    PackNotNeeded,
    /// No backup that stays is brought forward with this WAL, or nobody goes back to where it leads.
    WalNotNeeded,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BackupNotNeeded => "no moment in the window and nothing that is kept needs this backup",
            Self::NeverFinished => "this copy never became a backup",
            Self::CutOff => "this is of a try that was cut off",
            Self::PackNotNeeded => "no backup that stays refers to this pack",
            Self::WalNotNeeded => "nothing that stays needs this WAL",
        })
    }
}

/// What is removed and what stays, with reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryPlan {
    /// Backups that stay, oldest first.
    pub kept: Vec<Kept>,
    /// What goes, one stage after the other.
    pub stages: Vec<Vec<Removal>>,
    /// Why less is removed than could be: for people.
    pub held_back: Vec<String>,
    /// The tries that had begun when it was made.
    pub tries: BTreeSet<String>,
}

impl ExpiryPlan {
    pub fn removals(&self) -> impl Iterator<Item = &Removal> {
        self.stages.iter().flatten()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removals().next().is_none()
    }

    /// What becomes free.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.removals().map(|removal| removal.bytes).sum()
    }
}

/// What an expiry has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    pub objects: u64,
    pub bytes: u64,
    /// A backup has begun since the plan was made: packs and WAL are left to the next one.
    pub put_off: bool,
}

impl Repository {
    /// Carries a plan out. Run again, it goes on; what is gone already is no error.
    pub async fn expire(&self, plan: &ExpiryPlan) -> Result<Expired, RepositoryError> {
        let mut expired = Expired::default();
        for (number, stage) in plan.stages.iter().enumerate() {
            // Whoever began meanwhile may refer to what nobody referred to then.
            if number == plan::STAGE_OF_PACKS && !self.tries().await?.is_subset(&plan.tries) {
                expired.put_off = true;
                break;
            }
            let names: Vec<String> = stage.iter().map(|removal| removal.name.clone()).collect();
            self.store.delete_all(names).await?;
            expired.objects += stage.len() as u64;
            expired.bytes += stage.iter().map(|removal| removal.bytes).sum::<u64>();
        }
        self.coverage.forget();
        Ok(expired)
    }

    /// The objects that say that a try has begun.
    async fn tries(&self) -> Result<BTreeSet<String>, RepositoryError> {
        let objects = self.store.list(names::BACKUPS).await?;
        Ok(objects.into_iter().map(|entry| entry.name).filter(|name| names::is_begun(name)).collect())
    }
}
