//! A tenant's own requests see the rows of that tenant, and nothing else, whatever a query forgets.

use loomworks_control::access::{self, Permission, Scope};
use loomworks_control::db::lifecycle::Update;
use loomworks_control::db::tenants::Filter;
use loomworks_control::page::Asked;
use loomworks_control::{audit, tenants};
use loomworks_core::ids::TenantId;
use loomworks_testkit::server;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::world::{Installation, admin, caller, operator};
use super::{database, tenant};

/// Every table that says whose a row is, with the column that says it. From the catalogue, so that none is forgotten.
pub(crate) async fn tables(connection: &mut PgConnection) -> Vec<(String, String)> {
    let found: Vec<(String, String)> = sqlx::query_as(
        "SELECT c.relname::text, a.attname::text FROM pg_class c
         JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = 'public'::regnamespace
         AND (a.attname = 'tenant_id' OR (c.relname = 'tenants' AND a.attname = 'id')) ORDER BY 1",
    )
    .fetch_all(connection)
    .await
    .expect("read the catalogue");
    assert!(found.len() >= 8, "{found:?}");
    found
}

async fn set_tenant(connection: &mut PgConnection, value: &str) {
    sqlx::query("SELECT set_config('app.tenant_id', $1, true)")
        .bind(value)
        .execute(connection)
        .await
        .expect("set");
}

/// The rows of a table that are not `own`'s; without one all, also those of no tenant. `None`: the role may not read the
/// table at all.
async fn foreign_rows(
    connection: &mut PgConnection,
    table: &str,
    column: &str,
    own: Option<TenantId>,
) -> Option<i64> {
    let sql = format!("SELECT count(*) FROM {table} WHERE $1::uuid IS NULL OR {column} IS DISTINCT FROM $1");
    match sqlx::query(AssertSqlSafe(sql)).bind(own.map(|id| id.0)).fetch_one(connection).await {
        Ok(row) => Some(row.get(0)),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => None,
        Err(error) => panic!("{table}: {error}"),
    }
}

#[tokio::test]
async fn every_table_of_tenants_has_row_security_forced_and_policies_for_both_roles() {
    let db = database().await;
    let mut connection = db.platform.acquire().await.expect("connect");
    for (table, _) in tables(&mut connection).await {
        let row = sqlx::query(
            "SELECT c.relrowsecurity AND c.relforcerowsecurity,
                 (SELECT count(*) FROM pg_policies p WHERE p.tablename = c.relname)
             FROM pg_class c WHERE c.oid = to_regclass($1)",
        )
        .bind(&table)
        .fetch_one(&mut *connection)
        .await
        .expect("look");
        assert!(row.get::<bool, _>(0), "{table} has no forced row security");
        assert_eq!(row.get::<i64, _>(1), 2, "{table}");
    }
}

#[tokio::test]
async fn a_tenants_role_sees_no_foreign_row_whatever_the_setting_is() {
    let db = database().await;
    let (acme, globex) = (tenant(&db).await, tenant(&db).await);
    let tables = tables(&mut db.platform.acquire().await.expect("connect")).await;
    let nobody = TenantId::random().to_string();
    for (setting, own) in [
        (None, None),
        (Some(String::new()), None),
        (Some(nobody), None),
        (Some(acme.to_string()), Some(acme)),
    ] {
        for (table, column) in &tables {
            let mut transaction = db.tenants.begin().await.expect("begin");
            if let Some(setting) = &setting {
                set_tenant(&mut transaction, setting).await;
            }
            let foreign = foreign_rows(&mut transaction, table, column, own).await;
            assert!(foreign.is_none_or(|rows| rows == 0), "{table} with {setting:?}: {foreign:?} rows");
        }
    }
    // What one transaction has set is not there in the next one on the same connection.
    let mut connection = db.tenants.acquire().await.expect("connect");
    for _ in 0..2 {
        let seen = foreign_rows(&mut connection, "tenants", "id", None).await;
        assert_eq!(seen, Some(0), "left over from the last use");
        let mut transaction = sqlx::Connection::begin(&mut *connection).await.expect("begin");
        set_tenant(&mut transaction, &globex.to_string()).await;
        assert_eq!(foreign_rows(&mut transaction, "tenants", "id", None).await, Some(1), "its own");
        transaction.commit().await.expect("commit");
    }
}

