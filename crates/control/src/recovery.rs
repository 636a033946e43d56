//! How far back tenants can go, and how far back the repository reaches for that. Pure.
//!
//! A tenant goes back its own days, else its tier's, else the platform's. Base backups and shared WAL are everybody's, so
//! the repository keeps what the longest of them asks for; a tenant with a shorter window is refused what is older, and
//! shortens nobody's.

use jiff::{SignedDuration, Timestamp};
use loomworks_archive::backup::Backup;
use loomworks_core::lsn::Lsn;

use crate::db::tiers::Reach;
use crate::error::Error;

/// So many days.
#[must_use]
pub(crate) fn span(days: u16) -> SignedDuration {
    SignedDuration::from_hours(24 * i64::from(days))
}

/// The window that the repository is kept for, and why it is that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InForce {
    pub(crate) days: u16,
    pub(crate) why: String,
}

/// `reaches`: the longest first, of all tenants that somebody could want to bring back.
#[must_use]
pub(crate) fn in_force(reaches: &[Reach], platform_days: u16) -> InForce {
    match reaches.first() {
        None => {
            let why = format!("there is no tenant yet, and the platform is set to {platform_days} days");
            InForce { days: platform_days, why }
        }
        Some(longest) => InForce { days: longest.days(), why: why(longest) },
    }
}

fn why(longest: &Reach) -> String {
    let mut reasons = Vec::new();
    match (longest.own, &longest.example) {
        (1, Some(tenant)) => reasons.push(format!("tenant `{tenant}` has a limit of its own")),
        (own, Some(tenant)) => {
            reasons.push(format!("{own} tenants have a limit of their own, `{tenant}` among them"));
        }
        (_, None) => {}
    }
    match &longest.tiers[..] {
        [] => {}
        [tier] => reasons.push(format!("tier `{tier}` gives it")),
        tiers => reasons.push(format!("tiers `{}` give it", tiers.join("`, `"))),
    }
    if longest.platform {
        reasons.push("the platform is set to it".to_owned());
    }
    let tenants = match longest.tenants {
        1 => "1 tenant".to_owned(),
        tenants => format!("{tenants} tenants"),
    };
    format!("it is the longest of all tenants', of {tenants}: {}", reasons.join("; "))
}

/// Refuses a moment that is out of a tenant's window.
pub(crate) fn check(tenant: &str, days: u16, asked: Timestamp, now: Timestamp) -> Result<(), Error> {
    let oldest = now - span(days);
    if asked >= oldest {
        return Ok(());
    }
    let unit = if days == 1 { "day" } else { "days" };
    Err(Error::invalid(format!("tenant `{tenant}` can go back {days} {unit}"))
        .with_hint(format!("recoverable from {oldest}")))
}

/// A moment at which a position was behind, as far as base backups tell: the first that ended after it. `None`: none
/// has since, so it is of the last day.
#[must_use]
pub(crate) fn reached_by(backups: &[Backup], position: Lsn) -> Option<Timestamp> {
    backups.iter().find(|backup| backup.end >= position).map(|backup| backup.finished_at)
}

/// What of a tenant's window is there: not before the oldest backup, nor before the tenant.
#[must_use]
pub(crate) fn from(
    oldest_backup: Option<Timestamp>,
    days: u16,
    made_at: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    oldest_backup.map(|at| at.max(now - span(days)).max(made_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a moment")
    }

    fn reach(days: i32, tenants: i64) -> Reach {
        Reach { days, tenants, own: 0, example: None, tiers: Vec::new(), platform: false }
    }

    #[test]
    fn a_tenant_of_seven_days_is_refused_what_its_neighbour_of_thirty_gets() {
        let (now, asked) = (at("2026-03-20T12:00:00Z"), at("2026-03-12T12:00:00Z"));
        let refused = check("acme", 7, asked, now).expect_err("eight days");
        assert_eq!(refused.to_string(), "tenant `acme` can go back 7 days");
        assert_eq!(refused.hint().as_deref(), Some("recoverable from 2026-03-13T12:00:00Z"));
        assert!(check("globex", 30, asked, now).is_ok());
        assert!(check("acme", 7, at("2026-03-13T12:00:00Z"), now).is_ok(), "to the moment");
        assert_eq!(
            check("acme", 1, asked, now).expect_err("eight").to_string(),
            "tenant `acme` can go back 1 day"
        );
    }

    #[test]
    fn the_longest_is_in_force_and_says_whose_it_is() {
        let own = Reach { own: 1, example: Some("acme".into()), ..reach(90, 1) };
        assert_eq!(
            in_force(&[own.clone(), reach(30, 4)], 30),
            InForce {
                days: 90,
                why: "it is the longest of all tenants', of 1 tenant: tenant `acme` has a limit of its own"
                    .into()
            }
        );
        let all = Reach { own: 2, tiers: vec!["pro".into()], platform: true, ..own };
        let all = in_force(&[Reach { tenants: 9, ..all }], 90).why;
        assert_eq!(
            all,
            "it is the longest of all tenants', of 9 tenants: 2 tenants have a limit of their own, `acme` among them; \
             tier `pro` gives it; the platform is set to it"
        );
        assert_eq!(in_force(&[], 30).days, 30);
        // Shorter than the platform is set to: nobody can go back further.
        assert_eq!(in_force(&[Reach { tiers: vec!["basic".into()], ..reach(7, 3) }], 30).days, 7);
    }

    #[test]
    fn a_window_begins_with_the_latest_of_what_it_needs() {
        let now = at("2026-03-20T00:00:00Z");
        let (old, young) = (at("2026-01-01T00:00:00Z"), at("2026-03-15T00:00:00Z"));
        assert_eq!(from(None, 7, old, now), None);
        assert_eq!(from(Some(old), 7, old, now), Some(at("2026-03-13T00:00:00Z")));
        assert_eq!(from(Some(young), 7, old, now), Some(young));
        assert_eq!(from(Some(old), 7, young, now), Some(young));
        assert_eq!(from(Some(old), 365, old, now), Some(old));
    }

    #[test]
    fn a_position_was_behind_when_the_next_backup_ended() {
        let backup = |end, finished_at: &str| Backup {
            label: String::new(),
            attempt: String::new(),
            timeline: 1,
            start: Lsn(end - 10),
            end: Lsn(end),
            next_xid: 1000,
            started_at: at(finished_at),
            finished_at: at(finished_at),
            previous: None,
            page_checksums: Some(true),
            pages_in_a_file: 131_072,
            groups: Vec::new(),
            size_bytes: 0,
            new_bytes: 0,
            damaged_pages: 0,
        };
        let backups = [backup(100, "2026-03-01T02:00:00Z"), backup(200, "2026-03-02T02:00:00Z")];
        assert_eq!(reached_by(&backups, Lsn(150)), Some(at("2026-03-02T02:00:00Z")));
        assert_eq!(reached_by(&backups, Lsn(100)), Some(at("2026-03-01T02:00:00Z")));
        assert_eq!(reached_by(&backups, Lsn(201)), None);
        assert_eq!(reached_by(&[], Lsn(1)), None);
    }
}
