//! Who may cancel a job or have it tried again: of every kind those who may ask for it, and nobody else.

use std::time::Duration;

use loomworks_control::accelerator::Accelerator;
use loomworks_control::access::{Permission, Scope};
use loomworks_control::{Error, jobs};
use loomworks_core::ids::JobId;

use super::jobs::queue;
use super::running::{Do, Running, Told, caller, operator};
use super::tenant;

#[tokio::test]
async fn a_tenant_changes_its_own_jobs_and_sees_no_others() {
    let running = Running::start(Accelerator::default()).await;
    let (acme, globex) = (tenant(&running.world.db).await, tenant(&running.world.db).await);
    let id = running.enqueue(Some(acme), "acme's", &[Do::Fail]).await;
    running.until(id, "failed").await;
    let world = &running.world;
    let other = caller(Scope::TenantAdmin(globex), &Permission::ALL);
    assert!(matches!(jobs::get(world, &other, id).await, Err(Error::NotFound(_))));
    assert!(matches!(jobs::retry(world, &other, id).await, Err(Error::NotFound(_))));
    assert!(matches!(jobs::cancel(world, &other, id).await, Err(Error::NotFound(_))));
    assert!(matches!(jobs::follow(world, &other, id).await, Err(Error::NotFound(_))));
    let reader = caller(Scope::TenantUser(acme), &[Permission::Read]);
    assert!(jobs::get(world, &reader, id).await.is_ok());
    assert!(matches!(jobs::retry(world, &reader, id).await, Err(Error::Forbidden)));
    let looking = caller(Scope::Operator, &[Permission::Read]);
    assert!(matches!(jobs::retry(world, &looking, id).await, Err(Error::Forbidden)));
    let own = caller(Scope::TenantUser(acme), &[Permission::Read, Permission::Work]);
    jobs::retry(world, &own, id).await.expect("its own");
    running.until(id, "succeeded").await;
    running.end().await;
}

/// What of a tenant's jobs its own people may cancel and try again, and with which permission: what asking for them
/// takes. What is not here only operators may.
const TENANTS_MAY: [(&str, Permission); 8] = [
    ("snapshot", Permission::Work),
    ("open_session", Permission::Work),
    ("close_session", Permission::Work),
    ("restore", Permission::Manage),
    ("swap_back", Permission::Manage),
    ("export", Permission::Manage),
    ("rotate_credentials", Permission::Manage),
    ("told", Permission::Work),
];

#[tokio::test]
async fn of_every_kind_only_those_may_change_a_job_who_may_ask_for_it() {
    let running = Running::start(Accelerator::default()).await;
    let world = &running.world;
    let (acme, globex) = (tenant(&world.db).await, tenant(&world.db).await);
    let (read, work) = ([Permission::Read], [Permission::Read, Permission::Work]);
    let callers = [
        ("user who reads", caller(Scope::TenantUser(acme), &read)),
        ("user", caller(Scope::TenantUser(acme), &work)),
        ("admin who reads", caller(Scope::TenantAdmin(acme), &read)),
        ("admin who works", caller(Scope::TenantAdmin(acme), &work)),
        ("admin", caller(Scope::TenantAdmin(acme), &Permission::ALL)),
        ("another tenant's admin", caller(Scope::TenantAdmin(globex), &Permission::ALL)),
        ("operator who works", caller(Scope::Operator, &work)),
        ("operator", operator()),
    ];
    assert!(TENANTS_MAY.iter().all(|(kind, _)| world.kinds.names().any(|name| name == *kind)));
    // Of a kind that a newer version may have made, too.
    for kind in world.kinds.names().chain(["unknown"]) {
        let id = JobId::random();
        sqlx::query(
            "INSERT INTO jobs (id, tenant_id, kind, queue, dedup_key, work, state, max_attempts, requested_by,
                 finished_at)
             VALUES ($1, $2, $3, 'default', $1::text, '{}', 'succeeded', 1, 'test', now())",
        )
        .bind(id.0)
        .bind(acme.0)
        .bind(kind)
        .execute(&world.db.platform)
        .await
        .expect("a job");
        let needed = TENANTS_MAY.iter().find(|(name, _)| *name == kind).map(|(_, needed)| *needed);
        for (who, caller) in &callers {
            let expected = match caller.scope {
                Scope::Operator if caller.permissions.contains(&Permission::Manage) => "it has ended",
                Scope::TenantAdmin(own) if own == globex => "there is none",
                Scope::TenantAdmin(_) | Scope::TenantUser(_)
                    if needed.is_some_and(|needed| caller.permissions.contains(&needed)) =>
                {
                    "it has ended"
                }
                _ => "forbidden",
            };
            for answer in [jobs::retry(world, caller, id).await, jobs::cancel(world, caller, id).await] {
                let said = match answer {
                    Err(Error::Conflict { .. }) => "it has ended",
                    Err(Error::Forbidden) => "forbidden",
                    Err(Error::NotFound(_)) => "there is none",
                    other => panic!("{kind} for {who}: {other:?}"),
                };
                assert_eq!(said, expected, "{kind} for {who}");
            }
        }
    }
    running.end().await;
}

#[tokio::test]
async fn of_two_who_want_different_things_at_once_one_is_told_of_the_other() {
    let (db, _alone) = queue().await;
    let told = |steps: &[Do]| Told { tenant: None, name: "alone".into(), steps: steps.to_vec() };
    let mut first = db.platform.begin().await.expect("begin");
    let id = jobs::enqueue_alone(&mut first, &told(&[Do::GoOn]), "one", "busy").await.expect("the first");
    let other = {
        let (db, work) = (db.clone(), told(&[Do::Wait]));
        // It waits for the first to commit.
        tokio::spawn(async move {
            let mut second = db.platform.begin().await.expect("begin");
            jobs::enqueue_alone(&mut second, &work, "another", "busy").await
        })
    };
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&db.platform).await.expect("look") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    first.commit().await.expect("commit");
    let refused = other.await.expect("it ends").expect_err("it is refused");
    assert!(matches!(refused, Error::Conflict { .. }), "{refused:?}");
    assert!(refused.hint().is_some_and(|hint| hint.contains(&id.to_string())), "{refused:?}");
}
