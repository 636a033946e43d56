//! Changing the master key: nothing that is stored is forgotten, and everything opens at every moment.

use std::collections::BTreeSet;

use loomworks_control::credentials::{MasterKey, app_password_purpose};
use loomworks_control::data_keys;
use loomworks_control::db::wrapped::PLACES;
use loomworks_control::db::{Db, credentials, data_keys as rows};
use loomworks_control::master_key::HEADER_BYTES;
use loomworks_control::master_key::rotation::rewrap_all;
use loomworks_core::ids::TenantId;
use loomworks_core::{ExposeSecret, SecretString};
use sqlx::PgConnection;

use super::{database, master_key, tenant};

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
    key.renew(&from.to_string()).expect("make a key");
    for id in &tenants {
        let before = wrapped(&mut connection, *id).await;
        assert_eq!(opened(key, *id, &before).as_ref(), Some(&expected), "with the former key");
    }
    assert!(rewrap_all(&db, key).await.expect("rewrap").count > 9);
    key.forget_former().expect("forget");
    for id in &tenants {
        let now = wrapped(&mut connection, *id).await;
        assert_eq!(opened(key, *id, &now).as_ref(), Some(&expected), "with the new key alone");
    }
    let again = MasterKey::load_or_create(key.file()).expect("read it");
    again.adopt_pepper(&db).await.expect("the stored pepper opens");
    assert_eq!(again.pepper(), key.pepper(), "API keys stay good");
}
