//! What the tests of backups stand on: a server with a repository beside it, and clusters that are brought back.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use loomworks_archive::backup::{
    Backup, BackupError, CopyOptions, Databases, LaidOut, LayOutOptions, Progress,
};
use loomworks_archive::keys::PassingProvider;
use loomworks_archive::store::{Location, Store};
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_core::lsn::Segment;
use loomworks_postgres::{Cluster, PgConnection};
use loomworks_testkit::faulty::{Fault, Faults, Kind};
use loomworks_testkit::{Server, free_port};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use sqlx::{AssertSqlSafe, ConnectOptions};

pub const QUIET: &(dyn Fn(Progress) + Send + Sync) = &|_| {};

/// A server of its own, with databases and a repository.
pub struct Fixture {
    pub server: Server,
    pub repository: Repository,
    pub provider: Arc<PassingProvider>,
    pub faults: Faults,
    /// Where the repository's objects are.
    pub objects: PathBuf,
    identity: ClusterIdentity,
    made: AtomicU32,
    _directory: tempfile::TempDir,
}

impl Fixture {
    pub async fn new() -> Self {
        let server = Server::start().await;
        let mut admin = server.cluster.connect("postgres").await.unwrap();
        run(&mut admin, "ALTER SYSTEM SET wal_keep_size = '2GB'").await;
        run(&mut admin, "ALTER SYSTEM SET allow_in_place_tablespaces = on").await;
        run(&mut admin, "SELECT pg_reload_conf()").await;
        let (system_identifier, segment_bytes) = server.cluster.control_data().await.unwrap();
        let identity = ClusterIdentity {
            system_identifier,
            segment_bytes,
            major_version: server.cluster.installation.major_version,
        };
        let directory = tempfile::tempdir().unwrap();
        let objects = directory.path().join("repository");
        std::fs::create_dir(&objects).unwrap();
        let faults = Faults::default();
        let provider = Arc::new(PassingProvider::default());
        let store = store(&objects, &faults);
        let repository = Repository::create_in(store, identity.clone(), provider.clone()).await.unwrap();
        Self {
            server,
            repository,
            provider,
            faults,
            objects,
            identity,
            made: AtomicU32::new(0),
            _directory: directory,
        }
    }

    pub fn cluster(&self) -> &Cluster {
        &self.server.cluster
    }

    /// Lets the store die at the change after so many: nothing is read any more either.
    pub fn die(&self, after: u64, fault: Fault) {
        self.faults.heal();
        self.faults.only(|operation| matches!(operation.kind, Kind::Write | Kind::Remove));
        self.faults.crash_at(after + 1, fault);
    }

    /// Lets it live again, and says whether it had died.
    pub fn revive(&self) -> bool {
        let had_died = self.faults.has_crashed();
        self.faults.heal();
        had_died
    }

    /// Opens the repository anew, as another process would.
    pub async fn reopened(&self) -> Repository {
        let store = store(&self.objects, &self.faults);
        Repository::create_in(store, self.identity.clone(), self.provider.clone()).await.unwrap()
    }

    pub async fn connect(&self, database: &str) -> PgConnection {
        self.server.cluster.local("postgres", database).connect().await.unwrap()
    }

    /// Makes a database with a table of so many rows and gives its oid.
    pub async fn database(&self, name: &str, rows: u32) -> u32 {
        let mut admin = self.connect("postgres").await;
        run(&mut admin, &format!("CREATE DATABASE {name}")).await;
        let mut connection = self.connect(name).await;
        let table = "CREATE TABLE items (id int PRIMARY KEY, note text)";
        run(&mut connection, table).await;
        let fill = format!(
            "INSERT INTO items SELECT n, md5(n::text) || md5((n + 1)::text) FROM generate_series(1, {rows}) n"
        );
        run(&mut connection, &fill).await;
        oid_of(&mut connection).await
    }

    pub async fn copy(&self, label: &str) -> Result<Backup, BackupError> {
        self.repository.copy_backup(self.cluster(), label, CopyOptions::default(), QUIET).await
    }

    /// Takes a backup from begin to end.
    pub async fn backup(&self, label: &str) -> Backup {
        let backup = self.copy(label).await.unwrap();
        self.archive_wal(&backup).await;
        self.repository.commit_backup(&backup).await.unwrap();
        backup
    }

    /// Lets the WAL of a backup count as archived.
    pub async fn archive_wal(&self, backup: &Backup) {
        let bytes = self.identity.segment_bytes;
        let first = Segment::at(backup.timeline, backup.start, bytes).number;
        for number in first..=Segment::before(backup.timeline, backup.end, bytes).number {
            let segment = Segment { timeline: backup.timeline, number };
            let name = format!("wal/{:08X}/{}", backup.timeline, segment.file_name(bytes));
            self.repository.store().put_new(&name, "placeholder".into()).await.unwrap();
        }
    }

