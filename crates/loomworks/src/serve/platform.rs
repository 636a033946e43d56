//! Starting the platform: the cluster, its repository, the management database.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_control::accelerator::Accelerator;
use loomworks_control::credentials::{CredentialPolicy, MasterKey, write_password_file};
use loomworks_control::db::{API_ROLE, Db, PLATFORM_ROLE};
use loomworks_control::jobs;
use loomworks_control::oidc::{self, Oidc};
use loomworks_control::operators::logins::LogIn;
use loomworks_control::profile::Profile;
use loomworks_control::webhooks::Sender;
use loomworks_control::world::{Parts, Policy, World};
use loomworks_core::SecretString;
use loomworks_core::ids::JobId;
use loomworks_postgres::cluster::SOCKET_DIRECTORY_BYTES_MAX;
use loomworks_postgres::config::shell_word;
use loomworks_postgres::{Cluster, Installation, backup, config, memory};
use loomworks_undo::UNDO_ROLE;
use tracing::info;

use super::data::DataDirectory;
use crate::output::Failure;
use crate::repository::make_repository;
use crate::settings::operators::LogInSettings;
use crate::settings::{MASTER_KEY, RepositorySettings, Serve};

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
    let repository_settings = settings.repository.in_data_directory(&data.path(""))?;
    let (repository, master_key) = repository(&repository_settings, &cluster, data).await?;
    if let Some(key) = &repository_settings.master_key.master_key {
        // What PostgreSQL calls opens the repository with it.
        cluster.installation = cluster.installation.with_environment(MASTER_KEY, key.clone());
    }
    let program = data.path("bin/loomworks");
    let archive_command =
        format!("{} wal push {} %p", shell_word(&program.to_string_lossy()), repository_settings.arguments());
    start_cluster(&mut cluster, data, &archive_command).await?;

    let slots = jobs::Slots {
        in_process: settings.queue.jobs.into(),
        per_tenant: settings.queue.jobs_per_tenant.into(),
    };
    let db = Db::set_up_for(&cluster, slots).await?;
    master_key.adopt_pepper(&db).await?;
    let side_directory = data.directory("side")?;
    let node = data.read_or("node", || format!("node-{}", uuid::Uuid::new_v4().simple()))?;
    let (log_in, oidc) = (log_in(settings, &master_key)?, oidc(settings, &master_key)?);
    let root = data.path("");
    let world = World::new(Parts {
        profiles,
        credential_policy: CredentialPolicy {
            lifetime: Duration::from_secs(86_400 * settings.credentials_days),
            overlap: Duration::from_secs(settings.credentials_overlap),
        },
        pool: settings.pool,
        log_in,
        oidc,
        webhooks: Sender::new(settings.webhooks_to_private_addresses)?,
        side_directory,
        apps_directory: data.directory("apps")?,
        exports_directory: data.directory("exports")?,
        policy: Policy {
            archive_days: settings.archive_days,
            grace_days: settings.grace_days,
            recovery_days: settings.recovery_days,
            snapshot_after_rows: settings.snapshot_after_rows,
        },
        node: node.trim().to_owned(),
        accelerator: accelerator(settings)?,
        slots,
        crash_at: settings.crash_at.clone(),
        ..Parts::new(db, cluster, repository, master_key, &root)?
    });
    // The port may be another one than the last time.
    for profile in world.profiles.keys() {
        write_password_file(&world, profile).await?;
    }
    Ok(world)
}

/// How operators log in. Cookies are for TLS only, but on a machine that is used by itself without it.
fn log_in(settings: &Serve, master_key: &MasterKey) -> Result<LogIn, Failure> {
    let public_url = settings.log_in.public_url.as_deref().map(origin).transpose()?;
    let by_tls = public_url.as_ref().is_some_and(|url| url.starts_with("https://"));
    Ok(LogIn::new(master_key, public_url, by_tls || !settings.api_listen.ip().is_loopback()))
}

