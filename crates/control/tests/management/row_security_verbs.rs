//! Every table of tenants × every verb × every state the setting can be in: no row of another tenant, and none of no
//! tenant, is seen, changed, removed or made, and nothing but a refusal is answered.
//!
//! Tables, columns, what may stand in them and what the role may do with them come from the catalogue, so that a new
//! table is tried as the old ones are. What the role may do at all must be stopped by a policy: a refusal for want of a
//! privilege says nothing about policies. That all this finds a hole is tried with holes.

use futures_util::TryStreamExt;
use loomworks_control::db::{API_ROLE, DATABASE};
use loomworks_core::ids::TenantId;
use loomworks_postgres::Cluster;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};

use super::row_security::tables;
use super::{Alone, tenant};

/// Rows that fit nothing else, and policies with holes.
static ROWS: Alone = Alone::new();

/// The state that a connection's setting is in when a query forgets whose rows it is about, or lies.
struct State {
    name: &'static str,
    /// Before the transaction. A failure is part of it.
    before: Vec<String>,
    /// First in the transaction.
    within: Option<String>,
    /// Whose rows may be seen.
    own: Option<TenantId>,
}

fn states(acme: TenantId, globex: TenantId) -> Vec<State> {
    let set = |value: &str| format!("SET LOCAL app.tenant_id = '{value}'");
    let left_over = |name, end: &[&str]| {
        let mut before = vec!["BEGIN".to_owned(), set(&globex.to_string())];
        before.extend(end.iter().map(|statement| (*statement).to_owned()));
        State { name, before, within: None, own: None }
    };
    let within = |name, value: &str, own| State { name, before: vec![], within: Some(set(value)), own };
    vec![
        State { name: "unset", before: vec![], within: None, own: None },
        within("empty", "", None),
        within("nobody's", &TenantId::random().to_string(), None),
        within("another tenant's", &acme.to_string(), Some(acme)),
        left_over("left over", &["COMMIT"]),
        left_over("left over after a rollback", &["ROLLBACK"]),
        left_over("left over after a failure", &["SELECT 1 / 0", "ROLLBACK"]),
        left_over("left over after a failure and a commit", &["SELECT 1 / 0", "COMMIT"]),
    ]
}

/// How many of the values that a check names are tried.
const LITERALS_MAX: usize = 8;
/// For each of those values: a row of what must be there, one of all columns, and one with each single column more.
/// One of them passes the checks that speak of several columns.
const VARIANTS: usize = 32 * LITERALS_MAX;

