//! API keys: who is let in, what it costs, and how soon nobody is any more.

use jiff::{SignedDuration, Timestamp};
use loomworks_control::access::{Granted, Permission};
use loomworks_control::db::keys::KeyInfo;
use loomworks_control::keys::{self, Wanted, expiry};
use loomworks_control::page::Asked;
use loomworks_control::{Error, World};
use loomworks_core::ExposeSecret;
use loomworks_core::api_key::{ApiKey, Environment};
use loomworks_core::ids::TenantId;
use loomworks_core::time;
use serde_json::{Value, json};
use sqlx::Row;
use sqlx::postgres::PgListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::tenant;
use super::world::{Installation, admin, operator, until};

fn wanted(scope: &str) -> Wanted {
    Wanted {
        name: "test".parse().expect("a name"),
        scope: scope.into(),
        permissions: None,
        environment: Environment::Live,
        expires_at: None,
    }
}

async fn make(world: &World, granted: &Granted, wanted: &Wanted) -> (KeyInfo, ApiKey) {
    keys::create_for_tenant(world, granted, wanted).await.expect("make a key")
}

async fn is_let_in(world: &World, key: &ApiKey) -> bool {
    match keys::authenticate(world, key.expose_secret()).await {
        Ok(_) => true,
        Err(Error::Unauthenticated) => false,
        Err(error) => panic!("{error}"),
    }
}

/// A process that hears of changes, until the test ends.
async fn hearing(world: &World, tasks: &mut JoinSet<()>) -> watch::Sender<bool> {
    let (stop, stopped) = watch::channel(false);
    tasks.spawn(keys::watch::run(world.clone(), stopped));
    let channel = loomworks_control::db::keys::CHANNEL;
    until("it listens", async || listeners(world, channel).await > 0).await;
    stop
}

async fn listeners(world: &World, channel: &str) -> i64 {
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'listen%' AND query LIKE '%' || $1 || '%'";
    sqlx::query(sql).bind(channel).fetch_one(&world.db.platform).await.expect("look").get(0)
}

#[tokio::test]
async fn a_key_that_nobody_made_costs_no_hash_and_a_burst_of_one_costs_one() {
    let world = Installation::new().process().await;
    let granted = admin(&world, tenant(&world.db).await).await;
    let (_, key) = make(&world, &granted, &wanted("tenant_admin")).await;
    let before = world.keys.hashes();
    for n in 0..100 {
        let invented = ApiKey::from_random(Environment::Live, &[n; 26]);
        assert!(!is_let_in(&world, &invented).await);
    }
    assert_eq!(world.keys.hashes(), before);
    let mut burst = JoinSet::new();
    for _ in 0..50 {
        let (world, key) = (world.clone(), key.clone());
        burst.spawn(async move { is_let_in(&world, &key).await });
    }
    assert!(burst.join_all().await.into_iter().all(|let_in| let_in));
    assert_eq!(world.keys.hashes(), before + 1);
}

#[tokio::test]
async fn a_revocation_in_one_process_is_seen_in_every_other() {
    let installation = Installation::new();
    let (one, other) = (installation.process().await, installation.process().await);
    let mut tasks = JoinSet::new();
    let _hearing = (hearing(&one, &mut tasks).await, hearing(&other, &mut tasks).await);
    let granted = admin(&one, tenant(&one.db).await).await;
    let (info, key) = make(&one, &granted, &wanted("tenant_user")).await;
    assert!(is_let_in(&one, &key).await && is_let_in(&other, &key).await);
    keys::revoke(&one, &granted, info.id).await.expect("revoke");
    assert!(!is_let_in(&one, &key).await, "at once where it was revoked");
    until("the other process refuses it", async || !is_let_in(&other, &key).await).await;
}

