//! The queue's rows: claimed once, fenced, put back, one unfinished job a key, fair among tenants.

use std::collections::BTreeMap;

use loomworks_control::db::Db;
use loomworks_control::db::jobs::claims::{self, Change, Outcome, Wanted};
use loomworks_control::db::jobs::{self, Claim, New, Queue};
use loomworks_core::ids::{JobId, TenantId};
use serde_json::json;
use sqlx::PgConnection;
use tokio::sync::MutexGuard;

use super::{Alone, tenant};

/// These tests claim whatever is waiting.
pub(super) static QUEUE: Alone = Alone::new();

/// The queue with nothing in it.
pub(super) async fn queue() -> (Db, MutexGuard<'static, ()>) {
    let (db, alone) = QUEUE.database().await;
    for sql in ["DELETE FROM jobs", "DELETE FROM job_turns", "DELETE FROM schedules"] {
        sqlx::query(sql).execute(&db.platform).await.expect("empty the queue");
    }
    (db, alone)
}

async fn insert_for(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    queue: Queue,
    key: &str,
) -> Option<JobId> {
    let new = New {
        kind: "test",
        tenant,
        queue,
        dedup_key: key,
        work: json!({}),
        max_attempts: 20,
        requested_by: "test",
    };
    jobs::insert(connection, new).await.expect("insert")
}

async fn insert(db: &Db, key: &str) -> Option<JobId> {
    let mut connection = db.platform.acquire().await.expect("connect");
    insert_for(&mut connection, None, Queue::Default, key).await
}

/// So many jobs of a tenant, in one transaction.
async fn insert_many(db: &Db, tenant: Option<TenantId>, queue: Queue, count: usize) {
    let mut transaction = db.platform.begin().await.expect("begin");
    for _ in 0..count {
        let key = JobId::random().to_string();
        insert_for(&mut transaction, tenant, queue, &key).await.expect("a job");
    }
    transaction.commit().await.expect("commit");
}

async fn claim_many(db: &Db, shares: [i32; 3], per_tenant: i32) -> Vec<Claim> {
    claim_as(db, "a node", Wanted { shares, per_tenant, of_no_tenant: 1000 }).await
}

async fn claim_as(db: &Db, node: &str, wanted: Wanted) -> Vec<Claim> {
    claims::claim(&db.platform, node, wanted).await.expect("claim")
}

async fn claim(db: &Db) -> Option<Claim> {
    claim_many(db, [0, 1, 0], 100).await.into_iter().next()
}

/// Whether the change was written down.
async fn change(db: &Db, claim: &Claim, outcome: Outcome) -> bool {
    let mut connection = db.platform.acquire().await.expect("connect");
    let changes = [Change::new(claim, outcome)];
    let applied = claims::apply(&mut connection, &changes).await.expect("apply");
    applied.iter().any(|applied| applied.is_of(&changes[0]))
}

fn next() -> Outcome {
    Outcome::Next { value: json!("next"), percent: 50, words: "half" }
}

fn done() -> Outcome {
    Outcome::Succeeded { value: json!({}) }
}

async fn lease_runs_out(db: &Db) {
    lease_is_over_for(db, 0.0).await;
}

