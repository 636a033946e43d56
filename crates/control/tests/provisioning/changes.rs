//! Snapshots after much was changed, and moments out of a tenant's window.

use jiff::{SignedDuration, Timestamp};
use loomworks_control::db::snapshots::{self as rows, SnapshotType};
use loomworks_control::jobs::{Context, Work};
use loomworks_control::restores::{self, Asked, Mode, Wanted};
use loomworks_control::work::limits::{MeasureStep, MeasureUsage};
use loomworks_control::{World, archive};
use loomworks_core::ids::{JobId, SnapshotId};
use loomworks_core::lsn::Lsn;
use loomworks_core::time;
use loomworks_postgres::sql;

use crate::world::{Tenant, granted, until, with_world};

/// One look at all tenants, as a worker does it.
async fn look(world: &World) {
    let context = Context::new(JobId::random(), "loomworks");
    MeasureUsage {}.run(&MeasureStep::Measure, world, &context).await.expect("a look");
}

/// Inserts so many rows, and waits until the server counts them.
async fn import(world: &World, tenant: &Tenant, from: u32, rows: u32) {
    let mut inside = tenant.admin(world).await;
    let before = counted(world, tenant).await;
    let to = from + rows - 1;
    let insert =
        format!("INSERT INTO public.items SELECT n, 'imported' FROM generate_series({from}, {to}) n");
    sql::run(&mut inside, insert).await.expect("import");
    sql::run(&mut inside, "SELECT pg_stat_force_next_flush()".into()).await.expect("tell the server");
    until("the server to count", async || counted(world, tenant).await - before >= i64::from(rows)).await;
}

async fn counted(world: &World, tenant: &Tenant) -> i64 {
    let mut admin = world.cluster.connect("postgres").await.expect("connect");
    sqlx::query_scalar(
        "SELECT tup_inserted + tup_updated + tup_deleted FROM pg_stat_database WHERE datname = $1",
    )
    .bind(&tenant.name)
    .fetch_one(&mut admin)
    .await
    .expect("look")
}

/// The names of a tenant's snapshots.
async fn taken(world: &World, tenant: &Tenant) -> Vec<String> {
    let mut mgmt = world.cluster.connect("loomworks_mgmt").await.expect("connect");
    let names =
        "SELECT name || ', ' || snapshot_type FROM public.snapshots WHERE tenant_id = $1 ORDER BY created_at";
    sqlx::query_scalar(names).bind(tenant.id.0).fetch_all(&mut mgmt).await.expect("look")
}

async fn management(world: &World, tenant: &Tenant, statement: &str) {
    let mut mgmt = world.cluster.connect("loomworks_mgmt").await.expect("connect");
    let statement = statement.replace("$1", &format!("'{}'", tenant.id));
    sql::run(&mut mgmt, format!("SET search_path = public; {statement}")).await.expect("change it");
}

#[test]
fn an_import_leads_to_one_snapshot_whoever_looks_and_however_often() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "shop").await;
        import(&world, &tenant, 1000, 60_000).await;
        look(&world).await;
        assert!(taken(&world, &tenant).await.is_empty(), "fewer than are enough");
        import(&world, &tenant, 100_000, 50_000).await;
        tokio::join!(look(&world), look(&world), look(&world));
        let names = taken(&world, &tenant).await;
        assert_eq!(names.len(), 1, "{names:?}");
        let [hundreds, _] =
            names[0].strip_prefix("after ").expect("a name").split_once(',').expect("a number").into();
        assert_eq!((hundreds, names[0].ends_with(" changed rows, auto")), ("110", true), "{names:?}");
        // It is being taken still, as there is no archive here.
        import(&world, &tenant, 200_000, 110_000).await;
        look(&world).await;
        assert_eq!(taken(&world, &tenant).await.len(), 1);
        // Half an hour later what has come since is enough for another one.
        let later = "UPDATE snapshots SET state = 'failed', created_at = now() - interval '31 minutes' WHERE tenant_id = $1";
        management(&world, &tenant, later).await;
        look(&world).await;
        assert_eq!(taken(&world, &tenant).await.len(), 2);
    });
}

#[test]
fn counters_that_begin_anew_lead_to_none() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "shop").await;
        import(&world, &tenant, 1000, 110_000).await;
        let mut inside = tenant.admin(&world).await;
        sql::run(&mut inside, "SELECT pg_stat_reset()".into()).await.expect("reset");
        until("the counters to begin anew", async || counted(&world, &tenant).await < 50_000).await;
        look(&world).await;
        import(&world, &tenant, 200_000, 60_000).await;
        look(&world).await;
        assert!(taken(&world, &tenant).await.is_empty());
        // And from there on it is counted.
        import(&world, &tenant, 300_000, 60_000).await;
        look(&world).await;
        assert_eq!(taken(&world, &tenant).await.len(), 1);
    });
}

