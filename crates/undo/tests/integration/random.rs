//! Random histories: whatever agents did is taken back in every byte, and what people did is kept.

use std::collections::BTreeMap;

use loomworks_undo::{Mode, OperationId};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::tenant::{Tenant, run};

const TABLES: [&str; 5] = ["parent", "child", "leaf", "note", "tag"];
/// `uid` is never changed: it tells a row again whatever happens to its key.
const SCHEMA: &str = "
    CREATE TABLE parent (id int PRIMARY KEY, code int UNIQUE, v numeric, uid int);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, v float8, uid int);
    CREATE TABLE leaf (child int REFERENCES child ON DELETE CASCADE ON UPDATE CASCADE, nth int, v text, uid int, PRIMARY KEY (child, nth));
    CREATE TABLE note (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent int REFERENCES parent ON DELETE SET NULL ON UPDATE CASCADE,
        v int, uid int);
    CREATE TABLE tag (v int, text text, uid int);
    INSERT INTO parent SELECT g, g, g / 3.0, g FROM generate_series(1, 20) g;
    INSERT INTO child SELECT g, (g - 1) / 2 + 1, g / 3.0, g FROM generate_series(1, 40) g;
    INSERT INTO leaf SELECT (g - 1) / 2 + 1, g % 2, 'leaf ' || g, g FROM generate_series(1, 80) g;
    INSERT INTO note (parent, v, uid) SELECT (g - 1) % 20 + 1, g, g FROM generate_series(1, 30) g;
    INSERT INTO tag SELECT g % 5, 'tag', g % 5 FROM generate_series(1, 20) g;";

/// A generator of numbers that gives the same ones for the same seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn statement(&mut self, next_id: &mut i64, keys_change: bool) -> String {
        *next_id += 1;
        let (id, m, n) = (*next_id, self.below(6) + 2, self.below(50));
        let r = self.below(m);
        match self.below(if keys_change { 16 } else { 12 }) {
            0 => format!("UPDATE parent SET v = v * {n} WHERE id % {m} = {r}"),
            1 => format!(
                "UPDATE child SET v = v + {n}, parent = (SELECT min(id) FROM parent WHERE id > {r}) WHERE id % {m} = {r}"
            ),
            2 => format!("UPDATE leaf SET v = v || '{n}' WHERE child % {m} = {r}"),
            3 => format!("DELETE FROM parent WHERE id % {m} = {r} AND id % 3 = 1"),
            4 => format!("DELETE FROM child WHERE id % {m} = {r}"),
            5 => format!("DELETE FROM leaf WHERE child % {m} = {r}; UPDATE note SET v = {n}"),
            6 => format!(
                "INSERT INTO parent VALUES ({id}, {id}, {n}); INSERT INTO child VALUES ({id}, {id}, {n}), (-{id}, {id}, NULL)"
            ),
            7 => format!(
                "INSERT INTO leaf SELECT id, {id}, 'new' FROM child WHERE id % {m} = {r}; INSERT INTO note (v) VALUES ({n})"
            ),
            8 => format!(
                "INSERT INTO parent (id, v) SELECT id, 0 FROM generate_series({r}, 25) id ON CONFLICT (id) DO UPDATE SET v = {n}"
            ),
            9 => "TRUNCATE note".to_owned(),
            10 => format!(
                "UPDATE parent SET code = -code; UPDATE parent SET code = ({n} - code) % 1000 WHERE id % {m} = {r}"
            ),
            11 => format!(
                "WITH gone AS (DELETE FROM note WHERE id % {m} = {r} RETURNING *) UPDATE child SET v = '-0' WHERE id IN (SELECT parent FROM gone)"
            ),
            12 => format!("UPDATE parent SET id = id + {n} + 1000 WHERE id % {m} = {r}"),
            13 => format!("UPDATE child SET id = -id, v = v / 3 WHERE id % {m} = {r}"),
            14 => format!(
                "DELETE FROM child WHERE id = {n}; UPDATE child SET id = {n} WHERE id = {r}; UPDATE child SET id = {r} WHERE id = {n} + 1"
            ),
            _ => [
                "UPDATE tag SET v = v + 1",
                "DELETE FROM tag WHERE v = 2",
                "INSERT INTO tag VALUES (2, 'tag', 2), (9, 'x', 9)",
            ][usize::try_from(r % 3).unwrap()]
            .to_owned(),
        }
    }
}

async fn everything(tenant: &Tenant) -> Vec<String> {
    let mut all = vec![];
    for table in TABLES {
        all.push(tenant.bytes(table).await);
    }
    all
}

