//! What a tenant is, which state may follow which, and what a tenant may use.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a tenant is in its life.
///
/// ```text
/// draft ─► provisioning ─► active ⇄ suspended
///   │           │             ⇅         ⇅
///   │           │              archived
///   ▼           ▼                 ▼
/// destroyed ◄───┴─────────────────┘
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantState {
    /// It is written down, and nothing is made for it.
    Draft,
    /// Its database is being made; it cannot be reached yet.
    Provisioning,
    /// It is served.
    Active,
    /// It is kept but not served; its visitors are told so.
    Suspended,
    /// It has no address and nobody works in it; its data is kept for the retention period.
    Archived,
    /// Nothing is left of it but this word and the audit log.
    Destroyed,
}

/// What is done with a tenant's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A draft is to be made.
    Provision,
    /// Its database is complete.
    Provisioned,
    Suspend,
    Resume,
    Archive,
    /// It comes back as it was: still suspended, if it was.
    Unarchive {
        suspended: bool,
    },
    Destroy,
}

/// A change that the tenant's state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tenant that is {} cannot be {}", from.adjective(), change.participle())]
pub struct NotAllowed {
    pub from: TenantState,
    pub change: Change,
}

impl TenantState {
    pub const ALL: [Self; 6] =
        [Self::Draft, Self::Provisioning, Self::Active, Self::Suspended, Self::Archived, Self::Destroyed];

    /// The state after `change`. A change that was made already gives the same state again, so that a repeated
    /// request is no error.
    pub fn after(self, change: Change) -> Result<Self, NotAllowed> {
        use TenantState::{Active, Archived, Destroyed, Draft, Provisioning, Suspended};
        match (self, change) {
            (Draft | Provisioning, Change::Provision) => Ok(Provisioning),
            (Provisioning | Active, Change::Provisioned)
            | (Active | Suspended, Change::Resume)
            | (Archived | Active, Change::Unarchive { suspended: false }) => Ok(Active),
            (Active | Suspended, Change::Suspend)
            | (Archived | Suspended, Change::Unarchive { suspended: true }) => Ok(Suspended),
            (Active | Suspended | Archived, Change::Archive) => Ok(Archived),
            (Draft | Provisioning | Archived | Destroyed, Change::Destroy) => Ok(Destroyed),
            (from, change) => Err(NotAllowed { from, change }),
        }
    }

    /// Whether somebody may be at work in its database.
    #[must_use]
    pub fn is_made(self) -> bool {
        matches!(self, Self::Active | Self::Suspended)
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Provisioning => "provisioning",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Archived => "archived",
            Self::Destroyed => "destroyed",
        }
    }

    fn adjective(self) -> &'static str {
        match self {
            Self::Draft => "a draft",
            other => other.as_str(),
        }
    }
}

impl Change {
    fn participle(self) -> &'static str {
        match self {
            Self::Provision => "provisioned",
            Self::Provisioned => "declared provisioned",
            Self::Suspend => "suspended",
            Self::Resume => "resumed",
            Self::Archive => "archived",
            Self::Unarchive { .. } => "taken back from the archive",
            Self::Destroy => "destroyed",
        }
    }
}

impl fmt::Display for TenantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TenantState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not a tenant's state"))
    }
}

impl TryFrom<String> for TenantState {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Why a tenant cannot be destroyed now although its state would allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tenant's data is kept until {until}")]
pub struct Retained {
    pub until: Timestamp,
}

/// Whether retention lets a tenant be destroyed: it is over, or an operator says for a second time that he means it.
pub fn retention_allows(
    until: Option<Timestamp>,
    now: Timestamp,
    before_it_ends: bool,
) -> Result<(), Retained> {
    match until {
        Some(until) if now < until && !before_it_ends => Err(Retained { until }),
        _ => Ok(()),
    }
}

/// What a subscription is called; it gives a tenant its limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    #[default]
    Basic,
    Pro,
    Enterprise,
}

impl Tier {
    pub const ALL: [Self; 3] = [Self::Basic, Self::Pro, Self::Enterprise];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Basic => "basic",
            Self::Pro => "pro",
            Self::Enterprise => "enterprise",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Tier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|tier| tier.as_str() == text)
            .ok_or_else(|| format!("there is no tier `{text}`: there are basic, pro and enterprise"))
    }
}

impl TryFrom<String> for Tier {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What a tenant may use. The defaults are the basic tier's.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Limits {
    pub max_users: i32,
    pub max_storage_gb: f64,
    pub max_ai_operations_daily: i32,
    /// How many days back it can go. `None`: what the platform is set to.
    pub recovery_days: Option<i32>,
}

/// How many days back a tenant can go: at least one, and at most ten years.
pub const RECOVERY_DAYS: RangeInclusive<i32> = 1..=3650;

impl Default for Limits {
    fn default() -> Self {
        Self { max_users: 10, max_storage_gb: 5.0, max_ai_operations_daily: 100, recovery_days: None }
    }
}

/// A limit that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{limit} must be {must}")]
pub struct BadLimit {
    pub limit: &'static str,
    pub must: &'static str,
}

/// The limits that a tenant has of its own; what is left open is its tier's.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct OwnLimits {
    pub max_users: Option<i32>,
    pub max_storage_gb: Option<f64>,
    pub max_ai_operations_daily: Option<i32>,
    pub recovery_days: Option<i32>,
}

impl OwnLimits {
    /// What is in force.
    #[must_use]
    pub fn over(self, tier: Limits) -> Limits {
        Limits {
            max_users: self.max_users.unwrap_or(tier.max_users),
            max_storage_gb: self.max_storage_gb.unwrap_or(tier.max_storage_gb),
            max_ai_operations_daily: self.max_ai_operations_daily.unwrap_or(tier.max_ai_operations_daily),
            recovery_days: self.recovery_days.or(tier.recovery_days),
        }
    }

    pub fn check(self) -> Result<(), BadLimit> {
        if self.max_users.is_some_and(|users| !(1..=1_000_000).contains(&users)) {
            return Err(BadLimit { limit: "max_users", must: "1 to 1,000,000" });
        }
        if self.max_storage_gb.is_some_and(|gb| !(gb > 0.0 && gb <= 1_000_000.0)) {
            return Err(BadLimit { limit: "max_storage_gb", must: "more than 0 and at most 1,000,000" });
        }
        if self.max_ai_operations_daily.is_some_and(|count| !(0..=1_000_000_000).contains(&count)) {
            return Err(BadLimit { limit: "max_ai_operations_daily", must: "0 to 1,000,000,000" });
        }
        if self.recovery_days.is_some_and(|days| !RECOVERY_DAYS.contains(&days)) {
            return Err(BadLimit { limit: "recovery_days", must: "1 to 3650" });
        }
        Ok(())
    }
}

impl From<Limits> for OwnLimits {
    fn from(limits: Limits) -> Self {
        Self {
            max_users: Some(limits.max_users),
            max_storage_gb: Some(limits.max_storage_gb),
            max_ai_operations_daily: Some(limits.max_ai_operations_daily),
            recovery_days: limits.recovery_days,
        }
    }
}

#[cfg(test)]
mod tests;
