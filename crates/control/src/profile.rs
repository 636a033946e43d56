//! App profiles: how an app is reached, and how a new database for it is filled.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One app.
#[derive(Clone, Debug)]
pub struct Profile {
    pub name: String,
    pub description: String,
    /// Where the app listens.
    pub upstream: SocketAddr,
    /// Statements that fill a new database, run as its owner, in one transaction.
    pub init_sql: Vec<String>,
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
    #[serde(default)]
    init: Init,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Init {
    #[serde(default)]
    sql: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("read `{path}`")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("profile `{path}` is not valid")]
    Parse { path: PathBuf, source: toml::de::Error },
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
        let directory = path.parent().unwrap_or(Path::new("."));
        let init_sql =
            file.init.sql.iter().map(|sql| read(&directory.join(sql))).collect::<Result<_, _>>()?;
        Ok(Self { name: file.name, description: file.description, upstream: file.upstream, init_sql })
    }
}

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
    fn a_slip_is_an_error_and_not_a_default() {
        assert!(matches!(load("name = 'erp'\nupstraem = '127.0.0.1:1'"), Err(ProfileError::Parse { .. })));
        assert!(matches!(load("name = '../x'\nupstream = '127.0.0.1:1'"), Err(ProfileError::Name { .. })));
        let missing = load("name = 'erp'\nupstream = '127.0.0.1:1'\n[init]\nsql = ['missing.sql']");
        assert!(matches!(missing, Err(ProfileError::Read { .. })));
    }
}
