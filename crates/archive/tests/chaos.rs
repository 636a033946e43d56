//! Harm at random: PostgreSQL and the archiver are killed, the store fails, is slow, full, or tears what is written, and
//! backups are cut off. After each run, with the repository alone, everything is there that was acknowledged before the
//! position which the archive had reported; no backup counts that is not whole; and what failed succeeds when it is
//! done again.
//!
//! The seed is printed, and `LOOMWORKS_CHAOS_SEED` gives it; `LOOMWORKS_CHAOS_RUNS` says how many runs there are.

#![expect(clippy::print_stdout, reason = "a run that failed is repeated with its seed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use loomworks_archive::archived::Pushed;
use loomworks_archive::backup::{Backup, BackupError, CopyOptions, Progress};
use loomworks_archive::keys::PassingProvider;
use loomworks_archive::store::{Location, Store};
use loomworks_archive::{ClusterIdentity, Repository, stream};
use loomworks_core::durable;
use loomworks_core::lsn::Lsn;
use loomworks_postgres::{Cluster, PgConnection};
use loomworks_testkit::faulty::{Fault, Faults};
use loomworks_testkit::{Server, free_port};
use object_store::local::LocalFileSystem;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const RUNS: u32 = 6;

const DATABASES: [&str; 2] = ["one", "two"];

const QUIET: &(dyn Fn(Progress) + Send + Sync) = &|_| {};

/// How long anything may take before the test gives up. Nothing is asserted about how long it does take.
const PATIENCE: Duration = Duration::from_secs(120);

struct Dice(u64);

impl Dice {
    fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var_os(name)?.to_str()?.parse().ok()
}

/// A row that a client was told is committed, and where the log was then.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Acknowledged {
    position: Lsn,
    database: usize,
    row: i64,
}

/// What all parts of the test know.
struct Field {
    server: Server,
    provider: Arc<PassingProvider>,
    faults: Faults,
    objects: PathBuf,
    /// Where the archiver receives into, and where it is said which segments are archived.
    received: PathBuf,
    archived: PathBuf,
    /// The repository as somebody sees it to whom nothing happens.
    healthy: Repository,
    begin: Lsn,
    acknowledged: Mutex<Vec<Acknowledged>>,
    /// The newest position up to which the archive has said that all is there.
    reported: AtomicU64,
    /// How many of those positions were within a segment.
    within: AtomicU64,
    rows: AtomicU64,
    /// Why the last segment was not stored.
    refused: Mutex<String>,
    /// No server is to be started meanwhile, but by whoever has stopped it.
    stop: AtomicBool,
}

impl Field {
    async fn make() -> Arc<Self> {
        let server = Server::start().await;
        let archived = server.directory.join("archived");
        let received = server.directory.join("received");
        for directory in [&archived, &received] {
            std::fs::create_dir(directory).unwrap();
            server.cluster.give(directory).unwrap();
        }
        // What `Pusher` has stored is said to be archived. PostgreSQL keeps everything else.
        let command = format!(
            "for n in 1 2 3 4 5 6 7 8 9; do test -e \"{}/%f\" && exit 0; sleep 0.2; done; exit 1",
            archived.display()
        );
        let mut admin = server.cluster.connect("postgres").await.unwrap();
        for (name, value) in [
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("full_page_writes", "on"),
            ("archive_mode", "on"),
            ("archive_command", &*command),
            // So that segments are used again as soon as PostgreSQL believes that they are archived.
            ("min_wal_size", "32MB"),
            ("max_wal_size", "64MB"),
            ("checkpoint_timeout", "30s"),
        ] {
            let value = value.replace('\'', "''");
            admin.execute(AssertSqlSafe(format!("ALTER SYSTEM SET {name} = '{value}'"))).await.unwrap();
        }
        drop(admin);
        server.cluster.stop().await.unwrap();
        server.cluster.start().await.unwrap();
        let mut admin = server.cluster.connect("postgres").await.unwrap();
        for name in DATABASES {
            admin.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
            let mut inside = server.cluster.local("postgres", name).connect().await.unwrap();
            inside.execute("CREATE TABLE ledger (row int8 PRIMARY KEY, words text)").await.unwrap();
        }
        let begin = position(&mut admin).await.unwrap();
        let (system_identifier, segment_bytes) = server.cluster.control_data().await.unwrap();
        let major_version = server.cluster.installation.major_version;
        let identity = ClusterIdentity { system_identifier, segment_bytes, major_version };
        let objects = server.directory.join("repository");
        let provider = Arc::new(PassingProvider::default());
        let store = Store::open(&Location::Directory(objects.clone())).unwrap();
        let healthy = Repository::create_in(store, identity, provider.clone()).await.unwrap();
        Arc::new(Self {
            server,
            provider,
            faults: Faults::default(),
            objects,
            received,
            archived,
            healthy,
            begin: Lsn(begin.0 / segment_bytes * segment_bytes),
            acknowledged: Mutex::default(),
            reported: AtomicU64::new(0),
            within: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            refused: Mutex::default(),
            stop: AtomicBool::new(false),
        })
    }

