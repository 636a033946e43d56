//! The run itself: enqueue, harm the workers, wait for the end, look at what it left.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use loomworks_control::db::Db;
use loomworks_control::db::tenants::{self, New};
use loomworks_control::jobs;
use loomworks_core::ids::TenantId;
use loomworks_testkit::{Redis, Server, server};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{PgConnection, Row};

use crate::kinds::{Effects, Harm, POISON_TRIES, Poison, TABLES};

/// How much is done, and how much harm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) jobs: i32,
    pub(crate) workers: usize,
    pub(crate) kills: usize,
    pub(crate) stops: usize,
    pub(crate) poisons_of_each_sort: usize,
    pub(crate) pause_ms: u64,
}

impl Size {
    pub(crate) const TEST: Self =
        Self { jobs: 600, workers: 3, kills: 5, stops: 2, poisons_of_each_sort: 1, pause_ms: 60 };
    pub(crate) const QUICK: Self =
        Self { jobs: 4000, workers: 3, kills: 20, stops: 4, poisons_of_each_sort: 2, pause_ms: 40 };
    pub(crate) const FULL: Self =
        Self { jobs: 20_000, workers: 4, kills: 50, stops: 10, poisons_of_each_sort: 3, pause_ms: 40 };
}

/// What a run has shown.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) seconds: f64,
    /// Effects that are missing or were made twice, saves that were made twice, jobs that did not end as they should.
    pub(crate) violations: i64,
    /// The longest time from a kill or a stop until somebody had the job again.
    pub(crate) recovery_seconds: f64,
    pub(crate) recovered: i64,
    pub(crate) wrong_tries: i64,
}

const TENANTS: usize = 20;
const STEPS: i32 = 3;

/// Longer than a lease: a worker that was silent for so long has lost its jobs when it goes on, or is started again.
const SILENT_FOR: Duration = Duration::from_secs(13);

pub(crate) async fn test() {
    let (server, db, tenants) = prepare().await;
    let seen = under_harm(server, &db, &tenants, Size::TEST).await;
    println!("{seen:?}");
    assert_eq!((seen.violations, seen.wrong_tries), (0, 0), "{seen:?}");
    assert!(seen.recovered > 0, "a worker that was stopped had something: {seen:?}");
}

/// A management database with the tables of the run and some tenants.
pub(crate) async fn prepare() -> (&'static Server, Db, Vec<TenantId>) {
    let server = server().await;
    let db = Db::set_up(&server.cluster).await.expect("set up");
    let mut admin = server.cluster.connect(loomworks_control::db::DATABASE).await.expect("connect");
    sqlx::raw_sql(TABLES).execute(&mut admin).await.expect("the tables of the run");
    let mut made = Vec::new();
    let mut connection = db.platform.acquire().await.expect("connect");
    for _ in 0..TENANTS {
        let id = TenantId::random();
        let subdomain = format!("t{}", id.short()).parse().expect("a subdomain");
        let new = New { id, name: "Test", subdomain: &subdomain, profile: "erp", app_password_wrapped: b"x" };
        tenants::insert(&mut connection, &new).await.expect("a tenant");
        made.push(id);
    }
    drop(connection);
    (server, db, made)
}

/// A worker process; started again under its name when it has ended by itself.
pub(crate) struct Worker {
    node: String,
    slots: usize,
    redis: String,
    server: &'static Server,
    child: Child,
}

impl Worker {
    pub(crate) fn start(server: &'static Server, number: usize, slots: usize, redis: &str) -> Self {
        let node = format!("worker-{number}");
        let redis = redis.to_owned();
        let child = Self::spawn(server, &node, slots, &redis);
        Self { node, slots, redis, server, child }
    }

    fn spawn(server: &Server, node: &str, slots: usize, redis: &str) -> Child {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("worker").arg(&server.directory).arg(server.cluster.port.to_string());
        command.arg(node).arg(slots.to_string()).arg(redis);
        // It panics on purpose.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start a worker")
    }

    fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Starts it again if it has ended.
    fn keep_running(&mut self) {
        if self.child.try_wait().expect("look at a worker").is_some() {
            self.child = Self::spawn(self.server, &self.node, self.slots, &self.redis);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Enqueues the jobs, does the harm, and looks at what is there when all have ended.
pub(crate) async fn under_harm(server: &'static Server, db: &Db, tenants: &[TenantId], size: Size) -> Seen {
    enqueue(db, tenants, size).await;
    let begun = Instant::now();
    let (mut workers, redis) = harm(server, db, size).await;
    poison_alone(db, size, &mut workers).await;
    drop((workers, redis));
    let mut seen = look(db, size).await;
    seen.seconds = begun.elapsed().as_secs_f64();
    seen
}

async fn unfinished(db: &Db) -> i64 {
    let sql = "SELECT count(*) FROM jobs WHERE state IN ('waiting', 'running')";
    sqlx::query_scalar(sql).fetch_one(&db.platform).await.expect("look")
}

pub(crate) async fn wait_for_end(db: &Db) {
    while unfinished(db).await > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn enqueue(db: &Db, tenants: &[TenantId], size: Size) {
    let mut transaction = db.platform.begin().await.expect("begin");
    for number in 0..size.jobs {
        let tenant = tenants[number.cast_unsigned() as usize % tenants.len()];
        let work =
            Effects { tenant, name: format!("effects {number}"), steps: STEPS, pause_ms: size.pause_ms };
        let queue = jobs::Queue::ALL[number.cast_unsigned() as usize % 7 % 3];
        jobs::enqueue_in(&mut transaction, queue, &work, "stress").await.expect("enqueue");
    }
    for harm in Harm::ALL {
        for number in 0..size.poisons_of_each_sort {
            enqueue_poison(&mut transaction, harm, format!("{harm:?} {number}")).await;
        }
    }
    transaction.commit().await.expect("commit");
}

async fn enqueue_poison(connection: &mut PgConnection, harm: Harm, name: String) {
    jobs::enqueue(connection, &Poison { name, harm }, "stress").await.expect("enqueue");
}

/// Poison while nothing else does harm: how often each is tried is exact. Those that end the process come one by one,
/// for each ends the tries of the others that are under way.
async fn poison_alone(db: &Db, size: Size, workers: &mut [Worker]) {
    let mut wait = async || {
        while unfinished(db).await > 0 {
            for worker in workers.iter_mut() {
                worker.keep_running();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut connection = db.platform.acquire().await.expect("connect");
    for number in 0..size.poisons_of_each_sort {
        for harm in [Harm::Fails, Harm::Panics] {
            enqueue_poison(&mut connection, harm, format!("{ALONE} {harm:?} {number}")).await;
        }
    }
    wait().await;
    for number in 0..size.poisons_of_each_sort {
        enqueue_poison(&mut connection, Harm::Kills, format!("{ALONE} kills {number}")).await;
        wait().await;
    }
}

/// What the names begin with of poison that was tried without other harm.
const ALONE: &str = "alone";

/// Notes what a worker has in hand, which it will do no more with.
async fn note_cut(db: &Db, worker: &Worker) {
    sqlx::query(
        "INSERT INTO public.cuts SELECT id, fence, clock_timestamp() FROM jobs WHERE state = 'running' AND node = $1",
    )
    .bind(&worker.node)
    .execute(&db.platform)
    .await
    .expect("note");
}

/// Waits until every worker has something in hand.
async fn wait_until_all_work(db: &Db, workers: usize) {
    let sql = "SELECT count(DISTINCT node) FROM jobs WHERE state = 'running'";
    loop {
        let working: i64 = sqlx::query_scalar(sql).fetch_one(&db.platform).await.expect("look");
        if working == i64::try_from(workers).unwrap_or(0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Kills and stops workers at random moments until all jobs have ended. All are there afterwards.
async fn harm(server: &'static Server, db: &Db, size: Size) -> (Vec<Worker>, Redis) {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut redis = Redis::start();
    let mut redis_is_down = false;
    let mut workers: Vec<Worker> =
        (0..size.workers).map(|number| Worker::start(server, number, 16, &redis.url())).collect();
    // Those that are stopped, or killed and not started again for a while.
    let mut silent: Vec<(usize, Instant)> = Vec::new();
    wait_until_all_work(db, workers.len()).await;
    let (mut kills, mut stops) = (size.kills, size.stops);
    let deadline = Instant::now() + Duration::from_secs(900);
    loop {
        silent.retain(|(worker, since)| {
            let over = since.elapsed() > SILENT_FOR;
            if over {
                workers[*worker].signal(Signal::CONT);
            }
            !over
        });
        let is_silent =
            |silent: &[(usize, Instant)], number| silent.iter().any(|(worker, _)| *worker == number);
        let chosen = random.random_range(0..workers.len());
        if !is_silent(&silent, chosen) {
            // One stays, so that what the others lose is taken over.
            let may_be_silent = silent.len() + 1 < workers.len();
            if stops > 0 && may_be_silent {
                workers[chosen].signal(Signal::STOP);
                note_cut(db, &workers[chosen]).await;
                silent.push((chosen, Instant::now()));
                stops -= 1;
            } else if kills > 0 {
                workers[chosen].signal(Signal::KILL);
                note_cut(db, &workers[chosen]).await;
                // Another takes over what it had, or the next process of its name does.
                if may_be_silent && random.random() {
                    silent.push((chosen, Instant::now()));
                }
                kills -= 1;
            }
        }
        for (number, worker) in workers.iter_mut().enumerate() {
            if !is_silent(&silent, number) {
                worker.keep_running();
            }
        }
        // Forgotten, killed or back: nobody may depend on it.
        match (random.random_range(0..8), redis_is_down) {
            (0, false) => drop(redis.cli(&["FLUSHALL"])),
            (1, false) => {
                redis.kill();
                redis_is_down = true;
            }
            (2, true) => {
                redis.start_again();
                redis_is_down = false;
            }
            _ => {}
        }
        let unfinished = unfinished(db).await;
        if unfinished == 0 && silent.is_empty() {
            assert_eq!((kills, stops), (0, 0), "the run was too short for its harm");
            if redis_is_down {
                redis.start_again();
            }
            return (workers, redis);
        }
        assert!(Instant::now() < deadline, "{unfinished} jobs are unfinished");
        tokio::time::sleep(Duration::from_millis(random.random_range(100..500))).await;
    }
}

async fn look(db: &Db, size: Size) -> Seen {
    let number = async |what: &str, sql: &'static str| -> i64 {
        let count = sqlx::query_scalar(sql).bind(STEPS).fetch_one(&db.platform).await.expect("look");
        if count != 0 {
            println!("{count} {what}");
        }
        count
    };
    let mut violations = 0;
    violations += number(
        "jobs did not succeed",
        "SELECT count(*) FROM jobs WHERE kind = 'effects' AND (state <> 'succeeded' OR steps_done <> $1 - 1)",
    )
    .await;
    violations += number(
        "results are not those of the effects",
        "SELECT count(*) FROM jobs j WHERE kind = 'effects' AND (SELECT jsonb_agg(token ORDER BY step) FROM effects e
             WHERE e.job = j.id HAVING count(*) = $1) IS DISTINCT FROM j.result -> 'tokens'",
    )
    .await;
    violations += number(
        "saves were made twice or out of turn",
        "SELECT count(*) FROM (
             SELECT count(*) AS times, min(step) AS least, max(step) AS most FROM saved GROUP BY job, steps_done, state) s
         WHERE times <> 1 OR least IS DISTINCT FROM most OR $1 = 0",
    )
    .await;
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE state <> 'failed' OR error IS NULL
                 OR attempts < $1 OR tries > $1 OR (starts_with(dedup_key, $2) AND tries <> $1)),
             count(*)
         FROM (SELECT j.*, (SELECT count(*) FROM tries t WHERE t.job = j.id) AS tries FROM jobs j WHERE kind = 'poison') p",
    )
    .bind(POISON_TRIES)
    .bind(ALONE)
    .fetch_one(&db.platform)
    .await
    .expect("look");
    let (wrong, poisons): (i64, i64) = (row.get(0), row.get(1));
    let all = i64::try_from(size.poisons_of_each_sort * 3 * 2).unwrap_or(0);
    let late = sqlx::query(
        "SELECT count(*), coalesce(max(extract(epoch FROM again.at - cut.at)), 0)::float8
         FROM public.cuts cut JOIN public.claimed_again again
             ON again.job = cut.job AND again.fence = cut.fence + 1",
    )
    .fetch_one(&db.platform)
    .await
    .expect("look");
    Seen {
        violations,
        wrong_tries: wrong + (all - poisons).abs(),
        recovered: late.get(0),
        recovery_seconds: late.get(1),
        seconds: 0.0,
    }
}
