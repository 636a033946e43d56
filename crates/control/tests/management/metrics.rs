//! What is counted for the metrics.

use std::collections::BTreeMap;

use loomworks_control::db::metrics;

use super::jobs::queue;
use super::tenant;

#[tokio::test]
async fn the_age_of_jobs_is_told_by_state_and_queue_and_how_full_tenants_are_by_level() {
    let (db, _alone) = queue().await;
    let jobs = [
        // (state, queue, asked for so many seconds ago, due so many seconds ago)
        ("waiting", "default", 500, 100),
        ("waiting", "default", 400, 300),
        ("waiting", "low_priority", 900, -1000),
        ("running", "high_priority", 700, 1),
        ("succeeded", "high_priority", 5000, 5000),
    ];
    for (state, queue, asked, due) in jobs {
        sqlx::query(
            "INSERT INTO jobs (id, kind, state, queue, dedup_key, work, requested_by, created_at, run_at, finished_at)
             VALUES (gen_random_uuid(), 'test', $1, $2, gen_random_uuid()::text, '{}', 'test',
                 now() - make_interval(secs => $3), now() - make_interval(secs => $4),
                 CASE $1 WHEN 'succeeded' THEN now() END)",
        )
        .bind(state)
        .bind(queue)
        .bind(f64::from(asked))
        .bind(f64::from(due))
        .execute(&db.platform)
        .await
        .expect("a job");
    }
    let mut connection = db.platform.acquire().await.expect("connect");
    let ages = metrics::oldest_jobs(&mut connection).await.expect("look");
    let ages: BTreeMap<_, _> = ages
        .iter()
        .map(|(state, queue, age)| ((state.as_str(), queue.as_str()), (age / 100.0).floor() as i64))
        .collect();
    assert_eq!(ages, BTreeMap::from([(("waiting", "default"), 3), (("running", "high_priority"), 7)]));

    sqlx::query("DELETE FROM tenant_usage").execute(&db.platform).await.expect("forget");
    for level in ["full", "ok", "full"] {
        sqlx::query("INSERT INTO tenant_usage (tenant_id, storage_level) VALUES ($1, $2)")
            .bind(tenant(&db).await.0)
            .bind(level)
            .execute(&db.platform)
            .await
            .expect("how full it is");
    }
    let mut levels = metrics::storage_levels(&mut connection).await.expect("look");
    levels.sort();
    let levels: Vec<_> = levels.iter().map(|(level, count)| (level.as_str(), *count)).collect();
    assert_eq!(levels, [("full", 2), ("nearly_full", 0), ("ok", 1)]);
}
