//! What a subscription's end asks for: notices before it, suspension after a grace period, and taking that back.

use jiff::civil::Date;
use jiff::{Span, ToSpan};
use serde::{Deserialize, Serialize};

use crate::tenant::TenantState;

/// What a tenant is told about the end of its subscription, in this order, each once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// It ends in 14 days, or sooner.
    InFourteenDays,
    /// It ends in 7 days, or sooner.
    InSevenDays,
    /// It ends tomorrow.
    InOneDay,
    /// It has ended; the tenant will be suspended on a day that is named.
    Expired,
    /// The grace period is over, the tenant is suspended.
    Suspended,
}

impl Notice {
    pub const ALL: [Self; 5] =
        [Self::InFourteenDays, Self::InSevenDays, Self::InOneDay, Self::Expired, Self::Suspended];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InFourteenDays => "in_14_days",
            Self::InSevenDays => "in_7_days",
            Self::InOneDay => "in_1_day",
            Self::Expired => "expired",
            Self::Suspended => "suspended",
        }
    }
}

/// A subscription and how its tenant stands.
#[derive(Clone, Debug)]
pub struct Subscription<'a> {
    pub state: TenantState,
    /// Whether it was the end of the subscription that suspended it, and not a person.
    pub suspended_by_subscription: bool,
    /// The first day that is not paid for. `None`: it does not end.
    pub expires: Option<Date>,
    pub grace_days: u16,
    /// The notices that were given for this end.
    pub sent: &'a [Notice],
}

/// What is to be done today.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Due {
    pub notice: Option<Notice>,
    pub suspend: bool,
    pub resume: bool,
}

impl Due {
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// The day on which a tenant is suspended whose subscription ends on `expires`.
#[must_use]
pub fn suspension_day(expires: Date, grace_days: u16) -> Date {
    expires.saturating_add(i64::from(grace_days).days())
}

/// Decides what is due on a day. Told that it was done, it finds nothing more to do on that day.
///
/// Of several notices that are due the last is given alone: who was not told that 14 days are left, because nobody
/// looked on that day, is not told so when it is 7.
#[must_use]
pub fn due(subscription: &Subscription<'_>, today: Date) -> Due {
    let serves = match subscription.state {
        TenantState::Active => true,
        TenantState::Suspended if subscription.suspended_by_subscription => false,
        // Whom a person suspended, he is not served by the calendar, nor is what does not live.
        _ => return Due::default(),
    };
    let stage = subscription.expires.and_then(|expires| stage(expires, subscription.grace_days, today));
    let over = stage == Some(Notice::Suspended);
    let newer = |stage: &Notice| subscription.sent.iter().all(|sent| sent < stage);
    Due { notice: stage.filter(newer), suspend: over && serves, resume: !over && !serves }
}

/// How far the end has come on a day.
fn stage(expires: Date, grace_days: u16, today: Date) -> Option<Notice> {
    let before = |days: i64| expires.saturating_sub(Span::new().days(days));
    [
        (suspension_day(expires, grace_days), Notice::Suspended),
        (expires, Notice::Expired),
        (before(1), Notice::InOneDay),
        (before(7), Notice::InSevenDays),
        (before(14), Notice::InFourteenDays),
    ]
    .into_iter()
    .find(|(from, _)| *from <= today)
    .map(|(_, notice)| notice)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    /// A tenant as it is kept, to which what is due is done each day.
    struct Kept {
        state: TenantState,
        by_subscription: bool,
        sent: Vec<Notice>,
    }

    impl Kept {
        fn new() -> Self {
            Self { state: TenantState::Active, by_subscription: false, sent: Vec::new() }
        }

        fn due(&self, expires: Option<Date>, grace_days: u16, today: Date) -> Due {
            let subscription = Subscription {
                state: self.state,
                suspended_by_subscription: self.by_subscription,
                expires,
                grace_days,
                sent: &self.sent,
            };
            due(&subscription, today)
        }

        fn day(&mut self, expires: Option<Date>, grace_days: u16, today: Date) -> Due {
            let due = self.due(expires, grace_days, today);
            self.sent.extend(due.notice);
            if due.suspend {
                (self.state, self.by_subscription) = (TenantState::Suspended, true);
            }
            if due.resume {
                (self.state, self.by_subscription) = (TenantState::Active, false);
            }
            due
        }
    }

    #[test]
    fn each_notice_comes_on_its_day_and_the_suspension_after_the_grace() {
        let expires = date("2026-03-20");
        let mut kept = Kept::new();
        let mut told = Vec::new();
        let mut today = date("2026-02-20");
        while today < date("2026-04-20") {
            if let Some(notice) = kept.day(Some(expires), 7, today).notice {
                told.push((today.to_string(), notice, kept.state));
            }
            today = today.tomorrow().unwrap();
        }
        use TenantState::{Active, Suspended};
        let expected = [
            ("2026-03-06", Notice::InFourteenDays, Active),
            ("2026-03-13", Notice::InSevenDays, Active),
            ("2026-03-19", Notice::InOneDay, Active),
            ("2026-03-20", Notice::Expired, Active),
            ("2026-03-27", Notice::Suspended, Suspended),
        ];
        assert_eq!(told, expected.map(|(day, notice, state)| (day.to_owned(), notice, state)));
    }

    #[test]
    fn a_prolonged_subscription_resumes_only_what_its_end_suspended() {
        let mut kept = Kept::new();
        kept.day(Some(date("2026-03-01")), 7, date("2026-03-20"));
        assert_eq!(kept.state, TenantState::Suspended);
        kept.sent.clear();
        assert!(kept.due(Some(date("2027-03-01")), 7, date("2026-03-20")).resume);
        assert!(kept.due(None, 7, date("2026-03-20")).resume, "one that does not end any more");
        kept.by_subscription = false;
        assert!(kept.due(Some(date("2027-03-01")), 7, date("2026-03-20")).is_nothing(), "suspended by hand");
    }

    proptest! {
        #[test]
        fn whatever_days_are_looked_at_notices_come_once_in_order_and_service_ends_with_the_grace(
            start in -60_i64..60, gaps in prop::collection::vec(0_i64..20, 1..40), grace in 0_u16..30,
        ) {
            let expires = date("2026-06-15");
            let mut today = expires.saturating_add(start.days());
            let mut kept = Kept::new();
            for gap in gaps {
                today = today.saturating_add(gap.days());
                kept.day(Some(expires), grace, today);
                prop_assert!(kept.due(Some(expires), grace, today).is_nothing(), "done is done");
                prop_assert!(kept.sent.windows(2).all(|two| two[0] < two[1]), "{:?}", kept.sent);
                let over = today >= suspension_day(expires, grace);
                prop_assert_eq!(kept.state == TenantState::Suspended, over);
                let near = today >= expires.saturating_sub(14.days());
                prop_assert_eq!(!kept.sent.is_empty(), near, "whoever is near the end was told");
            }
        }

        #[test]
        fn what_is_not_served_or_was_suspended_by_hand_is_left_alone(offset in -60_i64..60, state in 0_usize..6) {
            let state = TenantState::ALL[state];
            prop_assume!(state != TenantState::Active);
            let today = date("2026-06-15").saturating_add(offset.days());
            let kept = Kept { state, by_subscription: false, sent: Vec::new() };
            prop_assert!(kept.due(Some(date("2026-06-15")), 7, today).is_nothing());
            prop_assert!(kept.due(None, 7, today).is_nothing());
        }
    }
}
