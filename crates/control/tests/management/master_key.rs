//! Changing the master key: nothing that is stored is forgotten, and everything opens at every moment.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use loomworks_archive::store::{Location, Store};
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_control::accelerator::Accelerator;
use loomworks_control::credentials::{MasterKey, app_password_purpose, write_password_file};
use loomworks_control::db::wrapped::PLACES;
use loomworks_control::db::{Db, credentials, data_keys as rows};
use loomworks_control::jobs::{Kinds, Slots};
use loomworks_control::master_key::HEADER_BYTES;
use loomworks_control::master_key::rotation::{self, forget_former, rewrap_all};
use loomworks_control::{Error, World, data_keys};
use loomworks_core::ids::TenantId;
use loomworks_core::{ExposeSecret, SecretString};
use sqlx::PgConnection;

use super::world::{operator, until};
use super::{Alone, database, master_key, tenant, working};

/// Tests for which no secret may be there that another one's key has wrapped.
static KEYS: Alone = Alone::new();

async fn platform(db: &Db, directory: &Path) -> World {
    let cluster = &KEYS.server().await.cluster;
    let (kinds, slots, none) = (Kinds::default(), Slots::default(), Accelerator::default());
    working::world(cluster, db.clone(), directory, "test", kinds, slots, none).await
}

#[tokio::test]
async fn every_column_with_a_wrapped_secret_is_in_the_list() {
    let db = database().await;
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT c.relname::text, a.attname::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND NOT a.attisdropped
         AND a.atttypid = 'bytea'::regtype AND (a.attname = 'wrapped' OR a.attname LIKE '%\\_wrapped')",
    )
    .fetch_all(&db.platform)
    .await
    .expect("read the catalogue");
    let listed = PLACES.map(|place| (place.table.to_owned(), place.column.to_owned()));
    assert_eq!(columns.into_iter().collect::<BTreeSet<_>>(), listed.into_iter().collect());
}

async fn wrapped(connection: &mut PgConnection, id: TenantId) -> [Vec<u8>; 3] {
    let (app, next): (Vec<u8>, Vec<u8>) = sqlx::query_as(
        "SELECT app_password_wrapped, next_password_wrapped FROM tenant_credentials WHERE tenant_id = $1",
    )
    .bind(id.0)
    .fetch_one(&mut *connection)
    .await
    .expect("read");
    [app, next, rows::wrapped(connection, id).await.expect("read").expect("a data key")]
}

fn opened(key: &MasterKey, id: TenantId, wrapped: &[Vec<u8>; 3]) -> Option<[String; 3]> {
    let purposes = [app_password_purpose(id), app_password_purpose(id), data_keys::purpose(id)];
    let mut all = wrapped.iter().zip(purposes).map(|(wrapped, purpose)| key.unwrap(wrapped, &purpose).ok());
    let mut next = || all.next().flatten().map(|secret| secret.expose_secret().to_owned());
    Some([next()?, next()?, next()?])
}

async fn tenant_with_secrets(db: &Db, key: &MasterKey) -> TenantId {
    let id = tenant(db).await;
    let mut connection = db.platform.acquire().await.expect("connect");
    let next = key.wrap(&SecretString::from("next"), &app_password_purpose(id));
    credentials::prepare(&mut connection, id, &next).await.expect("prepare");
    // As it was wrapped before keys had ids.
    let data_key = key.wrap(&SecretString::from("data key"), &data_keys::purpose(id));
    rows::insert_if_absent(&mut connection, id, &data_key[HEADER_BYTES..]).await.expect("insert");
    id
}

#[tokio::test]
async fn every_secret_is_wrapped_anew_and_opens_all_the_while() {
    let (db, key) = (database().await, master_key());
    key.adopt_pepper(&db).await.expect("store the pepper");
    let mut tenants = Vec::new();
    for _ in 0..3 {
        tenants.push(tenant_with_secrets(&db, key).await);
    }
    let expected = ["password", "next", "data key"].map(str::to_owned);
    let mut connection = db.platform.acquire().await.expect("connect");
    let from = key.current();
    key.renew(&from.to_string()).await.expect("make a key");
    for id in &tenants {
        let before = wrapped(&mut connection, *id).await;
        assert_eq!(opened(key, *id, &before).as_ref(), Some(&expected), "with the former key");
    }
    assert!(rewrap_all(&db, key).await.expect("rewrap").count > 9);
    key.forget_former().await.expect("forget");
    for id in &tenants {
        let now = wrapped(&mut connection, *id).await;
        assert_eq!(opened(key, *id, &now).as_ref(), Some(&expected), "with the new key alone");
    }
    let again = MasterKey::load_or_create(key.file().expect("a file")).expect("read it");
    again.adopt_pepper(&db).await.expect("the stored pepper opens");
    assert_eq!(again.pepper(), key.pepper(), "API keys stay good");
}

