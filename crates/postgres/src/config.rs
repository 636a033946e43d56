//! What we write into a cluster's configuration files. Pure: settings in, text out.

use std::fmt::Write;
use std::path::Path;

/// The file with our settings; `postgresql.conf` includes it last, so an operator's own lines above it stay.
pub const FILE: &str = "loomworks.conf";

/// What a new cluster's `postgresql.conf` begins with: an operator's own line further down wins.
///
/// The triggers and the marks in tenants' databases are PL/pgSQL: without this each session that does DDL loads the library
/// for itself, which takes longer than to add a column.
pub(crate) const DEFAULTS: &str = "shared_preload_libraries = 'plpgsql'\n";

/// Our settings for the cluster that serves tenants.
#[derive(Clone, Debug)]
pub struct Serving<'a> {
    pub port: u16,
    pub socket_directory: &'a Path,
    pub log_directory: &'a Path,
    /// In megabytes; see [`crate::memory`].
    pub shared_buffers: u64,
    /// `None` while the cluster is not archived (tests that need no archive).
    pub archive_command: Option<&'a str>,
}

/// Settings of a side cluster: it replays the WAL that is put into its `pg_wal`, is read once and thrown away.
#[derive(Clone, Debug)]
pub struct Recovering<'a> {
    pub socket_directory: &'a Path,
}

/// A line of a configuration file, quoted as `guc-file.l` reads it.
fn line(out: &mut String, name: &str, value: &str) {
    let quoted = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n");
    let _ = writeln!(out, "{name} = '{quoted}'");
}

impl Serving<'_> {
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::from(
            "# Written by Loomworks at every start. Put your own settings into postgresql.conf.\n",
        );
        line(&mut out, "listen_addresses", "127.0.0.1");
        line(&mut out, "port", &self.port.to_string());
        line(&mut out, "unix_socket_directories", &self.socket_directory.to_string_lossy());
        line(&mut out, "password_encryption", "scram-sha-256");
        line(&mut out, "max_connections", "200");
        line(&mut out, "shared_buffers", &format!("{}MB", self.shared_buffers));
        line(&mut out, "timezone", "UTC");
        line(&mut out, "log_timezone", "UTC");
        line(&mut out, "logging_collector", "on");
        line(&mut out, "log_directory", &self.log_directory.to_string_lossy());
        line(&mut out, "log_filename", "postgresql-%a.log");
        line(&mut out, "log_truncate_on_rotation", "on");
        line(&mut out, "log_rotation_age", "1d");
        line(&mut out, "log_line_prefix", "%m [%p] %q%u@%d ");
        // A statement that fails may carry a tenant's data; the log is for the operator.
        line(&mut out, "log_min_error_statement", "panic");
        // The values of the specification (decision 2), with room for the archiver and base backups.
        line(&mut out, "wal_level", "replica");
        line(&mut out, "max_wal_senders", "10");
        line(&mut out, "archive_timeout", "300");
        // The launcher visits each database once in this time: at 1,000 tenants the default starts 17 workers a second.
        line(&mut out, "autovacuum_naptime", "3min");
        match self.archive_command {
            Some(command) => {
                line(&mut out, "archive_mode", "on");
                line(&mut out, "archive_command", command);
            }
            None => line(&mut out, "archive_mode", "off"),
        }
        out
    }
}

