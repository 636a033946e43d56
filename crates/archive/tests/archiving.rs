//! WAL of a real server into a repository and out of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use loomworks_archive::archived::{PushError, Pushed};
use loomworks_archive::keys::PassingProvider;
use loomworks_archive::store::{Location, Store};
use loomworks_archive::{ClusterIdentity, Repository, RepositoryError, stream};
use loomworks_core::lsn::{Lsn, Segment};
use loomworks_postgres::{PgConnection, receive};
use loomworks_testkit::Server;
use sqlx::{AssertSqlSafe, Executor};
use tokio::sync::watch;

struct Setting {
    server: Server,
    store: Store,
    provider: Arc<PassingProvider>,
    repository: Repository,
    admin: PgConnection,
}

async fn setting() -> Setting {
    let server = Server::start().await;
    let mut admin = server.cluster.connect("postgres").await.unwrap();
    admin.execute("ALTER SYSTEM SET wal_keep_size = '4GB'").await.unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();
    let (system_identifier, segment_bytes) = server.cluster.control_data().await.unwrap();
    let cluster = ClusterIdentity { system_identifier, segment_bytes, major_version: 15 };
    let store = Store::open(&Location::Directory(server.directory.join("repository"))).unwrap();
    let provider = Arc::new(PassingProvider::default());
    let repository = Repository::create_in(store.clone(), cluster, provider.clone()).await.unwrap();
    Setting { server, store, provider, repository, admin }
}

impl Setting {
    async fn run(&mut self, database: &str, sql: String) {
        let mut inside = self.server.cluster.connect(database).await.unwrap();
        inside.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    }

    /// Two tenants who write, and the segments that are complete then.
    async fn history(&mut self) -> Vec<PathBuf> {
        for name in ["one", "two"] {
            self.run("postgres", format!("CREATE DATABASE {name}")).await;
        }
        for round in 0..3 {
            for name in ["one", "two"] {
                let sql = format!(
                    "CREATE TABLE public.t{round} AS SELECT n, repeat('marker of {name} ', 10) AS words
                     FROM generate_series(1, 20000) n;
                     CREATE INDEX ON public.t{round} (n); DELETE FROM public.t{round} WHERE n % 3 = 0"
                );
                self.run(name, sql).await;
            }
            self.admin.execute("SELECT pg_switch_wal()").await.unwrap();
        }
        self.segments().await
    }

