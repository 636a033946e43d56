//! App profiles: how an app is reached, and how a new database for it is filled.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One app.
#[derive(Clone, Debug)]
pub struct Profile {
    pub name: String,
    pub description: String,
    /// Where the app listens.
    pub upstream: SocketAddr,
    /// Statements that fill a new database, run as its owner, in one transaction.
    pub init_sql: Vec<String>,
    /// A program of the app's that goes on with it afterwards.
    pub init_command: Option<Program>,
    /// What makes the app's first user.
    pub admin: Option<Admin>,
    pub users: Option<Users>,
    /// Databases that are to wait for tenants. `None`: as many as the platform is told.
    pub pool: Option<u32>,
}

/// A program to run. `{database}` in a word stands for the database's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub words: Vec<String>,
    pub timeout: Duration,
}

/// What makes the app's first user. Either may run twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admin {
    /// Statements that read `loomworks.admin_login` and `loomworks.admin_password` with `current_setting()`.
    Sql(String),
    /// A program that reads `LOOMWORKS_ADMIN_LOGIN` and `LOOMWORKS_ADMIN_PASSWORD` from its environment.
    Program(Program),
}

/// Where the app keeps its users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// The table; in the schema `public` unless it says another.
    pub table: String,
    /// Which rows count, as an SQL condition.
    #[serde(default = "everybody")]
    pub active: String,
}

impl Users {
    /// As a database is told.
    #[must_use]
    pub fn told(&self) -> loomworks_undo::Users<'_> {
        loomworks_undo::Users { table: &self.table, active: &self.active }
    }
}

fn everybody() -> String {
    "true".into()
}

/// A profile's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileFile {
    name: String,
    #[serde(default)]
    description: String,
    upstream: SocketAddr,
    #[serde(default, rename = "health_path")]
    _health_path: String,
    pool: Option<u32>,
    #[serde(default)]
    init: Init,
    admin: Option<AdminFile>,
    users: Option<Users>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Init {
    #[serde(default)]
    sql: Vec<PathBuf>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default = "init_seconds")]
    timeout_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdminFile {
    sql: Option<PathBuf>,
    command: Option<Vec<String>>,
    #[serde(default = "admin_seconds")]
    timeout_seconds: u64,
}

fn init_seconds() -> u64 {
    600
}

fn admin_seconds() -> u64 {
    60
}

/// Databases a profile may have waiting at most: each is a copy of its template.
const POOL_MAX: u32 = 100;

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("read `{path}`")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("profile `{path}` is not valid")]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("profile `{path}`: {problem}")]
    Content { path: PathBuf, problem: &'static str },
    #[error("profile `{path}`: `{name}` is no name for a profile: lower-case letters, digits and hyphens")]
    Name { path: PathBuf, name: String },
}

