//! One private PostgreSQL server for a test program, a database for each test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use loomworks_core::{ExposeSecret, SecretString};
use loomworks_postgres::cluster::{SUPERUSER, account};
use loomworks_postgres::{Cluster, Installation, PgConnectOptions, PgConnection, config, databases};
use sqlx::ConnectOptions;
use tokio::sync::OnceCell;

use crate::reaper::Reaper;

/// A running server.
pub struct Server {
    pub cluster: Cluster,
    /// A directory the server's account can write, removed with the server.
    pub directory: PathBuf,
    made: AtomicU32,
    _reaper: Reaper,
}

/// Roles that tests may use on the socket, as the product's own cluster allows them.
const SOCKET_ROLES: [&str; 3] = ["loomworks_platform", "loomworks_api", "loomworks_undo"];

static SHARED: OnceCell<Server> = OnceCell::const_new();

/// The test program's server. Fast rather than safe: it has nothing to keep.
pub async fn server() -> &'static Server {
    SHARED.get_or_init(Server::start).await
}

/// PostgreSQL's programs, run as a user whom PostgreSQL accepts when the tests run as root.
pub async fn installation() -> Installation {
    unprivileged(Installation::find(None).await.expect("PostgreSQL 15 or later is installed"))
}

/// PostgreSQL's server programs of another major version: where `LOOMWORKS_PG_BIN_<major>` says, or where
/// `scripts/fetch-postgresql.sh` puts them. `None` when they are not there.
pub async fn installation_of(major: u32) -> Option<Installation> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/postgresql/{major}/bin"));
    let bin = std::env::var_os(format!("LOOMWORKS_PG_BIN_{major}")).map_or(fetched, PathBuf::from);
    if !bin.join("postgres").exists() {
        return None;
    }
    let bin = bin.canonicalize().expect("the programs' directory");
    let found = Installation::find(Some(&bin)).await.expect("the programs run");
    assert_eq!(found.major_version, major, "{}", bin.display());
    Some(unprivileged(found))
}

fn unprivileged(installation: Installation) -> Installation {
    if rustix::process::geteuid().is_root() {
        installation.as_account(account("postgres").expect("a user `postgres`, made by the package"))
    } else {
        installation
    }
}

impl Server {
    /// One more, for tests that need what is a server's only once to themselves.
    pub async fn start() -> Self {
        Self::start_with(installation().await).await
    }

    /// The same with programs of another version.
    pub async fn start_with(installation: Installation) -> Self {
        // Short: a socket's path has 107 bytes.
        let directory =
            tempfile::Builder::new().prefix("lwt-").tempdir_in("/tmp").expect("a directory").keep();
        let uid = installation.account().map(|account| (account.uid, account.gid));
        if let Some((uid, gid)) = uid {
            std::os::unix::fs::chown(&directory, Some(uid), Some(gid)).expect("give the directory away");
        }
        let cluster = Cluster {
            directory: directory.join("data"),
            socket_directory: directory.clone(),
            port: free_port(),
            installation,
        };
        cluster.init(&SOCKET_ROLES).await.expect("initdb");
        let pg_ctl = cluster.installation.program("pg_ctl");
        let reaper = Reaper::watch(&pg_ctl, &cluster.directory, &directory, uid);
        let log = cluster.directory.join("log");
        let settings = config::Serving {
            port: cluster.port,
            socket_directory: &cluster.socket_directory,
            log_directory: &log,
            shared_buffers: 64,
            archive_command: None,
        };
        let fast = "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n\
                    max_prepared_transactions = 10\nmax_wal_size = '4GB'\n";
        cluster.configure(&(settings.render() + fast)).expect("configure");
        cluster.start().await.expect("start");
        Self { cluster, directory, made: AtomicU32::new(0), _reaper: reaper }
    }

    /// A new empty database of the superuser's, with a name of its own.
    pub async fn database(&'static self) -> Database {
        let name = self.unique("test");
        let mut admin = self.cluster.connect("postgres").await.expect("connect");
        databases::ensure(&mut admin, &name, "postgres").await.expect("create a database");
        Database { server: self, name }
    }

    /// A name that nothing else on this server has.
    pub fn unique(&self, what: &str) -> String {
        format!("{what}_{}", self.made.fetch_add(1, Ordering::Relaxed))
    }
}

/// A database of one test.
pub struct Database {
    pub server: &'static Server,
    pub name: String,
}

impl Database {
    /// How the superuser connects, as `psql` would: names are looked for in `public` too.
    #[must_use]
    pub fn admin(&self) -> PgConnectOptions {
        self.server.cluster.local(SUPERUSER, &self.name)
    }

    /// How one of the platform's own roles connects, on the socket.
    #[must_use]
    pub fn local(&self, role: &str) -> PgConnectOptions {
        self.server.cluster.local(role, &self.name)
    }

    /// How a role with a password connects, over the network as any client does.
    #[must_use]
    pub fn as_role(&self, role: &str, password: &SecretString) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.server.cluster.port)
            .username(role)
            .password(password.expose_secret())
            .database(&self.name)
            .ssl_mode(sqlx::postgres::PgSslMode::Disable)
    }

    /// A superuser's connection.
    pub async fn connect(&self) -> PgConnection {
        self.admin().connect().await.expect("connect as superuser")
    }

    /// The directory in which a test may leave files that the server reads.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.server.directory
    }
}

/// A port that nobody listens on and that this process has not given out before.
///
/// None of those that the kernel hands out by itself: before the server that is to have it listens, any connection could
/// have got one of them.
#[must_use]
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test programs that run side by side begin apart.
    let begin = std::process::id().wrapping_mul(7919);
    (0..COUNT)
        .map(|_| begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .map(|place| FIRST + u16::try_from(place).expect("less than 20,000"))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}
