//! Removing what is not needed any more, from a repository with real backups in it.

mod support;

use jiff::SignedDuration;
use loomworks_archive::backup::{Backup, Databases};
use loomworks_archive::retention::{ExpiryPlan, Need, Needed, Policy, Why, plan};
use loomworks_core::lsn::Lsn;
use loomworks_core::time;
use loomworks_testkit::faulty::Fault;
use support::{Fixture, QUIET, digest, run};

/// Everything counts as old.
const NOTHING_YOUNG: Policy = Policy { window: SignedDuration::ZERO, safety: SignedDuration::ZERO };

async fn three_backups(fixture: &Fixture) -> Vec<Backup> {
    let mut connection = fixture.connect("one").await;
    let mut backups = Vec::new();
    for label in ["first", "second", "third"] {
        backups.push(fixture.backup(label).await);
        run(&mut connection, "UPDATE items SET note = reverse(note) WHERE id % 50 = 0; CHECKPOINT").await;
        run(&mut connection, "SELECT pg_switch_wal()").await;
    }
    // The store's clock has whole seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    backups
}

async fn planned(fixture: &Fixture, needs: Vec<Need>, policy: Policy) -> ExpiryPlan {
    plan(&fixture.repository.inventory(needs).await.unwrap(), policy, time::now())
}

fn labels(backups: &[Backup]) -> Vec<&str> {
    backups.iter().map(|backup| backup.label.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_backups_go_and_what_later_ones_refer_to_stays() {
    let fixture = Fixture::new().await;
    fixture.database("one", 20_000).await;
    let backups = three_backups(&fixture).await;
    assert!(planned(&fixture, vec![], Policy::default()).await.is_empty(), "all of it is young");

    let lsn = Lsn(backups[1].start.0 - 1);
    let snapshot = Need { what: "snapshot x".into(), needed: Needed::Moment { timeline: None, lsn } };
    let made = planned(&fixture, vec![snapshot], NOTHING_YOUNG).await;
    assert_eq!(made.kept.iter().map(|kept| &*kept.label).collect::<Vec<_>>(), ["first", "third"]);
    let running = Needed::Backup { label: "second".into(), up_to: None };
    let restore = Need { what: "restore y".into(), needed: running };
    let made = planned(&fixture, vec![restore], NOTHING_YOUNG).await;
    assert_eq!(made.kept.iter().map(|kept| &*kept.label).collect::<Vec<_>>(), ["second", "third"]);

    let made = planned(&fixture, vec![], NOTHING_YOUNG).await;
    assert!(made.removals().any(|removal| removal.why == Why::WalNotNeeded));
    let expired = fixture.repository.expire(&made).await.unwrap();
    assert!(!expired.put_off && expired.objects > 0 && expired.bytes == made.bytes());
    assert_eq!(labels(&fixture.repository.backups().await.unwrap()), ["third"]);
    assert!(planned(&fixture, vec![], NOTHING_YOUNG).await.is_empty());
    assert!(fixture.repository.verify_backup("third", QUIET).await.unwrap().is_sound());
    let (directory, _) = fixture.lay_out(&backups[2], &Databases::All).await;
    let restored = fixture.start(&directory).await;
    let expected = digest(&mut fixture.connect("one").await, "items").await;
    assert_eq!(digest(&mut restored.connect("one").await, "items").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_off_at_any_removal_nothing_is_in_pieces() {
    let fixture = Fixture::new().await;
    fixture.database("one", 2000).await;
    three_backups(&fixture).await;
    let made = planned(&fixture, vec![], NOTHING_YOUNG).await;
    let mut cut = 0;
    for after in 0.. {
        fixture.die(after, if after % 2 == 0 { Fault::Before } else { Fault::After });
        let expired = fixture.repository.expire(&made).await;
        if !fixture.revive() {
            expired.unwrap();
            break;
        }
        assert!(expired.is_err());
        cut += 1;
        if after % 8 == 0 {
            for backup in fixture.repository.backups().await.unwrap() {
                let report = fixture.repository.verify_backup(&backup.label, QUIET).await.unwrap();
                assert!(report.is_sound(), "{report:?}");
            }
        }
    }
    assert!(cut > 20, "{cut}");
    assert!(planned(&fixture, vec![], NOTHING_YOUNG).await.is_empty());
    assert!(fixture.repository.verify_backup("third", QUIET).await.unwrap().is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_began_meanwhile_puts_the_removal_of_packs_off() {
    let fixture = Fixture::new().await;
    fixture.database("one", 2000).await;
    three_backups(&fixture).await;
    let made = planned(&fixture, vec![], NOTHING_YOUNG).await;
    fixture.copy("fourth").await.unwrap();
    let packs = support::files(&fixture.objects.join("packs")).len();
    assert!(fixture.repository.expire(&made).await.unwrap().put_off);
    assert_eq!(support::files(&fixture.objects.join("packs")).len(), packs);
    assert!(fixture.repository.verify_backup("third", QUIET).await.unwrap().is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_never_became_a_backup_goes_and_cannot_become_one() {
    let fixture = Fixture::new().await;
    fixture.database("one", 2000).await;
    fixture.backup("first").await;
    let copied = fixture.copy("second").await.unwrap();
    fixture.archive_wal(&copied).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let running = Needed::Backup { label: "second".into(), up_to: None };
    let job = Need { what: "backup job".into(), needed: running };
    let gone =
        |plan: &ExpiryPlan| plan.removals().filter(|removal| removal.why == Why::NeverFinished).count();
    assert_eq!(gone(&planned(&fixture, vec![job], NOTHING_YOUNG).await), 0);
    let made = planned(&fixture, vec![], NOTHING_YOUNG).await;
    assert!(gone(&made) > 3);
    fixture.repository.expire(&made).await.unwrap();
    let error = fixture.repository.commit_backup(&copied).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the copy of backup `second` is gone: it waited for so long that it was removed"
    );
    assert_eq!(labels(&fixture.repository.backups().await.unwrap()), ["first"]);
    assert!(fixture.repository.verify_backup("first", QUIET).await.unwrap().is_sound());
}