async fn lease_is_over_for(db: &Db, seconds: f64) {
    sqlx::query("UPDATE jobs SET lease_until = now() - make_interval(secs => $1) WHERE state = 'running'")
        .bind(seconds)
        .execute(&db.platform)
        .await
        .expect("let it run out");
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
async fn many_workers_share_many_jobs_and_none_is_claimed_twice() {
    let (db, _alone) = queue().await;
    let tenants = [tenant(&db).await, tenant(&db).await, tenant(&db).await];
    for tenant in tenants {
        insert_many(&db, Some(tenant), Queue::Default, 50).await;
    }
    let claim_all = async || {
        let mut claimed = Vec::new();
        loop {
            let more = claim_many(&db, [2, 2, 2], 1000).await;
            if more.is_empty() {
                return claimed;
            }
            claimed.extend(more.into_iter().map(|claim| claim.id));
        }
    };
    let (a, b, c) = tokio::join!(claim_all(), claim_all(), claim_all());
    let mut all: Vec<JobId> = [a, b, c].concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 150);
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_saves_nothing() {
    let (db, _alone) = queue().await;
    insert(&db, "fenced").await.expect("a job");
    let slow = claim(&db).await.expect("a claim");
    lease_runs_out(&db).await;
    let other = claim(&db).await.expect("the same job");
    assert_eq!((other.id, other.fence), (slow.id, slow.fence + 1));

    let (error, hint) = ("x".to_owned(), None);
    for outcome in [
        Outcome::Keep { percent: None },
        next(),
        done(),
        Outcome::Again { error: error.clone(), hint: hint.clone(), seconds: 0.0 },
        Outcome::Back { seconds: 0.0 },
        Outcome::Failed { error, hint },
        Outcome::Cancelled,
    ] {
        let what = format!("{outcome:?}");
        assert!(!change(&db, &slow, outcome).await, "{what}");
    }
    assert!(change(&db, &other, Outcome::Keep { percent: None }).await && change(&db, &other, next()).await);
    assert!(change(&db, &other, done()).await);
}

#[tokio::test]
async fn changes_written_together_count_each_for_itself() {
    let (db, _alone) = queue().await;
    insert(&db, "lost").await.expect("a job");
    let lost = claim(&db).await.expect("a claim");
    lease_runs_out(&db).await;
    let again = claim(&db).await.expect("the same job");
    insert(&db, "other").await.expect("a job");
    let other = claim(&db).await.expect("another job");
    let changes = [Change::new(&lost, done()), Change::new(&again, next()), Change::new(&other, done())];
    let mut connection = db.platform.acquire().await.expect("connect");
    let applied = claims::apply(&mut connection, &changes).await.expect("apply");
    let counted: Vec<bool> =
        changes.iter().map(|change| applied.iter().any(|one| one.is_of(change))).collect();
    assert_eq!(counted, [false, true, true]);
    let job = jobs::get(&mut connection, again.id).await.expect("look").expect("the job");
    assert_eq!((job.state.as_str(), job.percent, job.progress.as_str()), ("running", 50, "half"));
    let job = jobs::get(&mut connection, other.id).await.expect("look").expect("the job");
    assert_eq!((job.state.as_str(), job.percent, job.result), ("succeeded", 100, Some(json!({}))));
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
    assert!(change(&db, &claimed, done()).await);
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
        if attempts > 1 {
            assert!(claim(&db).await.is_none(), "it waits");
            lease_is_over_for(&db, 10.0).await;
        }
    }
    let claimed = claim(&db).await.expect("a claim");
    assert!(change(&db, &claimed, next()).await);
    assert!(change(&db, &claimed, Outcome::Back { seconds: 0.0 }).await);
    let again = claim(&db).await.expect("a claim");
    assert_eq!((again.attempts, again.steps_done), (1, 1));
    assert_eq!(again.step, Some(json!("next")));
}

#[tokio::test]
async fn what_is_cut_off_again_and_again_is_left_alone_for_longer_and_longer() {
    let (db, _alone) = queue().await;
    let id = insert(&db, "cut off").await.expect("a job");
    for (attempts, not_after, after) in
        [(1, None, 0.0), (2, Some(0.1), 0.6), (5, Some(2.0), 4.0), (50, Some(2.0), 4.0)]
    {
        claim(&db).await.expect("a claim");
        sqlx::query("UPDATE jobs SET attempts = $2 WHERE id = $1")
            .bind(id.0)
            .bind(attempts)
            .execute(&db.platform)
            .await
            .expect("so many tries");
        if let Some(seconds) = not_after {
            lease_is_over_for(&db, seconds).await;
            assert!(claim(&db).await.is_none(), "{attempts} tries, {seconds} s after its lease");
        }
        lease_is_over_for(&db, after).await;
        assert!(claim(&db).await.is_some(), "{attempts} tries, {after} s after its lease");
        lease_runs_out(&db).await;
        sqlx::query("UPDATE jobs SET attempts = 0, lease_until = '-infinity'")
            .execute(&db.platform)
            .await
            .expect("anew");
    }
}

