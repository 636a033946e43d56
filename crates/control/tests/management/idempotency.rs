//! Asking twice without doing it twice, also when the first who asked has died.

use loomworks_control::access::{Caller, Identity, Scope};
use loomworks_control::idempotency::{self, Answer, Attempt, Begun};
use loomworks_control::work::sweep::Sweep;
use loomworks_control::{Error, World, jobs};
use sqlx::Row;

use super::tenant;
use super::world::{Installation, admin, caller, operator};

async fn begin(world: &World, caller: &Caller, body: &str) -> Begun {
    idempotency::begin(world, caller, "a key", "POST /v1/things", body.as_bytes()).await.expect("begin")
}

async fn attempt(world: &World, caller: &Caller) -> Attempt {
    match begin(world, caller, "{}").await {
        Begun::Now(attempt) => attempt,
        other => panic!("{other:?}"),
    }
}

/// As if the process had died a minute ago.
fn name_of(caller: &Caller) -> String {
    match caller.identity {
        Identity::Key(id) => format!("key:{id}"),
        Identity::Operator { operator, .. } => format!("operator:{operator}"),
    }
}

/// Of this caller only: other tests run beside this one.
async fn lease_runs_out(world: &World, caller: &Caller) {
    sqlx::query(
        "UPDATE idempotency_keys SET lease_until = now() - interval '1 s'
         WHERE answer_wrapped IS NULL AND caller = $1",
    )
    .bind(name_of(caller))
    .execute(&world.db.platform)
    .await
    .expect("let it run out");
}

/// A transaction that does something, as a handler's does.
async fn effect(world: &World) -> Result<(), Error> {
    let mut scoped = operator().begin(&world.db).await?;
    sqlx::query("SELECT 1").execute(&mut *scoped).await?;
    scoped.commit().await
}

fn answer(status: u16) -> Answer {
    Answer { status, content_type: None, body: "{\"api_key\":\"frt_live_secret\"}".into() }
}

#[tokio::test]
async fn the_answer_is_repeated_to_the_same_request_of_the_same_caller_only() {
    let world = Installation::new().process().await;
    let (one, other) = (caller(Scope::Operator), caller(Scope::Operator));
    let first = attempt(&world, &one).await;
    assert!(matches!(begin(&world, &one, "{}").await, Begun::Running));
    assert!(matches!(begin(&world, &one, "{\"a\":1}").await, Begun::Differs));
    assert!(matches!(begin(&world, &other, "{}").await, Begun::Now(_)));
    idempotency::within(first.clone(), effect(&world)).await.expect("do it");
    idempotency::finish(&world, &first, Some(&answer(201))).await.expect("finish");
    let Begun::Answered(repeated) = begin(&world, &one, "{}").await else { panic!("no answer") };
    assert_eq!((repeated.status, repeated.body), (201, answer(201).body));
    let kept = sqlx::query("SELECT string_agg(encode(answer_wrapped, 'escape'), '') FROM idempotency_keys");
    let kept: String = kept.fetch_one(&world.db.platform).await.expect("look").get(0);
    assert!(!kept.contains("frt_live_secret"), "a secret is readable in the database");
}

#[tokio::test]
async fn an_answer_to_what_changed_nothing_is_not_kept() {
    let world = Installation::new().process().await;
    let one = caller(Scope::Operator);
    let first = attempt(&world, &one).await;
    idempotency::finish(&world, &first, Some(&answer(200))).await.expect("finish");
    let sql = "SELECT count(*) FROM idempotency_keys WHERE caller = $1";
    let kept: i64 =
        sqlx::query_scalar(sql).bind(name_of(&one)).fetch_one(&world.db.platform).await.expect("look");
    assert_eq!(kept, 0);
    attempt(&world, &one).await;
}

#[tokio::test]
async fn nobody_has_answers_kept_without_end() {
    let world = Installation::new().process().await;
    let (one, other) = (caller(Scope::Operator), caller(Scope::Operator));
    let known = attempt(&world, &one).await;
    let sql = "INSERT INTO idempotency_keys (caller, key, request, body_mac, attempt, lease_until)
               SELECT $1, n::text, '', '', gen_random_uuid(), now() FROM generate_series(2, $2) n";
    sqlx::query(sql)
        .bind(name_of(&one))
        .bind(idempotency::KEYS_MAX)
        .execute(&world.db.platform)
        .await
        .expect("use them up");
    let next = idempotency::begin(&world, &one, "one more", "POST /v1/things", b"").await.expect("begin");
    assert!(matches!(next, Begun::TooMany), "{next:?}");
    assert!(matches!(begin(&world, &other, "{}").await, Begun::Now(_)), "another caller has his own");
    // What is known is known, and can be carried out anew.
    assert!(matches!(begin(&world, &one, "{}").await, Begun::Running));
    idempotency::finish(&world, &known, None).await.expect("finish");
    attempt(&world, &one).await;
}