    fn cluster(&self) -> &Cluster {
        &self.server.cluster
    }

    /// Opens the repository as a process does that has just been started, in the store that fails. `None`: it failed.
    async fn open(&self) -> Option<Repository> {
        let local = Arc::new(LocalFileSystem::new_with_prefix(&self.objects).unwrap());
        let location = Location::Directory(self.objects.clone());
        let store = Store::of(self.faults.around(local), "", location);
        Repository::open_in(store, self.provider.clone()).await.ok()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Kills PostgreSQL's first process; the others end when they notice.
    async fn kill_postgresql(&self) {
        let pids =
            std::fs::read_to_string(self.cluster().directory.join("postmaster.pid")).unwrap_or_default();
        let Some(pid) = pids.lines().next().and_then(|pid| pid.trim().parse().ok()) else { return };
        let Some(pid) = rustix::process::Pid::from_raw(pid) else { return };
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

async fn position(connection: &mut PgConnection) -> sqlx::Result<Lsn> {
    let sql = "SELECT pg_current_wal_insert_lsn()::text";
    let text: String = sqlx::query_scalar(sql).fetch_one(connection).await?;
    Ok(text.parse().expect("a position"))
}

/// A client of a database: commits row after row, and remembers what it was told.
async fn client(field: Arc<Field>, database: usize, seed: u64) {
    let mut dice = Dice(seed);
    while !field.stopped() {
        // It is down, or coming back.
        if let Err(_gone) = client_once(&field, database, &mut dice).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn client_once(field: &Field, database: usize, dice: &mut Dice) -> sqlx::Result<()> {
    let mut connection = field.cluster().local("postgres", DATABASES[database]).connect().await?;
    while !field.stopped() {
        let row = i64::try_from(field.rows.fetch_add(1, Ordering::Relaxed)).expect("a few");
        let words = 1 + dice.below(20);
        let insert = format!("INSERT INTO ledger SELECT {row}, repeat(md5({row}::text), {words})");
        connection.execute(AssertSqlSafe(insert)).await?;
        let position = position(&mut connection).await?;
        field.acknowledged.lock().unwrap().push(Acknowledged { position, database, row });
        match dice.below(240) {
            0 => connection.execute("SELECT pg_switch_wal()").await.map(drop)?,
            1 | 2 => connection.execute("CHECKPOINT").await.map(drop)?,
            3..=6 => {
                let copy = "CREATE TABLE copy AS SELECT * FROM ledger LIMIT 500; DROP TABLE copy";
                connection.execute(sqlx::raw_sql(copy)).await.map(drop)?;
            }
            7 => {
                let more = "CREATE TABLE more AS SELECT md5(n::text) FROM generate_series(1, 20000) n; DROP TABLE more";
                connection.execute(sqlx::raw_sql(more)).await.map(drop)?;
            }
            9 => connection.execute("VACUUM FULL ledger").await.map(drop)?,
            _ => tokio::time::sleep(Duration::from_millis(dice.below(12))).await,
        }
    }
    Ok(())
}

/// What PostgreSQL calls for each segment, in this process: stores it, and only then says so.
async fn pusher(field: Arc<Field>) {
    while !field.stopped() {
        let status = field.cluster().directory.join("pg_wal/archive_status");
        let names = std::fs::read_dir(status).into_iter().flatten().flatten();
        let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        for name in names.iter().filter_map(|name| name.strip_suffix(".ready")) {
            let Some(repository) = field.open().await else { continue };
            let stored = repository.push(&field.cluster().directory.join("pg_wal").join(name)).await;
            match stored {
                Ok(_) => durable::write(&field.archived.join(name), b"").unwrap(),
                Err(error) => *field.refused.lock().unwrap() = format!("{name}: {error:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Asks again and again how far the archive has come, as whoever calls a snapshot ready does.
async fn observer(field: Arc<Field>) {
    let timeline = 1;
    while !field.stopped() {
        // What is removed while it is listed is asked for again.
        if let Ok(Some(reach)) = field.healthy.archived_up_to(timeline).await
            && field.healthy.has(timeline, field.begin, reach).await.unwrap_or(false)
        {
            let before = field.reported.fetch_max(reach.0, Ordering::Relaxed);
            let is_within = reach.0 > before && !reach.0.is_multiple_of(field.healthy.cluster.segment_bytes);
            field.within.fetch_add(u64::from(is_within), Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The archiver, which is there or has been dropped.
struct Archiver {
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
}

impl Archiver {
    async fn start(field: &Arc<Field>) -> Option<Self> {
        let (stop, stopped) = watch::channel(false);
        let repository = field.open().await?;
        let (cluster, received) = (field.cluster().clone(), field.received.clone());
        let running = tokio::spawn(stream::run(repository, cluster, received, stopped));
        Some(Self { stop, running })
    }

    /// Wherever it is, as `kill -9` does.
    async fn drop_it(self) {
        self.running.abort();
        drop((self.running.await, self.stop));
    }
}

/// Lets the archive catch up with nothing in its way.
async fn catch_up(field: &Arc<Field>) {
    field.cluster().start().await.expect("PostgreSQL comes back");
    let mut admin = field.cluster().connect("postgres").await.expect("connect");
    admin.execute("SELECT pg_switch_wal()").await.expect("switch");
    let reach = position(&mut admin).await.expect("the position");
    let caught_up = async {
        loop {
            let up_to = field.healthy.archived_up_to(1).await.expect("ask the archive");
            if up_to >= Some(reach)
                && field.healthy.has(1, field.begin, reach).await.expect("ask the archive")
            {
                break;
            }
            admin.execute("SELECT pg_current_xact_id()").await.expect("write");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, caught_up).await.is_err() {
        let up_to = field.healthy.archived_up_to(1).await;
        let reported = Lsn(field.reported.load(Ordering::Relaxed));
        let (refused, received) = (field.refused.lock().unwrap().clone(), files(&field.received));
        let status = files(&field.cluster().directory.join("pg_wal/archive_status"));
        let stored =
            field.healthy.store().list("wal").await.map(|all| all.into_iter().map(|entry| entry.name));
        let stored: Vec<String> = stored.into_iter().flatten().collect();
        panic!(
            "the archive does not catch up: it is to reach {reach}, its newest is {up_to:?}, all is there to {reported}\n\
             refused last: {refused}\nreceived: {received:?}\nof PostgreSQL: {status:?}\nstored: {:?}",
            &stored[stored.len().saturating_sub(20)..]
        );
    }
    // What PostgreSQL still has is what is stored.
    let wal = field.cluster().directory.join("pg_wal");
    let status = std::fs::read_dir(wal.join("archive_status")).expect("list").flatten();
    for entry in status.filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(name) = entry.strip_suffix(".done").filter(|name| name.len() == 24) else { continue };
        // One that PostgreSQL uses again meanwhile is another one.
        let (path, copy) = (wal.join(name), field.server.directory.join(name));
        if std::fs::copy(&path, &copy).is_ok() && path.exists() {
            let pushed = field.healthy.push(&copy).await.expect("push again");
            assert_eq!(pushed, Pushed::AlreadyThere, "{name}");
        }
        let _ = std::fs::remove_file(copy);
    }
}

fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Takes a backup as the platform does: each step again until it is done.
async fn backup(field: &Field, label: &str) -> Result<Backup, BackupError> {
    let backup = field.healthy.copy_backup(field.cluster(), label, CopyOptions::default(), QUIET).await?;
    commit(&field.healthy, &backup).await.map(|()| backup)
}

async fn commit(repository: &Repository, backup: &Backup) -> Result<(), BackupError> {
    let committed = async {
        loop {
            match repository.commit_backup(backup).await {
                Err(BackupError::WalIncomplete(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
                other => return other,
            }
        }
    };
    tokio::time::timeout(PATIENCE, committed).await.expect("its WAL is archived")
}

/// Brings the cluster back with nothing but the repository, and looks what is there.
async fn look(field: &Field, run: u32) -> BTreeSet<(usize, i64)> {
    // The server's own repository object knows what it saw before. Whoever recovers knows nothing.
    let store = Store::open(&Location::Directory(field.objects.clone())).unwrap();
    let repository = Repository::open_in(store, field.provider.clone()).await.unwrap();
    let plan = repository.plan_recovery(None, loomworks_core::time::now()).await.expect("a plan");
    let directory = field.server.directory.join(format!("back-{run}"));
    let wal = directory.join("pg_wal");
    let (_, replayable) = repository.lay_out_cluster(&plan, &directory, &wal, QUIET).await.expect("lay out");
    let cluster = Cluster {
        installation: field.cluster().installation.clone(),
        directory: directory.clone(),
        socket_directory: field.server.directory.clone(),
        port: free_port(),
    };
    let file = directory.join("postgresql.conf");
    let settings = std::fs::read_to_string(&file).unwrap() + "shared_buffers = '16MB'\n";
    durable::write(&file, settings.as_bytes()).unwrap();
    give(&cluster, &directory);
    cluster.begin_replay().await.expect("the cluster that was brought back starts");
    let replayed = cluster.end_replay().await.expect("it replays").expect("it runs");
    let end = replayable.outcome.end;
    assert!(replayed >= end, "{replayed} was replayed of what was laid out up to {end}");
    let mut found = BTreeSet::new();
    for (database, name) in DATABASES.iter().enumerate() {
        let mut inside = cluster.local("postgres", name).connect().await.expect("connect");
        let sql = "SELECT row FROM ledger WHERE words ~ ('^(' || md5(row::text) || ')+$')";
        let rows: Vec<i64> = sqlx::query_scalar(sql).fetch_all(&mut inside).await.expect("look");
        found.extend(rows.into_iter().map(|row| (database, row)));
    }
    cluster.stop().await.expect("stop");
    std::fs::remove_dir_all(directory).unwrap();
    found
}

fn give(cluster: &Cluster, path: &Path) {
    cluster.give(path).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(cluster, &entry.unwrap().path());
        }
    }
}

/// What the store does in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Fair,
    Fails,
    Slow,
    Full,
    Staged,
    /// The store is not atomic: what was torn has its name, and is put right by whoever stores it again.
    Tears,
}

impl Weather {
    const ALL: [Self; 6] = [Self::Tears, Self::Fails, Self::Slow, Self::Full, Self::Staged, Self::Fair];

    fn begin(self, field: &Field, dice: &mut Dice) {
        field.faults.heal();
        // A key that is damaged is never written anew, lest what it has sealed be lost for good: a person has to look.
        field.faults.only(|operation| !operation.name.starts_with("keys"));
        let seed = dice.below(1 << 31);
        match self {
            Self::Fair => {}
            Self::Fails => field.faults.random(seed, 3, &[Fault::Before, Fault::After, Fault::Conflict]),
            Self::Slow => {
                let slow = [30, 300, 1500].map(|ms| Fault::Slow(Duration::from_millis(ms)));
                field.faults.random(seed, 2, &slow);
            }
            Self::Full => field.faults.space(usize::try_from(dice.below(3_000_000)).expect("a few")),
            Self::Staged => {
                field.faults.random(seed, 3, &[Fault::Staged(field.objects.clone()), Fault::Before]);
            }
            Self::Tears => {
                let torn = [0, 10, 700, 60_000, 100_000].map(Fault::Torn);
                field.faults.random(seed, 3, &torn);
            }
        }
    }
}

/// One run of harm. Gives the label of the backup that was cut off in it.
async fn harm(field: &Arc<Field>, run: u32, dice: &mut Dice) -> Option<String> {
    let mut archiver = Archiver::start(field).await;
    let mut cut = None;
    let mut copying: Option<JoinHandle<()>> = None;
    for _ in 0..2 + dice.below(3) {
        match dice.below(4) {
            0 => {
                field.kill_postgresql().await;
                field.cluster().start().await.expect("PostgreSQL comes back");
            }
            1 => {
                if let Some(archiver) = archiver.take() {
                    archiver.drop_it().await;
                }
                // Now and then its machine is gone too, with what it had received.
                if dice.below(3) == 0 {
                    for entry in std::fs::read_dir(&field.received).unwrap().flatten() {
                        let _ = std::fs::remove_file(entry.path());
                    }
                }
                archiver = Archiver::start(field).await;
            }
            2 if cut.is_none() => {
                let label = format!("cut-{run}");
                cut = Some(label.clone());
                let field = field.clone();
                copying = Some(tokio::spawn(async move {
                    let Some(repository) = field.open().await else { return };
                    let copied =
                        repository.copy_backup(field.cluster(), &label, CopyOptions::default(), QUIET);
                    if let Ok(backup) = copied.await {
                        let _ = repository.commit_backup(&backup).await;
                    }
                }));
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(dice.below(2500))).await;
    }
    if let Some(copying) = copying {
        copying.abort();
        let _ = copying.await;
    }
    if let Some(archiver) = archiver {
        archiver.drop_it().await;
    }
    cut
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_reported_as_archived_is_there_whatever_happened() {
    let seed = number("LOOMWORKS_CHAOS_SEED")
        .unwrap_or_else(|| loomworks_core::time::now().as_second().unsigned_abs());
    let runs = number("LOOMWORKS_CHAOS_RUNS").map_or(RUNS, |runs| u32::try_from(runs).expect("a few"));
    println!("LOOMWORKS_CHAOS_SEED={seed}");
    let mut dice = Dice(seed);
    let field = Field::make().await;
    let begun = std::time::Instant::now();
    let mut known: BTreeSet<String> = BTreeSet::new();
    for run in 0..=runs {
        let weather = Weather::ALL[(run as usize + Weather::ALL.len() - 1) % Weather::ALL.len()];
        let of = format!("seed {seed}, run {run} ({weather:?})");
        field.stop.store(false, Ordering::Relaxed);
        let mut busy = vec![tokio::spawn(pusher(field.clone())), tokio::spawn(observer(field.clone()))];
        for database in 0..DATABASES.len() {
            busy.push(tokio::spawn(client(field.clone(), database, dice.below(1 << 31))));
        }
        field.refused.lock().unwrap().clear();
        weather.begin(&field, &mut dice);
        // The first run has none, for there is no backup yet.
        let cut = if run > 0 { harm(&field, run, &mut dice).await } else { None };
        if weather != Weather::Tears && run > 0 {
            field.stop.store(true, Ordering::Relaxed);
            for task in busy.drain(..) {
                task.await.unwrap();
            }
            check(&field, run, &of).await;
        }
        field.faults.heal();

        // Nothing is in the way any more: all that failed succeeds.
        field.stop.store(false, Ordering::Relaxed);
        if busy.is_empty() {
            busy = vec![tokio::spawn(pusher(field.clone())), tokio::spawn(observer(field.clone()))];
        }
        let archiver = Archiver::start(&field).await.expect("open the repository");
        catch_up(&field).await;
        let labels = cut.into_iter().chain((run % 4 == 0).then(|| format!("whole-{run}")));
        for label in labels {
            let taken =
                backup(&field, &label).await.unwrap_or_else(|error| panic!("{of}: {label}: {error:?}"));
            assert_eq!(backup(&field, &label).await.expect("once more"), taken, "{of}: twice is once");
        }
        field.stop.store(true, Ordering::Relaxed);
        for task in busy {
            task.await.unwrap();
        }
        archiver.drop_it().await;
        for backup in field.healthy.backups().await.expect("list backups") {
            if known.insert(backup.label.clone()) {
                let report = field.healthy.verify_backup(&backup.label, QUIET).await.expect("verify");
                assert!(report.is_sound(), "{of}: {report:?}");
            }
        }
        if weather == Weather::Tears {
            check(&field, run, &of).await;
        }
        println!("{:6.1} s: {of}", begun.elapsed().as_secs_f32());
    }
    let within = field.within.load(Ordering::Relaxed);
    println!("{} backups, {within} positions within a segment", known.len());
    assert!(known.len() > 1 && within > 0);
}

/// Everything that was acknowledged before the reported position is there, and every backup that counts is whole.
async fn check(field: &Field, run: u32, of: &str) {
    let reported = Lsn(field.reported.load(Ordering::Relaxed));
    let acknowledged = field.acknowledged.lock().unwrap().clone();
    let wanted: BTreeSet<(usize, i64)> = acknowledged
        .iter()
        .filter(|row| row.position <= reported)
        .map(|row| (row.database, row.row))
        .collect();
    let found = look(field, run).await;
    let missing: Vec<_> = wanted.difference(&found).collect();
    assert!(missing.is_empty(), "{of}: lost before {reported}, of {}: {missing:?}", wanted.len());
    println!(
        "        {} rows before {reported} are there, {} after it",
        wanted.len(),
        acknowledged.len() - wanted.len()
    );
    for backup in field.healthy.backups().await.expect("list backups") {
        assert!(field.healthy.has_wal_of(&backup).await.expect("ask"), "{of}: {} lacks WAL", backup.label);
    }
}
