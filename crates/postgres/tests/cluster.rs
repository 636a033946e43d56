//! Administration against a real server.

use loomworks_core::SecretString;
use loomworks_postgres::databases::{self, Rename};
use loomworks_postgres::roles::{self, Login, Verifier};
use loomworks_testkit::server;
use sqlx::{ConnectOptions, Connection, Row};

async fn login(role: &str, group: &str, password: &SecretString) {
    let mut admin = server().await.cluster.connect("postgres").await.unwrap();
    roles::ensure_group(&mut admin, group).await.unwrap();
    let login = Login {
        role,
        verifier: &Verifier::of(password),
        acts_as: group,
        valid_until: None,
        connection_limit: None,
    };
    for _ in 0..2 {
        roles::ensure_login(&mut admin, &login).await.unwrap();
    }
}

#[tokio::test]
async fn a_login_acts_as_its_group_and_stays_itself() {
    let server = server().await;
    let password = SecretString::from("a pass'word\\ with everything");
    let (role, group) = (server.unique("login"), server.unique("owner"));
    login(&role, &group, &password).await;
    let database = server.database().await;
    let mut admin = server.cluster.connect("postgres").await.unwrap();
    databases::ensure(&mut admin, &database.name, &group).await.unwrap();

    let mut connection = database.as_role(&role, &password).connect().await.unwrap();
    let row = sqlx::query("SELECT current_user::text, session_user::text")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!((row.get::<String, _>(0), row.get::<String, _>(1)), (group, role));
}

#[tokio::test]
async fn nobody_else_may_connect_to_a_database() {
    let server = server().await;
    let password = SecretString::from("secret");
    let (role, group) = (server.unique("login"), server.unique("owner"));
    login(&role, &group, &password).await;
    let others = server.database().await;
    let error = others.as_role(&role, &password).connect().await.unwrap_err();
    assert!(error.to_string().contains("permission denied for database"), "{error}");
    let superuser = others.as_role("postgres", &password).connect().await.unwrap_err();
    assert!(superuser.to_string().contains("pg_hba.conf rejects"), "{superuser}");
}

#[tokio::test]
async fn a_role_that_is_locked_out_loses_its_sessions_at_once() {
    let server = server().await;
    let password = SecretString::from("secret");
    let (role, group) = (server.unique("login"), server.unique("owner"));
    login(&role, &group, &password).await;
    let database = server.database().await;
    let mut admin = server.cluster.connect("postgres").await.unwrap();
    databases::ensure(&mut admin, &database.name, &group).await.unwrap();
    let mut connection = database.as_role(&role, &password).connect().await.unwrap();

    roles::lock_out(&mut admin, &role).await.unwrap();
    assert!(connection.ping().await.is_err());
    assert!(database.as_role(&role, &password).connect().await.is_err());

    let mut inside = database.connect().await;
    roles::disown(&mut inside, &role, &group).await.unwrap();
    for _ in 0..2 {
        roles::drop_role(&mut admin, &role).await.unwrap();
    }
}

#[tokio::test]
async fn two_databases_exchange_names_while_both_are_in_use() {
    let server = server().await;
    let (one, two) = (server.database().await, server.database().await);
    let mut admin = server.cluster.connect("postgres").await.unwrap();
    let oid = databases::oid(&mut admin, &two.name).await.unwrap();
    let (mut in_one, mut in_two) = (one.connect().await, two.connect().await);

    let former = server.unique("former");
    let renames = [Rename { from: &one.name, to: &former }, Rename { from: &two.name, to: &one.name }];
    databases::exchange(&mut admin, &renames).await.unwrap();

    assert!(in_one.ping().await.is_err() && in_two.ping().await.is_err(), "connections were ended");
    assert_eq!(databases::oid(&mut admin, &one.name).await.unwrap(), oid);
    one.connect().await.ping().await.unwrap();
}

#[tokio::test]
async fn an_exchange_that_fails_leaves_both_as_they_were_and_open() {
    let server = server().await;
    let (one, two) = (server.database().await, server.database().await);
    let mut admin = server.cluster.connect("postgres").await.unwrap();
    let renames = [Rename { from: &one.name, to: "fresh" }, Rename { from: &two.name, to: "postgres" }];
    databases::exchange(&mut admin, &renames).await.unwrap_err();
    one.connect().await.ping().await.unwrap();
    two.connect().await.ping().await.unwrap();
}

#[tokio::test]
async fn names_with_everything_in_them_are_safe() {
    let server = server().await;
    let name = format!("{} \"quoted\"; DROP DATABASE postgres; -- é", server.unique("odd"));
    let mut admin = server.cluster.connect("postgres").await.unwrap();
    for _ in 0..2 {
        databases::ensure(&mut admin, &name, "postgres").await.unwrap();
    }
    assert!(databases::oid(&mut admin, &name).await.unwrap().is_some());
    assert!(databases::size_bytes(&mut admin, &name).await.unwrap() > 1_000_000);
    databases::drop_database(&mut admin, &name).await.unwrap();
    assert_eq!(databases::oid(&mut admin, &name).await.unwrap(), None);
}