    pub fn directory(&self) -> PathBuf {
        self.server.directory.join(format!("back-{}", self.made.fetch_add(1, Ordering::Relaxed)))
    }

    pub async fn lay_out(&self, backup: &Backup, which: &Databases) -> (PathBuf, LaidOut) {
        self.try_lay_out(backup, which).await.unwrap()
    }

    pub async fn try_lay_out(
        &self,
        backup: &Backup,
        which: &Databases,
    ) -> Result<(PathBuf, LaidOut), BackupError> {
        let into = self.directory();
        let laid_out = self.repository.lay_out(backup, which, &into, LayOutOptions::default(), QUIET).await?;
        Ok((into, laid_out))
    }

    /// Starts a cluster that was laid out, with all WAL that the server has.
    pub async fn start(&self, directory: &Path) -> Restored {
        let mut admin = self.connect("postgres").await;
        // What was committed asynchronously is on its way.
        run(&mut admin, "SELECT pg_switch_wal()").await;
        let wal = self.cluster().directory.join("pg_wal");
        for entry in std::fs::read_dir(wal).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), directory.join("pg_wal").join(entry.file_name())).unwrap();
            }
        }
        let cluster = Cluster {
            installation: self.cluster().installation.clone(),
            directory: directory.to_owned(),
            socket_directory: self.cluster().socket_directory.clone(),
            port: free_port(),
        };
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nautovacuum = off\n\
             shared_buffers = '16MB'\narchive_mode = off\nallow_in_place_tablespaces = on\n",
            cluster.socket_directory.display(),
        );
        cluster.configure(&settings).unwrap();
        give(&cluster, directory);
        let restored = Restored { cluster };
        restored.cluster.start().await.unwrap();
        restored
    }
}

impl Drop for Fixture {
    /// What was laid out and never started is ours: the server's account cannot remove it.
    fn drop(&mut self) {
        for number in 0..self.made.load(Ordering::Relaxed) {
            let _ = std::fs::remove_dir_all(self.server.directory.join(format!("back-{number}")));
        }
    }
}

fn store(objects: &Path, faults: &Faults) -> Store {
    let local: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(objects).unwrap());
    Store::of(faults.around(local), "", Location::Directory(objects.to_owned()))
}

/// Gives a directory with all that is in it to the server's account.
fn give(cluster: &Cluster, path: &Path) {
    cluster.give(path).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(cluster, &entry.unwrap().path());
        }
    }
}

/// A cluster that was brought back. Ends with the test.
pub struct Restored {
    pub cluster: Cluster,
}

impl Restored {
    pub async fn connect(&self, database: &str) -> PgConnection {
        self.cluster.local("postgres", database).connect().await.unwrap()
    }

    /// Lets PostgreSQL's own program look for damage.
    pub async fn check(&self, database: &str) {
        let (socket, port) = (self.cluster.socket_directory.to_string_lossy(), self.cluster.port.to_string());
        let arguments = [
            "-h",
            &socket,
            "-p",
            &port,
            "-U",
            "postgres",
            "--install-missing",
            "--heapallindexed",
            "-d",
            database,
        ];
        self.cluster.installation.run("pg_amcheck", arguments).await.unwrap();
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let mut command = self.cluster.installation.command("pg_ctl");
        command.args(["stop", "-s", "-m", "immediate", "-D"]).arg(&self.cluster.directory);
        let _ = command.as_std_mut().status();
    }
}

pub fn only(oids: impl IntoIterator<Item = u32>) -> Databases {
    Databases::Only(oids.into_iter().collect::<BTreeSet<_>>())
}

pub async fn run(connection: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.unwrap();
}

pub async fn text(connection: &mut PgConnection, query: &str) -> String {
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(connection).await.unwrap()
}

pub async fn oid_of(connection: &mut PgConnection) -> u32 {
    text(connection, "SELECT oid::text FROM pg_database WHERE datname = current_database()")
        .await
        .parse()
        .unwrap()
}

/// Tells the content of a table from every other.
pub async fn digest(connection: &mut PgConnection, table: &str) -> String {
    let query = format!(
        "SELECT count(*) || ' ' || coalesce(md5(string_agg(row::text, ',' ORDER BY row::text)), '') FROM {table} AS row"
    );
    text(connection, &query).await
}

/// All files below a directory, with what is in them.
pub fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let content = std::fs::read(&path).unwrap();
                all.push((path, content));
            }
        }
    }
    all.sort_unstable();
    all
}
