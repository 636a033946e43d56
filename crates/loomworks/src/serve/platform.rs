//! Starting the platform: the cluster, its repository, the management database.

use std::collections::BTreeMap;
use std::net::TcpListener;

use anyhow::Context;
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_control::credentials::{MasterKey, write_password_file};
use loomworks_control::db::{API_ROLE, Db, PLATFORM_ROLE};
use loomworks_control::keys::KeyRing;
use loomworks_control::operations::LogConnections;
use loomworks_control::profile::Profile;
use loomworks_control::work::restore::shell_word;
use loomworks_control::world::{Parts, World};
use loomworks_core::ids::JobId;
use loomworks_postgres::cluster::SOCKET_DIRECTORY_BYTES_MAX;
use loomworks_postgres::{Cluster, Installation, config};
use loomworks_undo::UNDO_ROLE;
use tracing::info;

use super::data::DataDirectory;
use crate::output::Failure;
use crate::settings::Serve;

/// Makes what is missing, starts what is stopped, and gives the world that the roles work on.
pub(crate) async fn start(settings: &Serve, data: &DataDirectory) -> Result<World, Failure> {
    let profiles = profiles(settings)?;
    check_length(data)?;
    let installation = Installation::find(settings.postgres_bin.as_deref()).await.map_err(|error| {
        Failure::refused(error.to_string()).with_hint("on Debian and Ubuntu: apt-get install postgresql")
    })?;
    let mut cluster = Cluster {
        installation,
        directory: data.path("pg"),
        socket_directory: data.directory("run")?,
        port: port(data)?,
    };
    cluster.init(&[PLATFORM_ROLE, API_ROLE, UNDO_ROLE]).await?;
    let repository = repository(&cluster, data).await?;
    let program = data.path("bin/loomworks");
    let archive_command = format!(
        "{} wal push --repository {} %p",
        shell_word(&program.to_string_lossy()),
        shell_word(&repository.root().to_string_lossy()),
    );
    start_cluster(&mut cluster, data, &archive_command).await?;

    let db = Db::set_up(&cluster).await?;
    let master_key = MasterKey::load_or_create(&data.path("master.key")).context("read the master key")?;
    let side_directory = data.directory("side")?;
    let node = data.read_or("node", || format!("node-{}", uuid::Uuid::new_v4().simple()))?;
    let world = World::new(Parts {
        db,
        cluster,
        repository,
        profiles,
        keys: KeyRing::new(&master_key),
        log_connections: LogConnections::default(),
        master_key,
        side_directory,
        apps_directory: data.directory("apps")?,
        program,
        node: node.trim().to_owned(),
        crash_at: settings.crash_at.clone(),
    });
    // The port may be another one than the last time.
    for profile in world.profiles.keys() {
        write_password_file(&world, profile).await?;
    }
    Ok(world)
}

/// A side cluster's socket has the longest path: a directory that is too long for it is refused now, and not when
/// somebody needs a restore.
fn check_length(data: &DataDirectory) -> Result<(), Failure> {
    let longest = data.path("side").join(JobId::random().short());
    if longest.as_os_str().len() <= SOCKET_DIRECTORY_BYTES_MAX {
        return Ok(());
    }
    let failure = Failure::refused(format!(
        "`{}` is too long a path for PostgreSQL's sockets",
        data.path("").display()
    ));
    Err(failure.with_hint("choose a shorter --data"))
}

fn profiles(settings: &Serve) -> Result<BTreeMap<String, Profile>, Failure> {
    let mut profiles = BTreeMap::new();
    for path in &settings.profiles {
        let profile = Profile::load(path).map_err(|error| {
            Failure::refused(loomworks_control::error::chain(&error))
                .with_hint("see docs/operate/app-profiles.md")
        })?;
        profiles.insert(profile.name.clone(), profile);
    }
    for upstream in &settings.upstreams {
        let profile = profiles.get_mut(&upstream.profile).ok_or_else(|| {
            Failure::refused(format!("--upstream names no profile: `{}`", upstream.profile))
        })?;
        profile.upstream = upstream.address;
    }
    Ok(profiles)
}

async fn repository(cluster: &Cluster, data: &DataDirectory) -> Result<Repository, Failure> {
    let (system_identifier, segment_bytes) = cluster.control_data().await?;
    let identity = ClusterIdentity {
        system_identifier,
        segment_bytes,
        major_version: cluster.installation.major_version,
    };
    Repository::create(&data.path("repository"), identity).await.map_err(|error| {
        let failure = Failure::refused(error.to_string());
        Failure { hint: error.hint().map(str::to_owned), ..failure }
    })
}

/// Starts the cluster, on another port if somebody has taken its own in the meantime.
async fn start_cluster(
    cluster: &mut Cluster,
    data: &DataDirectory,
    archive_command: &str,
) -> Result<(), Failure> {
    let log = data.directory("log")?;
    if !cluster.is_running().await? && TcpListener::bind(("127.0.0.1", cluster.port)).is_err() {
        cluster.port = free_port()?;
        data.write("port", cluster.port.to_string().as_bytes())?;
    }
    let settings = config::Serving {
        port: cluster.port,
        socket_directory: &cluster.socket_directory,
        log_directory: &log,
        archive_command: Some(archive_command),
    };
    cluster.configure(&settings.render())?;
    info!(port = cluster.port, version = cluster.installation.major_version, "starting PostgreSQL");
    Ok(cluster.start().await?)
}

/// The cluster's port: chosen once, so that connection strings stay good.
fn port(data: &DataDirectory) -> Result<u16, Failure> {
    if !data.path("port").exists() {
        data.write("port", free_port()?.to_string().as_bytes())?;
    }
    let text = data.read_or("port", String::new)?;
    Ok(text.trim().parse().with_context(|| format!("read `{}`", data.path("port").display()))?)
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).context("find a free port")?.local_addr()?.port())
}
