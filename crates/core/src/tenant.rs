//! What a tenant is, and which state may follow which.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a tenant is in its life.
///
/// ```text
/// provisioning ─► active ⇄ suspended
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantState {
    /// Its database is being made; it cannot be reached yet.
    Provisioning,
    /// It is served.
    Active,
    /// It is kept but not served; its visitors are told so.
    Suspended,
}

/// What somebody asks to be done with a tenant's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Its database is complete.
    Provisioned,
    Suspend,
    Resume,
}

/// A change that the tenant's state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tenant that is {from} cannot be {}", change.participle())]
pub struct NotAllowed {
    pub from: TenantState,
    pub change: Change,
}

impl TenantState {
    /// The state after `change`. A change that was made already gives the same state again, so that a repeated
    /// request is no error.
    pub fn after(self, change: Change) -> Result<Self, NotAllowed> {
        use TenantState::{Active, Provisioning, Suspended};
        match (self, change) {
            (Provisioning | Active, Change::Provisioned) | (Active | Suspended, Change::Resume) => Ok(Active),
            (Active | Suspended, Change::Suspend) => Ok(Suspended),
            (from, change) => Err(NotAllowed { from, change }),
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Active => "active",
            Self::Suspended => "suspended",
        }
    }
}

impl Change {
    fn participle(self) -> &'static str {
        match self {
            Self::Provisioned => "declared provisioned",
            Self::Suspend => "suspended",
            Self::Resume => "resumed",
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
        [Self::Provisioning, Self::Active, Self::Suspended]
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

/// What a tenant may use. The defaults are the specification's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Limits {
    pub max_users: i32,
    pub max_storage_gb: f64,
    pub max_ai_operations_daily: i32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_users: 10, max_storage_gb: 5.0, max_ai_operations_daily: 100 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_change_has_its_answer() {
        use Change::{Provisioned, Resume, Suspend};
        use TenantState::{Active, Provisioning, Suspended};
        let table = [
            (Provisioning, Provisioned, Some(Active)),
            (Provisioning, Suspend, None),
            (Provisioning, Resume, None),
            (Active, Provisioned, Some(Active)),
            (Active, Suspend, Some(Suspended)),
            (Active, Resume, Some(Active)),
            (Suspended, Provisioned, None),
            (Suspended, Suspend, Some(Suspended)),
            (Suspended, Resume, Some(Active)),
        ];
        for (from, change, to) in table {
            assert_eq!(from.after(change).ok(), to, "{from} {change:?}");
        }
    }

    #[test]
    fn a_refusal_reads_as_a_sentence() {
        let refusal = TenantState::Provisioning.after(Change::Suspend).unwrap_err();
        assert_eq!(refusal.to_string(), "a tenant that is provisioning cannot be suspended");
    }

    #[test]
    fn states_read_back() {
        for state in [TenantState::Provisioning, TenantState::Active, TenantState::Suspended] {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
    }
}