#[tokio::test]
async fn a_key_that_was_revoked_is_not_revoked_again() {
    let world = Installation::new().process().await;
    let granted = admin(&world, tenant(&world.db).await).await;
    let (info, _) = make(&world, &granted, &wanted("tenant_user")).await;
    let channel = loomworks_control::db::keys::CHANNEL;
    let mut listener = PgListener::connect_with(&world.db.platform).await.expect("connect");
    listener.listen(channel).await.expect("listen");
    for _ in 0..3 {
        keys::revoke(&world, &granted, info.id).await.expect("revoke");
    }
    let sql = "UPDATE api_keys SET revoked_at = revoked_at, permissions = permissions WHERE id = $1";
    sqlx::query(sql).bind(info.id.0).execute(&world.db.platform).await.expect("change nothing");
    sqlx::query("SELECT pg_notify($1, $2)")
        .bind(channel)
        .bind(format!("after {}", info.id))
        .execute(&world.db.platform)
        .await
        .expect("end");
    let mut told = 0;
    loop {
        let heard = listener.recv().await.expect("hear").payload().to_owned();
        if heard == format!("after {}", info.id) {
            break;
        }
        told += u32::from(heard == info.id.to_string());
    }
    assert_eq!(told, 1, "what changes nothing is announced to nobody");
    let sql = "SELECT count(*) FROM audit WHERE action = 'api_key.revoked' AND detail->>'key' = $1";
    let audited: i64 =
        sqlx::query_scalar(sql).bind(info.id.to_string()).fetch_one(&world.db.platform).await.expect("look");
    assert_eq!(audited, 1);
}

#[tokio::test]
async fn a_key_that_the_platform_makes_for_itself_is_in_the_audit_log() {
    let world = Installation::new().process().await;
    let name = TenantId::random().to_string();
    let first = keys::renew_platform_key(&world, "gateway", &name).await.expect("make it");
    let second = keys::renew_platform_key(&world, "gateway", &name).await.expect("make it anew");
    assert!(!is_let_in(&world, &first).await && is_let_in(&world, &second).await);
    let sql =
        "SELECT detail FROM audit WHERE action = 'api_key.renewed' AND detail->>'name' = $1 ORDER BY id";
    let lines: Vec<Value> =
        sqlx::query_scalar(sql).bind(&name).fetch_all(&world.db.platform).await.expect("look");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!((&lines[0]["revoked"], &lines[1]["revoked"]), (&json!([]), &json!([lines[0]["key"]])));
}

#[tokio::test]
async fn people_are_told_once_of_a_key_that_ends_soon() {
    let world = Installation::new().process().await;
    let granted = admin(&world, tenant(&world.db).await).await;
    let in_days = |days: i64| Some(time::now() + SignedDuration::from_hours(24 * days));
    let key = async |name: &str, days| {
        let wanted = Wanted {
            name: name.parse().expect("a name"),
            expires_at: in_days(days),
            ..wanted("tenant_user")
        };
        make(&world, &granted, &wanted).await.0.id
    };
    let (soon, rotated) = (key("soon", 30).await, key("rotated", 30).await);
    key("later", 60).await;
    key("made for three days", 3).await;
    keys::rotate(&world, &granted, rotated, 60).await.expect("rotate");
    let sql = "UPDATE api_keys SET created_at = created_at - interval '25 days', expires_at = expires_at - interval '25 days'
               WHERE id = ANY($1)";
    sqlx::query(sql).bind([soon.0, rotated.0]).execute(&world.db.platform).await.expect("let time pass");
    let mut connection = world.db.platform.acquire().await.expect("connect");
    for _ in 0..2 {
        expiry::tell(&mut connection, 1000).await.expect("tell");
    }
    let sql = "SELECT message FROM notifications WHERE tenant_id = $1 AND event = 'api_key.expires_soon'";
    let told: Vec<String> =
        sqlx::query_scalar(sql).bind(granted.tenant().0).fetch_all(&mut *connection).await.expect("look");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("the API key `soon` (frt_live_"), "{told:?}");
}

#[tokio::test]
async fn a_process_that_lost_its_ear_believes_nothing_from_before() {
    let installation = Installation::new();
    let (one, other) = (installation.process().await, installation.process().await);
    let mut tasks = JoinSet::new();
    let _hearing = hearing(&other, &mut tasks).await;
    let granted = admin(&one, tenant(&one.db).await).await;
    let (info, key) = make(&one, &granted, &wanted("tenant_user")).await;
    assert!(is_let_in(&other, &key).await);
    // The listening connections end, and the key goes while nobody hears.
    let mut transaction = one.db.platform.begin().await.expect("begin");
    sqlx::query("ALTER TABLE api_keys DISABLE TRIGGER USER")
        .execute(&mut *transaction)
        .await
        .expect_err("not its own");
    drop(transaction);
    let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE query ILIKE 'listen%' AND query LIKE '%loomworks_keys%'";
    sqlx::query(ended).execute(&one.db.platform).await.expect("end them");
    keys::revoke(&one, &granted, info.id).await.expect("revoke");
    until("the other process refuses it", async || !is_let_in(&other, &key).await).await;
}

