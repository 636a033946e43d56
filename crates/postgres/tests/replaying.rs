//! A server that replays while its WAL is brought.

use std::path::{Path, PathBuf};
use std::process::Command;

use loomworks_core::lsn::Lsn;
use loomworks_postgres::sql::run;
use loomworks_postgres::{Cluster, config};
use loomworks_testkit::{Server, free_port};

/// A server, a copy of it as it was before, and the segments that it has written since.
struct Copied {
    server: Server,
    copy: Cluster,
    segments: Vec<PathBuf>,
    end: Lsn,
}

impl Drop for Copied {
    fn drop(&mut self) {
        stop_at_once(&self.copy);
    }
}

fn stop_at_once(cluster: &Cluster) {
    let mut command = cluster.installation.command("pg_ctl").into_std();
    // It fails if it does not run.
    command.args(["stop", "-s", "-m", "immediate", "-D"]).arg(&cluster.directory);
    command.output().expect("run pg_ctl");
}

fn copy(arguments: &[&std::ffi::OsStr]) {
    let output = Command::new("cp").arg("-a").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn text(cluster: &Cluster, sql: &'static str) -> String {
    let mut connection = cluster.connect("postgres").await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
}

async fn execute(cluster: &Cluster, sql: &str) {
    run(&mut cluster.connect("postgres").await.unwrap(), sql.to_owned()).await.unwrap();
}

/// Each of the segments adds a row.
async fn copied() -> Copied {
    let server = Server::start().await;
    let at = &server.cluster;
    execute(at, "CREATE TABLE public.rows (n int)").await;
    execute(at, "ALTER SYSTEM SET wal_keep_size = '1GB'").await;
    at.stop().await.unwrap();
    let copy_of = Cluster {
        directory: server.directory.join("copy"),
        socket_directory: server.directory.clone(),
        port: free_port(),
        installation: at.installation.clone(),
    };
    copy(&[at.directory.as_os_str(), copy_of.directory.as_os_str()]);
    let settings = config::Recovering { socket_directory: &copy_of.socket_directory }.render();
    copy_of.configure(&format!("{settings}port = {}\n", copy_of.port)).unwrap();
    let wal = copy_of.directory.join("pg_wal");
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
    Copied { server, copy: copy_of, segments, end }
}

impl Copied {
    /// Puts a segment into the copy's place for WAL, as it is when it is complete.
    fn bring(&self, segment: &Path) {
        let path = self.copy.directory.join("pg_wal").join(segment.file_name().unwrap());
        let writing = path.with_extension("writing");
        copy(&[segment.as_os_str(), writing.as_os_str()]);
        #[expect(clippy::disallowed_methods, reason = "a test need not survive a crash of the machine")]
        std::fs::rename(writing, path).unwrap();
    }

    async fn rows(&self) -> String {
        text(&self.copy, "SELECT string_agg(n::text, ' ' ORDER BY n) FROM public.rows").await
    }
}

#[tokio::test]
async fn what_comes_while_it_replays_is_replayed_to_its_end() {
    let copied = copied().await;
    copied.bring(&copied.segments[0]);
    copied.copy.begin_replay().await.unwrap();
    for segment in &copied.segments[1..] {
        copied.bring(segment);
    }
    let replayed = copied.copy.end_replay().await.unwrap().expect("it runs");
    assert!(replayed >= copied.end, "{replayed} of {}", copied.end);
    assert_eq!(copied.rows().await, "1 2 3 4");
    // Whoever was cut off while it waited asks again.
    assert_eq!(copied.copy.end_replay().await.unwrap(), Some(replayed));
    // Its own way from here on is nobody's.
    execute(&copied.copy, "INSERT INTO public.rows VALUES (5)").await;
    assert_eq!(text(&copied.server.cluster, "SELECT count(*)::text FROM public.rows").await, "4");
}

#[tokio::test]
async fn where_it_stops_before_a_gap_is_told() {
    let copied = copied().await;
    copied.copy.begin_replay().await.unwrap();
    for at in [0, 1, 3] {
        copied.bring(&copied.segments[at]);
    }
    let replayed = copied.copy.end_replay().await.unwrap().expect("it runs");
    assert!(replayed < copied.end, "{replayed} of {}", copied.end);
    assert_eq!(copied.rows().await, "1 2");
}

#[tokio::test]
async fn one_that_was_cut_off_is_not_there() {
    let copied = copied().await;
    copied.copy.begin_replay().await.unwrap();
    stop_at_once(&copied.copy);
    assert_eq!(copied.copy.end_replay().await.unwrap(), None);
}
