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