#[tokio::test]
async fn what_was_cut_off_comes_before_all_that_waits_of_its_tenant() {
    let (db, _alone) = queue().await;
    let (busy, other) = (tenant(&db).await, tenant(&db).await);
    insert_many(&db, Some(busy), Queue::Default, 100).await;
    insert_many(&db, Some(other), Queue::Default, 100).await;
    let cut = [claim(&db).await.expect("a claim"), claim(&db).await.expect("a claim")];
    lease_runs_out(&db).await;
    let again = [claim(&db).await.expect("a claim"), claim(&db).await.expect("a claim")];
    let ids =
        |claims: &[Claim]| claims.iter().map(|claim| claim.id).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(&again), ids(&cut));
    let mut connection = db.platform.acquire().await.expect("connect");
    let job = jobs::get(&mut connection, again[0].id).await.expect("look").expect("the job");
    assert!(job.run_at.to_jiff() >= job.created_at.to_jiff(), "nobody is told that it waits since 1970");
}

#[tokio::test]
async fn what_a_former_process_of_the_node_held_is_free_at_once() {
    let (db, _alone) = queue().await;
    insert(&db, "abandoned").await.expect("a job");
    claim(&db).await.expect("a claim");
    assert!(claim(&db).await.is_none(), "it is held");
    assert_eq!(claims::abandon_former(&db.platform, "another node").await.expect("abandon"), 0);
    assert_eq!(claims::abandon_former(&db.platform, "a node").await.expect("abandon"), 1);
    assert!(claim(&db).await.is_some());
}

#[tokio::test]
async fn a_tenant_with_ten_thousand_jobs_delays_anothers_by_one_slot_at_most() {
    let (db, _alone) = queue().await;
    let (big, small) = (tenant(&db).await, tenant(&db).await);
    sqlx::query(
        "INSERT INTO jobs (id, tenant_id, kind, dedup_key, work, requested_by)
         SELECT gen_random_uuid(), $1, 'test', 'big ' || n, '{}', 'test' FROM generate_series(1, 10000) n",
    )
    .bind(big.0)
    .execute(&db.platform)
    .await
    .expect("ten thousand jobs");
    for _ in 0..5 {
        assert_eq!(claim(&db).await.expect("a claim").tenant(), Some(big));
    }
    insert_many(&db, Some(small), Queue::Default, 1).await;
    let slots = [claim(&db).await.expect("a claim"), claim(&db).await.expect("a claim")];
    assert!(slots.iter().any(|claim| claim.tenant() == Some(small)), "{slots:?}");
    // Also where many are claimed at once, and where there is room for two of the big one's.
    insert_many(&db, Some(small), Queue::Default, 1).await;
    let slots = claim_many(&db, [0, 3, 0], 1000).await;
    assert_eq!(slots.iter().filter(|claim| claim.tenant() == Some(small)).count(), 1, "{slots:?}");
}

#[tokio::test]
async fn tenants_take_turns_and_jobs_of_no_tenant_are_one_of_them() {
    let (db, _alone) = queue().await;
    let tenants = [Some(tenant(&db).await), Some(tenant(&db).await), None];
    for tenant in tenants {
        insert_many(&db, tenant, Queue::Default, 20).await;
    }
    for round in 0..10 {
        let mut served = BTreeMap::new();
        for _ in 0..3 {
            *served.entry(claim(&db).await.expect("a claim").tenant()).or_insert(0) += 1;
        }
        assert!(tenants.iter().all(|tenant| served.get(tenant) == Some(&1)), "round {round}: {served:?}");
    }
}

