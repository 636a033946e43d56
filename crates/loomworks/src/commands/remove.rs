//! `loomworks remove`: stops a cluster that was left running and removes the data directory.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

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
    let sides = std::fs::read_dir(data.join("side"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    for directory in sides.map(|side| side.join("data")).chain([data.join("pg")]) {
        stop_cluster(directory).await?;
    }
    Ok(remove_directory(data).await?)
}

/// Stops the cluster in a directory, as the user whose it is.
async fn stop_cluster(directory: PathBuf) -> Result<(), Failure> {
    if !directory.join("PG_VERSION").exists() {
        return Ok(());
    }
    let metadata = std::fs::metadata(&directory).context("look at the cluster")?;
    let (uid, gid) = (metadata.uid(), metadata.gid());
    let mut installation = Installation::find(None).await?;
    if rustix::process::geteuid().is_root() && uid != 0 {
        installation = installation.as_account(Account { name: account_name(uid), uid, gid });
    }
    let cluster = Cluster { installation, socket_directory: directory.clone(), directory, port: 0 };
    Ok(cluster.stop().await?)
}
