//! What a run has left, in a form that two runs can be compared in.

use std::collections::BTreeMap;
use std::path::Path;

use loomworks_control::access::Granted;
use loomworks_postgres::{PgConnectOptions, PgConnection};
use serde_json::{Value, json};
use sqlx::postgres::PgSslMode;
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use uuid::Uuid;

use crate::cases::Begun;
use crate::stage::{Stage, operator};

/// Rows of other tables are effects; these are how jobs get done.
const LEFT_OUT: &[&str] = &["jobs", "job_turns", "schedules", "_sqlx_migrations"];

/// Everything there is, each thing with what it looks like and how often: rows, databases, roles, files. Ids,
/// moments, secrets and numbers look alike, since they are others in each run.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Inventory(BTreeMap<String, i64>);

impl Inventory {
    pub(crate) async fn take(stage: &Stage) -> Self {
        let mut inventory = Self::default();
        let mut mgmt = stage.management().await;
        let tables = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'";
        for table in
            strings(&mut mgmt, tables).await.iter().filter(|table| !LEFT_OUT.contains(&table.as_str()))
        {
            // Each copy that was begun anew is noted, so that what is archived of it goes with the tenant.
            let but = if table == "tenant_databases" { "WHERE role <> 'dropped'" } else { "" };
            for row in strings(&mut mgmt, &format!("SELECT to_jsonb(t)::text FROM {table} t {but}")).await {
                inventory.add(&format!("row of {table}"), &row);
            }
        }
        for (what, sql) in [
            (
                "job",
                "SELECT concat_ws(' ', kind, queue, state, requested_by, tenant_id IS NULL) FROM jobs",
            ),
            (
                "database",
                "SELECT concat_ws(' ', datname, pg_get_userbyid(datdba), datallowconn, datistemplate, datacl)
                 FROM pg_database",
            ),
            (
                "role",
                "SELECT concat_ws(' ', rolname, rolcanlogin, rolconnlimit, rolvaliduntil IS NULL,
                     rolpassword IS NULL,
                     (SELECT string_agg(setconfig::text, ' ') FROM pg_db_role_setting WHERE setrole = r.oid),
                     ARRAY(SELECT pg_get_userbyid(roleid)::text FROM pg_auth_members WHERE member = r.oid ORDER BY 1))
                 FROM pg_authid r",
            ),
        ] {
            for one in strings(&mut mgmt, sql).await {
                inventory.add(what, &one);
            }
        }
        for directory in ["side", "apps", "exports"] {
            inventory.add_files(&stage.server.directory, &stage.server.directory.join(directory));
        }
        // What a try that was cut off has left goes when it is old; what counts is what has a manifest.
        for _ in stage.world("nobody").repository.backups().await.expect("the backups") {
            inventory.add("backup", "");
        }
        for _ in stage.received.lock().expect("not poisoned").iter() {
            inventory.add("delivery", "");
        }
        inventory
    }

    fn add(&mut self, what: &str, one: &str) {
        *self.0.entry(format!("{what}: {}", alike(one))).or_default() += 1;
    }

    fn add_files(&mut self, root: &Path, directory: &Path) {
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for entry in entries {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below it").display().to_string();
            if path.is_dir() {
                self.add("directory", &name);
                self.add_files(root, &path);
            } else {
                self.add("file", &name);
            }
        }
    }

    /// What there is more of than there was, and less.
    pub(crate) fn since(mut self, before: Self) -> Self {
        for (one, count) in before.0 {
            *self.0.entry(one).or_default() -= count;
        }
        self.0.retain(|_, count| *count != 0);
        self
    }
}

