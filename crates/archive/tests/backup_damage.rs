//! What can go wrong with a backup: in the store, in the cluster, with keys.

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;

use loomworks_archive::RepositoryError;
use loomworks_archive::backup::{Backup, BackupError, CopyOptions, Databases};
use loomworks_testkit::faulty::Fault;
use support::{Fixture, QUIET, only, run};

/// The objects of backups, with what is in them.
fn objects(fixture: &Fixture) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &Path| path.strip_prefix(&fixture.objects).unwrap().to_str().unwrap().to_owned();
    let all = ["backups", "packs"].map(|below| support::files(&fixture.objects.join(below)));
    all.into_iter().flatten().map(|(path, content)| (name(&path), content)).collect()
}

async fn copy_fully(fixture: &Fixture, label: &str) -> Result<Backup, BackupError> {
    let options = CopyOptions { full: true, workers: Some(2) };
    let backup = fixture.repository.copy_backup(fixture.cluster(), label, options, QUIET).await?;
    fixture.repository.commit_backup(&backup).await?;
    Ok(backup)
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_off_at_any_write_a_backup_is_finished_by_the_next_try_or_ignored() {
    let fixture = Fixture::new().await;
    fixture.database("one", 3000).await;
    // Whatever the backups will need, once for all.
    let first = fixture.backup("first").await;
    for number in 0..2000 {
        let start = loomworks_core::lsn::Lsn(first.start.0 + number * (16 << 20));
        fixture.archive_wal(&Backup { start, end: start, ..first.clone() }).await;
    }
    let mut known = 1;
    let mut cut = 0;
    'all: for after in 0.. {
        for fault in [Fault::Half, if after % 2 == 0 { Fault::Before } else { Fault::After }] {
            let label = format!("cut-{after}-{fault:?}");
            fixture.die(after, fault);
            let tried = copy_fully(&fixture, &label).await;
            if !fixture.revive() {
                assert!(tried.is_ok());
                break 'all;
            }
            cut += 1;
            assert!(tried.is_err(), "{label}");
            let there = fixture.repository.backups().await.unwrap();
            let counts = there.iter().any(|backup| backup.label == label);
            assert!(there.len() == known + usize::from(counts), "{label}");
            if counts {
                assert!(fixture.repository.verify_backup(&label, QUIET).await.unwrap().is_sound(), "{label}");
            }
            let backup = copy_fully(&fixture, &label).await.unwrap();
            let report = fixture.repository.verify_backup(&label, QUIET).await.unwrap();
            assert!(report.is_sound() && report.bytes > 0, "{label}: {report:?}");
            assert_eq!(fixture.repository.backup(&label).await.unwrap(), Some(backup));
            known += 1;
        }
    }
    assert!(cut > 20, "{cut}");
    let last = fixture.repository.backups().await.unwrap().pop().unwrap();
    let (directory, _) = fixture.lay_out(&last, &Databases::All).await;
    let restored = fixture.start(&directory).await;
    restored.check("one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_try_refers_to_what_the_former_one_has_stored() {
    let fixture = Fixture::new().await;
    let one = fixture.database("one", 100_000).await;
    let mut writes = 0;
    // Dies at the last write of all.
    loop {
        fixture.die(writes, Fault::Before);
        let options = CopyOptions { full: true, workers: None };
        let copied =
            fixture.repository.copy_backup(fixture.cluster(), &format!("x{writes}"), options, QUIET).await;
        if !fixture.revive() {
            copied.unwrap();
            break;
        }
        writes += 1;
    }
    fixture.die(writes - 1, Fault::Before);
    let tried = fixture.repository.copy_backup(
        fixture.cluster(),
        "label",
        CopyOptions { full: true, workers: None },
        QUIET,
    );
    assert!(tried.await.is_err());
    assert!(fixture.revive());
    let backup = fixture.copy("label").await.unwrap();
    assert_eq!(backup.previous, None);
    assert_eq!(backup.group(one).unwrap().new_bytes, 0, "{backup:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_objects_are_refused_and_never_laid_out() {
    let fixture = Fixture::new().await;
    let one = fixture.database("one", 3000).await;
    fixture.backup("first").await;
    let mut connection = fixture.connect("one").await;
    run(&mut connection, "UPDATE items SET note = reverse(note) WHERE id < 100; CHECKPOINT").await;
    let backup = fixture.backup("second").await;
    let which = only([one]);
    let (reference, _) = fixture.lay_out(&backup, &which).await;
    let relative = |directory: &Path| -> Vec<_> {
        let files = support::files(directory).into_iter();
        files.map(|(path, content)| (path.strip_prefix(directory).unwrap().to_owned(), content)).collect()
    };
    let expected = relative(&reference);
    let all = objects(&fixture);
    assert!(all.keys().any(|name| name.starts_with(&format!("packs/{one}/first."))));
    let names: Vec<&String> = all.keys().collect();
    let (mut refused, mut harmless) = (0, 0);
    for (place, (name, content)) in all.iter().enumerate() {
        let path = fixture.objects.join(name);
        let another = &all[names[(place + 1) % names.len()]];
        let flipped = |at: usize| {
            let mut content = content.clone();
            content[at] ^= 0x20;
            Some(content)
        };
        let damages = [
            ("gone", None),
            ("empty", Some(Vec::new())),
            ("cut", Some(content[..content.len() / 2].to_vec())),
            ("cut at its end", Some(content[..content.len() - 1].to_vec())),
            ("another", Some(another.clone())),
            ("flipped at the begin", flipped(0)),
            ("flipped in the salt", flipped(10)),
            ("flipped in the middle", flipped(content.len() / 2)),
            ("flipped near the begin", flipped(content.len() / 7)),
            ("flipped at the end", flipped(content.len() - 1)),
        ];
        for (what, damaged) in damages {
            match damaged {
                Some(damaged) => put(&path, &damaged),
                None => std::fs::remove_file(&path).unwrap(),
            }
            // Another process, which remembers nothing.
            let repository = fixture.reopened().await;
            match repository.backup("second").await {
                Ok(Some(found)) => {
                    assert_eq!(found, backup, "{name} {what}");
                    let into = fixture.directory();
                    let laid = repository.lay_out(&found, &which, &into, Default::default(), QUIET).await;
                    match laid {
                        Ok(_) => {
                            assert!(relative(&into) == expected, "{name} {what}: other files");
                            harmless += 1;
                        }
                        Err(BackupError::Repository(error)) => {
                            assert!(!into.join("global/pg_control").exists());
                            let (RepositoryError::Damaged { name: object, .. }
                            | RepositoryError::Gone { name: object }) = &error
                            else {
                                panic!("{name} {what}: {error}")
                            };
                            assert_eq!(object, name, "{what}: {error}");
                            assert!(error.hint().is_some());
                            let verified = repository.verify_backup("second", QUIET).await.unwrap();
                            assert!(!verified.is_sound());
                            assert!(
                                verified.problems.iter().all(|problem| problem.object == *name),
                                "{verified:?}"
                            );
                            refused += 1;
                        }
                        Err(error) => panic!("{name} {what}: {error}"),
                    }
                    let _ = std::fs::remove_dir_all(into);
                }
                Ok(None) => assert_eq!((name.as_str(), what), ("backups/second/manifest", "gone")),
                Err(error) => {
                    assert_eq!(name, "backups/second/manifest", "{what}: {error}");
                    let left = repository.backups().await.unwrap();
                    assert_eq!(left.len(), 1, "the others are there");
                    refused += 1;
                }
            }
            put(&path, content);
        }
    }
    assert!(refused > 50 && harmless > 50, "{refused} {harmless}");
    assert!(fixture.repository.verify_backup("second", QUIET).await.unwrap().is_sound());
}

fn put(path: &Path, content: &[u8]) {
    use std::io::Write;
    std::fs::File::create(path).unwrap().write_all(content).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sealed_with_a_deleted_key_is_gone_and_its_neighbours_are_not() {
    let fixture = Fixture::new().await;
    let one = fixture.database("one", 1000).await;
    let two = fixture.database("two", 1000).await;
    let mut connection = fixture.connect("one").await;
    run(&mut connection, "INSERT INTO items VALUES (0, repeat('a marker that must not be found ', 40))")
        .await;
    run(&mut connection, "CHECKPOINT").await;
    let backup = fixture.backup("first").await;
    for (name, content) in objects(&fixture) {
        assert!(!content.windows(8).any(|bytes| bytes == b"a marker"), "{name}");
    }
    fixture.repository.keys().erase(one).await.unwrap();
    let repository = fixture.reopened().await;
    let into = fixture.directory();
    let laid = repository.lay_out(&backup, &Databases::All, &into, Default::default(), QUIET).await.unwrap();
    assert_eq!(laid.erased, [one]);
    assert!(!into.join(format!("base/{one}")).exists() && into.join(format!("base/{two}")).exists());
    let restored = fixture.start(&into).await;
    restored.check("two").await;
    let error = fixture.try_lay_out(&backup, &only([one, two])).await.unwrap_err();
    assert!(matches!(error, BackupError::Erased { oid, .. } if oid == one), "{error}");
    let report = repository.verify_backup("first", QUIET).await.unwrap();
    assert!(report.is_sound() && report.erased == [one], "{report:?}");

    let next = fixture.backup("second").await;
    let group = next.group(one).unwrap();
    assert!(group.erased && group.files == 0 && group.bytes == 0);
    let (_, laid_out) = fixture.lay_out(&next, &Databases::All).await;
    assert_eq!(laid_out.erased, [one]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_are_damaged_in_the_cluster_are_found_and_told() {
    let fixture = Fixture::new().await;
    let one = fixture.database("one", 20_000).await;
    let mut connection = fixture.connect("one").await;
    run(&mut connection, "VACUUM FREEZE items").await;
    run(&mut connection, "CHECKPOINT").await;
    let path = support::text(&mut connection, "SELECT pg_relation_filepath('items')").await;
    let file = std::fs::OpenOptions::new().write(true).open(fixture.cluster().directory.join(&path)).unwrap();
    // One with a wrong byte, one that says that it is younger than it can be.
    file.write_all_at(&[0xff], 3 * 8192 + 5000).unwrap();
    file.write_all_at(&[0x7f; 8], 5 * 8192).unwrap();
    for label in ["first", "second"] {
        let backup = fixture.backup(label).await;
        assert_eq!((backup.damaged_pages, backup.group(one).unwrap().damaged_pages), (2, 2), "{label}");
        let report = fixture.repository.verify_backup(label, QUIET).await.unwrap();
        assert!(report.is_sound(), "it is what was there: {report:?}");
        let pages: Vec<_> =
            report.damaged_pages.iter().map(|page| (page.oid, &*page.path, page.block)).collect();
        assert_eq!(pages, [(one, &*path, 3), (one, &*path, 5)]);
    }
}
