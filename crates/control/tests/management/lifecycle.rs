//! Tenants' fields as they are kept: limits, lists, names that become free, and what is deleted and handed out.

use loomworks_control::access::{self, Permission, Scope};
use loomworks_control::db::lifecycle::{self, Suspension, Update};
use loomworks_control::db::tenants::{self, Filter, New};
use loomworks_control::db::{Db, erasure, exports, snapshots, subscriptions, tiers, webhooks};
use loomworks_control::idempotency::{self, Answer, Begun};
use loomworks_core::ids::{ExportId, SnapshotId, TenantId, WebhookId};
use loomworks_core::subscription::Notice;
use loomworks_core::tenant::{Limits, TenantState, Tier};
use loomworks_testkit::server;
use sqlx::{Connection, PgConnection};

use super::world::{Installation, caller};
use super::{database, tenant};

async fn superuser() -> PgConnection {
    erasure::connect(&server().await.cluster).await.expect("connect as superuser")
}

async fn insert(db: &Db, subdomain: &str) -> Result<TenantId, loomworks_control::Error> {
    let id = TenantId::random();
    let subdomain = subdomain.parse().expect("a subdomain");
    let new =
        New { id, name: "Test", subdomain: &subdomain, profile: "erp", app_password_wrapped: b"wrapped" };
    let mut connection = db.platform.acquire().await.expect("connect");
    tenants::insert(&mut connection, &new).await.map(|()| id)
}

#[tokio::test]
async fn limits_are_the_tenants_own_or_its_tiers_everywhere_they_are_read() {
    let db = database().await;
    let id = tenant(&db).await;
    let mut transaction = db.platform.begin().await.expect("begin");
    assert_eq!(tenants::limits(&mut transaction, id).await.expect("limits"), Limits::default());
    let update = Update { tier: Some(Tier::Pro), max_storage_gb: Some(Some(0.5)), ..Update::default() };
    lifecycle::update(&mut transaction, id, &update).await.expect("update");
    let raised =
        Limits { max_users: 77, max_storage_gb: 70.0, max_ai_operations_daily: 700, recovery_days: Some(60) };
    tiers::set(&mut transaction, Tier::Pro, raised).await.expect("change the tier");
    let expected = Limits { max_storage_gb: 0.5, ..raised };
    assert_eq!(tenants::limits(&mut transaction, id).await.expect("limits"), expected);
    let shown = tenants::get(&mut transaction, id).await.expect("get");
    let Limits { max_users, max_storage_gb, max_ai_operations_daily, recovery_days } = expected;
    assert_eq!(
        (shown.max_users, shown.max_storage_gb, shown.max_ai_operations_daily, shown.recovery_days),
        (max_users, max_storage_gb, max_ai_operations_daily, recovery_days)
    );
    assert_eq!((shown.own_max_users, shown.own_max_storage_gb), (None, Some(0.5)));
    let update = Update { max_storage_gb: Some(None), ..Update::default() };
    lifecycle::update(&mut transaction, id, &update).await.expect("update");
    assert_eq!(tenants::limits(&mut transaction, id).await.expect("limits"), raised);
    // Other tests read the tiers too.
    transaction.rollback().await.expect("roll back");
}

#[tokio::test]
async fn pages_of_a_long_list_are_the_list_and_filters_find_what_they_say() {
    let db = database().await;
    let mut transaction = db.platform.begin().await.expect("begin");
    sqlx::query(
        "INSERT INTO tenants (id, name, subdomain, database_name, profile, owner_role, app_role, state, tier)
         SELECT gen_random_uuid(), 'Long List ' || n, 'longlist-' || n, 'longlist-' || n, 'erp', 'o' || n, 'a' || n,
             CASE WHEN n % 10 = 0 THEN 'suspended' WHEN n % 10 = 1 THEN 'destroyed' ELSE 'active' END,
             CASE WHEN n % 4 = 0 THEN 'pro' ELSE 'basic' END
         FROM generate_series(1, 1500) n",
    )
    .execute(&mut *transaction)
    .await
    .expect("insert tenants");
    let filter = Filter { text: Some("LONG list".into()), ..Filter::default() };
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = tenants::list(&mut transaction, &filter, after.as_ref(), 100).await.expect("list");
        let Some(last) = page.last() else { break };
        after = Some((last.subdomain.to_string(), last.id.0));
        seen.extend(page.into_iter().map(|tenant| tenant.subdomain.to_string()));
    }
    let mut sorted = seen.clone();
    sorted.sort();
    sorted.dedup();
    // Sorted as the database sorts, each once.
    assert_eq!((seen.len(), sorted.len()), (1350, 1350), "all but the destroyed ones");

    let count = async |connection: &mut PgConnection, filter: Filter| {
        let filter = Filter { text: Some("longlist-".into()), ..filter };
        tenants::list(connection, &filter, None, 5000).await.expect("list").len()
    };
    let with = |state| Filter { state, ..Filter::default() };
    assert_eq!(count(&mut transaction, with(Some(TenantState::Suspended))).await, 150);
    assert_eq!(count(&mut transaction, with(Some(TenantState::Destroyed))).await, 150);
    let pro = Filter { tier: Some(Tier::Pro), state: Some(TenantState::Suspended), ..Filter::default() };
    assert_eq!(count(&mut transaction, pro).await, 75);
    let one = Filter { text: Some("longlist-1500".into()), ..Filter::default() };
    assert_eq!(tenants::list(&mut transaction, &one, None, 10).await.expect("list").len(), 1);
    // What would be a pattern elsewhere is text here.
    let pattern = Filter { text: Some("long%".into()), ..Filter::default() };
    assert_eq!(tenants::list(&mut transaction, &pattern, None, 10).await.expect("list").len(), 0);
    transaction.rollback().await.expect("roll back");
}

