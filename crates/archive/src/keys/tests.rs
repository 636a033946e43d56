//! Keys of a repository: made once, deleted for good, wrapped anew.

use loomworks_testkit::faulty::{Fault, Faults, Kind};

use super::*;
use crate::store::Location;

const OID: DatabaseOid = 20_000;

async fn keys() -> (tempfile::TempDir, Store, Arc<PassingProvider>, Keys) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Location::Directory(dir.path().to_owned())).unwrap();
    let provider = Arc::new(PassingProvider::default());
    let keys = Keys::open(&store, provider.clone(), Uuid::nil(), true).await.unwrap();
    (dir, store, provider, keys)
}

fn bytes(found: Found) -> Vec<u8> {
    match found {
        Found::Key(key) => key.bytes().to_vec(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_key_is_made_once_and_found_by_others() {
    let (_dir, store, provider, keys) = keys().await;
    let lineage = Lineage::first(1);
    assert!(matches!(keys.find(OID, &lineage).await.unwrap(), Found::None));
    let other = Keys::open(&store, provider, Uuid::nil(), false).await.unwrap();
    let (a, b) =
        tokio::join!(keys.find_or_make(OID, &lineage, Lsn(5)), other.find_or_make(OID, &lineage, Lsn(5)));
    assert_eq!(a.unwrap().bytes(), b.unwrap().bytes());
    assert_ne!(bytes(keys.find(OID, &lineage).await.unwrap()), keys.shared().bytes());
    assert_eq!(bytes(keys.find(5, &lineage).await.unwrap()), keys.shared().bytes(), "`postgres` shares");
    assert_eq!(other.shared().bytes(), keys.shared().bytes());
}

#[tokio::test]
async fn a_deleted_key_is_gone_for_everybody_and_never_made_again() {
    let (_dir, store, provider, keys) = keys().await;
    let lineage = Lineage::first(1);
    keys.find_or_make(OID, &lineage, Lsn(5)).await.unwrap();
    assert!(keys.has(OID).await.unwrap());
    keys.erase(OID).await.unwrap();
    keys.erase(OID).await.unwrap();
    keys.erase(OID + 1).await.unwrap();
    assert!(!keys.has(OID).await.unwrap());
    let other = Keys::open(&store, provider, Uuid::nil(), false).await.unwrap();
    for keys in [&keys, &other] {
        for oid in [OID, OID + 1] {
            assert!(matches!(keys.find(oid, &lineage).await.unwrap(), Found::Erased));
            let one = keys.find_or_make(oid, &lineage, Lsn(9)).await.unwrap();
            let two = keys.find_or_make(oid, &lineage, Lsn(9)).await.unwrap();
            assert_ne!(one.bytes(), two.bytes(), "nobody keeps it");
        }
    }
    keys.rewrap().await.unwrap();
    assert!(matches!(keys.find(OID, &lineage).await.unwrap(), Found::Erased));
}

#[tokio::test]
async fn the_same_oid_on_another_branch_has_another_key() {
    let (_dir, _store, _provider, keys) = keys().await;
    let (first, later) = (Lineage::first(1), Lineage::from_history(2, "1\t0/100\tx").unwrap());
    let before = keys.find_or_make(OID, &first, Lsn(0x50)).await.unwrap();
    let lost = keys.find_or_make(OID + 1, &first, Lsn(0x150)).await.unwrap();
    assert_eq!(bytes(keys.find(OID, &later).await.unwrap()), before.bytes(), "it was there at the branch");
    assert!(matches!(keys.find(OID + 1, &later).await.unwrap(), Found::None));
    let new = keys.find_or_make(OID + 1, &later, Lsn(0x120)).await.unwrap();
    assert_ne!(new.bytes(), lost.bytes());
}

#[tokio::test]
async fn another_master_key_opens_nothing() {
    let (_dir, store, _provider, keys) = keys().await;
    let error =
        Keys::open(&store, Arc::new(PassingProvider::default()), Uuid::nil(), false).await.unwrap_err();
    assert!(matches!(error, KeyError::Provider { source: ProviderError::OtherKey, .. }), "{error}");
    assert!(error.hint().is_some());
    let error = Keys::open(&store, keys.provider.clone(), Uuid::max(), false).await.unwrap_err();
    assert!(matches!(error, KeyError::Provider { .. }), "of another repository: {error}");
}

/// A master key that is kept where several processes read it; each has its own view of it.
#[derive(Debug)]
struct Shared {
    kept: Arc<Mutex<Vec<PassingProvider>>>,
    /// How many of them this process knows. The last wraps.
    known: Mutex<usize>,
}

impl Shared {
    fn first() -> Arc<Self> {
        let kept = Arc::new(Mutex::new(vec![PassingProvider::default()]));
        Arc::new(Self { kept, known: Mutex::new(1) })
    }

    fn another_process(&self) -> Arc<Self> {
        Arc::new(Self { kept: self.kept.clone(), known: Mutex::new(self.kept.lock().unwrap().len()) })
    }

    fn renew(&self) {
        let mut kept = self.kept.lock().unwrap();
        kept.push(PassingProvider::default());
        *self.known.lock().unwrap() = kept.len();
    }

    fn number(&self) -> u8 {
        u8::try_from(*self.known.lock().unwrap() - 1).unwrap()
    }
}

impl KeyProvider for Shared {
    fn wrap<'a>(&'a self, secret: &'a [u8], what_for: &'a str) -> KeyFuture<'a> {
        let number = self.number();
        let sealed = self.kept.lock().unwrap()[usize::from(number)].0.clone();
        Box::pin(async move {
            let sealed = PassingProvider(sealed).wrap(secret, what_for).await?;
            Ok([&[number][..], &sealed].concat())
        })
    }

    fn unwrap<'a>(&'a self, wrapped: &'a [u8], what_for: &'a str) -> KeyFuture<'a> {
        let key = (wrapped[0] <= self.number())
            .then(|| self.kept.lock().unwrap()[usize::from(wrapped[0])].0.clone())
            .ok_or(ProviderError::OtherKey);
        Box::pin(async move { PassingProvider(key?).unwrap(&wrapped[1..], what_for).await })
    }

    fn is_current(&self, wrapped: &[u8]) -> bool {
        wrapped[0] == self.number()
    }

    fn refresh(&self) -> KeyFuture<'_, ()> {
        *self.known.lock().unwrap() = self.kept.lock().unwrap().len();
        Box::pin(async { Ok(()) })
    }
}