#[test]
fn what_a_database_held_when_it_came_does_not_count() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "shop").await;
        import(&world, &tenant, 1000, 110_000).await;
        for as_before in ["changes_oid = 1", "changes_oid = NULL, changes_rows = NULL, changes_since = NULL"]
        {
            management(&world, &tenant, &format!("UPDATE tenant_usage SET {as_before} WHERE tenant_id = $1"))
                .await;
            look(&world).await;
        }
        assert!(taken(&world, &tenant).await.is_empty(), "counting begins with the look");
        import(&world, &tenant, 200_000, 90_000).await;
        look(&world).await;
        assert!(taken(&world, &tenant).await.is_empty());
    });
}

#[test]
fn a_snapshot_that_was_taken_is_where_counting_begins() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "shop").await;
        import(&world, &tenant, 1000, 110_000).await;
        let id = SnapshotId::random();
        let mut mgmt = world.db.platform.acquire().await.expect("connect");
        rows::insert(&mut mgmt, id, tenant.id, "mine", SnapshotType::Manual, "test", 30)
            .await
            .expect("insert");
        rows::record_position(&mut mgmt, id, Lsn(77), "file", 1).await.expect("note it");
        let old = "UPDATE snapshots SET state = 'ready', created_at = now() - interval '1 hour' WHERE tenant_id = $1";
        management(&world, &tenant, old).await;
        look(&world).await;
        assert_eq!(taken(&world, &tenant).await, ["mine, manual"]);
        // Noted again after it was cut off, it is the first time that counts.
        import(&world, &tenant, 200_000, 110_000).await;
        assert_eq!(rows::record_position(&mut mgmt, id, Lsn(99), "file", 1).await.expect("again"), Lsn(77));
        look(&world).await;
        assert_eq!(taken(&world, &tenant).await.len(), 2);
    });
}

#[test]
fn rows_of_the_operation_log_are_no_work_of_the_tenants() {
    with_world(async |world| {
        let tenant = Tenant::new(&world, "shop").await;
        let mut inside = tenant.admin(&world).await;
        // As an agent's statement leaves it that changes 60,000 rows.
        let log = "INSERT INTO loomworks.operation (xid, at, until, session, lsn, relations)
                 SELECT '7', now(), now(), 'lwai_test', '0/7', array_agg(id) FROM loomworks.relation WHERE name LIKE '%items';
             DO $do$ BEGIN
                 EXECUTE (SELECT format('INSERT INTO loomworks.row_%s (xid, at, kind) SELECT ''7'', now(), ''I''
                     FROM generate_series(1, 60000)', id) FROM loomworks.relation WHERE name LIKE '%items');
             END $do$";
        sql::run(&mut inside, log.to_owned()).await.expect("log");
        sql::run(&mut inside, "SELECT pg_stat_force_next_flush()".into()).await.expect("tell the server");
        import(&world, &tenant, 1000, 60_000).await;
        until("the server to count", async || counted(&world, &tenant).await >= 120_000).await;
        look(&world).await;
        look(&world).await;
        assert!(taken(&world, &tenant).await.is_empty(), "60,000 of 120,000 are the log's");
        import(&world, &tenant, 100_000, 50_000).await;
        look(&world).await;
        assert_eq!(taken(&world, &tenant).await.len(), 1, "and 110,000 are not");
    });
}

#[test]
fn a_moment_of_eight_days_ago_is_refused_to_a_tenant_of_seven_days_and_not_to_its_neighbour() {
    with_world(async |world| {
        let (acme, globex) = (Tenant::new(&world, "shop").await, Tenant::new(&world, "shop").await);
        for tenant in [&acme, &globex] {
            let earlier = "UPDATE tenants SET created_at = now() - interval '100 days' WHERE id = $1;
                 UPDATE tenant_incarnations SET since = now() - interval '100 days' WHERE tenant_id = $1";
            management(&world, tenant, earlier).await;
        }
        management(&world, &acme, "UPDATE tenants SET recovery_days = 7 WHERE id = $1").await;
        let days_ago = |days: i64| time::now() - SignedDuration::from_hours(24 * days);
        let refused = async |tenant: &Tenant, moment: Timestamp| {
            let granted = granted(&world, tenant.id).await;
            let asked = Asked { wanted: Wanted::Time(moment), mode: Mode::InPlace, source: None };
            restores::plan(&world, &granted, &asked).await.expect_err("there is no backup")
        };
        let error = refused(&acme, days_ago(8)).await;
        assert!(error.to_string().ends_with("can go back 7 days"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.starts_with("recoverable from ")), "{error:?}");
        // What is in the window fails for another reason: there is no archive here.
        for (tenant, days) in [(&acme, 6), (&globex, 8), (&globex, 29)] {
            let error = refused(tenant, days_ago(days)).await;
            assert_eq!(error.to_string(), "there is no base backup yet");
        }
        let error = refused(&globex, days_ago(31)).await;
        assert!(error.to_string().ends_with("can go back 30 days"), "{error}");
        for (tenant, days) in [(&acme, 7), (&globex, 30)] {
            let window = archive::window(&world, &granted(&world, tenant.id).await).await.expect("a window");
            assert_eq!((window.recovery_days, window.recoverable_from), (days, None));
        }
    });
}
