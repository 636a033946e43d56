//! The side cluster of a restore: laid out, recovered, checked, thrown away.

use std::path::PathBuf;

use loomworks_archive::backup::Progress as LaidOut;
use loomworks_archive::replay::{Laid, Replayable};
use loomworks_archive::restore::RestorePlan;
use loomworks_core::ids::JobId;
use loomworks_core::lsn::Lsn;
use loomworks_postgres::Cluster;
use loomworks_postgres::cluster::remove_directory;
use tracing::{info, warn};

use crate::World;
use crate::jobs::{Context, StepError};

/// The side cluster of a restore and what belongs to it.
pub(in crate::work) struct Side {
    pub(super) cluster: Cluster,
    root: PathBuf,
    pub(super) dump: PathBuf,
}

pub(in crate::work) enum Recovered {
    Yes,
    CutOff,
}

impl Side {
    pub(in crate::work) fn of(world: &World, job: JobId) -> Self {
        let cluster = world.side_cluster(job);
        let root = cluster.socket_directory.clone();
        Self { dump: root.join("dump"), cluster, root }
    }

    /// Brings the files and the WAL that it needs, of this database and of what all share. Its server replays meanwhile.
    pub(in crate::work) async fn lay_out(
        &self,
        world: &World,
        plan: &RestorePlan,
        context: &Context,
    ) -> Result<Replayable, StepError> {
        let (repository, directory) = (&world.repository, &self.cluster.directory);
        let report = |laid: LaidOut| context.report(5..50, laid.bytes_done, laid.bytes_total);
        let mut wanted = None;
        let laid = loop {
            let first = repository.lay_out_files_of(plan, directory, &report).await?;
            self.cluster.begin_replay().await?;
            let replay = wanted.unwrap_or(first);
            match repository.lay_out_wal_of(plan, &replay, directory, &report).await? {
                Laid::Out(laid) => break laid,
                Laid::Again(more) => wanted = Some(more),
            }
            self.remove().await?;
        };
        info!(
            stream_bytes = laid.stream_bytes,
            segments = laid.segments,
            ended_at = %laid.outcome.end,
            "laid out what is to be replayed"
        );
        Ok(laid)
    }

    /// Waits until everything that was laid out is replayed, which ends at `end`.
    ///
    /// The server runs without fsync: one that was cut off is not trusted. Nor is one that takes the log to end earlier.
    pub(in crate::work) async fn recover(&self, end: Lsn) -> Result<Recovered, StepError> {
        let Some(replayed) = self.cluster.end_replay().await? else { return Ok(Recovered::CutOff) };
        if replayed < end {
            warn!(%replayed, %end, "the server of a restore has not replayed all that was laid out");
            return Ok(Recovered::CutOff);
        }
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
