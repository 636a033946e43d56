//! Everything that a store does, with a real server that speaks S3.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use loomworks_archive::keys::PassingProvider;
use loomworks_archive::store::probe::{Unfit, probe};
use loomworks_archive::store::{Entry, Location, Store, StoreError};
use loomworks_archive::{ClusterIdentity, Repository, RepositoryError};
use loomworks_testkit::S3;
use loomworks_testkit::s3::Feature;

fn location(s3: &S3, but: &[(&str, &str)]) -> Location {
    let mut options = s3.options();
    options.extend(but.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
    Location::parse(&s3.location, options).unwrap()
}

fn store(s3: &S3, but: &[(&str, &str)]) -> Store {
    Store::open(&location(s3, but)).unwrap()
}

fn names(entries: Vec<Entry>) -> Vec<String> {
    entries.into_iter().map(|entry| entry.name).collect()
}

/// What a person reads.
fn told(error: &StoreError) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    format!("{error}: {}\n{}", source.unwrap_or_default(), error.hint().unwrap_or("no hint"))
}

#[tokio::test]
async fn objects_are_written_once_read_by_range_listed_and_removed() {
    let s3 = S3::start();
    let store = store(&s3, &[]);
    assert!(store.put_new("a/b/one", Bytes::from_static(b"0123456789")).await.unwrap());
    assert!(!store.put_new("a/b/one", Bytes::from_static(b"other")).await.unwrap());
    store.put_new("a/two", Bytes::new()).await.unwrap();
    store.put_new("ab/three", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(store.get("a/b/one").await.unwrap().unwrap(), "0123456789");
    assert_eq!(store.get("a/two").await.unwrap().unwrap(), "");
    assert_eq!(store.get_range("a/b/one", 2..5).await.unwrap().unwrap(), "234");
    assert_eq!(store.get_range("a/b/one", 8..50).await.unwrap().unwrap(), "89");
    assert_eq!(store.get_range("a/none", 0..5).await.unwrap(), None);
    assert_eq!(store.get("a/none").await.unwrap(), None);
    assert_eq!(store.size("a/b/one").await.unwrap(), Some(10));
    assert_eq!(store.size("a/none").await.unwrap(), None);
    let listed = store.list("a").await.unwrap();
    assert_eq!(listed[0].bytes, 10);
    assert!(listed[0].modified_at.as_second() > 1_700_000_000);
    assert_eq!(names(listed), ["a/b/one", "a/two"]);
    assert_eq!(names(store.list_after("a", Some("a/b/one")).await.unwrap()), ["a/two"]);
    assert!(store.list("none").await.unwrap().is_empty());
    assert_eq!(store.names("a").await.unwrap(), ["b", "two"]);
    store.replace("a/two", Bytes::from_static(b"yy")).await.unwrap();
    assert_eq!(store.get("a/two").await.unwrap().unwrap(), "yy");
    store.delete("a/two").await.unwrap();
    store.delete("a/two").await.unwrap();
    assert_eq!(names(store.list("a").await.unwrap()), ["a/b/one"]);
    store.delete_all(["a/b/one", "ab/three", "none"].map(str::to_owned)).await.unwrap();
    assert!(store.names("a").await.unwrap().is_empty());
}

#[tokio::test]
async fn more_objects_than_one_answer_lists_are_all_listed() {
    let s3 = S3::start();
    let store = store(&s3, &[]);
    let all: Vec<String> = (0..1_050).map(|number| format!("many/{number:04}")).collect();
    for some in all.chunks(30) {
        let writes = some.iter().map(|name| store.put_new(name, Bytes::new()));
        futures_util::future::try_join_all(writes).await.unwrap();
    }
    assert_eq!(names(store.list("many").await.unwrap()), all);
    assert_eq!(names(store.list_after("many", Some("many/0999")).await.unwrap()), all[1_000..]);
    assert_eq!(store.names("many").await.unwrap().len(), all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_writers_one_wins() {
    let s3 = S3::start();
    // Each with connections of its own, as if they were different processes.
    let stores: Vec<Store> = (0..4).map(|_| store(&s3, &[])).collect();
    for round in 0..5 {
        let name = format!("race/{round}");
        let writes = (0..16_u8).map(|writer| {
            let (store, name) = (stores[usize::from(writer) % stores.len()].clone(), name.clone());
            tokio::spawn(
                async move { (writer, store.put_new(&name, vec![writer; 1000].into()).await.unwrap()) },
            )
        });
        let ended = futures_util::future::try_join_all(writes).await.unwrap();
        let winners: Vec<u8> = ended.into_iter().filter(|(_, won)| *won).map(|(writer, _)| writer).collect();
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(stores[0].get(&name).await.unwrap().unwrap(), vec![winners[0]; 1000]);
    }
}

#[tokio::test]
async fn a_bucket_is_fit_and_left_clean() {
    let s3 = S3::start();
    let store = store(&s3, &[]);
    assert!(!probe(&store).await.unwrap().keeps_versions);
    assert!(store.list("probe").await.unwrap().is_empty());
}

#[tokio::test]
async fn one_that_keeps_former_versions_is_told_apart() {
    let s3 = S3::with(&[Feature::Versioned]);
    assert!(probe(&store(&s3, &[])).await.unwrap().keeps_versions);
}

#[tokio::test]
async fn a_service_that_takes_no_notice_of_the_condition_is_refused() {
    let s3 = S3::with(&[Feature::Unconditional]);
    let unfit = probe(&store(&s3, &[])).await.unwrap_err();
    assert!(matches!(unfit, Unfit::Winners { writers: 8, winners: 8 }), "{unfit}");
    assert!(unfit.hint().contains("If-None-Match"));
}

#[tokio::test]
async fn a_repository_is_made_opened_and_one_clusters_only() {
    let s3 = S3::start();
    let location = location(&s3, &[]);
    let provider = Arc::new(PassingProvider::default());
    let missing = Repository::open(&location, provider.clone()).await.unwrap_err();
    assert!(matches!(missing, RepositoryError::Missing(_)), "{missing}");
    assert!(missing.to_string().contains(&s3.location));
    let cluster =
        |system_identifier| ClusterIdentity { system_identifier, segment_bytes: 16 << 20, major_version: 15 };
    let create = |number| Repository::create(&location, cluster(number), provider.clone());
    // At the same moment, as two processes would that start.
    let (one, two) = tokio::join!(create(1), create(1));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((&one.cluster, &two.cluster), (&cluster(1), &cluster(1)));
    let other = create(2).await.unwrap_err();
    assert!(matches!(other, RepositoryError::OtherCluster { theirs: 1, ours: 2, .. }), "{other}");
    assert_eq!(Repository::open(&location, provider.clone()).await.unwrap().cluster, cluster(1));
    let wrong_key = Repository::open(&location, Arc::new(PassingProvider::default())).await.unwrap_err();
    assert!(matches!(wrong_key, RepositoryError::Key(_)), "{wrong_key}");
}

#[tokio::test]
async fn who_may_not_is_told_so_at_once() {
    let s3 = S3::start();
    let began = Instant::now();
    for (name, value) in [("aws_secret_access_key", "wrong"), ("aws_access_key_id", "AKIANOBODYNOBODYNOBO")] {
        let store = store(&s3, &[(name, value)]);
        let errors = [
            store.get("a").await.unwrap_err(),
            store.put_new("a", Bytes::new()).await.unwrap_err(),
            store.list("a").await.unwrap_err(),
            store.delete("a").await.unwrap_err(),
        ];
        for error in errors {
            let told = told(&error);
            assert!(told.contains("credentials must be right"), "{told}");
            assert!(!told.contains(value) || name == "aws_access_key_id", "{told}");
        }
    }
    let unfit = probe(&store(&s3, &[("aws_secret_access_key", "wrong")])).await.unwrap_err();
    assert!(unfit.hint().contains("credentials"), "{unfit}");
    // What is outside of the prefix is not this repository's.
    let outside = Location::parse("s3://repository/elsewhere", s3.options()).unwrap();
    let refused = Store::open(&outside).unwrap().put_new("a", Bytes::new()).await.unwrap_err();
    assert!(told(&refused).contains("credentials"), "{}", told(&refused));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_bucket_that_is_not_there_and_settings_that_are_wrong_are_said() {
    let s3 = S3::start();
    let nowhere = Store::open(&Location::parse("s3://nowhere/x", s3.options()).unwrap()).unwrap();
    let error = nowhere.put_new("a", Bytes::new()).await.unwrap_err();
    assert!(error.hint().is_some(), "{}", told(&error));
    let open = |name, value| Store::open(&location(&s3, &[(name, value)])).unwrap_err();
    assert!(told(&open("aws_endpont", "x")).contains("docs/operate/repository.md"));
    assert!(told(&open("retries", "many")).contains("many"));
    assert!(Store::open(&location(&s3, &[("timeout", "soon")])).is_err());
}

#[tokio::test]
async fn a_server_that_goes_away_is_given_up() {
    let mut s3 = S3::start();
    let store = store(&s3, &[("retries", "2")]);
    store.put_new("a", Bytes::from(vec![7; 1 << 20])).await.unwrap();
    s3.kill();
    let began = Instant::now();
    let errors = [
        store.get("a").await.unwrap_err(),
        store.put_new("b", Bytes::new()).await.unwrap_err(),
        store.list("a").await.unwrap_err(),
        store.delete("a").await.unwrap_err(),
    ];
    for error in errors {
        assert!(told(&error).contains("can it be reached"), "{}", told(&error));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(matches!(probe(&store).await, Err(Unfit::Store(_))));
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_and_gone_on_with() {
    let s3 = S3::start();
    let store = store(&s3, &[("retries", "1"), ("aws_endpoint", &s3.endpoint())]);
    store.put_new("a", Bytes::from_static(b"x")).await.unwrap();
    s3.freeze();
    let began = Instant::now();
    let errors = [
        store.get("a").await.unwrap_err(),
        store.put_new("b", Bytes::new()).await.unwrap_err(),
        store.list("a").await.unwrap_err(),
        store.delete("c").await.unwrap_err(),
    ];
    for error in errors {
        assert!(told(&error).contains("does not answer in time"), "{}", told(&error));
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    s3.thaw();
    // The write that nobody has waited for may have been done meanwhile.
    store.put_new("b", Bytes::new()).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap(), "x");
}

#[tokio::test]
async fn a_short_absence_is_bridged() {
    let s3 = S3::start();
    let store = store(&s3, &[("retries", "5")]);
    store.put_new("a", Bytes::from_static(b"x")).await.unwrap();
    s3.freeze();
    let (read, ()) = tokio::join!(store.get("a"), async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        s3.thaw();
    });
    assert_eq!(read.unwrap().unwrap(), "x");
}
