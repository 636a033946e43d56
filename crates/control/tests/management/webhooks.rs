//! Fanning out: each notification makes one delivery for each webhook that wants it, whatever happens at the same
//! time; and what becomes of deliveries and webhooks.

use loomworks_control::db::Db;
use loomworks_control::db::notifications::{self as rows, Filter, Severity};
use loomworks_control::db::webhooks::{self, New, Outcome};
use loomworks_control::jobs::Work as _;
use loomworks_control::notifications::{Notice, raise, raise_failed_job};
use loomworks_control::work::deliver_webhook::DeliverWebhook;
use loomworks_control::work::fan_out;
use loomworks_core::ids::{DeliveryId, JobId, TenantId, WebhookId};
use serde_json::{Value, json};
use sqlx::{PgConnection, Row};

use super::{database, tenant};

async fn webhook(db: &Db, tenant: Option<TenantId>, events: &[&str]) -> WebhookId {
    let events: Vec<String> = events.iter().map(|event| (*event).to_owned()).collect();
    let new = New {
        id: WebhookId::random(),
        tenant,
        url: "https://example.org/",
        events: &events,
        description: "",
        requested_by: "test",
    };
    let mut connection = db.platform.acquire().await.expect("connect");
    webhooks::insert(&mut connection, &new).await.expect("insert a webhook").id
}

fn notice(event: &'static str, detail: Value) -> Notice {
    Notice { event, severity: Severity::Warning, message: "told".into(), detail }
}

async fn tell(db: &Db, tenant: Option<TenantId>, event: &'static str, detail: Value) {
    let mut connection = db.platform.acquire().await.expect("connect");
    raise(&mut connection, tenant, &notice(event, detail)).await.expect("raise");
}

/// Fans out what is there until nothing of the tenant's is left. Other tests' notifications may be among it.
async fn fan_out_all(db: &Db, tenant: TenantId) {
    loop {
        let mut transaction = db.platform.begin().await.expect("begin");
        fan_out::batch(&mut transaction, 7, "test").await.expect("fan out");
        // The tests of the queue claim whatever waits.
        let sql = "UPDATE jobs SET state = 'succeeded' WHERE kind = 'deliver_webhook' AND state = 'waiting'";
        sqlx::query(sql).execute(&mut *transaction).await.expect("hide the jobs");
        transaction.commit().await.expect("commit");
        let sql = "SELECT count(*) FROM notifications WHERE fanned_out_at IS NULL AND tenant_id = $1";
        let left = sqlx::query(sql).bind(tenant.0).fetch_one(&db.platform).await.expect("count");
        if left.get::<i64, _>(0) == 0 {
            return;
        }
    }
}

/// The messages' `data` that a webhook gets, oldest first.
async fn got(db: &Db, webhook: WebhookId) -> Vec<Value> {
    let sql = "SELECT body FROM webhook_deliveries WHERE webhook_id = $1 ORDER BY number";
    let bodies: Vec<String> =
        sqlx::query_scalar(sql).bind(webhook.0).fetch_all(&db.platform).await.expect("look");
    let body = |text: String| serde_json::from_str::<Value>(&text).expect("JSON")["data"].clone();
    bodies.into_iter().map(body).collect()
}

