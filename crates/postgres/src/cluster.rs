//! A PostgreSQL cluster in a directory of ours: made once, started, found running after a crash, stopped.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use loomworks_core::{ExposeSecret, durable};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, PgConnection};

use crate::config;
use crate::installation::{Installation, InstallationError};

/// The superuser's role. It can be used on the socket only.
pub const SUPERUSER: &str = "postgres";

/// A path of a Unix socket has 107 bytes (`sun_path`); this is what is left for the directory.
pub const SOCKET_DIRECTORY_BYTES_MAX: usize = 107 - "/.s.PGSQL.65535".len();

/// How long a start or a stop may take before it is called failed. Replaying a day's WAL may need it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(6 * 3600);

/// How often a start is tried, half a second apart.
const START_TRIES: u32 = 10;

/// A cluster and how it is reached.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub installation: Installation,
    /// PGDATA.
    pub directory: PathBuf,
    pub socket_directory: PathBuf,
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(transparent)]
    Program(#[from] InstallationError),
    #[error("{what} `{path}`")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the socket directory `{0}` is too long a path for a socket")]
    SocketPath(PathBuf),
    #[error("the PostgreSQL server in `{directory}` did not start; its log ends with: {log}")]
    NotStarted { directory: PathBuf, log: String },
    /// What `pg_amcheck` found. It is the same each time.
    #[error("database `{database}` is damaged: {report}")]
    Damaged { database: String, report: String },
    #[error("ask the PostgreSQL server in `{directory}`")]
    Query { directory: PathBuf, source: sqlx::Error },
}

impl Cluster {
    /// Makes the cluster unless it is there. `roles` may log in on the socket beside the superuser, without a
    /// password, when the operating system says that it is the same user (or root).
    ///
    /// It is made under another name and renamed when complete, so a crash leaves nothing that looks like a cluster.
    pub async fn init(&self, roles: &[&str]) -> Result<(), ClusterError> {
        if self.directory.join("PG_VERSION").exists() {
            return Ok(());
        }
        let making = self.directory.with_extension("new");
        remove_directory(&making).await?;
        let arguments = [
            "--pgdata",
            &making.to_string_lossy(),
            "--username",
            SUPERUSER,
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--data-checksums",
            "--auth-local=peer",
            "--auth-host=scram-sha-256",
            "--no-instructions",
        ]
        .map(str::to_owned);
        self.installation.run("initdb", arguments).await?;

        self.write_authentication(&making, roles)?;
        self.write_in(&making, config::FILE, "")?;
        let main = making.join("postgresql.conf");
        let text = std::fs::read_to_string(&main).map_err(|source| ClusterError::File {
            what: "read",
            path: main.clone(),
            source,
        })?;
        let (defaults, ours) = (config::DEFAULTS, config::FILE);
        self.write_in(&making, "postgresql.conf", &format!("{defaults}{text}\ninclude = '{ours}'\n"))?;
        durable::rename(&making, &self.directory).map_err(|source| ClusterError::File {
            what: "rename to",
            path: self.directory.clone(),
            source,
        })
    }

    /// Writes who may connect how, for this machine's users.
    fn write_authentication(&self, directory: &Path, roles: &[&str]) -> Result<(), ClusterError> {
        let mut allowed = vec![SUPERUSER];
        allowed.extend(roles);
        let accounts = self.accounts();
        self.write_in(directory, "pg_hba.conf", &config::host_based_authentication(&allowed))?;
        self.write_in(directory, "pg_ident.conf", &config::user_name_map(&accounts, &allowed))
    }

