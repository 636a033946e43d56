//! Metrics: the recorder, the task that samples, the listener for whoever scrapes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use loomworks_control::metrics::{API_SECONDS, describe};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::output::Failure;

/// From a cached answer to a request that waits for a job.
const API_BUCKETS: [f64; 11] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// How often the recorder folds what was recorded together, so that its memory has a limit when nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Records from now on what the whole program measures.
pub(crate) fn record() -> Result<PrometheusHandle, Failure> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(API_SECONDS.name.to_owned()), &API_BUCKETS)
        .context("set up the metrics")?;
    let handle = builder.install_recorder().context("set up the metrics")?;
    describe();
    Ok(handle)
}

/// The listener, bound before anything is started.
pub(crate) async fn bind(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let bound = TcpListener::bind(address).await.map_err(|error| {
        Failure::refused(format!("listen on {address}: {error}"))
            .with_hint("choose another with --metrics-listen")
    })?;
    Ok(Some(bound))
}

/// Serves `/metrics` and keeps the recorder small, until it is told to stop.
pub(crate) async fn serve(
    listener: Option<TcpListener>,
    handle: PrometheusHandle,
    mut stopped: watch::Receiver<bool>,
) {
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP).await;
            handle.run_upkeep();
        }
    };
    let answer = async {
        match listener {
            Some(listener) => {
                if let Err(error) = axum::serve(listener, loomworks_web::metrics_router(handle.clone())).await
                {
                    tracing::error!(%error, "the metrics are served no more");
                }
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = upkeep => {}
        () = answer => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}
