//! Copying a database from one cluster into another with PostgreSQL's own `pg_dump` and `pg_restore`.

use std::path::Path;

use crate::cluster::{Cluster, ClusterError, SUPERUSER, remove_directory};
use crate::installation::InstallationError;

/// Processes that dump and load at the same time.
const PROCESSES: &str = "2";

/// Dumps `database` of `from` into `directory` (made anew).
pub async fn dump(from: &Cluster, database: &str, directory: &Path) -> Result<(), ClusterError> {
    remove_directory(directory).await?;
    let mut arguments = connection_arguments(from, database);
    // Compression costs more time than the disk it saves: the dump lives for seconds.
    arguments
        .extend(["--format=directory", "--compress=0", "--jobs", PROCESSES, "--file"].map(str::to_owned));
    arguments.push(directory.to_string_lossy().into_owned());
    from.installation.run("pg_dump", arguments).await?;
    Ok(())
}

/// Dumps `database` of `from` into one file (made anew) that `pg_restore` reads anywhere.
pub async fn dump_to_file(from: &Cluster, database: &str, file: &Path) -> Result<(), ClusterError> {
    let mut arguments = connection_arguments(from, database);
    // Owners and grants name roles of this cluster; the copy is for whoever has none of them.
    arguments
        .extend(["--format=custom", "--compress=0", "--no-owner", "--no-acl", "--file"].map(str::to_owned));
    arguments.push(file.to_string_lossy().into_owned());
    from.installation.run("pg_dump", arguments).await?;
    Ok(())
}

/// Loads a dump into `database` of `into`, which must be empty. Owners and grants are those of the dump.
///
/// Rows are written as `owner`, because constraints and domains may call functions that somebody in the tenant's
/// database wrote: as superuser they could do anything. The rows of `trusted_schema`, which only we write to, come as
/// superuser; `owner` has no right to them.
pub async fn load(
    into: &Cluster,
    database: &str,
    directory: &Path,
    owner: &str,
    trusted_schema: &str,
) -> Result<(), ClusterError> {
    let parts: [&[&str]; 4] = [
        &["--section=pre-data"],
        &["--section=data", "--exclude-schema", trusted_schema, "--role", owner],
        &["--section=data", "--schema", trusted_schema],
        &["--section=post-data"],
    ];
    for part in parts {
        let mut arguments = connection_arguments(into, database);
        arguments.extend(["--format=directory", "--exit-on-error", "--jobs", PROCESSES].map(str::to_owned));
        arguments.extend(part.iter().map(|argument| (*argument).to_owned()));
        arguments.push(directory.to_string_lossy().into_owned());
        into.installation.run("pg_restore", arguments).await?;
    }
    Ok(())
}

/// Checks tables and indexes of a database, every index entry against its table (`pg_amcheck --heapallindexed`).
///
/// `Ok(None)` when the programs for it are not installed.
pub async fn check(cluster: &Cluster, database: &str) -> Result<Option<()>, ClusterError> {
    if !cluster.installation.program("pg_amcheck").exists() {
        return Ok(None);
    }
    let mut connection = cluster.connect(database).await?;
    let wrap = |source| ClusterError::Query { directory: cluster.directory.clone(), source };
    // The extension gets a schema of its own and goes with it: what is checked is copied afterwards, and the check
    // must not leave anything in a tenant's database.
    let schema = "loomworks_amcheck";
    crate::sql::run(
        &mut connection,
        format!(
            "CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA {schema}"
        ),
    )
    .await
    .map_err(wrap)?;
    let mut arguments = server_arguments(cluster);
    arguments.extend(["--heapallindexed", "--jobs", PROCESSES, database].map(str::to_owned));
    let checked = cluster.installation.run("pg_amcheck", arguments).await;
    crate::sql::run(&mut connection, format!("DROP EXTENSION amcheck; DROP SCHEMA {schema}"))
        .await
        .map_err(wrap)?;
    match checked {
        Ok(_) => Ok(Some(())),
        // Source: PostgreSQL `src/bin/pg_amcheck/pg_amcheck.c`: 2 when corruption was found, 1 for everything else.
        Err(InstallationError::Failed { status, stderr, .. }) if status.ends_with(": 2") => {
            Err(ClusterError::Damaged { database: database.to_owned(), report: stderr })
        }
        Err(error) => Err(error.into()),
    }
}

fn connection_arguments(cluster: &Cluster, database: &str) -> Vec<String> {
    let mut arguments = server_arguments(cluster);
    arguments.extend(["--dbname", database].map(str::to_owned));
    arguments
}

fn server_arguments(cluster: &Cluster) -> Vec<String> {
    let socket = cluster.socket_directory.to_string_lossy();
    ["--host", &socket, "--port", &cluster.port.to_string(), "--username", SUPERUSER, "--no-password"]
        .map(str::to_owned)
        .to_vec()
}
