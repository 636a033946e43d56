//! A gateway with its control plane and an app, in few words.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use loomworks_core::ids::TenantId;
use loomworks_core::route::{BaseDomains, Route, RouteState, RouteTable};
use loomworks_gateway::{ControlPlane, Gateway, Observer, Settings};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::control::{Control, TOKEN};
use crate::upstream::Upstream;
use crate::wire::Wire;

pub(crate) struct World {
    pub(crate) gateway: Running,
    pub(crate) control: Control,
    pub(crate) app: Upstream,
    directory: tempfile::TempDir,
}

/// A gateway that serves.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) name: String,
    pub(crate) observer: Observer,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    /// Tells it to stop, and does not wait.
    pub(crate) fn tell_to_stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub(crate) async fn stopped(mut self) {
        if self.stop.is_some() {
            self.tell_to_stop();
        }
        self.task.await.unwrap();
    }
}

impl World {
    /// Acme and Globex, both served by the same app.
    pub(crate) async fn new() -> Self {
        Self::with_hold_max(Duration::from_secs(60)).await
    }

    pub(crate) async fn with_hold_max(hold_max: Duration) -> Self {
        let app = Upstream::start().await;
        let routes = vec![route("acme", app.address), route("globex", app.address)];
        let control = Control::start(RouteTable { generation: 1, routes }).await;
        let directory = tempfile::tempdir().unwrap();
        let gateway = start(&control, directory.path().join("routes.json"), hold_max).await;
        control.acknowledged(&gateway.name, 1).await;
        Self { gateway, control, app, directory }
    }

    pub(crate) fn routes_file(&self) -> PathBuf {
        self.directory.path().join("routes.json")
    }

    /// Another gateway that reads the same file, as after a restart.
    pub(crate) async fn another_gateway(&self) -> Running {
        start(&self.control, self.routes_file(), Duration::from_secs(60)).await
    }

    pub(crate) async fn client(&self) -> Wire {
        Wire::connect(self.gateway.address).await
    }

    /// Sets a tenant's state and waits until the gateway serves it so.
    pub(crate) async fn set(&self, subdomain: &str, state: RouteState) {
        let generation = self.publish(subdomain, |route| route.state = state);
        self.control.acknowledged(&self.gateway.name, generation).await;
    }

    pub(crate) fn publish(&self, subdomain: &str, change: impl FnOnce(&mut Route)) -> i64 {
        self.control.publish(|table| {
            change(table.routes.iter_mut().find(|route| route.subdomain.as_str() == subdomain).unwrap());
        })
    }

    /// Waits until the gateway has a table of this generation in force, drained or not.
    pub(crate) async fn in_force(&self, generation: i64) {
        while self.gateway.observer.status().generation < generation {
            tokio::task::yield_now().await;
        }
    }
}

pub(crate) fn route(subdomain: &str, upstream: SocketAddr) -> Route {
    Route {
        tenant: TenantId::random(),
        subdomain: subdomain.parse().unwrap(),
        database: format!("db-{subdomain}"),
        state: RouteState::Serving,
        upstream,
    }
}

async fn start(control: &Control, routes_file: PathBuf, hold_max: Duration) -> Running {
    let control = ControlPlane::new(&format!("http://{}", control.address), TOKEN.to_owned().into()).unwrap();
    let listen = ([127, 0, 0, 1], 0).into();
    let settings = Settings { hold_max, ..Settings::new(listen, BaseDomains::new([]), control, routes_file) };
    let name = settings.name.clone();
    let gateway = Gateway::bind(settings).await.unwrap();
    let (address, observer) = (gateway.address(), gateway.observer());
    let (stop, stops) = oneshot::channel::<()>();
    let task = tokio::spawn(gateway.serve(async {
        let _ = stops.await;
    }));
    Running { address, name, observer, stop: Some(stop), task }
}
