//! `loomworks serve`: the platform in one process, on a PostgreSQL cluster of its own.
//!
//! ```text
//! <data>/bin/loomworks     this program, for PostgreSQL to call
//! <data>/pg                the cluster
//! <data>/run               its socket
//! <data>/repository        its archive
//! <data>/received          WAL on its way there
//! <data>/side              side clusters of restores, each gone with its job
//! <data>/exports           exports of tenants, encrypted
//! <data>/apps/<profile>    credentials for the apps
//! <data>/routes.json       the gateway's last good table
//! <data>/master.key        wraps every stored secret
//! <data>/client.json       where the platform is, with the first operator's key
//! ```
//!
//! Started again it finds what is there and goes on, however it was ended.

pub(crate) mod account;
mod data;
mod measure;
pub(crate) use data::DataDirectory;
mod platform;
mod supervise;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use loomworks_archive::stream;
use loomworks_control::reconcile::{self, Duties};
use loomworks_control::{World, jobs, keys};
use loomworks_core::route::BaseDomains;
use loomworks_core::{ExposeSecret, SecretString};
use loomworks_gateway::{ControlPlane, Gateway, HOLD_MAX};
use loomworks_web::serve::Patience;
use loomworks_web::{Allowance, Proxies};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use crate::client::ClientFile;
use crate::output::{self, Failure};
use crate::settings::{Role, Serve};

/// How long requests that are under way may take after the program was told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs the platform until it is told to stop.
pub(crate) async fn run(settings: Serve) -> Result<(), Failure> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let data = DataDirectory::take(&settings.data)?;
    // Bound before anything is started: a port that is taken is the commonest mistake.
    let api = TcpListener::bind(settings.api_listen).await.map_err(|error| {
        Failure::refused(format!("listen on {}: {error}", settings.api_listen))
            .with_hint("choose another with --api-listen")
    })?;
    let metrics = measure::bind(settings.metrics_listen).await?;
    let recorded = measure::record()?;
    let world = platform::start(&settings, &data).await?;
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(measure::serve(metrics, recorded, stopped.clone()));
    tasks.spawn(loomworks_control::metrics::run(world.clone(), stopped.clone()));
    start_roles(&settings, &data, &world, api, &stopped, &mut tasks).await?;
    announce(&settings, &data, &world).await?;

    tokio::select! {
        _ = terminated.recv() => info!("told to stop"),
        _ = interrupted.recv() => info!("interrupted, stopping"),
        Some(ended) = tasks.join_next() => {
            tracing::error!(?ended, "a part of the platform ended by itself; stopping");
        }
    }
    stop.send_replace(true);
    let drained = tokio::time::timeout(DRAIN + Duration::from_secs(2), async {
        while tasks.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tasks.shutdown().await;
    }
    world.cluster.stop().await?;
    info!("stopped");
    Ok(())
}

async fn start_roles(
    settings: &Serve,
    data: &DataDirectory,
    world: &World,
    api: TcpListener,
    stopped: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> Result<(), Failure> {
    tasks.spawn(supervise::keep_running(world.cluster.clone(), stopped.clone()));
    let api_address = api.local_addr()?;
    let mut gateway_key = None;
    // The gateway first: whoever finds the API answering finds the tenants' addresses answering too.
    if settings.has(Role::Gateway) {
        let (gateway, key) = gateway(settings, data, world, api_address).await?;
        gateway_key = Some(key);
        tasks.spawn(gateway.serve(wait(stopped.clone())));
    }
    if settings.has(Role::Api) || settings.has(Role::Gateway) {
        let edge = loomworks_web::Settings {
            allowance: Allowance { per_second: settings.api_rate, burst: settings.api_burst },
            proxies: Proxies::new(settings.trusted_proxies.iter().copied()),
            gateway_key,
        };
        let router = loomworks_web::router(world.clone(), edge);
        tasks.spawn(loomworks_web::serve::serve(api, router, Patience::default(), wait(stopped.clone())));
        tasks.spawn(keys::watch::run(world.clone(), stopped.clone()));
    }
    if settings.has(Role::Worker) {
        tasks.spawn(jobs::runner::run(world.clone(), stopped.clone()));
    }
    if settings.has(Role::Archiver) {
        let (repository, cluster) = (world.repository.clone(), world.cluster.clone());
        tasks.spawn(stream::run(repository, cluster, data.directory("received")?, stopped.clone()));
    }
    tasks.spawn(loomworks_control::audit::sealer::run(world.db.clone(), stopped.clone()));
    let duties = Duties { tenants: settings.has(Role::Worker), backups: settings.has(Role::Archiver) };
    tasks.spawn(reconcile::run(world.clone(), duties, stopped.clone()));
    Ok(())
}

async fn gateway(
    settings: &Serve,
    data: &DataDirectory,
    world: &World,
    api: SocketAddr,
) -> Result<(Gateway, SecretString), Failure> {
    loomworks_control::routes::forget_gateways(world).await?;
    // Made anew at each start and kept nowhere.
    let key = keys::renew_platform_key(world, "gateway", &world.node).await?;
    let key = SecretString::from(key.expose_secret().to_owned());
    let control = ControlPlane::new(&format!("http://{api}"), key.clone())?;
    let settings = loomworks_gateway::Settings {
        listen: settings.gateway_listen,
        base_domains: BaseDomains::new(settings.base_domains.iter().cloned()),
        control,
        routes_file: data.path("routes.json"),
        hold_max: HOLD_MAX,
        // A new one each time: what a former process has promised, this one has not.
        name: format!("{}/{}", world.node, uuid::Uuid::new_v4().simple()),
    };
    let listen = settings.listen;
    let gateway = Gateway::bind(settings).await.map_err(|error| {
        Failure::refused(format!("{:#}", anyhow::Error::from(error)))
            .with_hint(format!("is {listen} taken? choose another with --gateway-listen"))
    })?;
    Ok((gateway, key))
}

async fn wait(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone stops everything too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Writes the client file and says where everything is.
async fn announce(settings: &Serve, data: &DataDirectory, world: &World) -> Result<(), Failure> {
    let url = format!("http://{}", settings.api_listen);
    let known: Option<ClientFile> =
        std::fs::read(data.path("client.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let api_key = match known {
        Some(known) => known.api_key,
        None => {
            keys::renew_platform_key(world, "operator", "first operator").await?.expose_secret().to_owned()
        }
    };
    let file = ClientFile { url: url.clone(), gateway: settings.gateway_listen, api_key };
    data.write("client.json", &serde_json::to_vec_pretty(&file).context("write the client file")?)?;

    output::line(format!("API         {url}  (document: {url}/v1/openapi.json)"));
    if settings.has(Role::Gateway) {
        let port = settings.gateway_listen.port();
        output::line(format!("gateway     http://TENANT.localhost:{port}/"));
    }
    output::line(format!("PostgreSQL  127.0.0.1:{}", world.cluster.port));
    if let Some(address) = settings.metrics_listen {
        output::line(format!("metrics     http://{address}/metrics"));
    }
    output::line(format!("roles       {}", settings.role_names()));
    // Not the key itself: what is printed here ends up in a log wherever this is run as a service.
    output::line(format!("operator    key in {}", data.path("client.json").display()));
    output::line("ready");
    Ok(())
}
