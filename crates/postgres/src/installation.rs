//! The PostgreSQL programs on this machine: where they are, which version, and running them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use loomworks_core::{ExposeSecret, SecretString};
use tokio::process::Command;

/// Oldest major version we work with (specification: PostgreSQL 15+).
pub const OLDEST_VERSION: u32 = 15;

/// PostgreSQL's server programs.
#[derive(Clone, Debug)]
pub struct Installation {
    bin: PathBuf,
    pub major_version: u32,
    account: Option<Account>,
    /// What a server is started with, for the commands that it calls.
    environment: Option<(&'static str, SecretString)>,
}

/// The user whom the programs run as, for callers who are root: PostgreSQL refuses to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    #[error("no PostgreSQL server programs of version {OLDEST_VERSION} or later were found in {}", searched.join(", "))]
    NotFound { searched: Vec<String> },
    #[error("run `{program}`")]
    Spawn { program: String, source: std::io::Error },
    #[error("`{program}` failed with {status}: {stderr}")]
    Failed { program: String, status: String, stderr: String },
}

impl Installation {
    /// Finds the newest installed version: `directory` when given, else where Debian, Fedora and the PostgreSQL
    /// packages put it.
    pub async fn find(directory: Option<&Path>) -> Result<Self, InstallationError> {
        let candidates = match directory {
            Some(directory) => vec![directory.to_owned()],
            None => well_known_directories(),
        };
        let mut best: Option<Self> = None;
        for bin in &candidates {
            if !bin.join("initdb").exists() || !bin.join("postgres").exists() {
                continue;
            }
            let found = Self { bin: bin.clone(), major_version: 0, account: None, environment: None };
            let version = found.run("postgres", ["--version"]).await?;
            let Some(major_version) = parse_major_version(&String::from_utf8_lossy(&version.stdout)) else {
                continue;
            };
            if major_version >= OLDEST_VERSION
                && best.as_ref().is_none_or(|b| b.major_version < major_version)
            {
                best = Some(Self { major_version, ..found });
            }
        }
        best.ok_or_else(|| InstallationError::NotFound {
            searched: candidates.iter().map(|path| path.display().to_string()).collect(),
        })
    }

    /// The same programs, run as `account`.
    #[must_use]
    pub fn as_account(self, account: Account) -> Self {
        Self { account: Some(account), ..self }
    }

    /// The same programs, a server started with a variable that the commands which it calls find in their environment.
    #[must_use]
    pub fn with_environment(self, name: &'static str, value: SecretString) -> Self {
        Self { environment: Some((name, value)), ..self }
    }

    /// What a server is started with.
    #[must_use]
    pub(crate) fn environment(&self) -> Option<&(&'static str, SecretString)> {
        self.environment.as_ref()
    }

    /// The user whom the programs run as, if not the caller.
    #[must_use]
    pub fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// Where a program is.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// A command ready to be given arguments. Its environment is emptied but for the path and the language, so
    /// that no `PGHOST` of the caller's shell sends it elsewhere and messages can be recognised.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.program(name));
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
        command.current_dir("/").stdin(Stdio::null());
        if let ("pg_ctl", Some((variable, value))) = (name, &self.environment) {
            command.env(variable, value.expose_secret());
        }
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    /// Runs a program to its end; a status other than 0 is an error with what it said.
    pub async fn run<A: AsRef<OsStr>>(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Output, InstallationError> {
        let mut command = self.command(name);
        command.args(arguments).kill_on_drop(true);
        finish(name, command.output().await)
    }
}

/// Turns the end of a program into a result with what it said.
pub(crate) fn finish(program: &str, output: std::io::Result<Output>) -> Result<Output, InstallationError> {
    let program = program.to_owned();
    match output {
        Err(source) => Err(InstallationError::Spawn { program, source }),
        Ok(output) if output.status.success() => Ok(output),
        Ok(output) => Err(InstallationError::Failed {
            program,
            status: output.status.to_string(),
            // Some say on standard output what is wrong, like `pg_amcheck`.
            stderr: last_lines(&String::from_utf8_lossy(match output.stderr.is_empty() {
                true => &output.stdout,
                false => &output.stderr,
            })),
        }),
    }
}

/// The end of what a program said: where its error is.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join("; ")
}

fn well_known_directories() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = ["/usr/lib/postgresql", "/usr/pgsql", "/opt/postgresql"]
        .iter()
        .filter_map(|parent| std::fs::read_dir(parent).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    directories
        .extend((OLDEST_VERSION..30).map(|version| PathBuf::from(format!("/usr/pgsql-{version}/bin"))));
    directories.extend(["/usr/local/pgsql/bin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from));
    directories.retain(|directory| directory.is_dir());
    directories
}

fn parse_major_version(text: &str) -> Option<u32> {
    text.split_whitespace().find_map(|word| {
        let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_every_shape_are_read() {
        assert_eq!(parse_major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(parse_major_version("postgres (PostgreSQL) 18beta2"), Some(18));
        assert_eq!(parse_major_version("nonsense"), None);
    }

    #[tokio::test]
    async fn what_is_missing_is_said_with_where_we_looked() {
        let error = Installation::find(Some(Path::new("/nonexistent"))).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "no PostgreSQL server programs of version 15 or later were found in /nonexistent"
        );
    }
}