fn memory() -> (Faults, Store) {
    let faults = Faults::default();
    let objects = faults.around(Arc::new(object_store::memory::InMemory::new()));
    (faults, Store::of(objects, "", Location::Directory("/nowhere".into())))
}

async fn open(store: &Store, provider: &Arc<Shared>) -> Keys {
    Keys::open(store, provider.clone(), Uuid::nil(), true).await.unwrap()
}

#[tokio::test]
async fn keys_are_wrapped_anew_and_stay_the_same() {
    let ((_, store), provider, lineage) = (memory(), Shared::first(), Lineage::first(1));
    let keys = open(&store, &provider).await;
    let key = keys.find_or_make(OID, &lineage, Lsn(5)).await.unwrap();
    keys.erase(OID + 1).await.unwrap();
    assert!(keys.not_current().await.unwrap().is_empty());
    provider.renew();
    assert_eq!(keys.not_current().await.unwrap(), ["keys/20000-00000001", "keys/shared"]);
    let standing = |keys: &Keys| {
        let keys = keys.clone();
        async move { keys.examine().await.unwrap().into_iter().map(|key| key.standing).collect::<Vec<_>>() }
    };
    assert_eq!(standing(&keys).await, [Standing::Former, Standing::Erased, Standing::Former]);
    assert_eq!(keys.rewrap().await.unwrap(), Rewrapped { count: 2, unopened: vec![] });
    assert_eq!(keys.rewrap().await.unwrap(), Rewrapped::default(), "there is nothing more to do");
    assert_eq!(standing(&keys).await, [Standing::Current, Standing::Erased, Standing::Current]);
    let other = open(&store, &provider.another_process()).await;
    assert_eq!(bytes(other.find(OID, &lineage).await.unwrap()), key.bytes());
    assert!(matches!(other.find(OID + 1, &lineage).await.unwrap(), Found::Erased));
}