#[tokio::test]
async fn what_was_destroyed_is_found_no_more_and_its_name_is_free() {
    let db = database().await;
    let name = format!("free-{}", TenantId::random().short());
    let first = insert(&db, &name).await.expect("the first");
    assert!(insert(&db, &name).await.is_err(), "the name is taken");
    let mut admin = superuser().await;
    let mut transaction = admin.begin().await.expect("begin");
    erasure::delete(&mut transaction, first, &[]).await.expect("delete");
    erasure::bury(&mut transaction, first, &serde_json::json!({ "databases": [], "roles": [] }))
        .await
        .expect("bury");
    transaction.commit().await.expect("commit");
    let mut connection = db.platform.acquire().await.expect("connect");
    assert_eq!(tenants::find_id(&mut connection, &name).await.expect("look"), None);
    assert_eq!(tenants::find_id(&mut connection, &first.to_string()).await.expect("look"), None);
    let tomb = tenants::find(&mut connection, first).await.expect("look").expect("the row");
    assert_eq!((tomb.state, tomb.name.as_str()), (TenantState::Destroyed, "(destroyed)"));
    let second = insert(&db, &name).await.expect("the second");
    assert_eq!(tenants::find_id(&mut connection, &name).await.expect("look"), Some(second));
}

/// An answer that is kept for whoever asks again, and what a webhook of the platform was told. Neither is the tenant's.
async fn told_and_answered(db: &Db, id: TenantId) {
    let world = Installation::new().process().await;
    let caller = caller(Scope::Operator);
    let begun = idempotency::begin(&world, &caller, "a key", "POST /v1/tenants/x/y", b"{}").await;
    let Begun::Now(attempt) = begun.expect("begin") else { panic!("it is the first") };
    let name = id.to_string();
    let asked = async {
        let granted = access::tenant(&world.db, &caller, &name, Permission::Manage).await?;
        granted.begin(&world.db).await?.commit().await
    };
    idempotency::within(attempt.clone(), asked).await.expect("do something with it");
    let answer = Answer { status: 201, content_type: None, body: "a password".into() };
    idempotency::finish(&world, &attempt, Some(&answer)).await.expect("finish");

    let mut transaction = db.platform.begin().await.expect("begin");
    let new = webhooks::New {
        id: WebhookId::random(),
        tenant: None,
        url: "https://example.org/",
        events: &["*".to_owned()],
        description: "",
        requested_by: "test",
    };
    webhooks::insert(&mut transaction, &new).await.expect("a webhook of the platform");
    let told = "INSERT INTO webhook_deliveries (id, webhook_id, about_tenant, event, body)
                VALUES (gen_random_uuid(), $1, $2, 'tenant.suspended', 'Acme is suspended')";
    sqlx::query(told).bind(new.id.0).bind(id.0).execute(&mut *transaction).await.expect("a delivery");
    transaction.commit().await.expect("commit");
}

/// What holds nothing of any one tenant. A new table says in `tenant_id` whose a row is, says in `about_tenant` whom it
/// is about, or comes here with a reason.
const OF_NO_TENANT: &[&str] = &[
    "_sqlx_migrations",
    "audit_head",
    "audit_seals",
    // Names tenants by their subdomains, as the report says.
    "fleet_migrations",
    "gateways",
    // The id alone.
    "job_turns",
    "operator_sessions",
    "operators",
    "platform_secrets",
    "route_generation",
    "templates",
    "tenants",
    "tiers",
];