#[tokio::test]
async fn an_expired_key_is_refused_though_it_was_checked_a_moment_ago() {
    let world = Installation::new().process().await;
    let mut tasks = JoinSet::new();
    let _hearing = hearing(&world, &mut tasks).await;
    let granted = admin(&world, tenant(&world.db).await).await;
    let soon = time::now() + SignedDuration::from_secs(2);
    let (_, key) = make(&world, &granted, &Wanted { expires_at: Some(soon), ..wanted("tenant_admin") }).await;
    assert!(is_let_in(&world, &key).await);
    until("it is refused", async || !is_let_in(&world, &key).await).await;
    assert!(time::now() >= soon);
    for bad in [time::now(), Timestamp::MAX] {
        let wanted = Wanted { expires_at: Some(bad), ..wanted("tenant_admin") };
        assert!(matches!(
            keys::create_for_tenant(&world, &granted, &wanted).await,
            Err(Error::Invalid { .. })
        ));
    }
}

#[tokio::test]
async fn a_rotated_key_has_its_rights_and_the_old_one_ends() {
    let world = Installation::new().process().await;
    let granted = admin(&world, tenant(&world.db).await).await;
    let read = Wanted {
        permissions: Some(vec![Permission::Read]),
        environment: Environment::Test,
        ..wanted("tenant_user")
    };
    let (first, first_key) = make(&world, &granted, &read).await;
    let (second, second_key) = keys::rotate(&world, &granted, first.id, 60).await.expect("rotate");
    assert_eq!(
        (&second.scope, &second.permissions, second.replaces),
        (&first.scope, &first.permissions, Some(first.id.0))
    );
    assert!(second_key.expose_secret().starts_with("frt_test_"));
    assert!(is_let_in(&world, &first_key).await && is_let_in(&world, &second_key).await, "both, for an hour");
    let (_, third_key) = keys::rotate(&world, &granted, second.id, 0).await.expect("rotate");
    assert!(!is_let_in(&world, &second_key).await && is_let_in(&world, &third_key).await);
    let again = keys::rotate(&world, &granted, second.id, 0).await;
    assert!(matches!(again, Err(Error::Conflict { .. })), "{again:?}");
}

#[tokio::test]
async fn a_tenants_admin_looks_after_his_own_keys_and_no_others() {
    let world = Installation::new().process().await;
    let (acme, globex) = (tenant(&world.db).await, tenant(&world.db).await);
    let (acme, globex) = (admin(&world, acme).await, admin(&world, globex).await);
    let (key, _) = make(&world, &acme, &wanted("tenant_admin")).await;
    let page = keys::list(&world, &globex, &Asked::new(None, None).expect("a page")).await.expect("list");
    assert!(page.items.is_empty());
    for result in [
        keys::revoke(&world, &globex, key.id).await.err(),
        keys::rotate(&world, &globex, key.id, 1).await.err(),
        keys::revoke_of_platform(&world, &operator(), key.id).await.err(),
    ] {
        assert!(matches!(result, Some(Error::NotFound(_))), "{result:?}");
    }
    for scope in ["operator", "gateway", "", "root"] {
        let refused = keys::create_for_tenant(&world, &acme, &wanted(scope)).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{scope}");
    }
}

#[tokio::test]
async fn pages_of_keys_put_together_are_all_keys() {
    let world = Installation::new().process().await;
    let granted = admin(&world, tenant(&world.db).await).await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(make(&world, &granted, &wanted("tenant_user")).await.0.id);
    }
    let (mut seen, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let asked = Asked::new(Some(2), cursor.as_deref()).expect("a page");
        let page = keys::list(&world, &granted, &asked).await.expect("list");
        seen.extend(page.items.into_iter().map(|key| key.id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    made.reverse();
    assert_eq!(seen, made);
}

#[tokio::test]
async fn the_last_use_is_noted_beside_the_requests() {
    let world = Installation::new().process().await;
    let granted = admin(&world, tenant(&world.db).await).await;
    let (info, key) = make(&world, &granted, &wanted("tenant_user")).await;
    assert!(info.last_used_at.is_none());
    let mut tasks = JoinSet::new();
    let stop = hearing(&world, &mut tasks).await;
    assert!(is_let_in(&world, &key).await);
    stop.send_replace(true);
    tasks.join_all().await;
    let page = keys::list(&world, &granted, &Asked::new(None, None).expect("a page")).await.expect("list");
    assert!(page.items[0].last_used_at.is_some());
}