#[tokio::test]
async fn a_password_in_a_body_cannot_be_guessed_from_what_is_kept() {
    let installation = Installation::new();
    let (world, again) = (installation.process().await, installation.process().await);
    let one = caller(Scope::Operator);
    let body = "{\"password\":\"correct horse\"}";
    assert!(matches!(begin(&world, &one, body).await, Begun::Now(_)));
    let kept: Vec<u8> = sqlx::query_scalar("SELECT body_mac FROM idempotency_keys WHERE caller = $1")
        .bind(name_of(&one))
        .fetch_one(&world.db.platform)
        .await
        .expect("look");
    assert_ne!(kept, ring::digest::digest(&ring::digest::SHA256, body.as_bytes()).as_ref());
    assert!(
        matches!(begin(&again, &one, body).await, Begun::Running),
        "every process knows the request again"
    );
}

#[tokio::test]
async fn a_refusal_that_changed_nothing_does_not_use_the_key_up() {
    let world = Installation::new().process().await;
    let one = caller(Scope::Operator);
    for status in [409, 500] {
        let first = attempt(&world, &one).await;
        idempotency::finish(&world, &first, Some(&answer(status))).await.expect("finish");
    }
    attempt(&world, &one).await;
}

#[tokio::test]
async fn a_request_whose_process_died_before_anything_was_done_is_carried_out_anew() {
    let world = Installation::new().process().await;
    let one = caller(Scope::Operator);
    let slow = attempt(&world, &one).await;
    lease_runs_out(&world, &one).await;
    let second = attempt(&world, &one).await;
    // The first one was not dead but slow: it may not do anything any more.
    let late = idempotency::within(slow, effect(&world)).await;
    assert!(matches!(late, Err(Error::Conflict { .. })), "{late:?}");
    idempotency::within(second, effect(&world)).await.expect("the second may");
}

#[tokio::test]
async fn what_was_done_is_never_done_again_though_its_answer_was_lost() {
    let world = Installation::new().process().await;
    let one = caller(Scope::Operator);
    let first = attempt(&world, &one).await;
    idempotency::within(first, effect(&world)).await.expect("do it");
    assert!(matches!(begin(&world, &one, "{}").await, Begun::Running));
    lease_runs_out(&world, &one).await;
    assert!(matches!(begin(&world, &one, "{}").await, Begun::AnswerLost));
}

#[tokio::test]
async fn a_tenants_own_transaction_notes_its_effect_too() {
    let world = Installation::new().process().await;
    let tenant = tenant(&world.db).await;
    let one = caller(Scope::TenantAdmin(tenant));
    let first = attempt(&world, &one).await;
    let granted = admin(&world, tenant).await;
    let done = idempotency::within(first, async { granted.begin(&world.db).await?.commit().await });
    done.await.expect("commit");
    lease_runs_out(&world, &one).await;
    assert!(matches!(begin(&world, &one, "{}").await, Begun::AnswerLost));
}

#[tokio::test]
async fn a_job_that_is_cancelled_or_tried_again_is_so_once() {
    let world = Installation::new().process().await;
    let one = caller(Scope::Operator);
    let mut connection = world.db.platform.acquire().await.expect("connect");
    let job = jobs::enqueue(&mut connection, &Sweep {}, "test").await.expect("enqueue");
    for key in ["cancel", "retry"] {
        let request =
            async || idempotency::begin(&world, &one, key, "POST /v1/jobs", b"").await.expect("begin");
        let Begun::Now(first) = request().await else { panic!("{key} is known") };
        idempotency::within(first.clone(), async {
            match key {
                "cancel" => jobs::cancel(&world, &one, job).await,
                _ => jobs::retry(&world, &one, job).await,
            }
        })
        .await
        .expect("do it");
        idempotency::finish(&world, &first, Some(&answer(200))).await.expect("finish");
        let repeated = request().await;
        assert!(matches!(repeated, Begun::Answered(_)), "{key}: {repeated:?}");
    }
}

#[tokio::test]
async fn an_old_answer_is_forgotten() {
    let world = Installation::new().process().await;
    let one = caller(Scope::Operator);
    let first = attempt(&world, &one).await;
    idempotency::finish(&world, &first, Some(&answer(201))).await.expect("finish");
    sqlx::query("UPDATE idempotency_keys SET created_at = now() - interval '25 h' WHERE caller = $1")
        .bind(name_of(&one))
        .execute(&world.db.platform)
        .await
        .expect("make it old");
    attempt(&world, &one).await;
}
