//! Limits reach the tenant's database, and hold there; a full tenant is opened again by itself.

use loomworks_control::World;
use loomworks_control::db::usage as rows;
use loomworks_control::usage;
use loomworks_postgres::sql;
use sqlx::PgConnection;

use crate::world::{Tenant, granted, until, with_world};

/// Changes what a tenant may use, as whoever administers it would.
async fn allow(world: &World, tenant: &Tenant, what: &str) {
    let mut admin = world.cluster.connect("loomworks_mgmt").await.expect("connect");
    sql::run(&mut admin, format!("UPDATE public.tenants SET {what} WHERE id = '{}'", tenant.id))
        .await
        .expect("allow");
}

/// As the tenant's owner: with all that the app may.
async fn as_owner(world: &World, tenant: &Tenant) -> PgConnection {
    let mut connection = tenant.admin(world).await;
    let owner = sql::ident(&format!("lwt_{}_owner", tenant.id.short()));
    sql::run(&mut connection, format!("SET SESSION AUTHORIZATION {owner}; SET search_path = public"))
        .await
        .expect("become him");
    connection
}

async fn run(connection: &mut PgConnection, statement: &str) -> Result<(), String> {
    match sql::run(connection, statement.to_owned()).await {
        Ok(()) => Ok(()),
        Err(sqlx::Error::Database(error)) => Err(error.message().to_owned()),
        Err(error) => panic!("{statement}: {error}"),
    }
}

#[test]
fn a_new_limit_reaches_the_database_and_shows_what_is_left() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "shop").await;
        let mut owner = as_owner(&world, &tenant).await;
        // The first user has one of ten places already.
        let many = "INSERT INTO users SELECT 'u' || n, 'x' FROM generate_series(1, 9) n";
        run(&mut owner, many).await.expect("ten are allowed");
        assert!(
            run(&mut owner, "INSERT INTO users VALUES ('more', 'x')")
                .await
                .expect_err("eleven")
                .contains("may have 10 users")
        );
        allow(&world, &tenant, "max_users = 11").await;
        until("the limit to be told", async || {
            run(&mut owner, "INSERT INTO users VALUES ('more', 'x')").await.is_ok()
        })
        .await;
        assert!(run(&mut owner, "INSERT INTO users VALUES ('most', 'x')").await.is_err());
        let usage = usage::show(&world, &granted(&world, tenant.id).await).await.expect("usage");
        let users = usage.users.expect("they are counted");
        assert_eq!((users.used, users.limit, users.remaining, users.percent), (11, 11, 0, 100));
        assert!(usage.storage.used > 1_000_000 && usage.storage.percent < 1, "{:?}", usage.storage);
        assert_eq!((usage.ai_operations_today.used, usage.ai_operations_today.limit), (0, 100));
    });
}

#[test]
fn a_full_tenant_is_told_closed_and_opened_again() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "cold").await;
        let mut owner = as_owner(&world, &tenant).await;
        let measure = async |level: &str| {
            let mut mgmt = world.db.platform.acquire().await.expect("connect");
            until(level, async || {
                let found = rows::measured(&mut mgmt, tenant.id).await.expect("look");
                found.is_some_and(|found| found.storage_level == level)
            })
            .await;
        };
        allow(&world, &tenant, "max_storage_gb = 0.001").await;
        measure("full").await;
        let insert = "INSERT INTO items VALUES (1001, 'more')";
        until("it to be closed", async || {
            run(&mut owner, insert).await.is_err_and(|said| said.contains("storage is full"))
                || run(&mut owner, "DELETE FROM items WHERE id = 1001").await.is_err()
        })
        .await;
        assert!(run(&mut owner, "CREATE TABLE more (id int)").await.is_err());
        run(&mut owner, "DELETE FROM items WHERE id = 1; SELECT * FROM items")
            .await
            .expect("read and deleted from");

        allow(&world, &tenant, "max_storage_gb = 5").await;
        measure("ok").await;
        until("it to be opened", async || {
            run(&mut owner, "INSERT INTO items VALUES (1002, 'more')").await.is_ok()
        })
        .await;
        let events: Vec<String> = {
            let mut admin = world.cluster.connect("loomworks_mgmt").await.expect("connect");
            let told = "SELECT event FROM public.notifications WHERE tenant_id = $1 ORDER BY id";
            sqlx::query_scalar(told).bind(tenant.id.0).fetch_all(&mut admin).await.expect("look")
        };
        assert_eq!(events, ["quota.storage_full", "quota.storage_freed"]);
    });
}

