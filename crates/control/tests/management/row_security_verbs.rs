//! Every table of tenants × every verb × every state the setting can be in: no row of another tenant is seen, changed,
//! removed or made, and nothing but a refusal is answered.
//!
//! Tables, columns and what may stand in them come from the catalogue, so that a new table is tried as the old ones are.

use futures_util::TryStreamExt;
use loomworks_control::db::{API_ROLE, DATABASE};
use loomworks_core::ids::TenantId;
use loomworks_testkit::server;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};

use super::row_security::tables;
use super::{database, tenant};

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

/// What must be written into a table for a row of a tenant: columns and values. `variant` chooses among the values
/// that a check names.
async fn row_of(
    admin: &mut PgConnection,
    table: &str,
    tenant_column: &str,
    tenant: TenantId,
    variant: usize,
) -> (String, String) {
    let columns = sqlx::query(
        "SELECT a.attname::text, format_type(a.atttypid, NULL),
             (SELECT string_agg(pg_get_constraintdef(c.oid), ' ') FROM pg_constraint c
              WHERE c.conrelid = a.attrelid AND c.contype = 'c' AND c.conkey = ARRAY[a.attnum])
         FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
             AND a.attidentity = '' AND a.attgenerated = ''
             AND ((a.attnotnull AND NOT a.atthasdef) OR a.attname = $2 OR $3 = 1
                 OR ($3 > 1 AND a.attnum = $3 - 1))",
    )
    .bind(table)
    .bind(tenant_column)
    .bind(i32::try_from(variant / LITERALS_MAX).expect("a small number"))
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
        let value = if name == tenant_column {
            format!("'{tenant}'")
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

/// Puts a row of the tenant into the table, whatever it refers to.
async fn seed(admin: &mut PgConnection, table: &str, column: &str, tenant: TenantId) {
    if table == "tenants" {
        return;
    }
    let there = format!("SELECT EXISTS (SELECT FROM {table} WHERE {column} = $1)");
    let there: bool = sqlx::query_scalar(AssertSqlSafe(there))
        .bind(tenant.0)
        .fetch_one(&mut *admin)
        .await
        .expect("look for a row");
    if there {
        return;
    }
    let mut last = String::new();
    for variant in 0..VARIANTS {
        let (names, values) = row_of(admin, table, column, tenant, variant).await;
        let sql = format!("INSERT INTO {table} ({names}) VALUES ({values})");
        match admin.execute(AssertSqlSafe(sql)).await {
            Ok(_) => return,
            Err(error) => last = error.to_string(),
        }
    }
    panic!("no row could be made for {table}: {last}");
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

#[tokio::test]
async fn no_verb_reaches_a_foreign_row_in_any_table_in_any_state_of_the_setting() {
    let db = database().await;
    let (acme, globex) = (tenant(&db).await, tenant(&db).await);
    let cluster = &server().await.cluster;
    let mut admin = cluster.connect(DATABASE).await.expect("connect");
    // What a row refers to need not be there.
    admin.execute("SET session_replication_role = replica; SET search_path = public").await.expect("set");
    let tables = tables(&mut admin).await;
    for (table, column) in &tables {
        for tenant in [acme, globex] {
            seed(&mut admin, table, column, tenant).await;
        }
    }
    for state in states(acme, globex) {
        // A new connection each, so that "unset" is what it says.
        let mut connection = cluster.local(API_ROLE, DATABASE).connect().await.expect("connect");
        for (table, column) in &tables {
            let own = state.own.map_or("NULL".to_owned(), |own| format!("'{own}'::uuid"));
            let foreign = format!("{column} IS DISTINCT FROM {own}");
            let (names, values) = row_of(&mut admin, table, column, globex, 0).await;
            for statement in [
                format!("SELECT {column} FROM {table} WHERE {foreign}"),
                format!("UPDATE {table} SET {column} = {column} WHERE {foreign}"),
                format!("DELETE FROM {table} WHERE {foreign}"),
                format!("INSERT INTO {table} ({names}) VALUES ({values})"),
                format!("TRUNCATE {table} CASCADE"),
            ] {
                enter(&mut connection, &state).await;
                let result = connection.execute(AssertSqlSafe(statement.clone())).await;
                connection.execute("ROLLBACK").await.expect("roll back");
                let harmless = match &result {
                    Ok(done) => {
                        done.rows_affected() == 0
                            && !statement.starts_with("INSERT")
                            && !statement.starts_with("TRUNCATE")
                    }
                    Err(error) => is_refusal(error),
                };
                assert!(harmless, "{statement} with the setting {}: {result:?}", state.name);
            }
            // A connection of its own: the driver is out of step with the server after a COPY that was refused.
            let mut alone = cluster.local(API_ROLE, DATABASE).connect().await.expect("connect");
            enter(&mut alone, &state).await;
            let copied = copy(&mut alone, &format!("COPY {table} ({column}) TO STDOUT")).await;
            drop(alone);
            match copied {
                Ok(text) => {
                    let own = state.own.map(|own| own.to_string());
                    let foreign = text.lines().find(|line| Some(*line) != own.as_deref());
                    assert!(foreign.is_none(), "COPY {table} with the setting {}: {text}", state.name);
                }
                Err(error) => {
                    assert!(is_refusal(&error), "COPY {table} with the setting {}: {error}", state.name);
                }
            }
        }
        connection.close().await.expect("close");
    }
    // That it was not for want of rows.
    for (table, column) in &tables {
        let sql = format!("SELECT count(*) FROM {table} WHERE {column} = $1");
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(globex.0)
            .fetch_one(&db.platform)
            .await
            .unwrap_or_else(|error| panic!("{table}: {error}"));
        assert!(rows > 0, "{table} has no row of the other tenant");
    }
}

async fn copy(connection: &mut PgConnection, statement: &str) -> sqlx::Result<String> {
    let chunks: Vec<_> = connection.copy_out_raw(statement).await?.try_collect().await?;
    Ok(chunks.iter().map(|chunk| String::from_utf8_lossy(chunk).into_owned()).collect())
}
