//! Stores that say that all is well while they do something else: each is refused, with what it does wrong.

use std::sync::Arc;
use std::time::Duration;

use loomworks_archive::store::probe::{Unfit, probe};
use loomworks_testkit::faulty::{Fault, Faults, Kind, Lie};
use object_store::memory::InMemory;

use super::store_of;

async fn probed(lie: Lie) -> Unfit {
    let faults = Faults::default();
    faults.lie(lie);
    let unfit = probe(&store_of(faults.around(Arc::new(InMemory::new())))).await.unwrap_err();
    assert!(!unfit.hint().is_empty());
    unfit
}

#[tokio::test]
async fn one_that_replaces_what_it_must_not() {
    assert!(matches!(probed(Lie::Replaces).await, Unfit::Winners { writers: 8, winners: 8 }));
}

#[tokio::test]
async fn one_that_tells_two_writers_that_they_have_won() {
    let unfit = probed(Lie::EverybodyWins).await;
    assert!(matches!(unfit, Unfit::Winners { .. }), "{unfit}");
    assert!(unfit.hint().contains("If-None-Match"));
}

#[tokio::test]
async fn one_that_gives_other_or_older_bytes() {
    assert!(matches!(probed(Lie::OtherBytes).await, Unfit::OtherBytes));
    assert!(matches!(probed(Lie::Stale).await, Unfit::Stale));
}

#[tokio::test]
async fn one_that_does_not_list_or_does_not_remove() {
    assert!(matches!(probed(Lie::Unlisted).await, Unfit::NotListed));
    assert!(matches!(probed(Lie::Keeps).await, Unfit::Keeps));
}

#[tokio::test]
async fn one_that_fails_anywhere_is_not_called_fit() {
    let faults = Faults::default();
    let store = store_of(faults.around(Arc::new(InMemory::new())));
    probe(&store).await.unwrap();
    let operations = faults.operations().len() as u64;
    assert!(operations > 12, "{operations}");
    for number in 1..=operations {
        for fault in [Fault::Before, Fault::After, Fault::Torn(3), Fault::Full] {
            faults.heal();
            faults.at(number, fault.clone());
            let unfit = probe(&store).await;
            assert!(matches!(unfit, Err(Unfit::Store(_))), "{number}, {fault:?}: {unfit:?}");
        }
    }
}

#[tokio::test]
async fn a_slow_one_and_one_that_loses_an_answer_is_fit() {
    let faults = Faults::default();
    let store = store_of(faults.around(Arc::new(InMemory::new())));
    faults.during(1..10, Fault::Slow(Duration::from_millis(20)));
    probe(&store).await.unwrap();
    // S3 answers writers at once so, and says nothing of whether there is an object.
    faults.heal();
    faults.only(|operation| operation.kind == Kind::Write);
    faults.during(1..7, Fault::Conflict);
    probe(&store).await.unwrap();
}
