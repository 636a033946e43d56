//! The queue: claimed once, fenced, put back, one unfinished job a key.

use loomworks_control::db::Db;
use loomworks_control::db::jobs::{self, Claim, Failure, New, Saved};
use loomworks_core::ids::JobId;
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

use super::database;

/// These tests claim whatever is waiting, so they take turns.
async fn queue() -> (Db, MutexGuard<'static, ()>) {
    static ALONE: Mutex<()> = Mutex::const_new(());
    let alone = ALONE.lock().await;
    let db = database().await;
    sqlx::query("UPDATE jobs SET state = 'failed' WHERE state IN ('waiting', 'running')")
        .execute(&db.platform)
        .await
        .expect("empty the queue");
    (db, alone)
}

async fn insert(db: &Db, key: &str) -> Option<JobId> {
    let mut connection = db.platform.acquire().await.expect("connect");
    let new = New { kind: "test", tenant: None, dedup_key: key, work: json!({}), requested_by: "test" };
    jobs::insert(&mut connection, new).await.expect("insert")
}

async fn claim(db: &Db) -> Option<Claim> {
    jobs::claim(&db.platform, "a node").await.expect("claim")
}

async fn save(db: &Db, claim: &Claim) -> bool {
    let saved = Saved { step: &json!("next"), percent: 50, progress: "half" };
    jobs::save_step(&db.platform, claim, &saved).await.expect("save")
}

async fn lease_runs_out(db: &Db) {
    let sql = "UPDATE jobs SET lease_until = now() - interval '1 second' WHERE state = 'running'";
    sqlx::query(sql).execute(&db.platform).await.expect("let it run out");
}

#[tokio::test]
async fn of_many_workers_one_has_the_job() {
    let (db, _alone) = queue().await;
    let id = insert(&db, "one").await.expect("a job");
    let claims = [claim(&db), claim(&db), claim(&db), claim(&db), claim(&db), claim(&db)];
    let [a, b, c, d, e, f] = claims;
    let (a, b, c, d, e, f) = tokio::join!(a, b, c, d, e, f);
    let claimed: Vec<Claim> = [a, b, c, d, e, f].into_iter().flatten().collect();
    assert_eq!(claimed.iter().map(|claim| claim.id).collect::<Vec<_>>(), [id]);
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_saves_nothing() {
    let (db, _alone) = queue().await;
    insert(&db, "fenced").await.expect("a job");
    let slow = claim(&db).await.expect("a claim");
    lease_runs_out(&db).await;
    let other = claim(&db).await.expect("the same job");
    assert_eq!((other.id, other.fence), (slow.id, slow.fence + 1));

    assert!(!save(&db, &slow).await);
    assert!(!jobs::renew(&db.platform, &slow).await.expect("renew"));
    assert!(!jobs::succeed(&db.platform, &slow, &json!({})).await.expect("succeed"));
    let failure = Failure { error: "x", hint: None };
    assert!(!jobs::retry_later(&db.platform, &slow, &failure, 0.0).await.expect("retry"));
    let mut connection = db.platform.acquire().await.expect("connect");
    assert!(!jobs::fail(&mut connection, &slow, &failure).await.expect("fail"));
    assert!(
        save(&db, &other).await && jobs::succeed(&db.platform, &other, &json!({})).await.expect("succeed")
    );
}

#[tokio::test]
async fn who_asks_for_the_same_again_finds_the_first_until_it_has_ended() {
    let (db, _alone) = queue().await;
    let first = insert(&db, "same").await.expect("a job");
    assert_eq!(insert(&db, "same").await, None);
    let mut connection = db.platform.acquire().await.expect("connect");
    assert_eq!(jobs::unfinished(&mut connection, "same").await.expect("look"), Some(first));
    let claimed = claim(&db).await.expect("a claim");
    assert_eq!(insert(&db, "same").await, None, "it runs");
    jobs::succeed(&db.platform, &claimed, &json!({})).await.expect("succeed");
    assert!(insert(&db, "same").await.is_some());
}

#[tokio::test]
async fn tries_count_for_a_step_and_waiting_is_no_try() {
    let (db, _alone) = queue().await;
    insert(&db, "tries").await.expect("a job");
    for attempts in 1..=3 {
        let claimed = claim(&db).await.expect("a claim");
        assert_eq!(claimed.attempts, attempts);
        lease_runs_out(&db).await;
    }
    let claimed = claim(&db).await.expect("a claim");
    assert!(save(&db, &claimed).await);
    assert!(jobs::put_back(&db.platform, &claimed, 0.0).await.expect("put back"));
    let again = claim(&db).await.expect("a claim");
    assert_eq!((again.attempts, again.steps_done), (1, 1));
    assert_eq!(again.step, Some(json!("next")));
}

#[tokio::test]
async fn what_a_former_process_of_the_node_held_is_free_at_once() {
    let (db, _alone) = queue().await;
    insert(&db, "abandoned").await.expect("a job");
    claim(&db).await.expect("a claim");
    assert!(claim(&db).await.is_none(), "it is held");
    assert_eq!(jobs::abandon_former(&db.platform, "another node").await.expect("abandon"), 0);
    assert_eq!(jobs::abandon_former(&db.platform, "a node").await.expect("abandon"), 1);
    assert!(claim(&db).await.is_some());
}