/// The OpenID provider, if one was named. It is asked for the first time when somebody logs in by it.
fn oidc(settings: &Serve, master_key: &MasterKey) -> Result<Option<Oidc>, Failure> {
    let LogInSettings {
        public_url,
        oidc_issuer,
        oidc_client_id,
        oidc_client_secret_file,
        oidc_allow,
        oidc_create,
    } = &settings.log_in;
    // The command line takes them together only.
    let (Some(issuer), Some(client_id), Some(public_url)) = (oidc_issuer, oidc_client_id, public_url) else {
        return Ok(None);
    };
    let secret = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
        anyhow::Ok(SecretString::from(text.trim().to_owned()))
    };
    let refused = |error: loomworks_control::Error| {
        let failure = Failure::refused(error.to_string());
        Failure { hint: error.hint(), ..failure }
    };
    let settings = oidc::Settings {
        issuer: issuer.clone(),
        client_id: client_id.clone(),
        client_secret: oidc_client_secret_file.as_ref().map(secret).transpose()?,
        redirect_uri: format!("{}/v1/auth/oidc/callback", origin(public_url)?),
        allowed: oidc::Allowed::new(oidc_allow).map_err(refused)?,
        create_with: oidc_create.iter().copied().map(Into::into).collect(),
    };
    Ok(Some(Oidc::new(settings, master_key).map_err(refused)?))
}

/// A scheme and a host, as a browser names where a page is from.
fn origin(text: &str) -> Result<String, Failure> {
    let refused = || {
        Failure::refused(format!("--public-url is no address of a site: `{text}`"))
            .with_hint("write it as https://console.example.com, without a path")
    };
    let url = reqwest::Url::parse(text).map_err(|_| refused())?;
    let plain =
        url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if !plain || !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(refused());
    }
    Ok(url.origin().ascii_serialization())
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

/// Redis, if one was named. Whether it is there makes no difference to the start.
fn accelerator(settings: &Serve) -> Result<Accelerator, Failure> {
    let Some(url) = &settings.queue.redis else { return Ok(Accelerator::default()) };
    let connections = settings.queue.redis_connections.into();
    Accelerator::new(url, connections).map_err(|error| {
        let failure = Failure::refused(format!("--redis: {error}"));
        Failure { hint: error.hint(), ..failure }
    })
}

async fn repository(
    settings: &RepositorySettings,
    cluster: &Cluster,
    data: &DataDirectory,
) -> Result<(Repository, MasterKey), Failure> {
    let (system_identifier, segment_bytes) = cluster.control_data().await?;
    let identity = ClusterIdentity {
        system_identifier,
        segment_bytes,
        major_version: cluster.installation.major_version,
    };
    make_repository(settings, &data.path(""), identity).await
}

/// Starts the cluster, on another port if somebody has taken its own in the meantime.
async fn start_cluster(
    cluster: &mut Cluster,
    data: &DataDirectory,
    archive_command: &str,
) -> Result<(), Failure> {
    let log = data.directory("log")?;
    if cluster.is_running().await? && !cluster.has_environment() {
        info!("PostgreSQL runs with another master key; starting it again");
        cluster.stop().await?;
    }
    if !cluster.is_running().await? && TcpListener::bind(("127.0.0.1", cluster.port)).is_err() {
        cluster.port = free_port()?;
        data.write("port", cluster.port.to_string().as_bytes())?;
    }
    let settings = config::Serving {
        port: cluster.port,
        socket_directory: &cluster.socket_directory,
        log_directory: &log,
        shared_buffers: memory::shared_buffers(memory::available()),
        archive_command: Some(archive_command),
    };
    cluster.configure(&settings.render())?;
    info!(port = cluster.port, version = cluster.installation.major_version, "starting PostgreSQL");
    cluster.start().await?;
    recovered(cluster).await
}

/// Waits until a cluster that was laid out by `loomworks recover` has replayed its WAL: before that it can be read only.
async fn recovered(cluster: &Cluster) -> Result<(), Failure> {
    let mut said = tokio::time::Instant::now();
    let mut admin = cluster.connect("postgres").await?;
    loop {
        let (recovering, position) = backup::recovering(&mut admin).await.context("ask PostgreSQL")?;
        if !recovering {
            return Ok(());
        }
        if said.elapsed() > Duration::from_secs(2) {
            said = tokio::time::Instant::now();
            info!(position, "PostgreSQL is recovering");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
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