#[tokio::test]
async fn a_table_says_whose_its_rows_are_or_is_known_to_hold_nothing_of_a_tenant() {
    database().await;
    let silent: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_class c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
         AND c.relnamespace = 'public'::regnamespace AND NOT EXISTS (
             SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname IN ('tenant_id', 'about_tenant'))
         ORDER BY 1",
    )
    .fetch_all(&mut superuser().await)
    .await
    .expect("read the catalogue");
    assert_eq!(silent, OF_NO_TENANT);
}

#[tokio::test]
async fn all_rows_of_a_tenant_go_from_every_table_and_no_others() {
    let db = database().await;
    let (acme, globex) = (tenant(&db).await, tenant(&db).await);
    let mut admin = superuser().await;
    for id in [acme, globex] {
        let snapshot = SnapshotId::random();
        let kind = snapshots::SnapshotType::PreAi;
        snapshots::insert(&mut admin, snapshot, id, "a", kind, "test", 30).await.expect("a snapshot");
        // It refers to the snapshot, which cannot go before it.
        sqlx::query(
            "INSERT INTO ai_sessions (id, tenant_id, agent, role, snapshot_id, requested_by, expires_at)
             VALUES ($1, $2, 'a', $3, $4, 'test', now())",
        )
        .bind(SnapshotId::random().0)
        .bind(id.0)
        .bind(format!("lwai_{}", snapshot.short()))
        .bind(snapshot.0)
        .execute(&mut admin)
        .await
        .expect("a session");
        sqlx::query("INSERT INTO exports (id, tenant_id, requested_by) VALUES ($1, $2, 'test')")
            .bind(snapshot.0)
            .bind(id.0)
            .execute(&mut admin)
            .await
            .expect("an export");
        told_and_answered(&db, id).await;
    }
    let before = erasure::count(&mut admin, globex).await.expect("count");
    assert_eq!(erasure::count(&mut admin, acme).await.expect("count"), before);
    assert!(before.len() >= 6, "{before:?}");
    for about in ["idempotency_keys", "webhook_deliveries"] {
        assert!(before.iter().any(|count| count.table == about), "{about}: {before:?}");
    }
    let mut transaction = admin.begin().await.expect("begin");
    erasure::delete(&mut transaction, acme, &["exports"]).await.expect("delete");
    let left = erasure::count(&mut transaction, acme).await.expect("count");
    assert_eq!(left.iter().map(|count| count.table.as_str()).collect::<Vec<_>>(), ["exports"]);
    erasure::delete(&mut transaction, acme, &[]).await.expect("delete");
    transaction.commit().await.expect("commit");
    assert_eq!(erasure::count(&mut admin, acme).await.expect("count"), []);
    assert_eq!(erasure::count(&mut admin, globex).await.expect("count"), before);
}

#[tokio::test]
async fn no_column_that_looks_like_a_secret_is_handed_out() {
    database().await;
    let mut admin = superuser().await;
    let mut tables = erasure::tables(&mut admin).await.expect("tables");
    tables.push("tenants".into());
    assert!(tables.len() >= 11, "{tables:?}");
    let words = ["hash", "mac", "secret", "password", "wrapped", "verifier", "token", "pepper", "private"];
    for table in &tables {
        let columns = erasure::open_columns(&mut admin, table).await.expect("columns");
        assert!(!columns.is_empty(), "{table}");
        for column in columns {
            let secret = column.split('_').any(|part| words.contains(&part));
            assert!(!secret, "{table}.{column}: if it is a secret, it belongs into `erasure::SECRETS`");
        }
    }
    let left_out = erasure::left_out(&mut admin).await.expect("columns");
    for secret in
        ["tenant_admins.password_wrapped", "webhook_secrets.secret_wrapped", "jobs.work", "api_keys.mac"]
    {
        assert!(
            left_out.iter().any(|column| column == secret),
            "{secret} is left out and not named: {left_out:?}"
        );
    }
    // What is on the list is there: a name that was changed would let the column out.
    for (table, column) in erasure::SECRETS {
        let sql =
            "SELECT count(*) FROM information_schema.columns WHERE table_name = $1 AND column_name = $2";
        let found: i64 =
            sqlx::query_scalar(sql).bind(table).bind(column).fetch_one(&mut admin).await.expect("look");
        assert_eq!(found, 1, "{table}.{column}");
    }
}

