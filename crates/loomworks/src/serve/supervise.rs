//! Keeping PostgreSQL running: it is looked at every second and started when it is not.

use std::time::Duration;

use loomworks_control::error::chain;
use loomworks_postgres::Cluster;
use tokio::sync::watch;
use tracing::{error, warn};

pub(crate) async fn keep_running(cluster: Cluster, mut stopped: watch::Receiver<bool>) {
    loop {
        if tokio::time::timeout(Duration::from_secs(1), stopped.wait_for(|stopped| *stopped)).await.is_ok() {
            return;
        }
        if matches!(cluster.is_running().await, Ok(false)) {
            warn!("PostgreSQL is not running; starting it");
            if let Err(problem) = cluster.start().await {
                error!(error = chain(&problem), "PostgreSQL did not start; trying again");
            }
        }
    }
}