#[tokio::test]
async fn wrapping_anew_may_be_cut_off_anywhere() {
    let lineage = Lineage::first(1);
    for number in 1.. {
        let ((faults, store), provider) = (memory(), Shared::first());
        let keys = open(&store, &provider).await;
        let key = keys.find_or_make(OID, &lineage, Lsn(5)).await.unwrap();
        provider.renew();
        faults.heal();
        faults.crash_at(number, if number % 2 == 0 { Fault::Before } else { Fault::After });
        let cut = keys.rewrap().await.is_err();
        faults.heal();
        let again = open(&store, &provider.another_process()).await;
        assert_eq!(bytes(again.find(OID, &lineage).await.unwrap()), key.bytes(), "cut at {number}");
        assert!(again.rewrap().await.unwrap().unopened.is_empty());
        assert!(again.not_current().await.unwrap().is_empty());
        if !cut {
            return;
        }
    }
}

#[tokio::test]
async fn what_does_not_open_is_named_and_stops_no_other() {
    let ((_, store), provider, lineage) = (memory(), Shared::first(), Lineage::first(1));
    let keys = open(&store, &provider).await;
    keys.find_or_make(OID, &lineage, Lsn(5)).await.unwrap();
    let foreign =
        Stored { id: Uuid::nil(), since: Lsn(1), wrapped: Some(BASE64.encode([0; 60])), erased_at: None };
    store.replace("keys/20001-00000001", json(&foreign)).await.unwrap();
    store.replace("keys/20002-00000001", "{".into()).await.unwrap();
    provider.renew();
    let rewrapped = keys.rewrap().await.unwrap();
    assert_eq!(
        rewrapped,
        Rewrapped { count: 2, unopened: vec!["keys/20001-00000001".into(), "keys/20002-00000001".into()] }
    );
    let standing: Vec<_> = keys.examine().await.unwrap().into_iter().map(|key| key.standing).collect();
    assert_eq!(standing, [Standing::Current, Standing::DoesNotOpen, Standing::Damaged, Standing::Current]);
    assert_eq!(keys.not_current().await.unwrap(), ["keys/20001-00000001", "keys/20002-00000001"]);
}

#[tokio::test]
async fn a_key_made_with_a_master_key_that_is_former_by_now_is_put_right_before_it_is_used() {
    let ((faults, store), here, lineage) = (memory(), Shared::first(), Lineage::first(1));
    let (keys, there) = (open(&store, &here).await, here.another_process());
    let archiving = open(&store, &there).await;
    here.renew();
    keys.rewrap().await.unwrap();
    assert!(keys.not_current().await.unwrap().is_empty(), "the former key could be forgotten now");
    let made = archiving.find_or_make(OID, &lineage, Lsn(5)).await.unwrap();
    assert!(keys.not_current().await.unwrap().is_empty());
    assert_eq!(bytes(keys.find(OID, &lineage).await.unwrap()), made.bytes());

    // Killed before it could put that right, it has sealed nothing with the key.
    let archiving = open(&store, &there).await;
    here.renew();
    keys.rewrap().await.unwrap();
    faults.heal();
    faults.only(|operation| operation.kind == Kind::Write);
    faults.crash_at(2, Fault::Before);
    archiving.find_or_make(OID + 1, &lineage, Lsn(5)).await.unwrap_err();
    faults.heal();
    assert_eq!(keys.not_current().await.unwrap(), ["keys/20001-00000001"]);
    assert_eq!(keys.rewrap().await.unwrap().count, 1);
}

#[tokio::test]
async fn nobody_makes_or_deletes_a_key_while_they_are_held() {
    let ((_, store), provider, lineage) = (memory(), Shared::first(), Lineage::first(1));
    let keys = open(&store, &provider).await;
    let held = keys.hold().await;
    let making = tokio::spawn({
        let keys = keys.clone();
        async move { keys.find_or_make(OID, &lineage, Lsn(5)).await.map(drop) }
    });
    let deleting = tokio::spawn({
        let keys = keys.clone();
        async move { keys.erase(OID + 1).await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(store.list("keys").await.unwrap().len(), 1);
    drop(held);
    making.await.unwrap().unwrap();
    deleting.await.unwrap().unwrap();
    assert_eq!(store.list("keys").await.unwrap().len(), 3);
}
