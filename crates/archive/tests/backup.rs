//! Base backups of a real server: taken, laid out, started, compared.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use loomworks_archive::backup::{Backup, BackupError, CopyOptions, Databases};
use support::{Fixture, digest, only, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_taken_under_load_is_brought_back_as_it_was() {
    let fixture = Arc::new(Fixture::new().await);
    let one = fixture.database("one", 20_000).await;
    let two = fixture.database("two", 5_000).await;
    let (stop, load) = (Arc::new(AtomicBool::new(false)), fixture.clone());
    let stopped = stop.clone();
    let load = tokio::spawn(async move {
        let mut connection = load.connect("one").await;
        let mut rounds = 0;
        while !stopped.load(Ordering::Relaxed) {
            run(&mut connection, "UPDATE items SET note = md5(note) WHERE id % 7 = 0").await;
            run(&mut connection, "INSERT INTO items SELECT max(id) + 1, 'new' FROM items").await;
            run(&mut connection, "DELETE FROM items WHERE id = (SELECT min(id) FROM items)").await;
            run(&mut connection, &format!("CREATE TABLE t{rounds} AS SELECT * FROM items")).await;
            run(&mut connection, &format!("DROP TABLE t{rounds}")).await;
            run(&mut connection, "VACUUM items").await;
            run(&mut connection, "CHECKPOINT").await;
            rounds += 1;
        }
        rounds
    });
    let mut backups = Vec::new();
    for label in ["first", "second"] {
        backups.push(fixture.backup(label).await);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 0);

    let mut expected = Vec::new();
    for database in ["one", "two"] {
        expected.push(digest(&mut fixture.connect(database).await, "items").await);
    }
    for backup in &backups {
        assert!(backup.start < backup.end && backup.started_at < backup.finished_at && backup.next_xid > 3);
        assert_eq!(backup.damaged_pages, 0);
        assert!(backup.group(one).unwrap().database.as_deref() == Some("one") && backup.group(two).is_some());
        let (directory, laid_out) = fixture.lay_out(backup, &Databases::All).await;
        assert_eq!(laid_out.bytes, backup.size_bytes);
        let restored = fixture.start(&directory).await;
        for (database, expected) in ["one", "two"].iter().zip(&expected) {
            assert_eq!(&digest(&mut restored.connect(database).await, "items").await, expected);
            restored.check(database).await;
        }
    }
    assert_eq!(fixture.repository.backups().await.unwrap(), backups);
    assert_eq!(backups[1].previous.as_deref(), Some("first"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_database_is_brought_back_without_its_neighbours() {
    let fixture = Fixture::new().await;
    let one = fixture.database("one", 1000).await;
    let two = fixture.database("two", 1000).await;
    let backup = fixture.backup("first").await;
    let expected = digest(&mut fixture.connect("one").await, "items").await;
    let (directory, laid_out) = fixture.lay_out(&backup, &only([one])).await;
    assert!(laid_out.bytes < backup.size_bytes);
    let databases: Vec<_> =
        std::fs::read_dir(directory.join("base")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(databases, [&*one.to_string()], "and not {two}");
    let restored = fixture.start(&directory).await;
    assert_eq!(digest(&mut restored.connect("one").await, "items").await, expected);

    let error = fixture.try_lay_out(&backup, &only([99_999])).await.unwrap_err();
    assert!(matches!(error, BackupError::NoDatabase { oid: 99_999, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_changed_is_not_stored_again() {
    let fixture = Fixture::new().await;
    let mut admin = fixture.connect("postgres").await;
    run(&mut admin, "ALTER SYSTEM SET autovacuum = off").await;
    run(&mut admin, "SELECT pg_reload_conf()").await;
    let one = fixture.database("one", 100_000).await;
    let mut connection = fixture.connect("one").await;
    run(&mut connection, "CREATE TABLE big (id int, note text) WITH (fillfactor = 90)").await;
    let fill = "INSERT INTO big SELECT n, md5(n::text) || md5((-n)::text) FROM generate_series(1, 300000) n";
    run(&mut connection, fill).await;
    run(&mut connection, "VACUUM FREEZE ANALYZE").await;
    run(&mut connection, "CHECKPOINT").await;

    let first = fixture.backup("first").await;
    let second = fixture.backup("second").await;
    assert_eq!(second.group(one).unwrap().new_bytes, 0);
    assert_eq!(second.group(one).unwrap().bytes, first.group(one).unwrap().bytes);
    assert!(second.new_bytes < 200_000 && second.new_bytes * 20 < first.new_bytes, "{second:?}");

    let some = "UPDATE big SET note = reverse(note)
                WHERE (ctid::text::point)[0]::int % 100 = 7 AND (ctid::text::point)[1]::int = 1";
    run(&mut connection, some).await;
    run(&mut connection, "CHECKPOINT").await;
    let third = fixture.backup("third").await;
    let (all, new) = (first.group(one).unwrap().new_bytes, third.group(one).unwrap().new_bytes);
    assert!(new > 0 && new * 10 <= all, "{new} of {all} bytes were stored for one page in a hundred");

    let expected = digest(&mut connection, "big").await;
    let (directory, _) = fixture.lay_out(&third, &Databases::All).await;
    let restored = fixture.start(&directory).await;
    assert_eq!(digest(&mut restored.connect("one").await, "big").await, expected);

    let options = CopyOptions { full: true, workers: Some(1) };
    let full =
        fixture.repository.copy_backup(fixture.cluster(), "full", options, support::QUIET).await.unwrap();
    assert!(full.previous.is_none() && full.group(one).unwrap().new_bytes * 10 > all * 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_counts_once_its_wal_is_archived_and_each_step_may_run_twice() {
    let fixture = Fixture::new().await;
    let backup = fixture.copy("first").await.unwrap();
    assert_eq!(fixture.copy("first").await.unwrap(), backup, "it finds its copy");
    let refused = fixture.repository.commit_backup(&backup).await.unwrap_err();
    assert!(matches!(refused, BackupError::WalIncomplete(_)) && refused.hint().is_some());
    assert_eq!(fixture.repository.backups().await.unwrap(), []);
    fixture.archive_wal(&backup).await;
    for _ in 0..2 {
        fixture.repository.commit_backup(&backup).await.unwrap();
    }
    assert_eq!(fixture.repository.backups().await.unwrap(), std::slice::from_ref(&backup));
    assert_eq!(fixture.repository.backup("first").await.unwrap(), Some(backup.clone()));
    assert_eq!(fixture.repository.backup("other").await.unwrap(), None);
    let other = Backup { new_bytes: 1, ..backup };
    let refused = fixture.repository.commit_backup(&other).await.unwrap_err();
    assert!(matches!(refused, BackupError::Differs(_)));
    for label in ["", "a/b", "..", "a.b"] {
        assert!(matches!(fixture.copy(label).await, Err(BackupError::Label(_))), "{label:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_with_the_same_step_have_one_result() {
    let fixture = Fixture::new().await;
    fixture.database("one", 20_000).await;
    let other = fixture.reopened().await;
    let (a, b) = tokio::join!(
        fixture.copy("first"),
        other.copy_backup(fixture.cluster(), "first", CopyOptions::default(), support::QUIET)
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a, b);
    fixture.archive_wal(&a).await;
    fixture.repository.commit_backup(&a).await.unwrap();
    assert!(fixture.repository.verify_backup("first", support::QUIET).await.unwrap().is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_would_empty_is_left_out_and_the_rest_is_kept() {
    let fixture = Fixture::new().await;
    let one = fixture.database("one", 100).await;
    let mut connection = fixture.connect("one").await;
    run(&mut connection, "CREATE UNLOGGED TABLE passing (id int PRIMARY KEY)").await;
    run(&mut connection, "INSERT INTO passing SELECT generate_series(1, 5000)").await;
    run(&mut connection, "CREATE TEMPORARY TABLE mine AS SELECT generate_series(1, 5000)").await;
    run(&mut connection, "CHECKPOINT").await;
    let unlogged = support::text(&mut connection, "SELECT pg_relation_filepath('passing')").await;
    let temporary = support::text(&mut connection, "SELECT pg_relation_filepath('mine')").await;
    let backup = fixture.backup("first").await;
    let source = &fixture.cluster().directory;
    let (directory, _) = fixture.lay_out(&backup, &only([one])).await;
    assert!(source.join(&temporary).exists() && !directory.join(&temporary).exists());
    assert!(source.join(&unlogged).exists() && !directory.join(&unlogged).exists());
    assert!(directory.join(format!("{unlogged}_init")).exists());
    for left in ["postmaster.pid", "start.log", "global/pg_internal.init", "tablespace_map"] {
        assert!(!directory.join(left).exists(), "{left}");
    }
    for emptied in ["pg_wal", "pg_notify", "pg_subtrans", "pg_replslot", "pg_stat_tmp", "log"] {
        assert_eq!(std::fs::read_dir(directory.join(emptied)).unwrap().count(), 0, "{emptied}");
    }
    let restored = fixture.start(&directory).await;
    let mut connection = restored.connect("one").await;
    assert_eq!(support::text(&mut connection, "SELECT count(*)::text FROM passing").await, "0");
    assert_eq!(support::text(&mut connection, "SELECT count(*)::text FROM items").await, "100");
}

#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_come_back_as_directories_and_lead_nowhere() {
    let fixture = Fixture::new().await;
    let elsewhere = fixture.server.directory.join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    fixture.cluster().give(&elsewhere).unwrap();
    let mut admin = fixture.connect("postgres").await;
    run(&mut admin, &format!("CREATE TABLESPACE elsewhere LOCATION '{}'", elsewhere.display())).await;
    run(&mut admin, "CREATE DATABASE two TABLESPACE elsewhere").await;
    let one = fixture.database("one", 100).await;
    let mut first = fixture.connect("one").await;
    run(&mut first, "CREATE TABLE far TABLESPACE elsewhere AS SELECT n FROM generate_series(1, 9999) n")
        .await;
    let mut second = fixture.connect("two").await;
    run(&mut second, "CREATE TABLE far AS SELECT n FROM generate_series(1, 7777) n").await;
    let two = support::oid_of(&mut second).await;
    let oid =
        support::text(&mut admin, "SELECT oid::text FROM pg_tablespace WHERE spcname = 'elsewhere'").await;
    let backup = fixture.backup("first").await;
    assert!(backup.group(two).unwrap().bytes > 5_000_000);

    let (directory, laid_out) = fixture.lay_out(&backup, &Databases::All).await;
    assert_eq!(
        laid_out.tablespaces.iter().map(u32::to_string).collect::<Vec<_>>(),
        std::slice::from_ref(&oid)
    );
    let mut waiting = vec![directory.clone()];
    while let Some(parent) = waiting.pop() {
        for entry in std::fs::read_dir(parent).unwrap().map(Result::unwrap) {
            assert!(!entry.file_type().unwrap().is_symlink(), "{:?}", entry.path());
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    let restored = fixture.start(&directory).await;
    for (database, connection) in [("one", &mut first), ("two", &mut second)] {
        let expected = digest(connection, "far").await;
        assert_eq!(digest(&mut restored.connect(database).await, "far").await, expected);
    }
    let (directory, _) = fixture.lay_out(&backup, &only([one])).await;
    let tablespace = directory.join("pg_tblspc").join(oid);
    let version = std::fs::read_dir(tablespace).unwrap().next().unwrap().unwrap().path();
    let databases: Vec<_> =
        std::fs::read_dir(version).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(databases, [&*one.to_string()]);
}