#[tokio::test]
async fn no_key_is_forgotten_while_a_secret_that_it_has_wrapped_is_on_its_way() {
    let (db, _alone) = KEYS.database().await;
    let directory = tempfile::tempdir().expect("a directory");
    let world = platform(&db, directory.path()).await;
    let key = &world.master_key;
    let id = tenant(&db).await;
    // Its password is wrapped with the key of all the other tests.
    sqlx::query("DELETE FROM public.tenant_credentials")
        .execute(&mut KEYS.server().await.cluster.connect("loomworks_mgmt").await.expect("connect"))
        .await
        .expect("delete");

    let mut slow = db.platform.begin().await.expect("begin");
    let secret = SecretString::from("data key");
    let wrapped = key.wrap_for(&mut slow, &secret, &data_keys::purpose(id)).await.expect("wrap");
    key.renew(&key.current().to_string()).await.expect("make a key");
    rewrap_all(&db, key).await.expect("rewrap");
    let forgetting = tokio::spawn({
        let world = world.clone();
        async move { forget_former(&world.db, world.repository.keys(), &world.master_key).await.expect("look") }
    });
    until("whoever forgets waits", async || {
        let waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)";
        sqlx::query_scalar(waiting).fetch_one(&db.platform).await.expect("look")
    })
    .await;
    rows::insert_if_absent(&mut slow, id, &wrapped).await.expect("insert");
    slow.commit().await.expect("commit");
    assert!(!forgetting.await.expect("the task"), "it was found");
    assert_eq!(key.former().len(), 1);

    rewrap_all(&db, key).await.expect("rewrap");
    world.repository.keys().rewrap().await.expect("rewrap the repository's keys");
    assert!(
        forget_former(&db, world.repository.keys(), key).await.expect("forget") && key.former().is_empty()
    );
    let mut connection = db.platform.acquire().await.expect("connect");
    let wrapped = rows::wrapped(&mut connection, id).await.expect("read").expect("a data key");
    assert_eq!(key.unwrap(&wrapped, &data_keys::purpose(id)).expect("open").expose_secret(), "data key");
}

#[tokio::test]
async fn no_key_is_forgotten_that_a_key_of_the_repository_needs() {
    let (db, _alone) = KEYS.database().await;
    let directory = tempfile::tempdir().expect("a directory");
    let key = MasterKey::load_or_create(&directory.path().join("master.key")).expect("a key");
    sqlx::query("DELETE FROM public.tenant_credentials")
        .execute(&mut KEYS.server().await.cluster.connect("loomworks_mgmt").await.expect("connect"))
        .await
        .expect("delete");
    let store = Store::open(&Location::Directory(directory.path().join("repository"))).expect("a store");
    let cluster = ClusterIdentity { system_identifier: 1, segment_bytes: 16 << 20, major_version: 15 };
    let repository =
        Repository::create_in(store.clone(), cluster, Arc::new(key.clone())).await.expect("a repository");
    key.renew(&key.current().to_string()).await.expect("make a key");
    rewrap_all(&db, &key).await.expect("rewrap");
    assert!(!forget_former(&db, repository.keys(), &key).await.expect("look"));
    repository.keys().rewrap().await.expect("rewrap");
    assert!(forget_former(&db, repository.keys(), &key).await.expect("forget") && key.former().is_empty());
    let read = MasterKey::load(&directory.path().join("master.key")).expect("read it");
    Repository::open_in(store, Arc::new(read)).await.expect("it opens with the new key alone");
}

#[tokio::test]
async fn a_rotation_that_is_to_forget_is_not_taken_for_one_that_keeps() {
    let (db, _alone) = KEYS.database().await;
    let directory = tempfile::tempdir().expect("a directory");
    let world = platform(&db, directory.path()).await;
    let (keeps, again) = (
        rotation::rotate(&world, &operator(), false).await.expect("ask"),
        rotation::rotate(&world, &operator(), false).await.expect("ask again"),
    );
    assert_eq!(keeps, again, "the same is asked for");
    let refused = rotation::rotate(&world, &operator(), true).await.expect_err("it is another thing");
    assert!(matches!(&refused, Error::Conflict { .. }) && refused.to_string().contains("keeps"), "{refused}");
    sqlx::query("DELETE FROM jobs").execute(&db.platform).await.expect("as it was");
}

#[tokio::test]
async fn one_password_that_does_not_open_keeps_no_other_from_the_password_file() {
    let (db, _alone) = KEYS.database().await;
    let directory = tempfile::tempdir().expect("a directory");
    let world = platform(&db, directory.path()).await;
    let (good, bad) = (tenant(&db).await, tenant(&db).await);
    let wrapped = world.master_key.wrap(&SecretString::from("it opens"), &app_password_purpose(good));
    for (id, wrapped) in [(good, &wrapped[..]), (bad, b"damaged")] {
        sqlx::query("UPDATE tenant_credentials SET app_password_wrapped = $2 WHERE tenant_id = $1")
            .bind(id.0)
            .bind(wrapped)
            .execute(&db.platform)
            .await
            .expect("set it");
    }
    write_password_file(&world, "erp").await.expect("write the file");
    let file = std::fs::read_to_string(world.apps_directory.join("erp/pgpass")).expect("read it");
    assert!(file.contains(&good.short()) && file.contains("it opens"), "{file}");
    assert!(!file.contains(&bad.short()), "{file}");
}
