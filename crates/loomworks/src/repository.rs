//! The repository and the master key, opened as the settings say: for `serve`, and for what PostgreSQL calls.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use loomworks_archive::store::probe::probe;
use loomworks_archive::store::{Location, Store};
use loomworks_archive::{ClusterIdentity, Repository, RepositoryError};
use loomworks_control::credentials::MasterKey;
use loomworks_control::error::chain;
use loomworks_control::master_key::transit::Transit;
use loomworks_control::master_key::{MasterKeyError, Service};
use loomworks_core::{SecretString, durable};
use tracing::{info, warn};

use crate::output::Failure;
use crate::settings::{MasterKeySource, RepositorySettings};

/// Opens the repository, whichever cluster's it is.
pub(crate) async fn open_repository(settings: &RepositorySettings) -> Result<Repository, Failure> {
    let store = open_store(settings)?;
    let master_key = match settings.master_key.source()? {
        Some(MasterKeySource::File(path)) => MasterKey::load(&path),
        Some(MasterKeySource::Environment(text)) => MasterKey::given(&text),
        Some(MasterKeySource::Service(settings)) => {
            let transit = Transit::new(settings).map_err(|error| no_key(error.into()))?;
            MasterKey::from_service(Service::new(transit, store.clone()), false).await
        }
        None => {
            let failure = Failure::refused("it is not said where the master key is");
            return Err(failure.with_hint("give --master-key-file FILE, see docs/operate/key-management.md"));
        }
    };
    let master_key = master_key.map_err(no_key)?;
    Repository::open_in(store, Arc::new(master_key)).await.map_err(failure)
}

/// Makes the repository and the master key if they are missing. `settings` are those of the data directory.
pub(crate) async fn make_repository(
    settings: &RepositorySettings,
    data: &Path,
    cluster: ClusterIdentity,
) -> Result<(Repository, MasterKey), Failure> {
    warn_of_readers(settings);
    let store = set_aside_former(open_store(settings)?).await?;
    if !Repository::exists_in(&store).await.map_err(failure)? {
        // Before anything counts on it.
        let fit = probe(&store).await.map_err(|unfit| {
            Failure::refused(format!(
                "no repository can be kept in `{}`: {}",
                store.location(),
                chain(&unfit)
            ))
            .with_hint(unfit.hint())
        })?;
        info!(location = %store.location(), "making a repository in `{}`", store.location());
        if fit.keeps_versions {
            warn!(
                "`{}` keeps former versions of objects, and a deleted key in them: have them expire, see \
                 docs/operate/repository.md",
                store.location()
            );
        }
    }
    let master_key = make_master_key(settings, data, &store).await?;
    let provider = Arc::new(master_key.clone());
    let repository = Repository::create_in(store, cluster, provider).await.map_err(failure)?;
    Ok((repository, master_key))
}

/// The directory of a repository of version 1 keeps what is in it under another name, and a new one is begun: the first
/// version was plain, and nothing could go on with it.
async fn set_aside_former(store: Store) -> Result<Store, Failure> {
    let Some(directory) = store.directory().map(Path::to_owned) else { return Ok(store) };
    if Repository::version_in(&store).await.map_err(failure)? != Some(1) {
        return Ok(store);
    }
    let aside = directory.with_extension("v1");
    durable::rename(&directory, &aside)
        .with_context(|| format!("rename `{}` to `{}`", directory.display(), aside.display()))?;
    warn!(
        "the repository was of version 1 and is kept as `{}`; what is in it can be restored by the former version only, \
         snapshots from before now are out of reach until then",
        aside.display()
    );
    Store::open(store.location()).map_err(RepositoryError::from).map_err(failure)
}