    /// Makes a cluster that was laid out from a backup ready to recover: of what lies in an archive that
    /// `restore_command` reads, to its end, onto a new timeline. `roles` as for [`Self::init`].
    pub fn prepare_recovery(
        &self,
        roles: &[&str],
        timeline: u32,
        restore_command: &str,
    ) -> Result<(), ClusterError> {
        self.write_authentication(&self.directory, roles)?;
        let settings = config::recovery(timeline, restore_command);
        let path = self.directory.join("postgresql.auto.conf");
        let before = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.map_err(|source| ClusterError::File { what: "read", path: path.clone(), source })?,
        };
        self.write_in(&self.directory, "postgresql.auto.conf", &(before + &settings))?;
        self.write_in(&self.directory, "recovery.signal", "")
    }

    /// Writes our settings. They count from the next start.
    pub fn configure(&self, settings: &str) -> Result<(), ClusterError> {
        self.write_in(&self.directory, config::FILE, settings)
    }

    /// Starts the server and waits until it answers. A server that runs already, because only its caller died, is
    /// taken over as it is.
    ///
    /// A server of which only the first process was killed may look alive for a moment, and its other processes keep
    /// its memory until they notice: so a start that fails is tried again for some seconds.
    pub async fn start(&self) -> Result<(), ClusterError> {
        self.check_socket_path()?;
        let mut tries = 0;
        loop {
            let started = match self.is_running().await? {
                true => self.wait_until_ready().await,
                false => self.start_once("-w").await,
            };
            tries += 1;
            match started {
                Err(ClusterError::NotStarted { .. }) if tries < START_TRIES => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                other => return other,
            }
        }
    }

    pub(crate) fn check_socket_path(&self) -> Result<(), ClusterError> {
        match self.socket_directory.as_os_str().len() > SOCKET_DIRECTORY_BYTES_MAX {
            true => Err(ClusterError::SocketPath(self.socket_directory.clone())),
            false => Ok(()),
        }
    }

    /// `waits`: `-w` to come back when the server answers, `-W` at once.
    pub(crate) async fn start_once(&self, waits: &str) -> Result<(), ClusterError> {
        let log = self.start_log();
        let (directory, seconds) = (self.directory.to_string_lossy(), PATIENCE.as_secs().to_string());
        let options = format!("-p {}", self.port);
        let log = log.to_string_lossy();
        let arguments = ["start", "-s", waits, "-t", &seconds, "-D", &directory, "-l", &log, "-o", &options]
            .map(str::to_owned);
        match self.installation.run("pg_ctl", arguments).await {
            Err(InstallationError::Failed { .. }) => Err(self.not_started()),
            other => other.map(drop).map_err(Into::into),
        }
    }

    /// Stops the server, ending its sessions. `Ok` when it was not running.
    pub async fn stop(&self) -> Result<(), ClusterError> {
        if !self.is_running().await? {
            return Ok(());
        }
        let seconds = PATIENCE.as_secs().to_string();
        let directory = self.directory.to_string_lossy().into_owned();
        let arguments = ["stop", "-s", "-D", &directory, "-m", "fast", "-t", &seconds].map(str::to_owned);
        match self.installation.run("pg_ctl", arguments).await {
            // It may have ended between the question and the stop.
            Err(_) if !self.is_running().await? => Ok(()),
            other => other.map(drop).map_err(Into::into),
        }
    }

    /// Whether a server process runs on the directory (it may still be starting).
    pub async fn is_running(&self) -> Result<bool, ClusterError> {
        let mut command = self.installation.command("pg_ctl");
        command.arg("status").arg("-D").arg(&self.directory);
        let output = command
            .output()
            .await
            .map_err(|source| InstallationError::Spawn { program: "pg_ctl".into(), source })?;
        Ok(output.status.success())
    }

    /// Whether the server that runs was started with the environment that [`Installation::with_environment`] says. One
    /// that cannot be looked at was not.
    #[must_use]
    pub fn has_environment(&self) -> bool {
        let Some((name, value)) = self.installation.environment() else { return true };
        let wanted = format!("{name}={}", value.expose_secret());
        let environment = || {
            let pid = std::fs::read_to_string(self.directory.join("postmaster.pid")).ok()?;
            std::fs::read(format!("/proc/{}/environ", pid.lines().next()?.trim())).ok()
        };
        environment()
            .is_some_and(|all| all.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()))
    }

    /// The number that `initdb` gave the cluster, and the bytes of its WAL segments, as its control file has them.
    pub async fn control_data(&self) -> Result<(u64, u64), ClusterError> {
        let output = self.installation.run("pg_controldata", [&self.directory]).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().parse().ok()
        };
        value("Database system identifier").zip(value("Bytes per WAL segment")).ok_or_else(|| {
            ClusterError::File {
                what: "read the control file of",
                path: self.directory.clone(),
                source: io::Error::other("pg_controldata names no system identifier"),
            }
        })
    }

    /// How the superuser connects to `database`.
    ///
    /// Names mean what PostgreSQL means by them and nothing else: a function of the same name in a tenant's schema
    /// would run as superuser.
    #[must_use]
    pub fn admin(&self, database: &str) -> PgConnectOptions {
        self.confined(SUPERUSER, database)
    }

    /// How a role that may use the socket connects to a tenant's database, where names may have been made to mislead.
    #[must_use]
    pub fn confined(&self, role: &str, database: &str) -> PgConnectOptions {
        self.local(role, database).options([("search_path", "pg_catalog,pg_temp")])
    }

    /// How a role that may use the socket connects to `database`.
    #[must_use]
    pub fn local(&self, role: &str, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.socket_directory)
            .port(self.port)
            .username(role)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
            .application_name("loomworks")
    }

    /// A superuser's connection to `database`.
    pub async fn connect(&self, database: &str) -> Result<PgConnection, ClusterError> {
        self.admin(database)
            .connect()
            .await
            .map_err(|source| ClusterError::Query { directory: self.directory.clone(), source })
    }

    async fn wait_until_ready(&self) -> Result<(), ClusterError> {
        let started = tokio::time::Instant::now();
        loop {
            if self.admin("postgres").connect().await.is_ok() {
                return Ok(());
            }
            if !self.is_running().await? || started.elapsed() > PATIENCE {
                return Err(self.not_started());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn not_started(&self) -> ClusterError {
        let log = std::fs::read_to_string(self.start_log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(8)..].join("; ");
        ClusterError::NotStarted { directory: self.directory.clone(), log: end }
    }

    /// What the server says before its own log begins.
    fn start_log(&self) -> PathBuf {
        self.directory.join("start.log")
    }

    /// The users whose processes may use the socket: the server's own and ours.
    fn accounts(&self) -> Vec<String> {
        let ours = account_name(rustix::process::geteuid().as_raw());
        let servers = self.installation.account().map(|account| account.name.clone());
        let mut accounts: Vec<String> = servers.into_iter().chain([ours]).collect();
        accounts.dedup();
        accounts
    }

    pub(crate) fn write_in(&self, directory: &Path, name: &str, text: &str) -> Result<(), ClusterError> {
        let path = directory.join(name);
        let written = durable::write(&path, text.as_bytes()).and_then(|()| self.give(&path));
        written.map_err(|source| ClusterError::File { what: "write", path, source })
    }

    /// Gives a file that we wrote to the account the server runs as.
    pub fn give(&self, path: &Path) -> io::Result<()> {
        match self.installation.account() {
            Some(account) => std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid)),
            None => Ok(()),
        }
    }
}

/// Removes a directory and everything below it. `Ok` when there is none.
pub async fn remove_directory(path: &Path) -> Result<(), ClusterError> {
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ClusterError::File { what: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// The name of a user of the operating system, or its number if it has none.
#[must_use]
pub fn account_name(uid: u32) -> String {
    accounts().find(|account| account.uid == uid).map_or_else(|| uid.to_string(), |account| account.name)
}

/// The user of that name.
#[must_use]
pub fn account(name: &str) -> Option<crate::installation::Account> {
    accounts().find(|account| account.name == name)
}

fn accounts() -> impl Iterator<Item = crate::installation::Account> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let accounts: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(crate::installation::Account { name, uid, gid })
        })
        .collect();
    accounts.into_iter()
}
