//! Servers for these tests: one that writes WAL and keeps all of it, and copies of it that recover.

use std::path::{Path, PathBuf};

use loomworks_core::durable;
use loomworks_postgres::{Cluster, Installation, PgConnection};
use loomworks_testkit::{Reaper, free_port};
use sqlx::Connection;

pub(crate) struct Server {
    pub(crate) cluster: Cluster,
    _directory: tempfile::TempDir,
    _reaper: Reaper,
}

/// What a server is made with.
pub(crate) struct Made<'a> {
    pub(crate) segment_mb: u32,
    /// Recover at each point of the history, or at each other.
    pub(crate) each_point: bool,
    pub(crate) settings: &'a str,
}

impl Server {
    pub(crate) async fn start(installation: &Installation, made: &Made<'_>) -> Self {
        let server = Self::lay_out(installation);
        let directory = server.cluster.directory.to_string_lossy().into_owned();
        let segment = format!("--wal-segsize={}", made.segment_mb);
        let arguments = [
            "-D",
            &directory,
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "-k",
            &segment,
            "--auth=trust",
            "-N",
            "--no-instructions",
        ];
        installation.run("initdb", arguments).await.expect("initdb");
        server.configure(made.settings);
        server.cluster.start().await.expect("start");
        server
    }

    /// A directory for a server, to be filled.
    pub(crate) fn lay_out(installation: &Installation) -> Self {
        // Short: a socket's path has 107 bytes.
        let directory = tempfile::Builder::new().prefix("lww-").tempdir_in("/tmp").expect("a directory");
        let account = installation.account().map(|account| (account.uid, account.gid));
        give(directory.path(), account);
        let cluster = Cluster {
            directory: directory.path().join("data"),
            socket_directory: directory.path().to_owned(),
            port: free_port(),
            installation: installation.clone(),
        };
        let reaper =
            Reaper::watch(&installation.program("pg_ctl"), &cluster.directory, directory.path(), account);
        Self { cluster, _directory: directory, _reaper: reaper }
    }

    /// Replaces the settings of this server by `settings` and those that each has.
    pub(crate) fn configure(&self, settings: &str) {
        let socket = self.cluster.socket_directory.display();
        let text = format!(
            "listen_addresses = ''\nunix_socket_directories = '{socket}'\nport = {}\nfsync = off\n\
             max_connections = 20\nmax_prepared_transactions = 10\nshared_buffers = 32MB\nlock_timeout = 20s\n{settings}\n",
            self.cluster.port
        );
        let path = self.cluster.directory.join("postgresql.conf");
        durable::write(&path, text.as_bytes()).expect("write settings");
        self.cluster.give(&path).expect("give settings");
    }

    /// A connection, once the server takes any: `pg_ctl` does not wait for the end of a recovery without hot standby.
    pub(crate) async fn connect(&self, database: &str) -> PgConnection {
        use sqlx::ConnectOptions;
        let started = std::time::Instant::now();
        loop {
            // Not confined: names mean what they do to a tenant.
            match self.cluster.local("postgres", database).connect().await {
                Ok(connection) => return connection,
                Err(sqlx::Error::Database(error))
                    if error.code().is_some_and(|code| code == "57P03")
                        && started.elapsed().as_secs() < 60 => {}
                Err(error) => {
                    let log = std::fs::read_to_string(self.cluster.directory.join("start.log"));
                    panic!("connect: {error}: {}", log.unwrap_or_default());
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Ends all its processes at once, as a crash does.
    pub(crate) async fn crash(&self) {
        let directory = self.cluster.directory.to_string_lossy().into_owned();
        let arguments = ["stop", "-s", "-m", "immediate", "-D", &directory];
        self.cluster.installation.run("pg_ctl", arguments).await.expect("stop");
    }

    pub(crate) fn wal(&self) -> PathBuf {
        self.cluster.directory.join("pg_wal")
    }
}

/// Copies a data directory: shared files, and of databases only those of `databases`. No WAL, no lock file.
pub(crate) fn copy(from: &Server, to: &Server, databases: &[u32]) {
    let account = to.cluster.installation.account().map(|account| (account.uid, account.gid));
    let skip = |path: &Path| {
        let name = path.strip_prefix(&from.cluster.directory).unwrap_or(path).to_string_lossy().into_owned();
        let database = name.strip_prefix("base/").and_then(|rest| rest.parse::<u32>().ok());
        name.starts_with("pg_wal/")
            || name.starts_with("pg_replslot/")
            || matches!(name.as_str(), "postmaster.pid" | "postmaster.opts" | "start.log")
            || database.is_some_and(|database| !databases.contains(&database))
    };
    copy_tree(&from.cluster.directory, &to.cluster.directory, &skip, account);
    let status = to.cluster.directory.join("pg_wal/archive_status");
    std::fs::create_dir_all(&status).expect("make archive_status");
    give(&status, account);
}

fn copy_tree(from: &Path, to: &Path, skip: &dyn Fn(&Path) -> bool, account: Option<(u32, u32)>) {
    std::fs::create_dir(to).expect("make a directory");
    let mode = std::fs::metadata(from).expect("stat").permissions();
    std::fs::set_permissions(to, mode).expect("set its mode");
    give(to, account);
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("an entry");
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if skip(&path) {
            continue;
        }
        let kind = entry.file_type().expect("its type");
        if kind.is_dir() {
            copy_tree(&path, &target, skip, account);
        } else if kind.is_symlink() {
            let link = std::fs::read_link(&path).expect("a link");
            std::os::unix::fs::symlink(link, &target).expect("link");
        } else {
            match std::fs::copy(&path, &target) {
                // Files come and go while the server runs.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => {
                    copied.expect("copy");
                    give(&target, account);
                }
            }
        }
    }
}

pub(crate) fn give(path: &Path, account: Option<(u32, u32)>) {
    if let Some((uid, gid)) = account {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("give it away");
    }
}

/// Runs statements one by one, each in its own transaction unless they say otherwise.
pub(crate) async fn run(connection: &mut PgConnection, script: &str) {
    for statement in script.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
            .execute(&mut *connection)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

/// The one value of a query, as text.
pub(crate) async fn ask(connection: &mut PgConnection, query: &str) -> String {
    let value: Option<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(query))
        .fetch_one(&mut *connection)
        .await
        .unwrap_or_else(|error| panic!("{query}: {error}"));
    value.unwrap_or_default()
}

pub(crate) async fn close(connection: PgConnection) {
    connection.close().await.expect("disconnect");
}