#[test]
fn a_database_with_older_parts_and_another_table_of_users_gets_what_is_wanted() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "shop").await;
        let mut inside = tenant.admin(&world).await;
        let older =
            "DROP FUNCTION loomworks.write(text); UPDATE loomworks.quota SET users_table = 'public.people'";
        sql::run(&mut inside, older.to_owned()).await.expect("as an older program has left it");
        let mut mgmt = world.cluster.connect("loomworks_mgmt").await.expect("connect");
        let told = r#"UPDATE public.tenant_usage
            SET applied = applied || '{"parts": "older", "users": {"table": "public.people", "active": "true"}}' WHERE tenant_id = $1"#;
        sqlx::query(told).bind(tenant.id.0).execute(&mut mgmt).await.expect("note it");
        until("the database to be told", async || {
            let now = "SELECT to_regprocedure('loomworks.write(text)') IS NOT NULL AND users_table = 'public.users' FROM loomworks.quota";
            sqlx::query_scalar(now).fetch_one(&mut inside).await.expect("look")
        })
        .await;
    });
}

#[test]
fn what_a_tenant_was_told_while_it_was_made_is_what_is_noted() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "shop").await;
        let mut transaction = world.db.platform.begin().await.expect("begin");
        let told = serde_json::json!({ "max_users": 1 });
        rows::record_told(&mut transaction, tenant.id, &told).await.expect("told");
        rows::begin(&mut transaction, tenant.id, 7).await.expect("begin");
        let noted = rows::applied(&mut transaction, tenant.id).await.expect("look").expect("noted");
        assert_eq!(noted, serde_json::json!({ "max_users": 1, "database": 7 }), "and not the limit of now");
    });
}

#[test]
fn a_database_that_is_not_found_is_not_measured_as_empty() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "shop").await;
        let mut mgmt = world.cluster.connect("loomworks_mgmt").await.expect("connect");
        let away = format!(
            "UPDATE public.tenant_databases SET oid = 4000000000 WHERE tenant_id = '{0}' AND role = 'live';
             UPDATE public.tenant_usage SET storage_level = 'full', storage_bytes = 77, measured_at = '-infinity'
             WHERE tenant_id = '{0}'",
            tenant.id
        );
        sql::run(&mut mgmt, away).await.expect("exchange it");
        let mut platform = world.db.platform.acquire().await.expect("connect");
        let mut measured = None;
        until("it to be looked at", async || {
            measured = rows::measured(&mut platform, tenant.id).await.expect("look");
            measured.is_some()
        })
        .await;
        let measured = measured.expect("it was looked at");
        assert_eq!((measured.storage_bytes, measured.storage_level.as_str()), (77, "full"));
    });
}

#[test]
fn people_are_told_once_when_users_or_ai_operations_are_used_up() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "shop").await;
        let mut inside = tenant.admin(&world).await;
        let use_up = "INSERT INTO public.users SELECT 'u' || n, 'x' FROM generate_series(1, 9) n;
             INSERT INTO loomworks.ai_usage VALUES ((now() AT TIME ZONE 'UTC')::date, 0, 100)";
        sql::run(&mut inside, use_up.to_owned()).await.expect("ten users");
        let mut mgmt = world.cluster.connect("loomworks_mgmt").await.expect("connect");
        let mut told = async |statement: &str| {
            sql::run(&mut inside, statement.to_owned()).await.expect("write");
            let again = "UPDATE public.tenant_usage SET measured_at = '-infinity' WHERE tenant_id = $1";
            sqlx::query(again).bind(tenant.id.0).execute(&mut mgmt).await.expect("measure");
            let events = "SELECT event FROM public.notifications WHERE tenant_id = $1 ORDER BY event";
            let events: Vec<String> =
                sqlx::query_scalar(events).bind(tenant.id.0).fetch_all(&mut mgmt).await.expect("look");
            let counted =
                "SELECT count(*) FROM public.tenant_usage WHERE tenant_id = $1 AND users_level = 'full'";
            let full: i64 =
                sqlx::query_scalar(counted).bind(tenant.id.0).fetch_one(&mut mgmt).await.expect("look");
            (events, full == 1)
        };
        let both = ["quota.ai_operations_used_up", "quota.users_full"];
        until("both to be told", async || told("SELECT 1").await.0 == both).await;
        // More is written, and it is no news any more; with room it is none either.
        until("room to be seen", async || {
            let (events, full) =
                told("DELETE FROM public.users WHERE login <> 'admin'; UPDATE public.users SET secret = 'y'")
                    .await;
            assert_eq!(events, both);
            !full
        })
        .await;
    });
}