#[tokio::test]
async fn a_notice_is_given_once_for_each_end_of_a_subscription() {
    let db = database().await;
    let id = tenant(&db).await;
    let mut transaction = db.platform.begin().await.expect("begin");
    let expires = |date: &str| Update {
        subscription_expires: Some(Some(date.parse::<jiff::civil::Date>().expect("a date").into())),
        ..Update::default()
    };
    tenants::set_state(&mut transaction, id, TenantState::Active, None).await.expect("make it active");
    lifecycle::update(&mut transaction, id, &expires("2020-01-01")).await.expect("update");
    let found = subscriptions::candidates(&mut transaction, 7).await.expect("look");
    let row = found.into_iter().find(|row| row.id == id).expect("it is one");
    assert!(row.sent().is_empty() && !row.suspended_by_subscription);
    let day = row.subscription_expires.expect("a day");
    subscriptions::record_notice(&mut transaction, id, day, Notice::Expired).await.expect("record");
    assert_eq!(subscriptions::lock(&mut transaction, id).await.expect("look").sent(), [Notice::Expired]);
    let mut twice = transaction.begin().await.expect("begin");
    assert!(subscriptions::record_notice(&mut twice, id, day, Notice::Expired).await.is_err(), "twice");
    twice.rollback().await.expect("roll back");

    // Suspended for it, there is nothing more to look at, until it is prolonged.
    let suspension = Suspension { cause: "subscription", reason: None, by: "test" };
    lifecycle::suspend(&mut transaction, id, suspension).await.expect("suspend");
    let is_candidate = async |connection: &mut PgConnection| {
        subscriptions::candidates(connection, 7).await.expect("look").iter().any(|row| row.id == id)
    };
    assert!(!is_candidate(&mut transaction).await);
    lifecycle::update(&mut transaction, id, &expires("2999-01-01")).await.expect("update");
    assert!(is_candidate(&mut transaction).await);
    assert!(subscriptions::lock(&mut transaction, id).await.expect("look").sent().is_empty(), "a new end");
    transaction.rollback().await.expect("roll back");
}

#[tokio::test]
async fn archived_and_taken_back_a_tenant_is_as_it_was() {
    let db = database().await;
    let id = tenant(&db).await;
    let mut transaction = db.platform.begin().await.expect("begin");
    tenants::set_state(&mut transaction, id, TenantState::Active, None).await.expect("make it active");
    let suspension = Suspension { cause: "operator", reason: Some("unpaid"), by: "somebody" };
    lifecycle::suspend(&mut transaction, id, suspension).await.expect("suspend");
    lifecycle::archive(&mut transaction, id, Some("left us"), "somebody", 30).await.expect("archive");
    let archived = tenants::get(&mut transaction, id).await.expect("get");
    assert_eq!(archived.archive_reason.as_deref(), Some("left us"));
    let until = archived.archived_until.expect("an end");
    lifecycle::archive(&mut transaction, id, None, "somebody", 90).await.expect("archive again");
    let again = tenants::get(&mut transaction, id).await.expect("get");
    assert_eq!(again.archived_until.map(|time| time.to_jiff()), Some(until.to_jiff()), "kept no longer");
    let standing = lifecycle::lock(&mut transaction, id).await.expect("look");
    assert!(standing.was_suspended);
    lifecycle::unarchive(&mut transaction, id, TenantState::Suspended).await.expect("unarchive");
    let back = tenants::get(&mut transaction, id).await.expect("get");
    assert_eq!((back.state, back.suspension_reason.as_deref()), (TenantState::Suspended, Some("unpaid")));
    assert!(back.archived_until.is_none() && back.archive_reason.is_none());
    transaction.rollback().await.expect("roll back");
}

async fn ended_job(connection: &mut PgConnection, id: TenantId, kind: &str, minutes_ago: i32) {
    sqlx::query(
        "INSERT INTO jobs (id, tenant_id, kind, queue, dedup_key, work, state, max_attempts, requested_by, finished_at)
         VALUES ($1, $2, $3, 'default', $1::text, '{}', 'failed', 1, 'test', now() - make_interval(mins => $4))",
    )
    .bind(TenantId::random().0)
    .bind(id.0)
    .bind(kind)
    .bind(minutes_ago)
    .execute(connection)
    .await
    .expect("a job");
}

