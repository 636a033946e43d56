//! Jobs as they are carried out: panics, tries, cancelling, retrying, following, schedules, Redis.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use loomworks_control::accelerator::{Accelerator, Rate, Taken};
use loomworks_control::access::{Caller, Identity, Permission, Scope};
use loomworks_control::db::jobs::{Filter, Job};
use loomworks_control::jobs::{self, Context, Kinds, Progress, Slots, StepError, Then, Work, cron};
use loomworks_control::page::Asked;
use loomworks_control::work::sweep::Sweep;
use loomworks_control::{Error, World, work};
use loomworks_core::SecretString;
use loomworks_core::ids::{ApiKeyId, JobId, TenantId};
use loomworks_testkit::Redis;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;
use tokio::sync::watch;

use super::jobs::{QUEUE, queue};
use super::tenant;

/// Does what it is told, step after step.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) tenant: Option<TenantId>,
    pub(super) name: String,
    pub(super) steps: Vec<Do>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Do {
    GoOn,
    Panic,
    Fail,
    /// Until the test says so.
    Wait,
    /// The same, and it cannot be cancelled there.
    WaitFirmly,
    /// The same, with all of the process's connections in its hands.
    WaitWithAll,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Place {
    number: usize,
    what: Do,
}

static GO_ON: AtomicI32 = AtomicI32::new(0);

impl Work for Told {
    const KIND: &'static str = "told";
    const MAX_ATTEMPTS: i32 = 3;
    const TENANTS_NEED: Option<Permission> = Some(Permission::Work);
    type Step = Place;

    fn tenant(&self) -> Option<TenantId> {
        self.tenant
    }

    fn dedup_key(&self) -> String {
        self.name.clone()
    }

    fn first(&self) -> Place {
        Place { number: 0, what: self.steps[0] }
    }

    fn progress(_: &Place) -> Progress {
        Progress { percent: 50, words: "doing as told" }
    }

    fn can_cancel(step: &Place) -> bool {
        step.what != Do::WaitFirmly
    }

    async fn run(&self, step: &Place, world: &World, _: &Context) -> Result<Then<Place>, StepError> {
        note(world, &format!("tried {} {}", self.name, step.number)).await;
        match step.what {
            Do::GoOn => {}
            Do::Panic => panic!("as told"),
            Do::Fail => return Err(Error::Internal("failed as told".into()).into()),
            Do::WaitWithAll => {
                let pool = &world.db.platform;
                let mut all = Vec::new();
                // All that are to be had: one hears of jobs.
                while let Ok(one) = tokio::time::timeout(Duration::from_secs(1), pool.acquire()).await {
                    all.push(one.map_err(Error::from)?);
                }
                while GO_ON.load(Ordering::SeqCst) == 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Do::Wait | Do::WaitFirmly if GO_ON.load(Ordering::SeqCst) == 0 => {
                return Ok(Then::Later(Duration::from_millis(20)));
            }
            Do::Wait | Do::WaitFirmly => {}
        }
        let number = step.number + 1;
        Ok(match self.steps.get(number) {
            Some(what) => Then::Next(Place { number, what: *what }),
            None => Then::Done(json!({ "steps": number })),
        })
    }

    async fn give_up(&self, connection: &mut PgConnection, _: &Context) -> Result<(), Error> {
        if self.name == "stubborn" {
            return Err(Error::Internal("does not give up".into()));
        }
        write(connection, &format!("gave up {}", self.name)).await;
        Ok(())
    }

    async fn take_up(
        &self,
        step: &Place,
        connection: &mut PgConnection,
        _: &Context,
    ) -> Result<Option<Place>, Error> {
        write(connection, &format!("took up {}", self.name)).await;
        // It is mended.
        Ok((step.number < 5).then_some(Place { number: step.number, what: Do::GoOn }))
    }
}

/// Notes go into a table that nobody else uses.
async fn write(connection: &mut PgConnection, what: &str) {
    sqlx::query("INSERT INTO notifications (event, severity, message) VALUES ('test', 'info', $1)")
        .bind(what)
        .execute(connection)
        .await
        .expect("note");
}

async fn note(world: &World, what: &str) {
    write(&mut world.db.platform.acquire().await.expect("connect"), what).await;
}

async fn noted(world: &World, what: &str) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM notifications WHERE event = 'test' AND message = $1")
        .bind(what)
        .fetch_one(&world.db.platform)
        .await
        .expect("look")
}

/// A world with a worker in it, alone with the queue.
pub(super) struct Running {
    pub(super) world: World,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

impl Running {
    pub(super) async fn start(accelerator: Accelerator) -> Self {
        let (db, alone) = queue().await;
        GO_ON.store(0, Ordering::SeqCst);
        sqlx::query("DELETE FROM notifications").execute(&db.platform).await.expect("forget");
        let server = QUEUE.server().await;
        let directory = server.directory.join(server.unique("world"));
        let kinds: Kinds = work::kinds().with::<Told>();
        let slots = Slots { in_process: 6, per_tenant: 3 };
        let world =
            crate::working::world(&server.cluster, db, &directory, "a node", kinds, slots, accelerator).await;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(jobs::runner::run(world.clone(), stopped));
        Self { world, stop, task, _alone: alone }
    }

    pub(super) async fn enqueue(&self, tenant: Option<TenantId>, name: &str, steps: &[Do]) -> JobId {
        let told = Told { tenant, name: name.into(), steps: steps.to_vec() };
        let mut connection = self.world.db.platform.acquire().await.expect("connect");
        jobs::enqueue(&mut connection, &told, "test").await.expect("enqueue")
    }

    /// Enqueues one that is as these assignments say when it is first seen.
    pub(super) async fn enqueue_as(&self, name: &str, steps: &[Do], set: &'static str) -> JobId {
        let told = Told { tenant: None, name: name.into(), steps: steps.to_vec() };
        let mut transaction = self.world.db.platform.begin().await.expect("begin");
        let id = jobs::enqueue(&mut transaction, &told, "test").await.expect("enqueue");
        let sql = format!("UPDATE jobs SET {set} WHERE id = $1");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.0).execute(&mut *transaction).await.expect("set");
        transaction.commit().await.expect("commit");
        id
    }

    /// Nobody waits for the time between tries.
    pub(super) async fn hurry(&self) {
        for sql in [
            "UPDATE jobs SET run_at = now() WHERE state = 'waiting' AND run_at > now()",
            "UPDATE jobs SET lease_until = '-infinity' WHERE state = 'running' AND lease_until < now()",
        ] {
            sqlx::query(sql).execute(&self.world.db.platform).await.expect("hurry");
        }
    }

    pub(super) async fn job(&self, id: JobId) -> Job {
        jobs::get(&self.world, &operator(), id).await.expect("the job")
    }

    pub(super) async fn until(&self, id: JobId, state: &str) -> Job {
        loop {
            let job = self.job(id).await;
            if job.state == state {
                return job;
            }
            assert!(!job.is_finished(), "{job:?} is not {state}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a try has ended with an error.
    pub(super) async fn until_said(&self, id: JobId) -> Job {
        loop {
            let job = self.job(id).await;
            if job.error.is_some() {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) async fn end(self) {
        self.stop.send_replace(true);
        self.task.await.expect("the worker ends");
    }
}

pub(super) fn caller(scope: Scope, permissions: &[Permission]) -> Caller {
    Caller {
        identity: Identity::Key(ApiKeyId::random()),
        scope,
        permissions: permissions.to_vec(),
        name: "test".into(),
    }
}

pub(super) fn operator() -> Caller {
    caller(Scope::Operator, &Permission::ALL)
}

#[tokio::test]
async fn a_step_that_panics_or_fails_is_tried_exactly_as_often_as_it_may_be() {
    let running = Running::start(Accelerator::default()).await;
    for (name, harm, says) in
        [("panics", Do::Panic, "it panicked: as told"), ("fails", Do::Fail, "failed as told")]
    {
        let id = running.enqueue(None, name, &[Do::GoOn, harm]).await;
        let job = running.until(id, "failed").await;
        assert!(job.error.as_deref().is_some_and(|error| error.contains(says)), "{job:?}");
        assert_eq!((job.attempts, job.max_attempts), (3, 3));
        assert_eq!(noted(&running.world, &format!("tried {name} 0")).await, 1);
        assert_eq!(noted(&running.world, &format!("tried {name} 1")).await, 3);
        assert_eq!(noted(&running.world, &format!("gave up {name}")).await, 1);
    }
    let id = running.enqueue(None, "after", &[Do::GoOn]).await;
    running.until(id, "succeeded").await;
    running.end().await;
}

#[tokio::test]
async fn a_job_that_failed_is_tried_again_where_it_failed_and_only_once_at_a_time() {
    let running = Running::start(Accelerator::default()).await;
    let id = running.enqueue(None, "mended", &[Do::GoOn, Do::Fail]).await;
    running.until(id, "failed").await;
    let failed = Filter { state: Some(jobs_state("failed")), ..Filter::default() };
    let asked = Asked::new(Some(10), None).expect("a page");
    let page = jobs::list(&running.world, &operator(), &failed, &asked).await.expect("a list");
    assert_eq!(page.items.iter().map(|job| job.id).collect::<Vec<_>>(), [id]);

    // Somebody has asked for the same meanwhile.
    let other = running.enqueue(None, "mended", &[Do::Wait]).await;
    assert!(matches!(jobs::retry(&running.world, &operator(), id).await, Err(Error::Conflict { .. })));
    GO_ON.store(1, Ordering::SeqCst);
    running.until(other, "succeeded").await;

    let before = noted(&running.world, "tried mended 0").await;
    let retried = jobs::retry(&running.world, &operator(), id).await.expect("retry");
    assert_eq!((retried.state.as_str(), retried.attempts, retried.error), ("waiting", 0, None));
    let job = running.until(id, "succeeded").await;
    assert_eq!(job.result, Some(json!({ "steps": 2 })));
    assert_eq!(noted(&running.world, "tried mended 0").await, before, "what was done is not done again");
    assert_eq!(noted(&running.world, "took up mended").await, 1, "what was refused was rolled back");
    assert!(matches!(jobs::retry(&running.world, &operator(), id).await, Err(Error::Conflict { .. })));
    running.end().await;
}

fn jobs_state(word: &str) -> loomworks_control::db::jobs::State {
    serde_json::from_value(json!(word)).expect("a state")
}

#[tokio::test]
async fn a_job_is_cancelled_where_it_may_be_and_nowhere_else() {
    let running = Running::start(Accelerator::default()).await;
    let world = &running.world;
    // One that runs, in the middle of its wait.
    let id = running.enqueue(None, "runs", &[Do::Wait, Do::GoOn]).await;
    running.until(id, "running").await;
    let asked = jobs::cancel(world, &operator(), id).await.expect("cancel");
    assert!(asked.cancel_requested);
    running.until(id, "cancelled").await;
    assert_eq!(noted(world, "gave up runs").await, 1);
    // One that waits, at once: its tenant has as many running as it may.
    let acme = Some(tenant(&world.db).await);
    let mut before = Vec::new();
    for name in ["first", "second", "third"] {
        let id = running.enqueue(acme, name, &[Do::Wait]).await;
        running.until(id, "running").await;
        before.push(id);
    }
    let id = running.enqueue(acme, "waits", &[Do::GoOn]).await;
    assert_eq!(jobs::cancel(world, &operator(), id).await.expect("cancel").state, "cancelled");
    assert_eq!((noted(world, "gave up waits").await, noted(world, "tried waits 0").await), (1, 0));
    for id in before {
        jobs::cancel(world, &operator(), id).await.expect("cancel");
        running.until(id, "cancelled").await;
    }
    // One that is past the point of no return.
    let id = running.enqueue(None, "firm", &[Do::WaitFirmly]).await;
    running.until(id, "running").await;
    assert!(matches!(jobs::cancel(world, &operator(), id).await, Err(Error::Conflict { .. })));
    GO_ON.store(1, Ordering::SeqCst);
    running.until(id, "succeeded").await;
    assert!(matches!(jobs::cancel(world, &operator(), id).await, Err(Error::Conflict { .. })));
    running.end().await;
}

async fn severity_of_failure(world: &World, id: JobId) -> String {
    sqlx::query_scalar(
        "SELECT severity FROM notifications WHERE event = 'job.failed' AND detail ->> 'job' = $1",
    )
    .bind(id.to_string())
    .fetch_one(&world.db.platform)
    .await
    .expect("one notification")
}

#[tokio::test]
async fn asking_a_job_to_stop_gives_it_no_more_tries() {
    let running = Running::start(Accelerator::default()).await;
    let used_up = "attempts = max_attempts, cancel_requested_at = now()";
    // Where it cannot stop it has failed, as it would have without.
    let id = running.enqueue_as("firm", &[Do::WaitFirmly], used_up).await;
    let job = running.until(id, "failed").await;
    assert!(job.error.is_some_and(|error| error.contains("cut off 3 times")));
    assert_eq!(
        (noted(&running.world, "tried firm 0").await, noted(&running.world, "gave up firm").await),
        (0, 1)
    );
    let id = running.enqueue_as("ready", &[Do::Wait], used_up).await;
    running.until(id, "cancelled").await;
    running.end().await;
}

#[tokio::test]
async fn a_job_that_cannot_be_given_up_ends_all_the_same_and_somebody_is_called() {
    let running = Running::start(Accelerator::default()).await;
    let id = running.enqueue(None, "stubborn", &[Do::Fail]).await;
    while !running.job(id).await.is_finished() {
        running.hurry().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let job = running.job(id).await;
    assert_eq!(job.state, "failed");
    let error = job.error.expect("an error");
    assert!(error.contains("failed as told") && error.contains("could not be put right"), "{error}");
    assert_eq!(
        noted(&running.world, "tried stubborn 0").await,
        3,
        "the step was not tried more often for it"
    );
    assert_eq!(severity_of_failure(&running.world, id).await, "critical");
    running.end().await;
}

#[tokio::test]
async fn what_this_program_cannot_read_is_left_to_others_and_ends_when_nobody_takes_it() {
    let running = Running::start(Accelerator::default()).await;
    for (name, set) in [("kind", "kind = 'of a newer version'"), ("step", "step = '\"of a newer version\"'")]
    {
        let id = running.enqueue_as(name, &[Do::GoOn], set).await;
        let left = running.until_said(id).await;
        assert_eq!(left.state, "waiting");
        assert!(left.run_at.to_jiff() > loomworks_core::time::now(), "for a while: {left:?}");
        while !running.job(id).await.is_finished() {
            running.hurry().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let job = running.job(id).await;
        assert_eq!((job.state.as_str(), job.attempts), ("failed", 3));
        assert_eq!(severity_of_failure(&running.world, id).await, "critical");
    }
    running.end().await;
}

#[tokio::test]
async fn a_lease_is_renewed_while_a_step_has_all_connections() {
    let running = Running::start(Accelerator::default()).await;
    let id = running.enqueue(None, "greedy", &[Do::WaitWithAll]).await;
    let mut own =
        QUEUE.server().await.cluster.connect(loomworks_control::db::DATABASE).await.expect("connect");
    let mut lease = async || -> Option<f64> {
        let sql = "SELECT extract(epoch FROM lease_until)::float8 FROM public.jobs WHERE id = $1";
        sqlx::query_scalar(sql).bind(id.0).fetch_one(&mut own).await.expect("look")
    };
    let mut seen = std::collections::BTreeSet::new();
    // The first is the claim's.
    while seen.len() < 3 {
        seen.extend(lease().await.map(f64::to_bits));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    GO_ON.store(1, Ordering::SeqCst);
    assert_eq!(running.until(id, "succeeded").await.attempts, 1);
    running.end().await;
}

#[tokio::test]
async fn who_follows_a_job_is_told_how_it_goes_on_until_it_has_ended() {
    let running = Running::start(Accelerator::default()).await;
    let id = running.enqueue(None, "followed", &[Do::GoOn, Do::Wait]).await;
    let mut follow = jobs::follow(&running.world, &operator(), id).await.expect("follow");
    let mut seen = Vec::new();
    while let Some(job) = follow.next().await.expect("the job") {
        if job.percent == 50 {
            GO_ON.store(1, Ordering::SeqCst);
        }
        seen.push(job);
    }
    assert_eq!(seen.last().map(|job| job.state.as_str()), Some("succeeded"));
    assert!(seen.iter().any(|job| job.percent == 50), "{seen:?}");
    assert!(seen.windows(2).all(|two| two[0] != two[1]), "{seen:?}");
    running.end().await;
}

#[tokio::test]
async fn a_run_that_is_due_becomes_one_job_whoever_looks() {
    let (db, _alone) = queue().await;
    let server = QUEUE.server().await;
    let directory = server.directory.join(server.unique("world"));
    let kinds = work::kinds();
    let none = Accelerator::default();
    let world =
        crate::working::world(&server.cluster, db, &directory, "a node", kinds, Slots::default(), none).await;
    let world = Arc::new(world);
    let mut connection = world.db.platform.acquire().await.expect("connect");
    let timing = "every 1h".parse().expect("a timing");
    cron::ensure(&mut connection, "test", &timing, &Sweep {}).await.expect("a schedule");
    assert_eq!(cron::tick(&world).await.expect("look"), 0, "it is not due");
    let due = "UPDATE schedules SET next_run_at = now() - interval '3 days'";
    sqlx::query(due).execute(&mut *connection).await.expect("let it be due");
    // The same again changes nothing.
    cron::ensure(&mut connection, "test", &timing, &Sweep {}).await.expect("a schedule");
    let looks = [cron::tick(&world), cron::tick(&world), cron::tick(&world), cron::tick(&world)];
    let [a, b, c, d] = looks;
    let (a, b, c, d) = tokio::join!(a, b, c, d);
    let enqueued = [a, b, c, d].map(|enqueued| enqueued.expect("look")).iter().sum::<usize>();
    assert_eq!(enqueued, 1, "three days were missed, and one run is made up for");
    assert_eq!(cron::tick(&world).await.expect("look"), 0);

    sqlx::query(due).execute(&mut *connection).await.expect("let it be due");
    assert_eq!(cron::tick(&world).await.expect("look"), 0, "the job of the last run is unfinished");
    sqlx::query("UPDATE jobs SET state = 'failed'").execute(&mut *connection).await.expect("end it");
    sqlx::query(due).execute(&mut *connection).await.expect("let it be due");
    assert_eq!(cron::tick(&world).await.expect("look"), 1);
    assert!(cron::enable(&mut connection, "test", false).await.expect("rest"));
    sqlx::query("UPDATE jobs SET state = 'failed'").execute(&mut *connection).await.expect("end it");
    sqlx::query(due).execute(&mut *connection).await.expect("let it be due");
    assert_eq!(cron::tick(&world).await.expect("look"), 0, "it rests");
    assert!(cron::remove(&mut connection, "test").await.expect("remove"));
    assert!(!cron::remove(&mut connection, "test").await.expect("remove"));
}

#[tokio::test]
async fn the_sweep_removes_what_ended_long_ago_and_nothing_else() {
    let running = Running::start(Accelerator::default()).await;
    let world = &running.world;
    let (old, new) =
        (running.enqueue(None, "old", &[Do::GoOn]).await, running.enqueue(None, "new", &[Do::GoOn]).await);
    running.until(old, "succeeded").await;
    running.until(new, "succeeded").await;
    sqlx::query("UPDATE jobs SET finished_at = now() - interval '31 days' WHERE id = $1")
        .bind(old.0)
        .execute(&world.db.platform)
        .await
        .expect("let it be old");
    let mut connection = world.db.platform.acquire().await.expect("connect");
    let sweep = jobs::enqueue(&mut connection, &Sweep {}, "test").await.expect("enqueue");
    let swept = running.until(sweep, "succeeded").await;
    assert_eq!(swept.result, Some(json!({ "jobs": 1, "notifications": 0, "deliveries": 0 })));
    assert!(matches!(jobs::get(world, &operator(), old).await, Err(Error::NotFound(_))));
    running.job(new).await;
    running.end().await;
}

#[tokio::test]
async fn redis_is_told_and_asked_and_forgetting_harms_nobody() {
    let mut redis = Redis::start();
    let accelerator = Accelerator::new(&SecretString::from(redis.url()), 4).expect("an address");
    let running = Running::start(accelerator.clone()).await;
    // Of so slow a kind that nothing comes back while this runs.
    let rate = Rate { per_second: NonZeroU32::MIN, burst: NonZeroU32::new(1000).expect("not 0") };
    let take = async |tenant| accelerator.take(tenant, "requests", rate).await;
    let left = async |tenant| take(tenant).await.map(|taken| taken.remaining);
    assert_eq!((left(None).await, left(None).await), (Some(999), Some(998)));
    assert_ne!(redis.cli(&["PTTL", "freight:platform:rate:requests"]), "-1", "it ends");
    let one = Rate { burst: NonZeroU32::MIN, ..rate };
    assert_eq!(accelerator.take(None, "one", one).await, Some(Taken { remaining: 0, wait: None }));
    let refused = accelerator.take(None, "one", one).await.expect("an answer");
    assert!(refused.wait.is_some_and(|wait| wait <= Duration::from_secs(1)), "{refused:?}");
    // Written before Redis's clock was turned back, or by somebody else: nobody waits for it for ever.
    for odd in ["9999999999999999", "nonsense"] {
        assert_eq!(redis.cli(&["SET", "freight:platform:rate:one", odd]), "OK");
        let taken = accelerator.take(None, "one", one).await.expect("an answer");
        assert!(taken.wait.is_none_or(|wait| wait <= Duration::from_secs(1)), "{odd}: {taken:?}");
    }

    let acme = tenant(&running.world.db).await;
    let id = running.enqueue(Some(acme), "told", &[Do::Wait]).await;
    let active = format!("freight:{acme}:jobs:active");
    while redis.cli(&["SISMEMBER", &active, &id.to_string()]) != "1" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(redis.cli(&["GET", &format!("freight:{acme}:locks:{id}")]), "a node");
    assert_eq!(redis.cli(&["FLUSHALL"]), "OK");
    assert_eq!(left(None).await, Some(999), "it begins anew");
    assert_eq!(left(Some(acme)).await, Some(999), "each has its own");
    redis.kill();
    assert_eq!(take(None).await, None);
    GO_ON.store(1, Ordering::SeqCst);
    running.until(id, "succeeded").await;
    let id = running.enqueue(Some(acme), "without", &[Do::GoOn]).await;
    running.until(id, "succeeded").await;
    redis.start_again();
    while take(None).await.is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.end().await;
}
