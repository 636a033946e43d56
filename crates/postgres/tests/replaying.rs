//! A server that replays while its WAL is brought.

mod support;

use std::path::{Path, PathBuf};

use loomworks_core::lsn::Lsn;
use loomworks_postgres::Cluster;
use loomworks_testkit::Server;
use support::{Copy, stop_at_once};

/// A server, a copy of it as it was before, and the segments that it has written since.
struct Copied {
    copy: Copy,
    server: Server,
    segments: Vec<PathBuf>,
    end: Lsn,
}

async fn text(cluster: &Cluster, sql: &'static str) -> String {
    support::text(cluster, "postgres", sql).await
}

async fn execute(cluster: &Cluster, sql: &str) {
    support::execute(cluster, "postgres", sql).await.unwrap();
}

/// Each of the segments adds a row.
async fn copied() -> Copied {
    let server = Server::start().await;
    let at = &server.cluster;
    execute(at, "CREATE TABLE public.rows (n int)").await;
    execute(at, "ALTER SYSTEM SET wal_keep_size = '1GB'").await;
    at.stop().await.unwrap();
    let copy = Copy::of(&server);
    let wal = copy.0.directory.join("pg_wal");
    for entry in std::fs::read_dir(&wal).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    at.start().await.unwrap();
    let (mut segments, mut end) = (Vec::new(), Lsn(0));
    for n in 1..=4 {
        execute(at, &format!("INSERT INTO public.rows VALUES ({n})")).await;
        end = text(at, "SELECT pg_current_wal_insert_lsn()::text").await.parse().unwrap();
        let name = text(at, "SELECT pg_walfile_name(pg_switch_wal())").await;
        segments.push(at.directory.join("pg_wal").join(name));
    }
    Copied { server, copy, segments, end }
}

impl Copied {
    /// Puts a segment into the copy's place for WAL, as it is when it is complete.
    fn bring(&self, segment: &Path) {
        let path = self.copy.0.directory.join("pg_wal").join(segment.file_name().unwrap());
        let writing = path.with_extension("writing");
        support::copy(segment, &writing);
        #[expect(clippy::disallowed_methods, reason = "a test need not survive a crash of the machine")]
        std::fs::rename(writing, path).unwrap();
    }

    async fn rows(&self) -> String {
        text(&self.copy.0, "SELECT string_agg(n::text, ' ' ORDER BY n) FROM public.rows").await
    }
}

#[tokio::test]
async fn what_comes_while_it_replays_is_replayed_to_its_end() {
    let copied = copied().await;
    copied.bring(&copied.segments[0]);
    copied.copy.0.begin_replay().await.unwrap();
    for segment in &copied.segments[1..] {
        copied.bring(segment);
    }
    let replayed = copied.copy.0.end_replay().await.unwrap().expect("it runs");
    assert!(replayed >= copied.end, "{replayed} of {}", copied.end);
    assert_eq!(copied.rows().await, "1 2 3 4");
    // Whoever was cut off while it waited asks again.
    assert_eq!(copied.copy.0.end_replay().await.unwrap(), Some(replayed));
    // Its own way from here on is nobody's.
    execute(&copied.copy.0, "INSERT INTO public.rows VALUES (5)").await;
    assert_eq!(text(&copied.server.cluster, "SELECT count(*)::text FROM public.rows").await, "4");
}

#[tokio::test]
async fn where_it_stops_before_a_gap_is_told() {
    let copied = copied().await;
    copied.copy.0.begin_replay().await.unwrap();
    for at in [0, 1, 3] {
        copied.bring(&copied.segments[at]);
    }
    let replayed = copied.copy.0.end_replay().await.unwrap().expect("it runs");
    assert!(replayed < copied.end, "{replayed} of {}", copied.end);
    assert_eq!(copied.rows().await, "1 2");
}

#[tokio::test]
async fn one_that_was_cut_off_is_not_there() {
    let copied = copied().await;
    copied.copy.0.begin_replay().await.unwrap();
    stop_at_once(&copied.copy.0);
    assert_eq!(copied.copy.0.end_replay().await.unwrap(), None);
}
