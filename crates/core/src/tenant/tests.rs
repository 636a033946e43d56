use super::*;
use TenantState::{Active, Archived, Destroyed, Draft, Provisioning, Suspended};

const CHANGES: [Change; 8] = [
    Change::Provision,
    Change::Provisioned,
    Change::Suspend,
    Change::Resume,
    Change::Archive,
    Change::Unarchive { suspended: false },
    Change::Unarchive { suspended: true },
    Change::Destroy,
];

#[test]
fn every_state_and_change_has_its_answer() {
    // The columns are the changes above; `-` is a refusal.
    let no = None;
    #[rustfmt::skip]
    let table: [(TenantState, [Option<TenantState>; 8]); 6] = [
        (Draft,        [Some(Provisioning), no, no, no, no, no, no, Some(Destroyed)]),
        (Provisioning, [Some(Provisioning), Some(Active), no, no, no, no, no, Some(Destroyed)]),
        (Active,       [no, Some(Active), Some(Suspended), Some(Active), Some(Archived), Some(Active), no, no]),
        (Suspended,    [no, no, Some(Suspended), Some(Active), Some(Archived), no, Some(Suspended), no]),
        (Archived,     [no, no, no, no, Some(Archived), Some(Active), Some(Suspended), Some(Destroyed)]),
        (Destroyed,    [no, no, no, no, no, no, no, Some(Destroyed)]),
    ];
    assert_eq!(table.map(|(state, _)| state), TenantState::ALL);
    for (from, answers) in table {
        for (change, to) in CHANGES.into_iter().zip(answers) {
            assert_eq!(from.after(change).ok(), to, "{from} {change:?}");
        }
    }
}

#[test]
fn a_change_that_was_made_is_no_error_when_it_is_asked_for_again() {
    for from in TenantState::ALL {
        for change in CHANGES {
            if let Ok(to) = from.after(change) {
                assert_eq!(to.after(change), Ok(to), "{from} {change:?}");
            }
        }
    }
}

#[test]
fn nothing_comes_back_from_destroyed() {
    for change in CHANGES {
        assert!(Destroyed.after(change).is_ok_and(|to| to == Destroyed) == (change == Change::Destroy));
    }
}

#[test]
fn a_refusal_reads_as_a_sentence() {
    let refusal = Provisioning.after(Change::Suspend).unwrap_err();
    assert_eq!(refusal.to_string(), "a tenant that is provisioning cannot be suspended");
    let refusal = Draft.after(Change::Unarchive { suspended: true }).unwrap_err();
    assert_eq!(refusal.to_string(), "a tenant that is a draft cannot be taken back from the archive");
}

#[test]
fn states_and_tiers_read_back() {
    for state in TenantState::ALL {
        assert_eq!(state.as_str().parse(), Ok(state));
    }
    for tier in Tier::ALL {
        assert_eq!(tier.as_str().parse(), Ok(tier));
    }
    assert!("".parse::<TenantState>().is_err() && "gold".parse::<Tier>().is_err());
}

#[test]
fn retention_is_over_at_its_end_or_when_an_operator_says_so_twice() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let end = at("2026-04-10T00:00:00Z");
    let before = at("2026-04-09T23:59:59Z");
    assert_eq!(retention_allows(Some(end), before, false), Err(Retained { until: end }));
    assert_eq!(retention_allows(Some(end), before, true), Ok(()));
    assert_eq!(retention_allows(Some(end), end, false), Ok(()));
    // A draft has none.
    assert_eq!(retention_allows(None, before, false), Ok(()));
}

#[test]
fn own_limits_go_before_the_tiers() {
    let tier = Limits {
        max_users: 50,
        max_storage_gb: 50.0,
        max_ai_operations_daily: 1000,
        recovery_days: Some(60),
    };
    assert_eq!(OwnLimits::default().over(tier), tier);
    let own = OwnLimits {
        max_users: Some(7),
        max_storage_gb: Some(0.5),
        max_ai_operations_daily: Some(0),
        recovery_days: Some(7),
    };
    let expected =
        Limits { max_users: 7, max_storage_gb: 0.5, max_ai_operations_daily: 0, recovery_days: Some(7) };
    assert_eq!(own.over(tier), expected);
    assert_eq!(own.check(), Ok(()));
    for bad in [
        OwnLimits { max_users: Some(0), ..own },
        OwnLimits { max_storage_gb: Some(f64::NAN), ..own },
        OwnLimits { max_storage_gb: Some(-1.0), ..own },
        OwnLimits { max_ai_operations_daily: Some(-1), ..own },
        OwnLimits { recovery_days: Some(0), ..own },
        OwnLimits { recovery_days: Some(3651), ..own },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
    for days in [1, 3650] {
        assert_eq!(OwnLimits { recovery_days: Some(days), ..own }.check(), Ok(()));
    }
    let left_open = OwnLimits { recovery_days: None, ..own };
    assert_eq!(left_open.over(tier).recovery_days, Some(60));
    assert_eq!(left_open.over(Limits::default()).recovery_days, None, "what the platform is set to");
}