#[tokio::test]
async fn a_tenants_role_writes_for_no_other_tenant_and_changes_nothing() {
    let db = database().await;
    let (acme, globex) = (tenant(&db).await, tenant(&db).await);
    let job = "INSERT INTO jobs (id, tenant_id, kind, dedup_key, work, requested_by)
               VALUES (gen_random_uuid(), $1, 'test', gen_random_uuid()::text, '{}', 'test')";
    let refused = [
        job,
        "INSERT INTO audit (actor, action, tenant_id) VALUES ('x', 'y', $1)",
        "UPDATE tenants SET state = 'active' WHERE id = $1",
        "DELETE FROM tenants WHERE id = $1",
        "UPDATE audit SET actor = 'somebody else' WHERE tenant_id = $1",
        "DELETE FROM audit WHERE tenant_id = $1",
        "SELECT app_password_wrapped FROM tenant_credentials WHERE tenant_id = $1",
        "SELECT hash FROM api_keys WHERE tenant_id = $1",
        "UPDATE jobs SET state = 'succeeded' WHERE tenant_id = $1",
        "SELECT 1 FROM operators WHERE id = $1",
        "SELECT 1 FROM operator_sessions WHERE id = $1",
    ];
    for statement in refused {
        let mut transaction = db.tenants.begin().await.expect("begin");
        set_tenant(&mut transaction, &acme.to_string()).await;
        let result = sqlx::query(statement).bind(globex.0).execute(&mut *transaction).await;
        assert!(result.is_err(), "{statement}");
    }
    let mut transaction = db.tenants.begin().await.expect("begin");
    set_tenant(&mut transaction, &acme.to_string()).await;
    sqlx::query(job).bind(acme.0).execute(&mut *transaction).await.expect("its own job");
    // The platform's own role may add to the audit log and change nothing of it.
    for statement in
        ["UPDATE audit SET actor = 'x'", "DELETE FROM audit", "TRUNCATE audit", "DELETE FROM tenants"]
    {
        assert!(sqlx::query(statement).execute(&db.platform).await.is_err(), "{statement}");
    }
}

#[tokio::test]
async fn a_migration_sees_the_rows_that_it_is_to_change_and_nobody_else_can_be_its_role() {
    let db = database().await;
    tenant(&db).await;
    let mut admin = server().await.cluster.connect("loomworks_mgmt").await.expect("connect");
    sqlx::query("SET ROLE loomworks_owner").execute(&mut admin).await.expect("become the owner");
    let seen: i64 =
        sqlx::query_scalar("SELECT count(*) FROM public.tenants").fetch_one(&mut admin).await.expect("count");
    assert!(seen > 0, "row security is forced");
    let other: bool = sqlx::query_scalar(
        "SELECT rolcanlogin OR EXISTS (SELECT FROM pg_auth_members WHERE roleid = r.oid) FROM pg_roles r
         WHERE rolname = 'loomworks_owner'",
    )
    .fetch_one(&mut admin)
    .await
    .expect("look");
    assert!(!other, "somebody may act as the owner");
}

#[tokio::test]
async fn a_tenants_own_people_do_not_see_what_operators_note_about_it() {
    let world = Installation::new().process().await;
    let id = tenant(&world.db).await;
    let granted = admin(&world, id).await;
    let operators = access::tenant(&world.db, &caller(Scope::Operator), &id.to_string(), Permission::Manage)
        .await
        .expect("any tenant");
    let update = Update { settings: Some(json!({ "note": "pays late" })), ..Update::default() };
    let updated = tenants::update(&world, &operator(), &operators, &update).await.expect("update");
    assert_eq!(updated.settings, update.settings.clone().expect("settings"));
    assert_eq!(tenants::get(&world, &operators).await.expect("look").settings, updated.settings);

    let shown = tenants::get(&world, &granted).await.expect("look");
    assert_eq!((shown.id, shown.settings), (id, json!({})));
    let own = caller(Scope::TenantAdmin(id));
    let (all, first) = (Filter::default(), Asked::new(None, None).expect("a page"));
    let page = tenants::list(&world, &own, &all, &first).await.expect("list");
    assert_eq!(page.items[0].settings, json!({}));
    let page = audit::list(&world, &own, None, Default::default(), Asked::new(None, None).expect("a page"));
    let lines = page.await.expect("list").items;
    assert!(lines.iter().any(|line| line.action == "tenant.updated"), "{lines:?}");
    assert!(!format!("{lines:?}").contains("pays late"), "{lines:?}");
    let sql = "SELECT detail->'changed' FROM audit WHERE action = 'tenant.settings_changed' AND detail->>'tenant' = $1";
    let noted: Value =
        sqlx::query_scalar(sql).bind(id.to_string()).fetch_one(&world.db.platform).await.expect("a line");
    assert_eq!(noted, json!(["note"]), "which, and not what");
}