impl Profile {
    /// Reads a profile. Paths in it are relative to its file.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| ProfileError::Read { path: path.to_owned(), source })
        };
        let file: ProfileFile = toml::from_str(&read(path)?)
            .map_err(|source| ProfileError::Parse { path: path.to_owned(), source })?;
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if file.name.is_empty() || file.name.len() > 63 || !file.name.chars().all(valid) {
            return Err(ProfileError::Name { path: path.to_owned(), name: file.name });
        }
        let refused = |problem| ProfileError::Content { path: path.to_owned(), problem };
        if file.pool.is_some_and(|pool| pool > POOL_MAX) {
            return Err(refused("`pool` is at most 100"));
        }
        let directory = path.parent().unwrap_or(Path::new("."));
        let program = |words: Vec<String>, seconds| Program { words, timeout: Duration::from_secs(seconds) };
        let admin = match file.admin {
            None => None,
            Some(AdminFile { sql: Some(sql), command: None, .. }) => {
                Some(Admin::Sql(read(&directory.join(sql))?))
            }
            Some(AdminFile { sql: None, command: Some(words), timeout_seconds }) if !words.is_empty() => {
                Some(Admin::Program(program(words, timeout_seconds)))
            }
            Some(_) => return Err(refused("`[admin]` has either `sql` or `command`")),
        };
        let users = file.users.map(|users| match users.table.contains('.') {
            true => users,
            false => Users { table: format!("public.{}", users.table), ..users },
        });
        let init_sql =
            file.init.sql.iter().map(|sql| read(&directory.join(sql))).collect::<Result<_, _>>()?;
        let init_command = Some(program(file.init.command, file.init.timeout_seconds))
            .filter(|command| !command.words.is_empty());
        Ok(Self {
            name: file.name,
            description: file.description,
            upstream: file.upstream,
            init_sql,
            init_command,
            admin,
            users,
            pool: file.pool,
        })
    }

    /// Where the app's users are, for the database's limits.
    #[must_use]
    pub fn users(&self) -> Option<loomworks_undo::Users<'_>> {
        self.users.as_ref().map(Users::told)
    }

    /// The name of the template database with this content: another one whenever anything is that went into it.
    #[must_use]
    pub fn template(&self, major_version: u32) -> String {
        let mut checksum = ring::digest::Context::new(&ring::digest::SHA256);
        let mut add = |part: &str| {
            checksum.update(&part.len().to_le_bytes());
            checksum.update(part.as_bytes());
        };
        add(&self.name);
        add(&major_version.to_string());
        let words = self.init_command.iter().flat_map(|command| &command.words);
        self.init_sql.iter().chain(words).for_each(|part| add(part));
        loomworks_undo::parts().iter().for_each(|part| add(part));
        if let Some(users) = &self.users {
            add(&users.table);
            add(&users.active);
        }
        let digest = checksum.finish();
        let short: String = digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        // A name has 63 bytes.
        let profile: String = self.name.chars().take(38).collect();
        format!("{TEMPLATE_PREFIX}{profile}_{short}")
    }
}

/// What the names of template databases, and of the roles that own what is in them, begin with.
pub const TEMPLATE_PREFIX: &str = "lw_template_";

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Profile, ProfileError> {
        let dir = tempfile::tempdir().unwrap();
        loomworks_core::durable::write(&dir.path().join("fill.sql"), b"SELECT 1").unwrap();
        let path = dir.path().join("profile.toml");
        loomworks_core::durable::write(&path, text.as_bytes()).unwrap();
        Profile::load(&path)
    }

    #[test]
    fn a_profile_reads_its_files_from_beside_it() {
        let profile = load("name = 'erp'\nupstream = '127.0.0.1:8069'\n[init]\nsql = ['fill.sql']").unwrap();
        assert_eq!(profile.init_sql, ["SELECT 1"]);
    }

    #[test]
    fn a_template_has_another_name_when_its_content_changes() {
        let name = |text: &str| {
            let name =
                load(&format!("name = 'erp'\nupstream = '127.0.0.1:8069'\n{text}")).unwrap().template(15);
            assert!(name.starts_with("lw_template_erp_") && name.len() <= 63, "{name}");
            name
        };
        let plain = name("");
        assert_eq!(plain, name("pool = 7\ndescription = 'other'"), "nothing that is in it");
        let others = ["[init]\nsql = ['fill.sql']", "[init]\ncommand = ['fill']", "[users]\ntable = 'users'"];
        for other in others {
            assert_ne!(plain, name(other), "{other}");
        }
        let long = format!("name = '{}'\nupstream = '127.0.0.1:8069'", "n".repeat(63));
        assert_eq!(load(&long).unwrap().template(15).len(), 63);
    }

    #[test]
    fn a_slip_is_an_error_and_not_a_default() {
        assert!(matches!(load("name = 'erp'\nupstraem = '127.0.0.1:1'"), Err(ProfileError::Parse { .. })));
        assert!(matches!(load("name = '../x'\nupstream = '127.0.0.1:1'"), Err(ProfileError::Name { .. })));
        let missing = load("name = 'erp'\nupstream = '127.0.0.1:1'\n[init]\nsql = ['missing.sql']");
        assert!(matches!(missing, Err(ProfileError::Read { .. })));
        for content in
            ["[admin]", "[admin]\nsql = 'fill.sql'\ncommand = ['x']", "[admin]\ncommand = []", "pool = 101"]
        {
            let loaded = load(&format!("name = 'erp'\nupstream = '127.0.0.1:1'\n{content}"));
            assert!(matches!(loaded, Err(ProfileError::Content { .. })), "{content}");
        }
    }
}
