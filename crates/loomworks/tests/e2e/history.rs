//! A scripted history of three tenants, and each of its moments brought back: exactly what was there then, while the
//! neighbours are served and keep what they have.
//!
//! ```text
//! moment 1 … 60 … 100          … 200, then every 10th is brought back for its tenant:
//!             ▲     │                  in place by time, in place by position, beside to look at
//!             └─────┘ one tenant goes back, and its history goes on from there
//! ```
//!
//! The seed is printed, and `LOOMWORKS_HISTORY_SEED` gives it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use crate::platform::{App, Platform};

const MOMENTS: usize = 200;

/// The moment at which one tenant is brought back, and the one that it is brought back to.
const TURN: usize = MOMENTS / 2;
const TURN_TO: usize = MOMENTS * 3 / 10;

/// Each of how many moments is brought back at the end.
const EVERY: usize = 10;

const TENANTS: [&str; 3] = ["acme", "globex", "initech"];

/// How far ahead PostgreSQL logs what it takes from a sequence: after a recovery up to so many values are skipped.
/// Source: PostgreSQL `src/backend/commands/sequence.c`, `SEQ_LOG_VALS`.
const SEQUENCE_AHEAD: i64 = 32;

/// What a database has in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    /// A line for each column, index, constraint, right of everybody's, and for each table with its rows' sum.
    lines: Vec<String>,
    sequences: BTreeMap<String, i64>,
}

/// A moment, and what each tenant had then.
struct Moment {
    tenant: usize,
    what: String,
    time: String,
    position: String,
    contents: Vec<Content>,
}