#[tokio::test]
async fn a_notification_that_is_committed_late_is_sent_once_all_the_same() {
    let db = database().await;
    let tenant = tenant(&db).await;
    let hook = webhook(&db, Some(tenant), &["*"]).await;
    let mut slow = db.platform.begin().await.expect("begin");
    raise(&mut slow, Some(tenant), &notice("job.failed", json!("slow"))).await.expect("raise");
    tell(&db, Some(tenant), "job.failed", json!("quick")).await;
    fan_out_all(&db, tenant).await;
    assert_eq!(got(&db, hook).await, [json!("quick")], "the other is not there yet");
    slow.commit().await.expect("commit");
    fan_out_all(&db, tenant).await;
    fan_out_all(&db, tenant).await;
    assert_eq!(got(&db, hook).await, [json!("quick"), json!("slow")]);

    let mut taken_back = db.platform.begin().await.expect("begin");
    raise(&mut taken_back, Some(tenant), &notice("job.failed", json!("never"))).await.expect("raise");
    taken_back.rollback().await.expect("roll back");
    fan_out_all(&db, tenant).await;
    assert_eq!(got(&db, hook).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_raise_and_many_who_fan_out_lose_and_double_nothing() {
    let db = database().await;
    let tenant = tenant(&db).await;
    let hooks = [webhook(&db, Some(tenant), &["*"]).await, webhook(&db, Some(tenant), &["quota.*"]).await];
    let raised = (0..6).map(|who| {
        let db = db.clone();
        tokio::spawn(async move {
            for number in 0..20 {
                let mut transaction = db.platform.begin().await.expect("begin");
                let notice = notice("quota.storage_full", json!([who, number]));
                raise(&mut transaction, Some(tenant), &notice).await.expect("raise");
                tokio::task::yield_now().await;
                transaction.commit().await.expect("commit");
            }
        })
    });
    let raised: Vec<_> = raised.collect();
    let fanned: Vec<_> = (0..3)
        .map(|_| {
            let db = db.clone();
            tokio::spawn(async move { fan_out_all(&db, tenant).await })
        })
        .collect();
    for task in raised.into_iter().chain(fanned) {
        task.await.expect("a task");
    }
    fan_out_all(&db, tenant).await;
    for hook in hooks {
        let mut got: Vec<String> = got(&db, hook).await.iter().map(Value::to_string).collect();
        got.sort();
        let mut expected: Vec<String> =
            (0..6).flat_map(|who| (0..20).map(move |number| json!([who, number]).to_string())).collect();
        expected.sort();
        assert_eq!(got, expected);
    }
}

#[tokio::test]
async fn a_webhook_gets_what_it_wants_and_may_have() {
    let db = database().await;
    let (acme, globex) = (tenant(&db).await, tenant(&db).await);
    let before = json!("before it was registered");
    tell(&db, Some(acme), "job.failed", before.clone()).await;
    let all = webhook(&db, Some(acme), &["*"]).await;
    let quota = webhook(&db, Some(acme), &["quota.*", "tenant.suspended"]).await;
    let other = webhook(&db, Some(globex), &["*"]).await;
    let platform = webhook(&db, None, &["*"]).await;
    let disabled = webhook(&db, Some(acme), &["*"]).await;
    sqlx::query("UPDATE webhooks SET state = 'disabled' WHERE id = $1")
        .bind(disabled.0)
        .execute(&db.platform)
        .await
        .expect("disable it");
    let about = json!({ "webhook": all });
    tell(&db, Some(acme), "quota.storage_full", json!(1)).await;
    tell(&db, Some(acme), "tenant.suspended", json!(2)).await;
    tell(&db, Some(acme), "job.failed", json!(3)).await;
    tell(&db, Some(acme), "webhook.disabled", about.clone()).await;
    tell(&db, None, "job.failed", json!(format!("for operators: {acme}"))).await;
    fan_out_all(&db, acme).await;

    assert_eq!(got(&db, all).await, [json!(1), json!(2), json!(3)], "not that it cannot be reached itself");
    assert_eq!(got(&db, quota).await, [json!(1), json!(2)]);
    assert!(got(&db, other).await.is_empty() && got(&db, disabled).await.is_empty());
    // Other tests' notifications may be among them.
    let got = got(&db, platform).await;
    assert!(!got.contains(&before), "{got:?}");
    for expected in [json!(1), json!(2), json!(3), about, json!(format!("for operators: {acme}"))] {
        assert!(got.contains(&expected), "{expected} is not in {got:?}");
    }
    // What the platform's was told about a tenant goes with the tenant.
    let about = "SELECT count(*) FROM webhook_deliveries WHERE webhook_id = $1 AND about_tenant = $2";
    let about =
        sqlx::query(about).bind(platform.0).bind(acme.0).fetch_one(&db.platform).await.expect("count");
    assert_eq!(about.get::<i64, _>(0), 4);
    let filter = Filter { tenant: Some(acme), event: Some("quota.*"), severity: Some(Severity::Warning) };
    let mut connection = db.platform.acquire().await.expect("connect");
    let listed = rows::list(&mut connection, &filter, None, 10).await.expect("list");
    assert_eq!(listed.iter().map(|row| &row.detail).collect::<Vec<_>>(), [&json!(1)]);
}

async fn confined(db: &Db, tenant: TenantId) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut transaction = db.tenants.begin().await.expect("begin");
    sqlx::query("SELECT set_config('app.tenant_id', $1, true)")
        .bind(tenant.to_string())
        .execute(&mut *transaction)
        .await
        .expect("set");
    transaction
}

#[tokio::test]
async fn a_tenants_role_reads_no_secret_and_reaches_no_other_webhook() {
    let db = database().await;
    let (acme, globex) = (tenant(&db).await, tenant(&db).await);
    let (own, foreign) = (webhook(&db, Some(acme), &["*"]).await, webhook(&db, Some(globex), &["*"]).await);
    let platform = webhook(&db, None, &["*"]).await;
    let secret = "INSERT INTO webhook_secrets (id, webhook_id, tenant_id, secret_wrapped)
                  VALUES (gen_random_uuid(), $2, $1, 'x')";
    let test = "INSERT INTO webhook_deliveries (id, webhook_id, tenant_id, event, body)
                VALUES (gen_random_uuid(), $2, $1, 'webhook.test', '{}')";
    let refused = [
        ("SELECT secret_wrapped FROM webhook_secrets WHERE tenant_id = $1 AND webhook_id = $2", own),
        ("UPDATE webhooks SET state = 'active' WHERE tenant_id = $1 AND id = $2", own),
        ("UPDATE webhooks SET url = 'http://x/' WHERE tenant_id = $1 AND id = $2", own),
        ("UPDATE webhook_deliveries SET state = 'waiting' WHERE tenant_id = $1 AND webhook_id = $2", own),
        ("UPDATE notifications SET fanned_out_at = NULL WHERE tenant_id = $1 AND $2::uuid IS NOT NULL", own),
        (secret, foreign),
        (secret, platform),
        (test, foreign),
        (test, platform),
    ];
    for (statement, webhook) in refused {
        let mut transaction = confined(&db, acme).await;
        let result = sqlx::query(statement).bind(acme.0).bind(webhook.0).execute(&mut *transaction).await;
        assert!(result.is_err(), "{statement}");
    }
    let mut transaction = confined(&db, acme).await;
    for statement in [secret, test] {
        sqlx::query(statement).bind(acme.0).bind(own.0).execute(&mut *transaction).await.expect("its own");
    }
    for id in [foreign, platform] {
        for owner in [Some(acme), Some(globex), None] {
            assert!(webhooks::get(&mut transaction, owner, id).await.expect("look").is_none());
            assert!(webhooks::delete(&mut transaction, owner, id).await.expect("try").is_none());
        }
    }
    assert!(webhooks::delete(&mut transaction, Some(acme), own).await.expect("delete").is_some());
}

async fn one_delivery(db: &Db, tenant: TenantId, hook: WebhookId) -> DeliveryId {
    tell(db, Some(tenant), "job.failed", json!({})).await;
    fan_out_all(db, tenant).await;
    let sql = "SELECT id FROM webhook_deliveries WHERE webhook_id = $1 ORDER BY number DESC LIMIT 1";
    DeliveryId(sqlx::query_scalar(sql).bind(hook.0).fetch_one(&db.platform).await.expect("look"))
}

fn failed(attempt: i32) -> Outcome {
    Outcome { attempt, http_status: Some(500), duration_ms: 1, error: Some("it answered 500".into()) }
}

async fn record(connection: &mut PgConnection, delivery: DeliveryId, tenant: TenantId, outcome: &Outcome) {
    let retry = outcome.error.as_ref().map(|_| 3600.0);
    let work = DeliverWebhook { delivery, tenant: Some(tenant) };
    work.record(connection, outcome, retry).await.expect("record");
}

#[tokio::test]
async fn an_attempt_counts_once_and_a_webhook_that_is_down_for_days_is_disabled_and_told_of_once() {
    let db = database().await;
    let tenant = tenant(&db).await;
    let hook = webhook(&db, Some(tenant), &["*"]).await;
    let delivery = one_delivery(&db, tenant, hook).await;
    let mut connection = db.platform.acquire().await.expect("connect");
    for attempt in 1..=5 {
        // A job that was cut off after its record runs it again.
        for _ in 0..2 {
            record(&mut connection, delivery, tenant, &failed(attempt)).await;
        }
        let seen =
            webhooks::get(&mut connection, Some(tenant), hook).await.expect("look").expect("it is there");
        assert_eq!((seen.failures, seen.state == "failing"), (attempt, attempt >= 5));
    }
    let shown = webhooks::deliveries(&mut connection, hook, None, 10).await.expect("look");
    assert_eq!((shown[0].attempts, shown[0].state.as_str()), (5, "waiting"));
    assert!(webhooks::to_send(&mut connection, delivery).await.expect("look").is_none(), "it is not due");

    let success = Outcome { attempt: 6, http_status: Some(204), duration_ms: 1, error: None };
    record(&mut connection, delivery, tenant, &success).await;
    let seen = webhooks::get(&mut connection, Some(tenant), hook).await.expect("look").expect("it is there");
    assert_eq!((seen.failures, seen.state.as_str(), seen.failing_since.is_none()), (0, "active", true));

    let (first, second) = (one_delivery(&db, tenant, hook).await, one_delivery(&db, tenant, hook).await);
    for attempt in 1..=5 {
        record(&mut connection, first, tenant, &failed(attempt)).await;
    }
    sqlx::query("UPDATE webhooks SET failing_since = now() - interval '5 days 1 second' WHERE id = $1")
        .bind(hook.0)
        .execute(&mut *connection)
        .await
        .expect("let days go by");
    record(&mut connection, second, tenant, &failed(1)).await;
    record(&mut connection, second, tenant, &failed(2)).await;
    let seen = webhooks::get(&mut connection, Some(tenant), hook).await.expect("look").expect("it is there");
    assert_eq!(seen.state, "disabled");
    let shown = webhooks::deliveries(&mut connection, hook, None, 10).await.expect("look");
    assert!(shown.iter().all(|delivery| delivery.state != "waiting"), "{shown:?}");
    let filter = Filter { tenant: Some(tenant), event: Some("webhook.disabled"), severity: None };
    let told = rows::list(&mut connection, &filter, None, 10).await.expect("list");
    assert_eq!(told.len(), 1);
    assert_eq!(recorded(&mut connection, tenant).await, ["webhook.disabled"]);
    fan_out_all(&db, tenant).await;
    let after = webhooks::deliveries(&mut connection, hook, None, 10).await.expect("look");
    assert_eq!(after.len(), shown.len(), "a disabled webhook gets nothing, least of all this");
}

/// What came about by itself.
async fn recorded(connection: &mut PgConnection, tenant: TenantId) -> Vec<String> {
    let sql = "SELECT action FROM audit WHERE tenant_id = $1 AND actor = 'loomworks' ORDER BY id";
    sqlx::query_scalar(sql).bind(tenant.0).fetch_all(connection).await.expect("look")
}

#[tokio::test]
async fn a_failed_job_is_told_unless_it_carried_a_notification() {
    let db = database().await;
    let tenant = tenant(&db).await;
    let mut connection = db.platform.acquire().await.expect("connect");
    for kind in [DeliverWebhook::KIND, fan_out::FanOut::KIND, "restore"] {
        let job = (JobId::random(), kind);
        raise_failed_job(&mut connection, Some(tenant), job, "it broke").await.expect("raise");
    }
    let filter = Filter { tenant: Some(tenant), ..Filter::default() };
    let told = rows::list(&mut connection, &filter, None, 10).await.expect("list");
    assert_eq!(told.iter().map(|row| &row.detail["kind"]).collect::<Vec<_>>(), ["restore"]);
    assert_eq!(recorded(&mut connection, tenant).await, ["job.failed"]);
    let kept = "SELECT count(*) FROM audit WHERE tenant_id = $1 AND detail::text LIKE '%it broke%'";
    let kept = sqlx::query(kept).bind(tenant.0).fetch_one(&mut *connection).await.expect("look");
    assert_eq!(kept.get::<i64, _>(0), 0, "an error may have a tenant's data in it");
}

#[tokio::test]
async fn what_ended_long_ago_is_swept_also_where_nothing_arrives_any_more() {
    let db = database().await;
    let tenant = tenant(&db).await;
    let hook = webhook(&db, Some(tenant), &["*"]).await;
    let (old, new) = (one_delivery(&db, tenant, hook).await, one_delivery(&db, tenant, hook).await);
    let waiting = one_delivery(&db, tenant, hook).await;
    let mut connection = db.platform.acquire().await.expect("connect");
    for delivery in [old, new] {
        webhooks::abandon(&mut connection, delivery, "it was the last attempt").await.expect("end it");
    }
    sqlx::query("UPDATE webhook_deliveries SET finished_at = now() - interval '31 days' WHERE id = $1")
        .bind(old.0)
        .execute(&mut *connection)
        .await
        .expect("let days go by");
    assert!(webhooks::remove_old(&mut connection, 30, 1000).await.expect("sweep") > 0);
    let left = webhooks::deliveries(&mut connection, hook, None, 10).await.expect("look");
    assert_eq!(left.iter().map(|delivery| delivery.id).collect::<Vec<_>>(), [waiting, new]);
}