/// What must be written into a table for a row of a tenant, or of none: columns and values. `variant` chooses among the
/// values that a check names. Only columns that `writer` may write, if one is given.
async fn row_of(
    admin: &mut PgConnection,
    table: &Table,
    tenant: Option<TenantId>,
    variant: usize,
    writer: Option<&str>,
) -> (String, String) {
    let columns = sqlx::query(
        "SELECT a.attname::text, format_type(a.atttypid, NULL),
             (SELECT string_agg(pg_get_constraintdef(c.oid), ' ') FROM pg_constraint c
              WHERE c.conrelid = a.attrelid AND c.contype = 'c' AND c.conkey = ARRAY[a.attnum])
         FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
             AND a.attidentity = '' AND a.attgenerated = ''
             AND ((a.attnotnull AND NOT a.atthasdef) OR a.attname = $2 OR $3 = 1
                 OR ($3 > 1 AND a.attnum = $3 - 1))
             AND ($4::text IS NULL OR has_column_privilege($4, a.attrelid, a.attnum, 'INSERT'))",
    )
    .bind(&table.name)
    .bind(&table.column)
    .bind(i32::try_from(variant / LITERALS_MAX).expect("a small number"))
    .bind(writer)
    .fetch_all(admin)
    .await
    .expect("read the catalogue");
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for column in columns {
        let (name, kind, check): (String, String, Option<String>) =
            (column.get(0), column.get(1), column.get(2));
        let allowed: Vec<String> = check
            .iter()
            .filter(|check| check.contains("ARRAY[") && check.contains("= ANY"))
            .flat_map(|check| check.split('\'').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let value = if name == table.column {
            tenant.map_or("NULL".to_owned(), |tenant| format!("'{tenant}'"))
        } else if !allowed.is_empty() && kind == "text" {
            format!("'{}'", allowed[variant % LITERALS_MAX % allowed.len()])
        } else {
            match kind.as_str() {
                "uuid" => "gen_random_uuid()".into(),
                "text" | "character varying" => {
                    "'t' || left(replace(gen_random_uuid()::text, '-', ''), 12)".into()
                }
                "timestamp with time zone" => "now()".into(),
                "date" => "current_date".into(),
                "boolean" => "true".into(),
                "bytea" => "uuid_send(gen_random_uuid())".into(),
                "jsonb" => "'{}'::jsonb".into(),
                "pg_lsn" => "'0/0'::pg_lsn".into(),
                kind if kind.ends_with("[]") => format!("'{{1}}'::{kind}"),
                _ => "1".to_owned(),
            }
        };
        names.push(name);
        values.push(value);
    }
    (names.join(", "), values.join(", "))
}

/// Puts a row of the tenant, or of none, into the table, whatever it refers to.
async fn seed(admin: &mut PgConnection, table: &Table, tenant: Option<TenantId>) {
    if table.name == "tenants" || rows_of(admin, table, tenant).await > 0 {
        return;
    }
    let mut last = String::new();
    for variant in 0..VARIANTS {
        let (names, values) = row_of(admin, table, tenant, variant, None).await;
        let sql = format!("INSERT INTO {} ({names}) VALUES ({values})", table.name);
        match admin.execute(AssertSqlSafe(sql)).await {
            Ok(_) => return,
            Err(error) => last = error.to_string(),
        }
    }
    panic!("no row of {tenant:?} could be made for {}: {last}", table.name);
}

async fn rows_of(admin: &mut PgConnection, table: &Table, tenant: Option<TenantId>) -> i64 {
    let sql = format!("SELECT count(*) FROM {} WHERE {} IS NOT DISTINCT FROM $1", table.name, table.column);
    let counted = sqlx::query_scalar(AssertSqlSafe(sql)).bind(tenant.map(|tenant| tenant.0));
    counted.fetch_one(admin).await.unwrap_or_else(|error| panic!("{}: {error}", table.name))
}

fn is_refusal(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("42501"))
}

/// Begins a transaction in a state of the setting.
async fn enter(connection: &mut PgConnection, state: &State) {
    for statement in &state.before {
        // One of them fails, and is to.
        let _ = connection.execute(AssertSqlSafe(statement.clone())).await;
    }
    connection.execute("BEGIN").await.expect("begin");
    if let Some(statement) = &state.within {
        connection.execute(AssertSqlSafe(statement.clone())).await.expect("set");
    }
}

/// A table of tenants, and what the role of tenants' requests may do with it.
struct Table {
    name: String,
    /// The column that says whose a row is.
    column: String,
    /// A row may be nobody's.
    nullable: bool,
    select: bool,
    insert: bool,
    update: Vec<String>,
    delete: bool,
}

impl Table {
    async fn of(admin: &mut PgConnection, name: String, column: String) -> Self {
        let row = sqlx::query(
            "SELECT NOT a.attnotnull, has_column_privilege($3, c.oid, a.attnum, 'SELECT'),
                 has_column_privilege($3, c.oid, a.attnum, 'INSERT'), has_table_privilege($3, c.oid, 'DELETE'),
                 ARRAY(SELECT b.attname::text FROM pg_attribute b WHERE b.attrelid = c.oid AND b.attnum > 0
                       AND NOT b.attisdropped AND has_column_privilege($3, c.oid, b.attnum, 'UPDATE'))
             FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = $2
             WHERE c.oid = to_regclass($1)",
        )
        .bind(&name)
        .bind(&column)
        .bind(API_ROLE)
        .fetch_one(admin)
        .await
        .expect("read the catalogue");
        Self {
            name,
            column,
            nullable: row.get(0),
            select: row.get(1),
            insert: row.get(2),
            delete: row.get(3),
            update: row.get(4),
        }
    }

