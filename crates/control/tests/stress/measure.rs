//! Numbers of the queue, on a PostgreSQL that waits for its disk as the product's does.

use std::time::Instant;

use loomworks_control::db::Db;
use loomworks_control::db::jobs::Queue;
use loomworks_control::db::jobs::claims::{self, Change, Outcome, Wanted};
use loomworks_core::ids::TenantId;
use loomworks_testkit::Server;
use serde_json::json;

use crate::run::{self, Size, Worker};

/// Prints each number as `metric unit value`, and what it needs to know for itself on other lines.
pub(crate) async fn all(size: Size) {
    let (server, db, tenants) = run::prepare().await;
    be_durable(server).await;
    told("claim_ack_per_second", "jobs/s", claim_and_ack(&db, &tenants).await);
    told("worker_jobs_per_second", "jobs/s", through_workers(server, &db).await);
    told("fairness_slots_behind_10000", "slots", fairness(&db, &tenants).await);
    sqlx::query("DELETE FROM jobs").execute(&db.platform).await.expect("empty the queue");
    for sql in [
        "TRUNCATE public.effects, public.tries, public.saved, public.cuts, public.claimed_again",
        "VACUUM ANALYZE public.jobs",
    ] {
        let mut admin = server.cluster.connect(loomworks_control::db::DATABASE).await.expect("connect");
        sqlx::query(sql).execute(&mut admin).await.expect("begin anew");
    }
    let seen = run::under_harm(server, &db, &tenants, size).await;
    println!("{size:?} {seen:?}");
    told("recovery_seconds", "s", seen.recovery_seconds);
    told("exactly_once_violations", "effects", seen.violations as f64);
    told("poison_jobs_with_wrong_tries", "jobs", seen.wrong_tries as f64);
}

fn told(metric: &str, unit: &str, value: f64) {
    println!("measured {metric} {unit} {value:.2}");
}

/// The tests' server does not wait for its disk; what is measured has to.
async fn be_durable(server: &Server) {
    let mut admin = server.cluster.connect("postgres").await.expect("connect");
    for sql in [
        "ALTER SYSTEM SET fsync = on",
        "ALTER SYSTEM SET synchronous_commit = on",
        "ALTER SYSTEM SET full_page_writes = on",
        "SELECT pg_reload_conf()",
    ] {
        sqlx::query(sql).execute(&mut admin).await.expect("set");
    }
}

async fn enqueue(db: &Db, tenants: &[TenantId], queues: &[Queue], count: i32) {
    let queues: Vec<&str> = queues.iter().map(|queue| queue.as_str()).collect();
    let ids: Vec<uuid::Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
    sqlx::query(
        "INSERT INTO jobs (id, tenant_id, kind, queue, dedup_key, work, requested_by)
         SELECT gen_random_uuid(), ($1::uuid[])[1 + n % array_length($1, 1)], 'nothing',
             ($3::text[])[1 + n % array_length($3, 1)], gen_random_uuid()::text, '{}', 'bench'
         FROM generate_series(1, $2) n",
    )
    .bind(ids)
    .bind(count)
    .bind(queues)
    .execute(&db.platform)
    .await
    .expect("enqueue");
}

/// Two workers that claim and acknowledge a hundred at a time and do nothing else.
async fn claim_and_ack(db: &Db, tenants: &[TenantId]) -> f64 {
    const COUNT: i32 = 20_000;
    enqueue(db, tenants, &Queue::ALL, COUNT).await;
    let begun = Instant::now();
    let worker = async |node: &str| {
        let wanted = Wanted { shares: [60, 30, 10], per_tenant: 1000, of_no_tenant: 1000 };
        let mut done = 0;
        loop {
            let claimed = claims::claim(&db.platform, node, wanted).await.expect("claim");
            if claimed.is_empty() {
                return done;
            }
            let outcome = || Outcome::Succeeded { value: json!({}) };
            let changes: Vec<Change> = claimed.iter().map(|claim| Change::new(claim, outcome())).collect();
            let mut connection = db.platform.acquire().await.expect("connect");
            done += claims::apply(&mut connection, &changes).await.expect("acknowledge").len();
        }
    };
    let (a, b) = tokio::join!(worker("a"), worker("b"));
    assert_eq!(a + b, COUNT.cast_unsigned() as usize, "each once");
    f64::from(COUNT) / begun.elapsed().as_secs_f64()
}

/// Whole jobs through two worker processes, from the first claim to the last end.
async fn through_workers(server: &'static Server, db: &Db) -> f64 {
    const COUNT: i32 = 10_000;
    let workers = [Worker::start(server, 100, 200, "-"), Worker::start(server, 101, 200, "-")];
    // They are there once they have done something.
    enqueue(db, &[], &Queue::ALL, 10).await;
    run::wait_for_end(db).await;
    let begun = Instant::now();
    enqueue(db, &[], &Queue::ALL, COUNT).await;
    run::wait_for_end(db).await;
    let seconds = begun.elapsed().as_secs_f64();
    drop(workers);
    f64::from(COUNT) / seconds
}

/// How many jobs of a tenant with ten thousand are taken before another's single one, at worst.
async fn fairness(db: &Db, tenants: &[TenantId]) -> f64 {
    enqueue(db, &tenants[..1], &[Queue::Default], 10_000).await;
    let mut worst = 0;
    for _ in 0..100 {
        enqueue(db, &tenants[1..2], &[Queue::Default], 1).await;
        for slots in 0.. {
            let wanted = Wanted { shares: [0, 1, 0], per_tenant: 100_000, of_no_tenant: 1 };
            let claimed = claims::claim(&db.platform, "fair", wanted).await.expect("claim");
            if claimed.iter().any(|claim| claim.tenant() == Some(tenants[1])) {
                worst = worst.max(slots);
                break;
            }
        }
    }
    f64::from(worst)
}
