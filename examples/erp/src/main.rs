//! A small ERP for many tenants: an example of an app that Loomworks can host. It is no part of Loomworks.
//!
//! It knows one thing about where it runs: each request says in `X-Loomworks-Database` which database it is about, and
//! the password file says how to get in.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

mod api;
mod databases;
mod page;
mod passfile;

/// A small ERP for many tenants.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8069")]
    listen: SocketAddr,
    /// Where PostgreSQL is, if not where the password file says.
    #[arg(long)]
    database_host: Option<String>,
    /// A file with a line `host:port:database:user:password` for each database.
    #[arg(long)]
    passfile: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let Arguments { listen, database_host, passfile } = Arguments::parse();
    let databases = Arc::new(databases::Databases::new(passfile, database_host));
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    tracing::info!(address = %listener.local_addr()?, "the ERP serves");
    axum::serve(listener, api::router(databases))
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("the ERP stops");
        })
        .await
        .context("serve")
}
