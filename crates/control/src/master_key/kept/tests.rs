//! Master keys of every provenance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use loomworks_archive::store::Location;
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_testkit::faulty::{Fault, Faults, Kind};
use loomworks_testkit::transit::Engine;

use super::super::transit::{Settings, Transit};
use super::super::{MasterKey, MasterKeyError, Service};
use super::*;

/// An engine on a socket, a data directory, and a repository that is empty.
struct Stage {
    engine: Engine,
    url: String,
    directory: tempfile::TempDir,
    faults: Faults,
    store: Store,
}

impl Stage {
    async fn set() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let engine = Engine::start().await;
        let url = engine.url.clone();
        let faults = Faults::default();
        let objects = faults.around(Arc::new(object_store::memory::InMemory::new()));
        let store = Store::of(objects, "", Location::Directory("/nowhere".into()));
        let stage = Self { engine, url, directory: tempfile::tempdir().unwrap(), faults, store };
        stage.engine.rotate("loomworks");
        stage.engine.renew_token("first");
        stage.write("token", b"first\n");
        stage
    }

    fn write(&self, name: &str, content: &[u8]) {
        durable::write(&self.directory.path().join(name), content).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.directory.path().join(name)).unwrap()
    }

    fn settings(&self) -> Settings {
        let settings = Settings::new(&self.url, "loomworks", self.directory.path().join("token"));
        Settings { patience: Duration::from_millis(400), ..settings }
    }

    /// As `serve` has it.
    async fn here(&self) -> Result<MasterKey, MasterKeyError> {
        let transit = Transit::new(self.settings()).unwrap();
        let service = Service::new(transit, self.store.clone()).beside(self.directory.path());
        MasterKey::from_service(service, true).await
    }

    /// As a command has it that knows only the repository.
    async fn elsewhere(&self) -> Result<MasterKey, MasterKeyError> {
        let service = Service::new(Transit::new(self.settings()).unwrap(), self.store.clone());
        MasterKey::from_service(service, false).await
    }

    async fn in_repository(&self) -> String {
        String::from_utf8(self.store.get(OBJECT).await.unwrap().unwrap().to_vec()).unwrap()
    }
}

fn wrapped(key: &MasterKey) -> Vec<u8> {
    key.wrap(&SecretString::from("hunter2"), "tenant a")
}

fn opens(key: &MasterKey, wrapped: &[u8]) -> bool {
    key.unwrap(wrapped, "tenant a").is_ok_and(|secret| secret.expose_secret() == "hunter2")
}

#[tokio::test]
async fn a_key_that_a_service_wraps_is_made_once_and_opens_from_the_repository_alone() {
    let stage = Stage::set().await;
    assert!(matches!(stage.elsewhere().await, Err(MasterKeyError::Missing)), "nothing is made there");
    let first = stage.here().await.unwrap();
    let secret = wrapped(&first);
    let requests = stage.engine.requests();
    assert!(opens(&stage.here().await.unwrap(), &secret));
    assert_eq!(stage.engine.requests(), requests + 1, "one call a start");
    assert!(opens(&stage.elsewhere().await.unwrap(), &secret));
    // The machine is lost.
    std::fs::remove_file(stage.directory.path().join("master.key.wrapped")).unwrap();
    assert!(opens(&stage.here().await.unwrap(), &secret));
    // The repository is begun anew.
    stage.store.delete(OBJECT).await.unwrap();
    assert!(opens(&stage.here().await.unwrap(), &secret));
    assert!(opens(&stage.elsewhere().await.unwrap(), &secret));
    assert_eq!(String::from_utf8(stage.read("master.key.wrapped")).unwrap(), stage.in_repository().await);
    assert!(!stage.directory.path().join("master.key").exists());
}

#[tokio::test]
async fn a_token_is_read_again_when_it_is_refused() {
    let stage = Stage::set().await;
    let key = stage.here().await.unwrap();
    stage.engine.renew_token("second");
    let from = key.current().to_string();
    let refused = key.renew(&from).await.unwrap_err();
    assert!(matches!(refused, MasterKeyError::Service(TransitError::Refused { .. })), "{refused}");
    assert!(refused.hint().unwrap().contains("policy") && !refused.to_string().contains("first"));
    assert_eq!(key.current().to_string(), from, "nothing has changed");
    stage.write("token", b"second");
    key.renew(&from).await.unwrap();
    assert_ne!(key.current().to_string(), from);
    std::fs::remove_file(stage.directory.path().join("token")).unwrap();
    assert!(matches!(stage.here().await, Err(MasterKeyError::Service(TransitError::Token { .. }))));
}

