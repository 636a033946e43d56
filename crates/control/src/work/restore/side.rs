//! The side cluster of a restore: laid out, recovered, checked, thrown away.

use std::path::PathBuf;

use loomworks_archive::backup::Progress as LaidOut;
use loomworks_archive::replay::Replayable;
use loomworks_archive::restore::RestorePlan;
use loomworks_core::durable;
use loomworks_core::ids::JobId;
use loomworks_postgres::cluster::remove_directory;
use loomworks_postgres::{Cluster, config};
use tracing::info;

use crate::World;
use crate::error::Error;
use crate::jobs::{Context, StepError};

/// The side cluster of a restore and what belongs to it.
pub(in crate::work) struct Side {
    pub(super) cluster: Cluster,
    root: PathBuf,
    pub(super) dump: PathBuf,
    /// Written before the cluster is started for the first time.
    begun: PathBuf,
}

pub(in crate::work) enum Recovered {
    Yes,
    CutOff,
}

impl Side {
    pub(in crate::work) fn of(world: &World, job: JobId) -> Self {
        let cluster = world.side_cluster(job);
        let root = cluster.socket_directory.clone();
        Self { dump: root.join("dump"), begun: root.join("begun"), cluster, root }
    }

    /// Brings the files and the WAL that it needs, of this database and of what all share.
    pub(in crate::work) async fn lay_out(
        &self,
        world: &World,
        plan: &RestorePlan,
        context: &Context,
    ) -> Result<Replayable, StepError> {
        let directory = &self.cluster.directory;
        let report = |laid: LaidOut| context.report(5..20, laid.bytes_done, laid.bytes_total);
        let laid = world.repository.lay_out_database(plan, directory, &report).await?;
        info!(
            stream_bytes = laid.stream_bytes,
            segments = laid.segments,
            ended_at = %laid.outcome.end,
            "laid out what is to be replayed"
        );
        Ok(laid)
    }

    pub(in crate::work) async fn recover(&self) -> Result<Recovered, StepError> {
        if self.cluster.is_running().await? {
            self.cluster.start().await?;
            return Ok(Recovered::Yes);
        }
        if self.begun.exists() {
            return Ok(Recovered::CutOff);
        }
        let settings = config::Recovering { socket_directory: &self.cluster.socket_directory };
        self.cluster.configure(&settings.render())?;
        // What `ALTER SYSTEM` set at the source comes with the backup and would win.
        let overrides = self.cluster.directory.join("postgresql.auto.conf");
        for file in [overrides, self.begun.clone()] {
            durable::write(&file, b"")
                .map_err(|error| Error::Internal(format!("write `{}`: {error}", file.display())))?;
        }
        self.cluster.start().await?;
        Ok(Recovered::Yes)
    }

    /// What its server said last.
    pub(super) fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.cluster.directory.join("start.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(4)..].join("; ")
    }

    /// Stops it and removes everything.
    pub(in crate::work) async fn remove(&self) -> Result<(), StepError> {
        if self.cluster.directory.join("PG_VERSION").exists() {
            self.cluster.stop().await?;
        }
        Ok(remove_directory(&self.root).await?)
    }
}