#[tokio::test]
async fn what_failed_is_tried_again_by_itself_ever_more_seldom() {
    let db = database().await;
    let id = tenant(&db).await;
    let mut transaction = db.platform.begin().await.expect("begin");
    let is_due = async |connection: &mut PgConnection| {
        tenants::provisioning_without_job(connection).await.expect("look").contains(&id)
    };
    assert!(is_due(&mut transaction).await, "it has no job");
    ended_job(&mut transaction, id, "provision", 0).await;
    assert!(!is_due(&mut transaction).await, "it has just failed");
    let older = "UPDATE jobs SET finished_at = finished_at - interval '90 seconds' WHERE tenant_id = $1";
    sqlx::query(older).bind(id.0).execute(&mut *transaction).await.expect("wait");
    assert!(is_due(&mut transaction).await, "a minute later");
    ended_job(&mut transaction, id, "provision", 1).await;
    assert!(!is_due(&mut transaction).await, "the second time it takes two");
    sqlx::query(older).bind(id.0).execute(&mut *transaction).await.expect("wait");
    assert!(is_due(&mut transaction).await);
    for _ in 0..100 {
        ended_job(&mut transaction, id, "provision", 90).await;
    }
    for (minutes, due) in [(50, false), (70, true)] {
        let ended = "UPDATE jobs SET finished_at = now() - make_interval(mins => $2) WHERE tenant_id = $1";
        sqlx::query(ended).bind(id.0).bind(minutes).execute(&mut *transaction).await.expect("wait");
        assert_eq!(is_due(&mut transaction).await, due, "about once an hour for ever");
    }
    // Nobody makes what is being destroyed.
    lifecycle::begin_destroying(&mut transaction, id).await.expect("begin");
    assert!(!is_due(&mut transaction).await);
    assert!(lifecycle::destroying_without_job(&mut transaction).await.expect("look").contains(&id));
    transaction.rollback().await.expect("roll back");
}

#[tokio::test]
async fn an_archive_that_is_not_complete_is_found_until_it_is() {
    let db = database().await;
    let id = tenant(&db).await;
    let mut transaction = db.platform.begin().await.expect("begin");
    let is_found = async |connection: &mut PgConnection| {
        lifecycle::archived_incompletely(connection).await.expect("look").contains(&id)
    };
    tenants::set_state(&mut transaction, id, TenantState::Active, None).await.expect("make it active");
    lifecycle::set_archive_complete(&mut transaction, id, true).await.expect("of no use");
    assert!(!lifecycle::look(&mut transaction, id).await.expect("look").archive_is_complete, "it is active");
    assert!(!is_found(&mut transaction).await);
    lifecycle::archive(&mut transaction, id, None, "somebody", 30).await.expect("archive");
    assert!(is_found(&mut transaction).await, "its database was not closed");
    lifecycle::set_archive_complete(&mut transaction, id, true).await.expect("complete");
    assert!(!is_found(&mut transaction).await);
    // Taking it back has begun and ended halfway.
    lifecycle::set_archive_complete(&mut transaction, id, false).await.expect("incomplete");
    assert!(is_found(&mut transaction).await);
    ended_job(&mut transaction, id, "unarchive", 0).await;
    assert!(!is_found(&mut transaction).await, "whoever tried has a minute");
    lifecycle::set_archive_complete(&mut transaction, id, true).await.expect("complete");
    lifecycle::unarchive(&mut transaction, id, TenantState::Active).await.expect("unarchive");
    lifecycle::archive(&mut transaction, id, None, "somebody", 30).await.expect("archive");
    assert!(
        !lifecycle::look(&mut transaction, id).await.expect("look").archive_is_complete,
        "another archive"
    );
    transaction.rollback().await.expect("roll back");
}

#[tokio::test]
async fn files_of_exports_that_nobody_makes_or_may_have_are_found() {
    let db = database().await;
    let (acme, gone) = (tenant(&db).await, tenant(&db).await);
    let mut transaction = db.platform.begin().await.expect("begin");
    let mut found = Vec::new();
    for state in ["making", "ready", "failed", "expired"] {
        let id = ExportId::random();
        exports::insert(&mut transaction, id, acme, "test").await.expect("an export");
        exports::set_state(&mut transaction, id, "making", state).await.expect("its state");
        found.push((acme, id));
    }
    let unknown = (acme, ExportId::random());
    // Another tenant's row makes no difference, and of what is destroyed another job removes the files.
    let confused = (gone, found[0].1);
    let all = [&found[..], &[unknown, confused]].concat();
    let mut unwanted = exports::unwanted(&mut transaction, &all).await.expect("look");
    unwanted.sort();
    let mut expected = vec![found[2], found[3], unknown, confused];
    expected.sort();
    assert_eq!(unwanted, expected);
    lifecycle::begin_destroying(&mut transaction, gone).await.expect("begin");
    let unwanted = exports::unwanted(&mut transaction, &all).await.expect("look");
    assert_eq!(unwanted.len(), 3);
    transaction.rollback().await.expect("roll back");
}