    /// The segments that are complete.
    async fn segments(&mut self) -> Vec<PathBuf> {
        let current: String = sqlx::query_scalar("SELECT pg_walfile_name(pg_current_wal_lsn())")
            .fetch_one(&mut self.admin)
            .await
            .unwrap();
        let directory = self.server.cluster.directory.join("pg_wal");
        let names = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name.len() == 24 && *name < current);
        names.sort();
        names.into_iter().map(|name| directory.join(name)).collect()
    }

    async fn oid(&mut self, name: &str) -> u32 {
        let oid: i64 = sqlx::query_scalar("SELECT oid::int8 FROM pg_database WHERE datname = $1")
            .bind(name)
            .fetch_one(&mut self.admin)
            .await
            .unwrap();
        u32::try_from(oid).unwrap()
    }

    async fn flushed(&mut self) -> Lsn {
        let text: String = sqlx::query_scalar("SELECT pg_current_wal_flush_lsn()::text")
            .fetch_one(&mut self.admin)
            .await
            .unwrap();
        text.parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_come_back_as_they_were_and_each_database_is_sealed_by_itself() {
    let mut setting = setting().await;
    let segments = setting.history().await;
    assert!(segments.len() >= 3, "{segments:?}");
    for path in &segments {
        assert_eq!(setting.repository.push(path).await.unwrap(), Pushed::Stored);
    }
    let last = segments[segments.len() - 1].file_name().unwrap().to_str().unwrap();
    let last = Segment::from_file_name(last, 16 << 20);
    let (first, end) = (Lsn(16 << 20), last.unwrap().end(16 << 20));
    assert!(setting.repository.has(1, first, end).await.unwrap());
    assert_eq!(setting.repository.archived_up_to(1).await.unwrap(), Some(end));

    // A process that knows nothing of the first gives everything back.
    let other = Repository::open_in(setting.store.clone(), setting.provider.clone()).await.unwrap();
    let to = setting.server.directory.join("fetched");
    for path in &segments {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(other.fetch(name, &to).await.unwrap());
        assert!(std::fs::read(&to).unwrap() == std::fs::read(path).unwrap(), "{name} is not what it was");
        assert_eq!(other.push(path).await.unwrap(), Pushed::AlreadyThere);
    }
    assert!(!other.fetch("0000000100000000000000FF", &to).await.unwrap());

    // One tenant's key goes: its WAL is read by nobody, its neighbour's streams still open.
    let (one, two) = (setting.oid("one").await, setting.oid("two").await);
    setting.repository.keys().erase(one).await.unwrap();
    let without = Repository::open_in(setting.store.clone(), setting.provider.clone()).await.unwrap();
    assert!(without.keys().has(two).await.unwrap() && !without.keys().has(one).await.unwrap());
    let mut refused = 0;
    for path in &segments {
        match without.fetch(path.file_name().unwrap().to_str().unwrap(), &to).await {
            Err(RepositoryError::Damaged { why, .. }) if why.contains(&one.to_string()) => refused += 1,
            fetched => assert!(fetched.unwrap(), "a segment without its records is whole"),
        }
    }
    assert!(refused >= 2, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_archived_of_a_database_after_its_key_was_deleted_is_sealed_for_nobody() {
    let mut setting = setting().await;
    let segments = setting.history().await;
    let (one, two) = (setting.oid("one").await, setting.oid("two").await);
    let (first, later) = segments.split_first().unwrap();
    setting.repository.push(first).await.unwrap();
    setting.repository.keys().erase(one).await.unwrap();
    for path in later {
        assert_eq!(setting.repository.push(path).await.unwrap(), Pushed::Stored);
        assert_eq!(setting.repository.push(path).await.unwrap(), Pushed::AlreadyThere);
    }
    let other = Repository::open_in(setting.store.clone(), setting.provider.clone()).await.unwrap();
    let (mut of_two, mut closed) = (0, 0);
    for entry in setting.store.list("wal").await.unwrap() {
        let readable = other.readable(&entry.name).await.unwrap();
        assert!(readable.closed.iter().all(|oid| *oid == one), "{readable:?}");
        closed += readable.closed.len();
        for (oid, content) in readable.parts {
            let text = String::from_utf8_lossy(&content);
            assert!(!text.contains("marker of one"), "{} says something of it in {oid}", entry.name);
            assert!(oid == two || !text.contains("marker of two"), "{} has rows of it in {oid}", entry.name);
            of_two += usize::from(text.contains("marker of two"));
        }
    }
    assert!(closed >= 2 && of_two >= 2, "{closed} {of_two}");
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_that_come_out_of_order_leave_no_rows_in_what_all_share() {
    let mut setting = setting().await;
    setting.run("postgres", "CREATE DATABASE one".into()).await;
    // So much without a switch that records cross from segment to segment.
    let sql = "CREATE TABLE public.big AS SELECT n, repeat('marker of one ', 100) AS words
               FROM generate_series(1, 40000) n; SELECT pg_switch_wal()";
    setting.run("one", sql.into()).await;
    let segments = setting.segments().await;
    // Without its neighbours a segment that begins within a record waits for the one before it, but for the first.
    let alone = setting.server.directory.join("alone");
    std::fs::create_dir(&alone).unwrap();
    let alone = alone.join(segments[2].file_name().unwrap());
    std::fs::copy(&segments[2], &alone).unwrap();
    setting.repository.push(&segments[0]).await.unwrap();
    let refused = setting.repository.push(&alone).await.unwrap_err();
    assert!(matches!(refused, PushError::OutOfOrder { .. }) && refused.hint().is_some(), "{refused}");
    for path in segments.iter().rev() {
        setting.repository.push(path).await.unwrap();
    }
    let to = setting.server.directory.join("fetched");
    for path in &segments {
        assert!(setting.repository.fetch(path.file_name().unwrap().to_str().unwrap(), &to).await.unwrap());
        assert!(std::fs::read(&to).unwrap() == std::fs::read(path).unwrap(), "{}", path.display());
    }
    let one = setting.oid("one").await;
    for entry in setting.store.list("wal").await.unwrap() {
        for (oid, content) in setting.repository.readable(&entry.name).await.unwrap().parts {
            let holds = String::from_utf8_lossy(&content).contains("marker of one");
            assert!(oid == one || !holds, "{} has rows of it in the stream of {oid}", entry.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_segment_of_this_cluster_is_refused_and_loses_nothing() {
    let mut setting = setting().await;
    let segments = setting.history().await;
    let (repository, directory) = (&setting.repository, setting.server.directory.join("wrong"));
    std::fs::create_dir(&directory).unwrap();
    let content = std::fs::read(&segments[0]).unwrap();
    let name = segments[0].file_name().unwrap().to_str().unwrap();
    let put = |name: &str, content: &[u8]| {
        let path = directory.join(name);
        loomworks_core::durable::write(&path, content).unwrap();
        path
    };
    let short = put(name, &content[..content.len() - 1]);
    assert!(matches!(repository.push(&short).await, Err(PushError::NotASegment { .. })));
    let misnamed = put("000000010000000000000077", &content);
    assert!(matches!(repository.push(&misnamed).await, Err(PushError::Misnamed { .. })));
    let mut foreign = content.clone();
    foreign[24] ^= 1;
    assert!(matches!(repository.push(&put(name, &foreign)).await, Err(PushError::OtherCluster { .. })));
    let mut unknown = content.clone();
    unknown[0] ^= 0x40;
    assert!(matches!(repository.push(&put(name, &unknown)).await, Err(PushError::Version { .. })));
    for name in ["passwd", "../../etc/passwd", "0000000100000000000000zz", "1.history", ".partial"] {
        assert!(matches!(repository.push(&directory.join(name)).await, Err(PushError::Name(_))), "{name}");
        assert!(!repository.fetch(name, &directory.join("to")).await.unwrap(), "{name}");
    }
    assert_eq!(repository.push(&segments[0]).await.unwrap(), Pushed::Stored);
    let mut other = content.clone();
    let middle = other.len() / 2;
    other[middle] ^= 1;
    let error = repository.push(&put(name, &other)).await.unwrap_err();
    assert!(matches!(error, PushError::Differs(_)) && error.hint().is_some(), "{error}");
    let to = directory.join("to");
    assert!(repository.fetch(name, &to).await.unwrap() && std::fs::read(&to).unwrap() == content);

    // Flipped, cut, or another segment's in its place: an error, never other bytes.
    assert_eq!(repository.push(&segments[1]).await.unwrap(), Pushed::Stored);
    let object = format!("wal/00000001/{name}");
    let whole = setting.store.get(&object).await.unwrap().unwrap();
    let neighbour = format!("wal/00000001/{}", segments[1].file_name().unwrap().to_str().unwrap());
    let neighbour = setting.store.get(&neighbour).await.unwrap().unwrap();
    let mut damaged = vec![neighbour, Bytes::new(), whole.slice(..10), whole.slice(..whole.len() - 1)];
    // Whoever has the segment puts it right: what is there in part would keep it out for ever, and PostgreSQL would be told
    // that it may remove what nobody has whole.
    for bytes in &damaged {
        setting.store.replace(&object, bytes.clone()).await.unwrap();
        assert_eq!(repository.push(&segments[0]).await.unwrap(), Pushed::Stored);
        assert!(repository.fetch(name, &to).await.unwrap() && std::fs::read(&to).unwrap() == content);
    }
    for at in (0..whole.len()).step_by(whole.len() / 150) {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << (at % 8);
        damaged.push(bytes.into());
    }
    for bytes in damaged {
        setting.store.replace(&object, bytes).await.unwrap();
        let fetched = repository.fetch(name, &to).await;
        assert!(matches!(fetched, Err(RepositoryError::Damaged { .. })), "{fetched:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_is_seconds_behind_and_goes_on_where_it_was() {
    let mut setting = setting().await;
    setting.run("postgres", "CREATE DATABASE one".into()).await;
    let directory = setting.server.directory.join("received");
    std::fs::create_dir(&directory).unwrap();
    setting.server.cluster.give(&directory).unwrap();
    let begin = setting.flushed().await;
    for round in 0..3 {
        let (stop, stopped) = watch::channel(false);
        // A process that knows nothing of the one before.
        let repository = Repository::open_in(setting.store.clone(), setting.provider.clone()).await.unwrap();
        let cluster = setting.server.cluster.clone();
        let running = tokio::spawn(stream::run(repository, cluster, directory.clone(), stopped));
        for step in 0..3 {
            let rows = if step == 1 { 100_000 } else { 500 };
            let sql = format!(
                "CREATE TABLE public.r{round}_{step} AS SELECT n, md5(n::text) FROM generate_series(1, {rows}) n"
            );
            setting.run("one", sql).await;
            let reached = setting.flushed().await;
            let arrived = async {
                while setting.repository.archived_up_to(1).await.unwrap() < Some(reached) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), arrived)
                .await
                .expect("it arrives without a switch");
            assert!(setting.repository.has(1, begin, reached).await.unwrap());
        }
        stop.send_replace(true);
        running.await.unwrap();
    }
    // What archive_command would have stored is what came by the stream.
    setting.admin.execute("SELECT pg_switch_wal()").await.unwrap();
    let wal = setting.server.cluster.directory.join("pg_wal");
    let mut same = 0;
    for entry in setting.store.list("wal/00000001").await.unwrap() {
        let name = entry.name.rsplit('/').next().unwrap().to_owned();
        if name.len() == 24 {
            assert_eq!(setting.repository.push(&wal.join(&name)).await.unwrap(), Pushed::AlreadyThere);
            let pieces = setting.store.list(&format!("{}.pieces", entry.name)).await.unwrap();
            assert!(pieces.is_empty(), "a segment that is stored whole needs no pieces: {pieces:?}");
            same += 1;
        }
    }
    assert!(same >= 2, "{same}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_whose_process_was_killed_gives_the_slot_up() {
    let setting = setting().await;
    let directory = setting.server.directory.join("received");
    std::fs::create_dir(&directory).unwrap();
    setting.server.cluster.give(&directory).unwrap();
    let cluster = &setting.server.cluster;
    receive::ensure_slot(cluster, stream::SLOT).await.unwrap();
    let mut orphan = receive::start(cluster, stream::SLOT, &directory).unwrap();
    while !receive::slot(cluster, stream::SLOT).await.unwrap().unwrap().active {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    receive::ensure_slot(cluster, stream::SLOT).await.unwrap();
    assert!(!orphan.wait().await.unwrap().success(), "it ended, as its connection did");
    let mut next = receive::start(cluster, stream::SLOT, &directory).unwrap();
    while !receive::slot(cluster, stream::SLOT).await.unwrap().unwrap().active {
        assert!(next.try_wait().unwrap().is_none(), "the slot is free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
