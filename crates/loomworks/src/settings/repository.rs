//! Where the repository and the master key are: for `serve`, and for what PostgreSQL calls.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use loomworks_control::master_key::transit;
use loomworks_core::SecretString;
use loomworks_postgres::config::shell_word;

use crate::output::Failure;

#[derive(Args, Clone, Debug)]
pub(crate) struct RepositorySettings {
    /// Where the repository is: a directory or `s3://bucket/prefix`. `serve` has it in its data directory if left out.
    #[arg(long, env = "LOOMWORKS_REPOSITORY", value_name = "LOCATION", help_heading = "Repository")]
    pub(crate) repository: Option<String>,

    /// A file of lines `name = 'value'` that say how the bucket is reached: `aws_endpoint`, `aws_region`,
    /// `aws_access_key_id`, `aws_secret_access_key`. Only its owner should be able to read it.
    #[arg(long, env = "LOOMWORKS_REPOSITORY_OPTIONS", value_name = "FILE", help_heading = "Repository")]
    pub(crate) repository_options: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) master_key: MasterKeySettings,
}

/// Where the master key is kept. One of the three.
#[derive(Args, Clone, Debug)]
pub(crate) struct MasterKeySettings {
    /// The master key's file. It must be there. `serve` makes one in its data directory if nothing is said.
    #[arg(long, value_name = "FILE", env = "LOOMWORKS_MASTER_KEY_FILE", help_heading = "Master key")]
    pub(crate) master_key_file: Option<PathBuf>,

    /// The master key itself: 32 bytes as base64, behind a comma each former one. Only through the environment: a
    /// command line can be read by everybody on the machine.
    #[arg(long, env = MASTER_KEY, hide = true, hide_env_values = true, value_parser = secret)]
    pub(crate) master_key: Option<SecretString>,

    /// A service that wraps the master key and never hands its own out, such as Vault's transit engine:
    /// `https://vault.example.com:8200`.
    #[arg(long, value_name = "URL", env = "LOOMWORKS_MASTER_KEY_TRANSIT", help_heading = "Master key",
        requires_all = ["master_key_transit_key", "master_key_transit_token_file"])]
    pub(crate) master_key_transit: Option<String>,

    /// The name of that service's key.
    #[arg(
        long,
        value_name = "NAME",
        env = "LOOMWORKS_MASTER_KEY_TRANSIT_KEY",
        help_heading = "Master key",
        requires = "master_key_transit"
    )]
    pub(crate) master_key_transit_key: Option<String>,

    /// A file that holds the token for that service. It is read again when the token is refused.
    #[arg(
        long,
        value_name = "FILE",
        env = "LOOMWORKS_MASTER_KEY_TRANSIT_TOKEN_FILE",
        help_heading = "Master key",
        requires = "master_key_transit"
    )]
    pub(crate) master_key_transit_token_file: Option<PathBuf>,
}

/// The variable that holds the master key.
pub(crate) const MASTER_KEY: &str = "LOOMWORKS_MASTER_KEY";

/// Where the master key is kept.
#[derive(Clone, Debug)]
pub(crate) enum MasterKeySource {
    File(PathBuf),
    Environment(SecretString),
    Service(transit::Settings),
}

impl MasterKeySettings {
    /// What was said. `None`: nothing.
    pub(crate) fn source(&self) -> Result<Option<MasterKeySource>, Failure> {
        let file = self.master_key_file.clone().map(MasterKeySource::File);
        let environment = self.master_key.clone().map(MasterKeySource::Environment);
        // The command line takes the three together only.
        let service = match (
            &self.master_key_transit,
            &self.master_key_transit_key,
            &self.master_key_transit_token_file,
        ) {
            (Some(url), Some(key), Some(token)) => {
                Some(MasterKeySource::Service(transit::Settings::new(url, key, token.clone())))
            }
            _ => None,
        };
        let mut said = [file, environment, service].into_iter().flatten();
        let source = said.next();
        if said.next().is_some() {
            let failure = Failure::refused("the master key is said to be in more than one place");
            return Err(failure.with_hint(format!(
                "give one of --master-key-file, --master-key-transit and the variable {MASTER_KEY}"
            )));
        }
        Ok(source)
    }
}

impl RepositorySettings {
    /// The same with what `serve` has if nothing is said, and every path as it is from everywhere.
    pub(crate) fn in_data_directory(&self, data: &Path) -> Result<Self, Failure> {
        let mut settings = self.clone();
        let absolute =
            |path: &Path| std::path::absolute(path).with_context(|| format!("find `{}`", path.display()));
        settings.repository = Some(match &self.repository {
            None => data.join("repository").to_string_lossy().into_owned(),
            Some(location) if location.contains("://") => location.clone(),
            Some(path) => absolute(Path::new(path))?.to_string_lossy().into_owned(),
        });
        let key = &mut settings.master_key;
        if key.master_key_file.is_none() && key.master_key.is_none() && key.master_key_transit.is_none() {
            key.master_key_file = Some(data.join("master.key"));
        }
        let files = [
            &mut settings.repository_options,
            &mut key.master_key_file,
            &mut key.master_key_transit_token_file,
        ];
        for file in files.into_iter().flatten() {
            *file = absolute(file)?;
        }
        Ok(settings)
    }

    /// How a command that PostgreSQL runs is told the same. A key from the environment is not among it.
    pub(crate) fn arguments(&self) -> String {
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        let key = &self.master_key;
        let said = [
            ("--repository", self.repository.clone()),
            ("--repository-options", self.repository_options.as_ref().map(path)),
            ("--master-key-file", key.master_key_file.as_ref().map(path)),
            ("--master-key-transit", key.master_key_transit.clone()),
            ("--master-key-transit-key", key.master_key_transit_key.clone()),
            ("--master-key-transit-token-file", key.master_key_transit_token_file.as_ref().map(path)),
        ];
        let said =
            said.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", shell_word(&value?))));
        said.collect::<Vec<_>>().join(" ")
    }
}

fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing_said() -> RepositorySettings {
        let master_key = MasterKeySettings {
            master_key_file: None,
            master_key: None,
            master_key_transit: None,
            master_key_transit_key: None,
            master_key_transit_token_file: None,
        };
        RepositorySettings { repository: None, repository_options: None, master_key }
    }

    #[test]
    fn what_postgresql_calls_is_told_where_everything_is() {
        let settings = nothing_said().in_data_directory(Path::new("/srv/it's")).unwrap();
        let expected = r"--repository '/srv/it'\''s/repository' --master-key-file '/srv/it'\''s/master.key'";
        assert_eq!(settings.arguments(), expected);

        let mut said = nothing_said();
        said.repository = Some("s3://b/p".into());
        said.repository_options = Some("/etc/s3.toml".into());
        said.master_key.master_key = Some("secret".into());
        let settings = said.in_data_directory(Path::new("/srv")).unwrap();
        assert_eq!(settings.arguments(), "--repository 's3://b/p' --repository-options '/etc/s3.toml'");
        assert!(!format!("{settings:?}").contains("secret\""), "{settings:?}");
    }

    #[test]
    fn the_master_key_is_in_one_place() {
        let mut said = nothing_said().master_key;
        assert!(said.source().unwrap().is_none());
        said.master_key = Some("x".into());
        assert!(matches!(said.source().unwrap(), Some(MasterKeySource::Environment(_))));
        said.master_key_file = Some("x".into());
        let failure = said.source().unwrap_err();
        assert!(failure.hint.unwrap().contains("one of"), "{}", failure.message);
    }
}
