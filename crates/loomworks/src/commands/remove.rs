//! `loomworks remove`: stops a cluster that was left running and removes the data directory.

use anyhow::Context;
use loomworks_postgres::cluster::{account_name, remove_directory};
use loomworks_postgres::installation::Account;
use loomworks_postgres::{Cluster, Installation};

use crate::output::{self, Failure};
use crate::settings::Remove;

pub(super) async fn run(settings: &Remove) -> Result<(), Failure> {
    let data = &settings.data;
    if !data.exists() {
        return Ok(());
    }
    // Nothing but a data directory of ours is removed, whatever was typed.
    if !data.join("bin/loomworks").exists() && !data.join("lock").exists() {
        let failure = Failure::refused(format!("`{}` is not a data directory of loomworks", data.display()));
        return Err(failure.with_hint("name the one that was given to `loomworks serve --data`"));
    }
    if !settings.yes {
        let question =
            format!("All tenants in `{}`, their backups and their snapshots will be gone.", data.display());
        output::confirm(&question, "remove")?;
    }
    // Held until the end: a platform that is running is not removed under its feet.
    let _ours = crate::serve::DataDirectory::take(data)?;
    stop_cluster(settings).await?;
    Ok(remove_directory(data).await?)
}

async fn stop_cluster(settings: &Remove) -> Result<(), Failure> {
    let directory = settings.data.join("pg");
    if !directory.join("PG_VERSION").exists() {
        return Ok(());
    }
    let owner =
        std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&directory).context("look at the cluster")?);
    let mut installation = Installation::find(None).await?;
    if rustix::process::geteuid().is_root() && owner != 0 {
        installation = installation.as_account(Account { name: account_name(owner), uid: owner, gid: owner });
    }
    let cluster = Cluster { installation, socket_directory: settings.data.join("run"), directory, port: 0 };
    Ok(cluster.stop().await?)
}
