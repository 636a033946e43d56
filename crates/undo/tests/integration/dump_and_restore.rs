//! A copy by dump and restore keeps its log.

use loomworks_postgres::{copy, databases};
use loomworks_testkit::{Database, server};
use loomworks_undo::{Mode, UndoError, rehome};

use crate::tenant::Tenant;

#[tokio::test]
async fn a_copy_keeps_its_log_and_goes_on_recording() {
    let mut tenant = Tenant::with(
        "CREATE TYPE mood AS ENUM ('ok', 'bad'); CREATE TABLE gone (id int PRIMARY KEY); CREATE TABLE dropped (id int PRIMARY KEY);
         CREATE TABLE a (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, junk int, name text, mood mood);
         CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
         CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON DELETE CASCADE, t int GENERATED ALWAYS AS (twice(id)) STORED);
         ALTER TABLE a DROP COLUMN junk;
         INSERT INTO a (name, mood) VALUES ('one', 'ok'), ('two', 'bad'); INSERT INTO b VALUES (1, 1), (2, 1), (3, 2);
         INSERT INTO dropped VALUES (1)",
    )
    .await;
    let before = (tenant.rows("a").await, tenant.rows("b").await);
    let lost = tenant.by_agent("DELETE FROM dropped").await;
    tenant.by_app("DROP TABLE dropped; CREATE TABLE dropped (id int PRIMARY KEY)").await;
    let operation = tenant.by_agent("DELETE FROM a WHERE id = 1").await;
    let log = tenant.operations().await;

    let server = server().await;
    let new = Database { server, name: server.unique("copy") };
    let mut postgres = server.cluster.connect("postgres").await.unwrap();
    databases::ensure(&mut postgres, &new.name, &tenant.owner).await.unwrap();
    let directory = server.directory.join(&new.name);
    copy::dump(&server.cluster, &tenant.database.name, &directory).await.unwrap();
    copy::load(&server.cluster, &new.name, &directory, &tenant.owner, loomworks_undo::SCHEMA).await.unwrap();
    let mut inside = new.connect().await;
    databases::close_public_schema(&mut inside, &tenant.owner).await.unwrap();
    rehome(&mut inside, &tenant.owner).await.unwrap();
    rehome(&mut inside, &tenant.owner).await.unwrap();

    tenant.database = new;
    assert_eq!(tenant.operations().await, log);
    tenant.undo(operation).await;
    assert_eq!((tenant.rows("a").await, tenant.rows("b").await), before);
    assert!(matches!(tenant.try_undo(&[lost], Mode::Strict).await, Err(UndoError::NotRowByRow { .. })));

    for statement in [
        "UPDATE a SET name = 'x', mood = NULL",
        "DELETE FROM a",
        "TRUNCATE a, b",
        "UPDATE b SET id = id + 10",
    ] {
        let operation = tenant.by_agent(statement).await;
        tenant.undo(operation).await;
        assert_eq!((tenant.rows("a").await, tenant.rows("b").await), before, "{statement}");
    }
    tenant.by_agent("CREATE TABLE fresh (id int PRIMARY KEY)").await;
    let insert = tenant.by_agent("INSERT INTO fresh VALUES (1)").await;
    tenant.undo(insert).await;
    assert!(tenant.refused("ALTER TABLE a DISABLE TRIGGER USER").await.contains("the recording of public.a"));
}