    /// The verbs that only a policy can stop.
    fn verbs(&self) -> Vec<&'static str> {
        let verbs = [
            (self.select, "SELECT"),
            (self.insert, "INSERT"),
            (!self.update.is_empty(), "UPDATE"),
            (self.delete, "DELETE"),
        ];
        verbs.into_iter().filter_map(|(may, verb)| may.then_some(verb)).collect()
    }
}

/// What must come of a statement.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    /// The role may do it, and finds no row.
    NoRow,
    /// The role may do it, and a policy refuses this row.
    RefusedByPolicy,
    /// The role may not do it.
    Refused,
}

impl Expected {
    fn is(self, result: &sqlx::Result<sqlx::postgres::PgQueryResult>) -> bool {
        match (self, result) {
            (Self::NoRow, Ok(done)) => done.rows_affected() == 0,
            (Self::RefusedByPolicy, Err(error)) => {
                is_refusal(error) && error.to_string().contains("row-level security")
            }
            (Self::Refused, Err(error)) => is_refusal(error),
            _ => false,
        }
    }
}

/// What is tried with a table by whoever may see the rows of `own`, and what must come of it.
async fn tries(
    admin: &mut PgConnection,
    table: &Table,
    own: Option<TenantId>,
    other: TenantId,
) -> Vec<(String, Expected)> {
    let Table { name, column, .. } = table;
    let foreign = own.map_or("true".to_owned(), |own| format!("{column} IS DISTINCT FROM '{own}'"));
    let if_may = |may: bool| if may { Expected::NoRow } else { Expected::Refused };
    let mut tries = vec![
        (format!("SELECT {column} FROM {name} WHERE {foreign}"), if_may(table.select)),
        (format!("DELETE FROM {name} WHERE {foreign}"), if_may(table.delete)),
        (format!("TRUNCATE {name} CASCADE"), Expected::Refused),
    ];
    // Also without looking: then policies for reading have no say.
    if own.is_none() {
        tries.push((format!("DELETE FROM {name}"), if_may(table.delete)));
    }
    for changed in &table.update {
        tries.push((format!("UPDATE {name} SET {changed} = {changed} WHERE {foreign}"), Expected::NoRow));
        if own.is_none() {
            tries.push((format!("UPDATE {name} SET {changed} = DEFAULT"), Expected::NoRow));
        }
    }
    if table.update.is_empty() {
        tries.push((format!("UPDATE {name} SET {column} = {column} WHERE {foreign}"), Expected::Refused));
    }
    let (writer, expected) = match table.insert {
        true => (Some(API_ROLE), Expected::RefusedByPolicy),
        false => (None, Expected::Refused),
    };
    for whose in [Some(other)].into_iter().chain(table.nullable.then_some(None)) {
        let (names, values) = row_of(admin, table, whose, 0, writer).await;
        tries.push((format!("INSERT INTO {name} ({names}) VALUES ({values})"), expected));
    }
    tries
}

/// What was not as it must be, in any table in any of the states.
async fn holes(
    cluster: &Cluster,
    admin: &mut PgConnection,
    tables: &[Table],
    states: &[State],
    other: TenantId,
) -> Vec<String> {
    let mut holes = Vec::new();
    for state in states {
        // A new connection each, so that "unset" is what it says.
        let mut connection = cluster.local(API_ROLE, DATABASE).connect().await.expect("connect");
        for table in tables {
            for (statement, expected) in tries(admin, table, state.own, other).await {
                enter(&mut connection, state).await;
                let result = connection.execute(AssertSqlSafe(statement.clone())).await;
                connection.execute("ROLLBACK").await.expect("roll back");
                if !expected.is(&result) {
                    holes.push(format!("{statement} with the setting {}: {result:?}", state.name));
                }
            }
            // A connection of its own: the driver is out of step with the server after a COPY that was refused.
            let mut alone = cluster.local(API_ROLE, DATABASE).connect().await.expect("connect");
            enter(&mut alone, state).await;
            let copied = copy(&mut alone, &format!("COPY {} ({}) TO STDOUT", table.name, table.column)).await;
            drop(alone);
            let own = state.own.map(|own| own.to_string());
            let stopped = match &copied {
                Ok(text) => table.select && text.lines().all(|line| Some(line) == own.as_deref()),
                Err(error) => !table.select && is_refusal(error),
            };
            if !stopped {
                holes.push(format!("COPY {} with the setting {}: {copied:?}", table.name, state.name));
            }
        }
        connection.close().await.expect("close");
    }
    holes
}