/// Everything but the log of agents' operations, which the platform writes. Names are all of `public`.
const LINES: &str = r"
    SELECT format('column %s %s %s %s %s %s', c.oid::regclass,
                  row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum), a.attname,
                  format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'm', 'v') AND c.relname <> 'lines'
    UNION ALL
    SELECT format('index %s', pg_get_indexdef(i.indexrelid)) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT format('constraint %s %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT format('everybody %s %s', acl.privilege_type, c.oid::regclass) FROM pg_class c, aclexplode(c.relacl) acl
    WHERE c.relnamespace = 'public'::regnamespace AND acl.grantee = 0
    UNION ALL
    SELECT format('rows %s %s', c.oid::regclass, (xpath('/row/sum/text()', query_to_xml(format(
        'SELECT count(*) || '' '' || coalesce(md5(string_agg(x::text, chr(10) ORDER BY x::text)), '''') AS sum FROM %s x',
        c.oid::regclass), false, true, '')))[1])
    FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'm') AND c.relname <> 'lines'
    ORDER BY 1";

const SEQUENCES: &str = r"
    SELECT c.relname::text, (xpath('/row/v/text()', query_to_xml(format(
        'SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS v FROM %s', c.oid::regclass),
        false, true, '')))[1]::text::int8
    FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'S'";

async fn content(connection: &mut PgConnection) -> Content {
    let lines = sqlx::query_scalar(LINES).fetch_all(&mut *connection).await.expect("read what there is");
    let lines: Vec<String> = lines;
    let sums = lines.iter().filter_map(|line| line.strip_prefix("rows ")?.rsplit_once(' '));
    let are_sums = sums.clone().all(|(table, sum)| sum.len() == 32 || table.ends_with(" 0"));
    assert!(are_sums && sums.count() > 7, "each table has its rows' sum: {lines:#?}");
    let sequences = sqlx::query(SEQUENCES).fetch_all(connection).await.expect("read the sequences");
    Content { lines, sequences: sequences.into_iter().map(|row| (row.get(0), row.get(1))).collect() }
}

impl Content {
    /// What of `self`, which was noted, is not so in `found`. A line for each.
    fn difference(&self, found: &Self, sequences_ahead: i64) -> String {
        let mut said = String::new();
        for line in self.lines.iter().filter(|line| !found.lines.contains(line)) {
            let _ = writeln!(said, "  missing: {line}");
        }
        for line in found.lines.iter().filter(|line| !self.lines.contains(line)) {
            let _ = writeln!(said, "  found:   {line}");
        }
        let names = self.sequences.keys().eq(found.sequences.keys());
        for (name, noted) in &self.sequences {
            let value = found.sequences.get(name);
            if !names || value.is_none_or(|value| !(*noted..=noted + sequences_ahead).contains(value)) {
                let _ = writeln!(said, "  sequence {name}: {noted}, found {value:?}");
            }
        }
        said
    }
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % below as u64).expect("it is below")
    }

    fn one<'a>(&mut self, of: &'a [String]) -> &'a str {
        &of[self.below(of.len())]
    }
}

/// What can happen at a moment.
const KINDS: [&str; 24] = [
    "insert",
    "update",
    "delete",
    "bulk load",
    "upsert",
    "add column",
    "drop column",
    "rename column",
    "new table",
    "drop table",
    "index",
    "drop index",
    "reindex",
    "cluster",
    "vacuum full",
    "vacuum",
    "truncate",
    "grant",
    "sequence",
    "savepoints",
    "rolled back",
    "agent",
    "message",
    "rewrite",
];

/// A tenant's hand in the history.
struct Hand<'a> {
    platform: &'a Platform,
    tenant: &'static str,
    app: PgConnection,
}

impl Hand<'_> {
    async fn run(&mut self, sql: String) {
        let ran = self.app.execute(sqlx::raw_sql(AssertSqlSafe(sql.clone()))).await;
        ran.unwrap_or_else(|error| panic!("{}: {sql}: {error}", self.tenant));
    }

    async fn names(&mut self, sql: &str) -> Vec<String> {
        let names = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut self.app).await;
        names.unwrap_or_else(|error| panic!("{}: {sql}: {error}", self.tenant))
    }

    async fn new_table(&mut self, n: usize) {
        self.run(format!(
            "CREATE TABLE h_{n} (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, word text, amount int, at int8range);
             INSERT INTO h_{n} (word, amount, at)
             SELECT md5(n::text || {n}), n, int8range(n, n + 9) FROM generate_series(1, 200) n"
        ))
        .await;
    }

    /// Lets something happen. `n` is the moment's number.
    async fn act(&mut self, kind: &str, n: usize, dice: &mut Dice) {
        let tables =
            "SELECT relname::text FROM pg_class WHERE relname LIKE 'h\\_%' AND relkind = 'r' ORDER BY 1";
        let mut tables = self.names(tables).await;
        if tables.is_empty() || kind == "new table" || (kind == "drop table" && tables.len() < 3) {
            return self.new_table(n).await;
        }
        let t = dice.one(&tables).to_owned();
        let columns = format!(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = '{t}'::regclass AND attname LIKE 'c\\_%' ORDER BY 1"
        );
        let columns = self.names(&columns).await;
        let k = 1 + dice.below(300);
        match kind {
            "insert" => {
                self.run(format!(
                    "INSERT INTO {t} (word, amount) SELECT md5(n::text || {n}), n FROM generate_series(1, {k}) n;
                     INSERT INTO activities (client_ref, contact_id, note)
                     SELECT {n} || ' ' || n, 1 + n % 90, 'called' FROM generate_series(1, 9) n"
                ))
                .await;
            }
            "update" => {
                self.run(format!(
                    "UPDATE {t} SET word = md5(word), amount = amount + {n} WHERE id % 3 = {}",
                    k % 3
                ))
                .await;
            }
            "delete" => self.run(format!("DELETE FROM {t} WHERE id % 5 = {}", k % 5)).await,
            "bulk load" => {
                // Some of the words are too long for a page.
                let mut rows = String::new();
                for row in 0..k * 5 {
                    let _ = writeln!(rows, "{n}-{row}\t{row}");
                }
                let long = "SELECT string_agg(md5(n::text || random()), '') FROM generate_series(1, 400) n";
                let long: String =
                    sqlx::query_scalar(long).fetch_one(&mut self.app).await.expect("a long word");
                let _ = writeln!(rows, "{long}\t-1");
                let copy = format!("COPY {t} (word, amount) FROM STDIN");
                let mut copy = self.app.copy_in_raw(&copy).await.expect("begin to copy");
                copy.send(rows.as_bytes()).await.expect("send rows");
                copy.finish().await.expect("copy");
            }
            "upsert" => {
                self.run(format!(
                    "INSERT INTO {t} (id, word) SELECT -n, 'again {n}' FROM generate_series(1, {k}) n
                     ON CONFLICT (id) DO UPDATE SET word = excluded.word || {t}.word"
                ))
                .await;
            }
            "drop column" if !columns.is_empty() => {
                let c = dice.one(&columns);
                self.run(format!("ALTER TABLE {t} DROP COLUMN {c}")).await;
            }
            "rename column" if !columns.is_empty() => {
                let c = dice.one(&columns);
                self.run(format!("ALTER TABLE {t} RENAME COLUMN {c} TO c_{n}")).await;
            }
            "add column" | "drop column" | "rename column" => {
                self.run(format!("ALTER TABLE {t} ADD COLUMN c_{n} int NOT NULL DEFAULT {k}")).await;
            }
            "drop table" => {
                self.run(format!("DROP TABLE {t}")).await;
                tables.retain(|table| *table != t);
            }
            "index" => {
                let on = [
                    "USING btree (word, amount)",
                    "USING hash (word)",
                    "USING gist (at)",
                    "USING spgist (at)",
                    "USING brin (amount)",
                    "USING gin (to_tsvector('simple'::regconfig, word))",
                    "(amount) WHERE amount > 7",
                ];
                // What is loaded in bulk has a word that is too long for an index of words.
                self.run(format!("DELETE FROM {t} WHERE length(word) > 2000")).await;
                self.run(format!("CREATE INDEX i_{n} ON {t} {}", on[1 + dice.below(on.len() - 1)])).await;
            }
            "drop index" => {
                let indexes = "SELECT relname::text FROM pg_class WHERE relname LIKE 'i\\_%' AND relkind = 'i' ORDER BY 1";
                match self.names(indexes).await {
                    none if none.is_empty() => self.run(format!("CREATE INDEX i_{n} ON {t} (amount)")).await,
                    indexes => self.run(format!("DROP INDEX {}", dice.one(&indexes))).await,
                }
            }
            "reindex" => self.run(format!("REINDEX TABLE {t}")).await,
            "cluster" => self.run(format!("CLUSTER {t} USING {t}_pkey")).await,
            "vacuum full" => self.run(format!("VACUUM FULL {t}")).await,
            "vacuum" => self.run(format!("VACUUM (FREEZE, ANALYZE) {t}")).await,
            "truncate" => {
                self.run(format!("TRUNCATE {t} RESTART IDENTITY")).await;
                self.run(format!("INSERT INTO {t} (word) VALUES ('after {n}')")).await;
            }
            "grant" => {
                let sql = if k.is_multiple_of(2) {
                    "GRANT SELECT ON {} TO PUBLIC"
                } else {
                    "REVOKE ALL ON {} FROM PUBLIC"
                };
                self.run(sql.replace("{}", &t)).await;
            }
            "sequence" => {
                self.run(format!(
                    "CREATE SEQUENCE IF NOT EXISTS counter; SELECT nextval('counter') FROM generate_series(1, {k})"
                ))
                .await;
                if k.is_multiple_of(3) {
                    self.run(format!("SELECT setval('counter', {n})")).await;
                }
            }
            "savepoints" => {
                // More than a transaction's entry in shared memory has room for.
                let mut sql = "BEGIN;".to_owned();
                for at in 0..80 {
                    let _ =
                        write!(sql, "SAVEPOINT s; INSERT INTO {t} (word, amount) VALUES ('{n} {at}', {at});");
                    sql.push_str(if at % 3 == 0 { "ROLLBACK TO s;" } else { "RELEASE s;" });
                }
                let _ = write!(sql, "SAVEPOINT s; CREATE TABLE gone_{n} (n int); ROLLBACK TO s; COMMIT");
                self.run(sql).await;
            }
            "rolled back" => {
                let sql = format!(
                    "BEGIN; CREATE TABLE gone_{n} AS SELECT n FROM generate_series(1, 500) n; TRUNCATE {t};
                     INSERT INTO {t} (word) VALUES ('never'); ALTER TABLE {t} ADD COLUMN never int; ROLLBACK"
                );
                self.run(sql).await;
            }
            "agent" => self.agent(&t).await,
            "message" => {
                self.run(format!("SELECT pg_logical_emit_message(true, 'note', 'moment {n}')")).await;
                self.run(format!("UPDATE {t} SET amount = {n} WHERE id = (SELECT min(id) FROM {t})")).await;
            }
            "rewrite" => {
                let to = if k.is_multiple_of(2) { "int8" } else { "numeric" };
                self.run(format!("ALTER TABLE {t} ALTER COLUMN amount TYPE {to}")).await;
            }
            other => panic!("nobody knows how to {other}"),
        }
    }

    /// The platform makes a role, the role gets rights, changes rows, and goes.
    async fn agent(&self, table: &str) {
        let opened = self.platform.cli(&["ai-session", "open", self.tenant, "--agent", "cleaner"]);
        let options = opened["connection_string"].as_str().expect("a connection string");
        let options: sqlx::postgres::PgConnectOptions = options.parse().expect("connect options");
        let options = options.ssl_mode(sqlx::postgres::PgSslMode::Disable);
        let mut agent = PgConnection::connect_with(&options).await.expect("connect as the agent");
        let sql = format!("UPDATE {table} SET word = 'swept' WHERE id % 11 = 0");
        agent.execute(AssertSqlSafe(sql)).await.expect("change");
        drop(agent.close().await);
        let id = opened["id"].as_str().expect("an id");
        self.platform.cli(&["ai-session", "close", self.tenant, id]);
    }
}

/// Asks for every tenant's page, again and again. What failed is kept.
struct Visitors {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    running: Vec<tokio::task::JoinHandle<()>>,
}

impl Visitors {
    fn start(gateway: u16) -> Self {
        let (stop, answered, failures) =
            <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<Mutex<Vec<String>>>)>::default();
        let visit = |tenant: &'static str| {
            let (stop, answered, failures) = (stop.clone(), answered.clone(), failures.clone());
            tokio::spawn(async move {
                let client = reqwest::Client::new();
                let url = format!("http://127.0.0.1:{gateway}/api/summary");
                while !stop.load(Ordering::Relaxed) {
                    let request = client.get(&url).header("host", format!("{tenant}.localhost"));
                    let answer = async { request.send().await?.error_for_status()?.text().await };
                    match answer.await {
                        Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => {
                            let at = loomworks_core::time::now();
                            failures.lock().expect("the list").push(format!("{at} {tenant}: {error:?}"));
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
        };
        let running = TENANTS.into_iter().map(visit).collect();
        Self { stop, answered, failures, running }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for visitor in self.running {
            visitor.await.expect("a visitor");
        }
        let failures = self.failures.lock().expect("the list");
        assert!(failures.is_empty(), "requests failed:\n{}", failures.join("\n"));
        self.answered.load(Ordering::Relaxed)
    }
}

/// How a moment is brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ByTime,
    ByPosition,
    Look,
}

/// Brings a moment back and gives what is in the database then.
async fn bring_back(platform: &Platform, moment: &Moment, way: Way) -> Content {
    let tenant = TENANTS[moment.tenant];
    let target = match way {
        Way::ByTime => ["--time", &moment.time],
        Way::ByPosition | Way::Look => ["--lsn", &moment.position],
    };
    let job: Value = match way {
        Way::Look => platform.cli(&["restore", "look", tenant, target[0], target[1]]),
        _ => platform.cli(&["restore", "run", tenant, target[0], target[1], "--yes"]),
    };
    assert_eq!(job["state"], "succeeded", "{job:#}");
    if way == Way::Look {
        let name = job["result"]["database"].as_str().expect("its name");
        let [host, port, user, password] = platform.app_credentials(tenant);
        let beside = platform.try_connect(&host, &port, &user, &password, name).await;
        return content(&mut beside.expect("connect to what lies beside")).await;
    }
    content(&mut platform.connect_as_app(tenant).await).await
}

async fn now(platform: &Platform) -> Vec<Content> {
    let mut contents = Vec::new();
    for tenant in TENANTS {
        contents.push(content(&mut platform.connect_as_app(tenant).await).await);
    }
    contents
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "a run that failed is repeated with its seed")]
async fn every_moment_of_a_history_comes_back_as_it_was() {
    let seed = std::env::var_os("LOOMWORKS_HISTORY_SEED").and_then(|seed| seed.to_str()?.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| loomworks_core::time::now().as_second().unsigned_abs());
    println!("LOOMWORKS_HISTORY_SEED={seed}");
    let begun = std::time::Instant::now();
    let told = |what: &str| println!("{:6.1} s: {what}", begun.elapsed().as_secs_f32());
    let mut dice = Dice(seed);
    let mut platform = Platform::start(&App::SmallErp);
    for tenant in TENANTS {
        platform.cli(&["tenant", "create", tenant, "--wait"]);
        let mut app = platform.connect_as_app(tenant).await;
        app.execute("CREATE TABLE lines (n int)").await.expect("make a table");
    }
    platform.cli(&["backup", "run"]);
    told("three tenants and a backup");
    let visitors = Visitors::start(platform.gateway);

    let mut before = now(&platform).await;
    let mut history: Vec<Moment> = Vec::new();
    for n in 1..=MOMENTS {
        // The first of the tenants is the one that goes back, and is brought back to moments before that in each way.
        let is_first = (TURN_TO..=TURN).contains(&n) && n % EVERY == 0;
        let tenant = if is_first { 0 } else { dice.below(TENANTS.len()) };
        let what = match n {
            TURN => "back".to_owned(),
            _ => KINDS[dice.below(KINDS.len())].to_owned(),
        };
        match n % 40 {
            30 => drop(platform.cli(&["backup", "run", "--no-wait"])),
            11 | 27 => drop(platform.cli(&["snapshot", "create", TENANTS[tenant], "--no-wait"])),
            _ => {}
        }
        if n == TURN {
            let to = &history[TURN_TO - 1];
            platform.wait_for("a backup under way", |platform| no_job_is_under_way(platform));
            let found = bring_back(&platform, to, Way::ByTime).await;
            let difference = to.contents[0].difference(&found, SEQUENCE_AHEAD);
            assert!(difference.is_empty(), "seed {seed}: back to {TURN_TO}:\n{difference}");
            told("back in the middle");
        } else {
            let app = platform.connect_as_app(TENANTS[tenant]).await;
            let mut hand = Hand { platform: &platform, tenant: TENANTS[tenant], app };
            hand.act(&what, n, &mut dice).await;
        }
        let mut app = platform.connect_as_app(TENANTS[tenant]).await;
        let noted = "SELECT clock_timestamp()::text, pg_current_wal_insert_lsn()::text";
        let noted = app.fetch_one(noted).await.expect("the moment");
        let (time, position) = (noted.get(0), noted.get(1));
        // A line under it. What a sequence gives out before a transaction's end belongs to the time before that end, so
        // something has to end between this moment and the next.
        let line = format!("INSERT INTO lines VALUES ({n})");
        app.execute(AssertSqlSafe(line)).await.expect("draw a line");
        let contents = now(&platform).await;
        for (other, name) in TENANTS.iter().enumerate().filter(|(other, _)| *other != tenant) {
            let difference = before[other].difference(&contents[other], 0);
            assert!(difference.is_empty(), "seed {seed}: {what} at {n} has changed {name}:\n{difference}");
        }
        before.clone_from(&contents);
        history.push(Moment { tenant, what, time, position, contents });
    }
    told("the history is over");
    platform.cli(&["snapshot", "create", TENANTS[0]]);

    let mut current = before;
    let ways = [Way::ByTime, Way::ByPosition, Way::Look];
    for (turn, n) in (EVERY..=MOMENTS).step_by(EVERY).enumerate() {
        let (moment, way) = (&history[n - 1], ways[turn % ways.len()]);
        let (tenant, what) = (moment.tenant, &moment.what);
        let found = bring_back(&platform, moment, way).await;
        let difference = moment.contents[tenant].difference(&found, SEQUENCE_AHEAD);
        let of = format!("seed {seed}: moment {n} ({what}) of {}, {way:?}", TENANTS[tenant]);
        assert!(difference.is_empty(), "{of}: it is not what it was:\n{difference}");
        if way != Way::Look {
            current[tenant] = found;
        }
        for (other, contents) in now(&platform).await.iter().enumerate() {
            let difference = current[other].difference(contents, 0);
            assert!(difference.is_empty(), "{of}: {} has changed:\n{difference}", TENANTS[other]);
        }
        told(&of);
    }
    let answered = visitors.end().await;
    told(&format!("{answered} requests were answered, and none failed"));
    platform.wait_for("all jobs to end", |platform| no_job_is_under_way(platform));
}

/// Whether every job has succeeded.
fn no_job_is_under_way(platform: &Platform) -> bool {
    let jobs = platform.cli(&["job", "list", "--limit", "200"]);
    let mut jobs = jobs["items"].as_array().expect("jobs").iter();
    jobs.all(|job| {
        assert_ne!(job["state"], "failed", "{job:#}");
        job["state"] == "succeeded"
    })
}