#[tokio::test]
async fn a_service_that_is_not_ready_is_waited_for_a_while() {
    let stage = Stage::set().await;
    let secret = wrapped(&stage.here().await.unwrap());
    stage.engine.seal(2);
    assert!(opens(&stage.here().await.unwrap(), &secret));
    stage.engine.seal(100);
    let error = stage.here().await.unwrap_err();
    assert!(error.to_string().contains("503") && error.to_string().contains("sealed"), "{error}");
    assert!(error.hint().unwrap().contains("sealed"));
}

#[tokio::test]
async fn a_service_that_hangs_or_is_away_is_given_up() {
    let mut stage = Stage::set().await;
    stage.here().await.unwrap();
    stage.engine.hang(100);
    let began = Instant::now();
    let error = stage.here().await.unwrap_err();
    assert!(matches!(error, MasterKeyError::Service(TransitError::Unreachable { .. })), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    stage.url = "http://127.0.0.1:9".into();
    let error = stage.here().await.unwrap_err();
    assert!(error.hint().unwrap().contains("certificate"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_key_that_changes_at_the_service_opens_what_it_has_wrapped_and_wraps_anew() {
    let stage = Stage::set().await;
    let key = stage.here().await.unwrap();
    let secret = wrapped(&key);
    assert!(stage.in_repository().await.contains("vault:v1:"));
    stage.engine.rotate("loomworks");
    assert!(opens(&stage.here().await.unwrap(), &secret));
    key.renew(&key.current().to_string()).await.unwrap();
    assert!(stage.in_repository().await.contains("vault:v2:"));
    let other = stage.elsewhere().await.unwrap();
    assert!(opens(&other, &secret) && other.current() == key.current());
    // Whoever takes the key away there takes it from everybody.
    stage.engine.forget_keys();
    let error = stage.here().await.unwrap_err();
    assert!(matches!(error, MasterKeyError::Service(TransitError::NoKey(_))), "{error}");
    stage.engine.rotate("loomworks");
    let error = stage.here().await.unwrap_err();
    assert!(matches!(error, MasterKeyError::Service(TransitError::DoesNotOpen { .. })), "{error}");
    assert!(error.hint().unwrap().contains("versions"));
}

#[tokio::test]
async fn a_change_that_was_cut_off_between_the_two_places_loses_no_key() {
    let stage = Stage::set().await;
    let first = stage.here().await.unwrap();
    let old = wrapped(&first);
    let before = stage.read("master.key.wrapped");
    // Cut off before the data directory has heard of the new key, which a command has used from the repository.
    first.renew(&first.current().to_string()).await.unwrap();
    stage.write("master.key.wrapped", &before);
    let new = wrapped(&stage.elsewhere().await.unwrap());
    let started = stage.here().await.unwrap();
    assert!(opens(&started, &old) && opens(&started, &new));
    assert_eq!(started.current(), first.current(), "the new one wraps");
    assert_eq!(String::from_utf8(stage.read("master.key.wrapped")).unwrap(), stage.in_repository().await);

    // Cut off while the former key is forgotten: it is there still, and can be forgotten again.
    let before = stage.read("master.key.wrapped");
    started.forget_former().await.unwrap();
    stage.write("master.key.wrapped", &before);
    let started = stage.here().await.unwrap();
    assert!(opens(&started, &old) && started.current() == first.current());
    started.forget_former().await.unwrap();
    let only = stage.elsewhere().await.unwrap();
    assert!(opens(&only, &new) && !opens(&only, &old));

    // The repository refuses: nothing is changed anywhere.
    stage.faults.heal();
    stage.faults.only(|operation| operation.kind == Kind::Write);
    stage.faults.at(1, Fault::Before);
    let current = started.current();
    assert!(matches!(started.renew(&current.to_string()).await, Err(MasterKeyError::Store(_))));
    assert_eq!((started.current(), stage.here().await.unwrap().current()), (current, current));
}

#[tokio::test]
async fn a_key_file_is_taken_over_by_a_service() {
    let stage = Stage::set().await;
    let path = stage.directory.path().join("master.key");
    let secret = wrapped(&MasterKey::load_or_create(&path).unwrap());
    assert!(opens(&stage.here().await.unwrap(), &secret));
    std::fs::remove_file(path).unwrap();
    assert!(opens(&stage.here().await.unwrap(), &secret));
}

#[tokio::test]
async fn the_engine_may_be_mounted_elsewhere_and_must_be_reached_safely() {
    let mut stage = Stage::set().await;
    stage.url += "/v1/team/secrets/";
    stage.here().await.unwrap();
    for url in
        ["http://vault.example.com:8200", "ftp://x", "vault:8200", "https://me@vault", "https://vault/?a=b"]
    {
        let settings = Settings { url: url.into(), ..stage.settings() };
        let error = Transit::new(settings).map(drop).unwrap_err();
        assert!(matches!(error, TransitError::Address { .. }), "{url}: {error}");
    }
    assert!(
        Transit::new(Settings { url: "https://vault.example.com:8200".into(), ..stage.settings() }).is_ok()
    );
}

#[tokio::test]
async fn damaged_copies_are_said_and_not_replaced() {
    let stage = Stage::set().await;
    stage.here().await.unwrap();
    stage.write("master.key.wrapped", b"{");
    let error = stage.here().await.unwrap_err();
    assert!(matches!(error, MasterKeyError::Damaged(_)) && error.to_string().contains("master.key.wrapped"));
    stage.store.replace(OBJECT, "{}".into()).await.unwrap();
    assert!(matches!(stage.elsewhere().await, Err(MasterKeyError::Damaged(_))));
    assert_eq!(stage.read("master.key.wrapped"), b"{");
}

#[tokio::test]
async fn a_key_from_the_environment_is_changed_by_whoever_gives_it() {
    let text = |bytes: &[u8]| {
        let keys: Vec<String> = bytes.iter().map(|byte| BASE64.encode([*byte; KEY_BYTES])).collect();
        SecretString::from(keys.join(", "))
    };
    let old = MasterKey::given(&text(&[1])).unwrap();
    let secret = wrapped(&old);
    let from = old.current().to_string();
    assert!(!old.can_change());
    let refused = old.renew(&from).await.unwrap_err();
    assert!(refused.hint().unwrap().contains("LOOMWORKS_MASTER_KEY"));
    let both = MasterKey::given(&text(&[2, 1])).unwrap();
    assert!(both.can_change() && opens(&both, &secret) && both.former().len() == 1);
    both.renew(&both.current().to_string()).await.unwrap();
    assert_eq!(both.former().len(), 1, "the new key was put in front already");
    both.forget_former().await.unwrap();
    assert!(!opens(&both, &secret));
    for wrong in ["", "hunter2", "AAAA", &format!("{},", text(&[1]).expose_secret())] {
        let error = MasterKey::given(&SecretString::from(wrong)).unwrap_err();
        assert!(!error.to_string().contains("hunter2") && error.hint().is_some());
    }
}

#[tokio::test]
async fn the_repositorys_keys_are_wrapped_by_it_and_follow_its_changes() {
    let stage = Stage::set().await;
    let path = stage.directory.path().join("master.key");
    let (here, cluster) = (
        MasterKey::load_or_create(&path).unwrap(),
        ClusterIdentity { system_identifier: 1, segment_bytes: 16 << 20, major_version: 15 },
    );
    let directory = Location::Directory(stage.directory.path().join("repository"));
    let store = || Store::open(&directory).unwrap();
    let repository = Repository::create_in(store(), cluster, Arc::new(here.clone())).await.unwrap();
    assert!(repository.keys().not_current().await.unwrap().is_empty());
    let archiving = MasterKey::load(&path).unwrap();
    let archiver = Repository::open_in(store(), Arc::new(archiving.clone())).await.unwrap();
    here.renew(&here.current().to_string()).await.unwrap();
    assert_eq!(repository.keys().not_current().await.unwrap(), ["keys/shared"]);
    assert_eq!(repository.keys().rewrap().await.unwrap().count, 1);
    // Another process takes the new key when it looks.
    assert!(archiver.keys().not_current().await.unwrap().is_empty());
    assert_eq!(archiving.current(), here.current());
    here.forget_former().await.unwrap();
    Repository::open_in(store(), Arc::new(MasterKey::load(&path).unwrap())).await.unwrap();
    let other = MasterKey::load_or_create(&stage.directory.path().join("other.key")).unwrap();
    let refused = Repository::open_in(store(), Arc::new(other)).await.unwrap_err();
    assert!(refused.hint().unwrap().contains("master key"), "{refused}");
}

#[test]
fn the_newer_of_two_is_taken_and_nothing_is_dropped() {
    let key = |byte| [byte; KEY_BYTES];
    let (old, new, other) = (key(1), key(2), key(3));
    assert_eq!(merge(vec![old], vec![new, old]), [new, old], "made there");
    assert_eq!(merge(vec![new, old], vec![old]), [new, old], "made here");
    assert_eq!(merge(vec![new, old], vec![new]), [new, old], "forgotten there");
    assert_eq!(merge(vec![new, old], vec![other, old]), [new, old, other], "in no order that we know of");
}
