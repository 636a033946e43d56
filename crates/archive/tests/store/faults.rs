//! A store that fails: what is told, and what is left.

use std::sync::Arc;

use bytes::Bytes;
use loomworks_archive::keys::PassingProvider;
use loomworks_archive::store::{Location, Store};
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_testkit::faulty::{Fault, Faults, Kind, Operation};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;

use super::store_of;

fn cluster() -> ClusterIdentity {
    ClusterIdentity { system_identifier: 1, segment_bytes: 16 << 20, major_version: 15 }
}

#[tokio::test]
async fn a_repository_whose_making_is_cut_off_anywhere_is_made_by_the_next_try() {
    let provider = Arc::new(PassingProvider::default());
    let make = |store| Repository::create_in(store, cluster(), provider.clone());
    let faults = Faults::default();
    make(store_of(faults.around(Arc::new(InMemory::new())))).await.unwrap();
    let operations = faults.operations().len() as u64;
    for number in 1..=operations {
        for fault in [Fault::Before, Fault::After, Fault::Full] {
            faults.heal();
            let store = store_of(faults.around(Arc::new(InMemory::new())));
            faults.crash_at(number, fault.clone());
            make(store.clone()).await.unwrap_err();
            faults.heal();
            let made = make(store.clone()).await.unwrap();
            assert_eq!(Repository::open_in(store, provider.clone()).await.unwrap().cluster, made.cluster);
        }
    }
}

#[tokio::test]
async fn what_a_killed_process_leaves_in_a_directory_is_no_object() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let objects = LocalFileSystem::new_with_prefix(dir.path()).unwrap();
    let location = Location::Directory(dir.path().to_owned());
    let store = Store::of(faults.around(Arc::new(objects)), "", location);
    faults.at(1, Fault::Staged(dir.path().to_owned()));
    store.put_new("wal/one", Bytes::from_static(b"content")).await.unwrap_err();
    assert!(dir.path().join("wal/one#1").exists());
    assert_eq!(store.get("wal/one").await.unwrap(), None);
    assert!(store.list("wal").await.unwrap().is_empty());
    assert!(store.put_new("wal/one", Bytes::from_static(b"content")).await.unwrap());
    assert_eq!(store.list("wal").await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_and_no_shorter_object() {
    let faults = Faults::default();
    let store = store_of(faults.around(Arc::new(InMemory::new())));
    for name in ["a/one", "a/two"] {
        store.put_new(name, Bytes::from_static(b"content")).await.unwrap();
    }
    faults.heal();
    // A range that was refused is looked into: how long is the object?
    faults.during(1..5, Fault::Torn(1));
    store.get("a/one").await.unwrap_err();
    store.get_range("a/one", 0..4).await.unwrap_err();
    store.list("a").await.unwrap_err();
    assert_eq!(store.list("a").await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_conflict_is_looked_into_and_never_taken_for_an_object() {
    let faults = Faults::default();
    let store = store_of(faults.around(Arc::new(InMemory::new())));
    faults.only(|operation| operation.kind == Kind::Write);
    faults.at(1, Fault::Conflict);
    assert!(store.put_new("a", Bytes::new()).await.unwrap(), "there was none");
    faults.at(3, Fault::Conflict);
    assert!(!store.put_new("a", Bytes::new()).await.unwrap(), "there is one");
    faults.during(4..100, Fault::Conflict);
    store.put_new("b", Bytes::new()).await.unwrap_err();
}

#[tokio::test]
async fn faults_come_where_they_were_planned_and_the_same_for_a_seed() {
    let faults = Faults::default();
    let store = store_of(faults.around(Arc::new(InMemory::new())));
    faults.only(|operation| operation.name.starts_with("counted/"));
    faults.at(2, Fault::After);
    store.put_new("other", Bytes::new()).await.unwrap();
    store.put_new("counted/1", Bytes::new()).await.unwrap();
    store.put_new("counted/2", Bytes::new()).await.unwrap_err();
    assert!(store.get("counted/2").await.unwrap().is_some(), "it was done");
    let read = Operation { kind: Kind::Read, name: "counted/2".into() };
    assert_eq!(faults.operations()[2], read);

    faults.heal();
    faults.space(10);
    store.put_new("large", Bytes::from_static(b"12345678")).await.unwrap();
    let full = store.put_new("larger", Bytes::from_static(b"123")).await.unwrap_err();
    assert!(format!("{full:?}").contains("StorageFull"), "{full:?}");

    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        faults.heal();
        faults.random(seed, 4, &[Fault::Before, Fault::After]);
        let mut run = Vec::new();
        for number in 0..64 {
            run.push(store.replace(&number.to_string(), Bytes::new()).await.is_ok());
        }
        runs.push(run);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    let failed = runs[0].iter().filter(|well| !**well).count();
    assert!((5..30).contains(&failed), "{failed}");
}