/// Runs statements of the agent, of which some fail, and tells its operations, newest first.
async fn work(
    tenant: &Tenant,
    random: &mut Random,
    agent: &mut PgConnection,
    next_id: &mut i64,
    keys_change: bool,
) {
    let mut message = random.statement(next_id, keys_change);
    while random.below(3) == 0 && !message.contains(" tag") {
        let more = random.statement(next_id, keys_change);
        if !more.contains(" tag") {
            message = message + "; " + &more;
        }
    }
    let before = tenant.operations().await.len();
    let failed = run(agent, &message).await.is_err();
    let after = tenant.operations().await.len();
    assert!(after == before || (!failed && after == before + 1), "{message}");
}

async fn operations(tenant: &Tenant) -> Vec<OperationId> {
    tenant.operations().await.iter().map(|operation| operation.id).collect()
}

#[tokio::test]
async fn operations_are_taken_back_one_by_one_all_at_once_and_made_again() {
    for seed in 1..=8 {
        let tenant = Tenant::with(SCHEMA).await;
        let (mut random, mut next_id) = (Random(seed * 0x9E37_79B9), 1000);
        let first = everything(&tenant).await;
        let mut agent = tenant.agent().await;
        for _ in 0..20 {
            work(&tenant, &mut random, &mut agent, &mut next_id, true).await;
        }
        let last = everything(&tenant).await;
        let ids = operations(&tenant).await;
        assert!(ids.len() > 5, "seed {seed}");
        let mut undos = vec![];
        for id in &ids {
            let outcome = tenant.try_undo(&[*id], Mode::Strict).await;
            undos.push(outcome.unwrap_or_else(|error| panic!("seed {seed}: {id:?}: {error:#?}")).operation);
        }
        assert_eq!(everything(&tenant).await, first, "seed {seed}");
        for id in undos.iter().rev() {
            let outcome = tenant.try_undo(&[*id], Mode::Strict).await;
            outcome.unwrap_or_else(|error| panic!("seed {seed}: redo {id:?}: {error:#?}"));
        }
        assert_eq!(everything(&tenant).await, last, "seed {seed}: made again");
        let outcome = tenant.try_undo(&ids, Mode::Strict).await;
        outcome.unwrap_or_else(|error| panic!("seed {seed}: all at once: {error:#?}"));
        assert_eq!(everything(&tenant).await, first, "seed {seed}: all at once");
        agent.close().await.unwrap();
    }
}

/// The rows by `uid`, in bytes.
async fn by_uid(tenant: &Tenant) -> BTreeMap<(String, i32), Vec<u8>> {
    let mut admin = tenant.admin().await;
    let mut rows = BTreeMap::new();
    for table in &TABLES[..4] {
        let sql = format!("SELECT uid, record_send(t) FROM {table} t WHERE uid IS NOT NULL");
        let found: Vec<(i32, Vec<u8>)> =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut admin).await.unwrap();
        rows.extend(found.into_iter().map(|(uid, bytes)| (((*table).to_owned(), uid), bytes)));
    }
    rows
}

#[tokio::test]
async fn rows_that_people_did_not_touch_are_as_they_were() {
    for seed in 1..=8 {
        let tenant = Tenant::with(SCHEMA).await;
        let (mut random, mut next_id) = (Random(seed * 0x85EB_CA6B), 1000);
        let mut expected = by_uid(&tenant).await;
        let (mut agent, mut app) = (tenant.agent().await, tenant.app().await);
        for _ in 0..20 {
            work(&tenant, &mut random, &mut agent, &mut next_id, false).await;
            let (table, r) = (TABLES[usize::try_from(random.below(4)).unwrap()], random.below(13));
            let set = if table == "leaf" { "v = v || '+'" } else { "v = v + 1" };
            let sql = format!("UPDATE {table} SET {set} WHERE uid % 13 = {r} RETURNING uid");
            let touched: Vec<i32> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut app).await.unwrap();
            for uid in touched {
                expected.remove(&(table.to_owned(), uid));
            }
        }
        for id in operations(&tenant).await {
            let outcome = tenant.try_undo(&[id], Mode::Skip).await;
            outcome.unwrap_or_else(|error| panic!("seed {seed}: {id:?}: {error:#?}"));
        }
        let now = by_uid(&tenant).await;
        for (row, bytes) in &expected {
            assert_eq!(now.get(row), Some(bytes), "seed {seed}: {row:?}");
        }
        agent.close().await.unwrap();
        app.close().await.unwrap();
    }
}