async fn strings(connection: &mut PgConnection, sql: &str) -> Vec<String> {
    let found = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await;
    found.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// A text without what is another in each run: ids, and words with a digit in them or of hexadecimal digits only.
fn alike(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if rest.get(..36).is_some_and(|id| Uuid::try_parse(id).is_ok()) {
            out.push('#');
            rest = &rest[36..];
            continue;
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        if end == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(end);
        let hexadecimal = word.len() >= 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        out.push_str(if hexadecimal || word.bytes().any(|byte| byte.is_ascii_digit()) { "#" } else { word });
        rest = after;
    }
    out
}

/// How a run has ended.
#[derive(Debug, PartialEq)]
pub(crate) struct End {
    /// What the job tells of. How it was the last try knows, which may have found everything done.
    told: Vec<String>,
    changed: Inventory,
    /// The tenant that it was about.
    tenant: Value,
    /// What the case itself looks at.
    seen: Value,
}

impl End {
    pub(crate) async fn of(stage: &Stage, begun: &Begun, changed: Inventory) -> Self {
        let row = sqlx::query("SELECT result FROM jobs WHERE id = $1")
            .bind(begun.job.0)
            .fetch_one(&stage.db.platform)
            .await
            .expect("the job");
        let tenant = match &begun.tenant {
            Some(granted) => tenant(stage, granted).await,
            None => Value::Null,
        };
        Self {
            told: row
                .get::<Value, _>(0)
                .as_object()
                .map(|told| told.keys().cloned().collect())
                .unwrap_or_default(),
            changed,
            tenant,
            seen: (begun.look)(stage, begun).await,
        }
    }
}

/// A tenant as its app finds it, and what its database holds people to.
async fn tenant(stage: &Stage, granted: &Granted) -> Value {
    let sql = "SELECT state, database_name, (SELECT oid FROM tenant_databases d
                   WHERE d.tenant_id = t.id AND d.role = 'live') FROM tenants t WHERE t.id = $1";
    let mut mgmt = stage.management().await;
    let row = sqlx::query(sql).bind(granted.tenant().0).fetch_one(&mut mgmt).await.expect("the tenant");
    let state: String = row.get(0);
    if state != "active" {
        return json!({ "state": state });
    }
    let database: String = row.get(1);
    let live: Option<i64> = row.get(2);
    let mut app = as_app(stage, &database).await;
    let items = "SELECT value || ' ' || count(*) FROM items GROUP BY value ORDER BY 1";
    let items = strings(&mut app, items).await;
    let mut inside = stage.connect(&database).await;
    let quota = strings(&mut inside, "SELECT to_jsonb(q)::text FROM loomworks.quota q").await;
    let oid =
        strings(&mut inside, "SELECT oid::text FROM pg_database WHERE datname = current_database()").await;
    let is_live = live.map(|oid| oid.to_string()) == oid.first().cloned();
    json!({ "state": state, "items": items, "quota": quota, "is_live": is_live })
}

/// Connects with what the file of the app says about a database.
async fn as_app(stage: &Stage, database: &str) -> PgConnection {
    let apps = std::fs::read_dir(stage.server.directory.join("apps")).expect("the apps");
    let files = apps.map(|app| app.expect("an app").path().join("pgpass"));
    let lines: String = files.filter_map(|file| std::fs::read_to_string(file).ok()).collect();
    let line = lines.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = line.into_iter().find(|words| words.get(2) == Some(&database));
    let words = line.unwrap_or_else(|| panic!("no password for {database}"));
    PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(stage.server.cluster.port)
        .username(words[3])
        .password(words[4])
        .database(database)
        .ssl_mode(PgSslMode::Disable)
        .connect()
        .await
        .expect("connect as the app")
}

/// The former keys of the platform, and whether anything is wrapped with one of them.
pub(crate) async fn keys(stage: &Stage) -> Value {
    let world = stage.world("nobody");
    let status =
        loomworks_control::master_key::rotation::status(&world, &operator()).await.expect("the keys");
    let former: i64 = status.wrapped.iter().map(|column| column.former).sum();
    json!({
        "former": status.former.len(), "wrapped_with_former": former, "in_repository": status.repository.former
    })
}