/// The tables with a row of each tenant, and of none where there may be one.
async fn seeded(cluster: &Cluster, tenants: [TenantId; 2]) -> (PgConnection, Vec<Table>) {
    let mut admin = cluster.connect(DATABASE).await.expect("connect");
    // What a row refers to need not be there.
    admin.execute("SET session_replication_role = replica; SET search_path = public").await.expect("set");
    let mut all = Vec::new();
    for (name, column) in tables(&mut admin).await {
        let table = Table::of(&mut admin, name, column).await;
        let nobody = table.nullable.then_some(None);
        for whose in tenants.map(Some).into_iter().chain(nobody) {
            seed(&mut admin, &table, whose).await;
            assert!(rows_of(&mut admin, &table, whose).await > 0, "{} has no row of {whose:?}", table.name);
        }
        all.push(table);
    }
    (admin, all)
}

#[tokio::test]
async fn no_verb_reaches_a_foreign_row_in_any_table_in_any_state_of_the_setting() {
    let (db, _turn) = ROWS.database().await;
    let cluster = &ROWS.server().await.cluster;
    let (acme, globex) = (tenant(&db).await, tenant(&db).await);
    let (mut admin, tables) = seeded(cluster, [acme, globex]).await;
    let holes = holes(cluster, &mut admin, &tables, &states(acme, globex), globex).await;
    assert!(holes.is_empty(), "{}", holes.join("\n"));
    // That there was something to stop.
    for verb in ["SELECT", "INSERT", "UPDATE", "DELETE"] {
        assert!(tables.iter().any(|table| table.verbs().contains(&verb)), "{verb} is stopped by no policy");
    }
    assert!(tables.iter().any(|table| table.nullable && table.select), "nobody's rows are in no table");
}

#[tokio::test]
async fn a_hole_in_any_policy_is_found() {
    let (db, _turn) = ROWS.database().await;
    let cluster = &ROWS.server().await.cluster;
    let (acme, globex) = (tenant(&db).await, tenant(&db).await);
    let (mut admin, tables) = seeded(cluster, [acme, globex]).await;
    let unset = &states(acme, globex)[..1];
    for table in &tables {
        let (name, column) = (&table.name, &table.column);
        let mut tried = Vec::new();
        for verb in table.verbs() {
            let check = if verb == "INSERT" { "WITH CHECK" } else { "USING" };
            tried.push(format!("FOR {verb} TO {API_ROLE} {check} (true)"));
        }
        if table.nullable && table.select {
            tried.push(format!("TO {API_ROLE} USING ({column} IS NULL)"));
        }
        for hole in tried {
            let sql = format!("CREATE POLICY hole ON {name} {hole}");
            admin.execute(AssertSqlSafe(sql)).await.expect("make a hole");
            let found = holes(cluster, &mut admin, std::slice::from_ref(table), unset, globex).await;
            admin.execute(AssertSqlSafe(format!("DROP POLICY hole ON {name}"))).await.expect("close it");
            assert!(!found.is_empty(), "nothing finds that {name} has a policy {hole}");
        }
    }
}

async fn copy(connection: &mut PgConnection, statement: &str) -> sqlx::Result<String> {
    let chunks: Vec<_> = connection.copy_out_raw(statement).await?.try_collect().await?;
    Ok(chunks.iter().map(|chunk| String::from_utf8_lossy(chunk).into_owned()).collect())
}