impl Recovering<'_> {
    /// Whoever connects finds the end of what was to be replayed: the records that standbys need to be read from before are
    /// not laid out. So it is begun and ended by [`crate::Cluster::begin_replay`] and [`crate::Cluster::end_replay`]:
    /// `pg_ctl` would call it started as soon as it replays.
    ///
    /// It may lose everything at a crash (it would be made anew), and it must never archive: it carries the system
    /// identifier of its source.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::from("# Written by Loomworks for a side cluster.\n");
        line(&mut out, "listen_addresses", "");
        line(&mut out, "unix_socket_directories", &self.socket_directory.to_string_lossy());
        line(&mut out, "logging_collector", "off");
        line(&mut out, "archive_mode", "off");
        line(&mut out, "fsync", "off");
        line(&mut out, "full_page_writes", "off");
        line(&mut out, "synchronous_commit", "off");
        line(&mut out, "autovacuum", "off");
        line(&mut out, "max_wal_senders", "0");
        // A backup is laid out with its tablespaces inside.
        line(&mut out, "allow_in_place_tablespaces", "on");
        line(&mut out, "wal_level", "replica");
        // It waits for what is put into `pg_wal`, wherever the source had its WAL from.
        line(&mut out, "hot_standby", "off");
        line(&mut out, "restore_command", "");
        line(&mut out, "primary_conninfo", "");
        line(&mut out, "recovery_target_timeline", "current");
        line(&mut out, "wal_retrieve_retry_interval", "100ms");
        // Its WAL is written once and for nobody.
        line(&mut out, "wal_recycle", "off");
        line(&mut out, "wal_init_zero", "off");
        line(&mut out, "max_wal_size", "16GB");
        line(&mut out, "checkpoint_timeout", "1d");
        out
    }
}

/// A word of the shell that PostgreSQL runs its commands with. A `%` would be taken for one of PostgreSQL's own.
#[must_use]
pub fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''").replace('%', "%%"))
}

/// How a whole cluster recovers, for the end of `postgresql.auto.conf`. It means nothing once it has.
#[must_use]
pub fn recovery(timeline: u32, restore_command: &str) -> String {
    let mut out = String::from("# Written by Loomworks for the recovery of the cluster.\n");
    line(&mut out, "restore_command", restore_command);
    line(&mut out, "recovery_target_timeline", &timeline.to_string());
    line(&mut out, "recovery_target_action", "promote");
    // Tablespaces are laid out as directories, wherever they were.
    line(&mut out, "allow_in_place_tablespaces", "on");
    out
}

/// Who may connect how.
///
/// `roles` may use the socket, as the operating system's users of [`user_name_map`]; everybody else comes over the
/// loopback network with a password. The superuser has none and cannot.
#[must_use]
pub fn host_based_authentication(roles: &[&str]) -> String {
    let mut out = String::from("# Written by Loomworks.\n");
    for role in roles {
        let _ = writeln!(out, "local  all          {role}  peer map=loomworks");
    }
    let _ = writeln!(out, "local  replication  {}  peer map=loomworks", super::cluster::SUPERUSER);
    let _ = writeln!(out, "host   all          {}  all           reject", super::cluster::SUPERUSER);
    let _ = writeln!(out, "host   all          all  127.0.0.1/32  scram-sha-256");
    let _ = writeln!(out, "host   all          all  ::1/128       scram-sha-256");
    out
}

/// Which of the operating system's users may be which role on the socket.
#[must_use]
pub fn user_name_map(accounts: &[String], roles: &[&str]) -> String {
    let mut out = String::from("# Written by Loomworks.\n");
    for account in accounts {
        for role in roles {
            let _ = writeln!(out, "loomworks  {account}  {role}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_one_word_of_the_shell() {
        assert_eq!(shell_word("/a b/it's 100%"), r"'/a b/it'\''s 100%%'");
    }

    #[test]
    fn values_cannot_leave_their_quotes() {
        let mut out = String::new();
        line(&mut out, "archive_command", r"echo 'a' \ b");
        assert_eq!(out, "archive_command = 'echo ''a'' \\\\ b'\n");
    }

    #[test]
    fn a_side_cluster_neither_listens_nor_archives() {
        let text = Recovering { socket_directory: Path::new("/s") }.render();
        for wanted in ["listen_addresses = ''", "archive_mode = 'off'", "fsync = 'off'"] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
    }

    #[test]
    fn the_superuser_is_refused_on_the_network_before_anybody_is_let_in() {
        let text = host_based_authentication(&["postgres"]);
        assert!(text.find("reject").unwrap() < text.find("scram-sha-256").unwrap());
    }
}
