//! Base backups of a real server: taken, laid out, started, compared.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use loomworks_archive::backup::{BackupError, Databases};
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