#[tokio::test]
async fn a_queue_that_is_drawn_and_empty_gives_its_turn_away() {
    let (db, _alone) = queue().await;
    let tenant = tenant(&db).await;
    for (queue, count) in [(Queue::HighPriority, 6), (Queue::Default, 6), (Queue::LowPriority, 6)] {
        insert_many(&db, Some(tenant), queue, count).await;
    }
    let of = async |shares| {
        let mut counts = [0; 3];
        let claimed = claim_many(&db, shares, 1000).await;
        let ids: Vec<uuid::Uuid> = claimed.iter().map(|claim| claim.id.0).collect();
        let queues: Vec<String> = sqlx::query_scalar("SELECT queue FROM jobs WHERE id = ANY ($1)")
            .bind(ids)
            .fetch_all(&db.platform)
            .await
            .expect("look");
        for queue in queues {
            counts[Queue::ALL.iter().position(|one| one.as_str() == queue).expect("a queue")] += 1;
        }
        counts
    };
    assert_eq!(of([3, 2, 1]).await, [3, 2, 1], "each as it was drawn");
    assert_eq!(of([0, 0, 4]).await, [0, 0, 4], "a low one does not starve");
    assert_eq!(of([0, 0, 2]).await, [1, 0, 1], "what is left over goes to the first that has something");
    assert_eq!(of([6, 0, 0]).await, [2, 4, 0]);
    assert_eq!(of([6, 0, 0]).await, [0, 0, 0], "the tenant has no more");
}

#[tokio::test]
async fn no_more_of_a_tenants_jobs_run_at_once_than_it_may() {
    let (db, _alone) = queue().await;
    let (big, other) = (tenant(&db).await, tenant(&db).await);
    for queue in Queue::ALL {
        insert_many(&db, Some(big), queue, 5).await;
    }
    insert_many(&db, Some(other), Queue::LowPriority, 1).await;
    insert_many(&db, None, Queue::Default, 5).await;
    let first = claim_many(&db, [4, 4, 4], 3).await;
    let count = |claims: &[Claim], tenant| claims.iter().filter(|claim| claim.tenant() == tenant).count();
    assert_eq!(count(&first, Some(big)), 3);
    assert_eq!((count(&first, Some(other)), count(&first, None)), (1, 5), "nobody else is kept waiting");
    assert!(claim_many(&db, [4, 4, 4], 3).await.is_empty());
    let ended = first.iter().find(|claim| claim.tenant() == Some(big)).expect("one of them");
    assert!(change(&db, ended, done()).await);
    assert_eq!(count(&claim_many(&db, [4, 4, 4], 3).await, Some(big)), 1);
}

#[tokio::test]
async fn jobs_of_no_tenant_leave_slots_of_a_node_to_tenants() {
    let (db, _alone) = queue().await;
    insert_many(&db, None, Queue::HighPriority, 10).await;
    let wanted = |slots| Wanted { shares: [slots, 0, 0], per_tenant: 3, of_no_tenant: 4 };
    assert_eq!(claim_as(&db, "a node", wanted(6)).await.len(), 4);
    assert_eq!(claim_as(&db, "a node", wanted(2)).await.len(), 0, "the last two are not for them");
    let tenant = tenant(&db).await;
    insert_many(&db, Some(tenant), Queue::LowPriority, 1).await;
    assert_eq!(claim_as(&db, "a node", wanted(2)).await[0].tenant(), Some(tenant));
    assert_eq!(claim_as(&db, "another node", wanted(6)).await.len(), 4, "each node has its own");
}

#[tokio::test]
async fn a_job_that_comes_later_keeps_nobody_waiting() {
    let (db, _alone) = queue().await;
    let (late, other) = (tenant(&db).await, tenant(&db).await);
    insert_many(&db, Some(late), Queue::HighPriority, 3).await;
    sqlx::query("UPDATE jobs SET run_at = now() + interval '1 hour'")
        .execute(&db.platform)
        .await
        .expect("later");
    insert_many(&db, Some(other), Queue::LowPriority, 1).await;
    assert_eq!(claim(&db).await.expect("a claim").tenant(), Some(other));
    assert!(claim(&db).await.is_none());
}