async fn make_master_key(
    settings: &RepositorySettings,
    data: &Path,
    store: &Store,
) -> Result<MasterKey, Failure> {
    let own = data.join("master.key");
    let key = match settings.master_key.source()? {
        Some(MasterKeySource::File(path)) if path != own => MasterKey::load(&path),
        Some(MasterKeySource::File(_)) | None => {
            if !own.exists() && data.join("master.key.wrapped").exists() {
                let failure = Failure::refused("the master key is wrapped by a service, and none is named");
                return Err(failure.with_hint("give --master-key-transit URL, as when it was made"));
            }
            MasterKey::load_or_create(&own)
        }
        Some(MasterKeySource::Environment(text)) => MasterKey::given(&text),
        Some(MasterKeySource::Service(settings)) => {
            let transit = Transit::new(settings).map_err(|error| no_key(error.into()))?;
            let key = MasterKey::from_service(Service::new(transit, store.clone()).beside(data), true).await;
            if key.is_ok() && own.exists() {
                warn!(
                    "`{}` is not used any more: the service wraps the master key. Remove it",
                    own.display()
                );
            }
            key
        }
    };
    key.map_err(no_key)
}

fn open_store(settings: &RepositorySettings) -> Result<Store, Failure> {
    let location = settings.repository.as_ref().ok_or_else(|| {
        Failure::refused("it is not said where the repository is").with_hint("give --repository LOCATION")
    })?;
    let options = settings.repository_options.as_deref().map(options).transpose()?.unwrap_or_default();
    let location = Location::parse(location, options).map_err(RepositoryError::from).map_err(failure)?;
    Store::open(&location).map_err(RepositoryError::from).map_err(failure)
}

/// Reads lines `name = value`. What is wrong in them is told without the values.
fn options(path: &Path) -> Result<BTreeMap<String, SecretString>, Failure> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    let refused = |why: &str| {
        Failure::refused(format!("`{}` {why}", path.display())).with_hint(
            "write a line `aws_region = 'eu-central-1'` for each option, see docs/operate/repository.md",
        )
    };
    let table: toml::Table = toml::from_str(&text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        refused(&format!("is no TOML in line {line}"))
    })?;
    let mut options = BTreeMap::new();
    for (name, value) in table {
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(yes) => yes.to_string(),
            _ => return Err(refused(&format!("gives `{name}` more than a value"))),
        };
        options.insert(name, SecretString::from(value));
    }
    Ok(options)
}

fn warn_of_readers(settings: &RepositorySettings) {
    let key = &settings.master_key;
    let files = [&settings.repository_options, &key.master_key_file, &key.master_key_transit_token_file];
    for path in files.into_iter().flatten() {
        let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
        if mode & 0o077 != 0 {
            warn!("`{}` holds a secret and is open to others: chmod 600", path.display());
        }
    }
}

fn no_key(error: MasterKeyError) -> Failure {
    let failure = Failure::refused(chain(&error));
    Failure { hint: error.hint().map(str::to_owned), ..failure }
}

fn failure(error: RepositoryError) -> Failure {
    let failure = Failure::refused(chain(&error));
    Failure { hint: error.hint().map(str::to_owned), ..failure }
}

#[cfg(test)]
mod tests {
    use loomworks_core::{ExposeSecret, durable};

    use super::*;

    #[test]
    fn options_are_read_and_what_is_wrong_is_told_without_the_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("options");
        let read = |text: &str| {
            durable::write(&path, text.as_bytes()).unwrap();
            options(&path)
        };
        let good = read("aws_secret_access_key = 'hunter2'\nretries = 3\naws_allow_http = true\n").unwrap();
        let good: Vec<_> = good.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
        assert_eq!(
            good,
            [("aws_allow_http", "true"), ("aws_secret_access_key", "hunter2"), ("retries", "3")]
        );
        for wrong in
            ["a = 1\naws_secret_access_key = hunter2", "[aws]\nsecret = 'hunter2'", "a = ['hunter2']"]
        {
            let failure = read(wrong).unwrap_err();
            assert!(!failure.message.contains("hunter2") && failure.hint.is_some(), "{}", failure.message);
        }
    }
}
