//! `loomworks recover`: the whole platform from the repository and the master key.

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use loomworks_archive::Repository;
use loomworks_archive::backup::Progress;
use loomworks_archive::recover::{CannotRecover, ClusterPlan};
use loomworks_archive::restore::Target;
use loomworks_control::db::{API_ROLE, PLATFORM_ROLE};
use loomworks_core::{durable, time};
use loomworks_postgres::cluster::remove_directory;
use loomworks_postgres::config::shell_word;
use loomworks_postgres::{Cluster, Installation};
use loomworks_undo::UNDO_ROLE;

use super::{bytes, moment};
use crate::output::{self, Failure};
use crate::repository::open_repository;
use crate::serve::DataDirectory;
use crate::settings::Recover;

pub(super) async fn run(settings: &Recover, json: bool) -> Result<(), Failure> {
    let data = DataDirectory::take(&settings.data)?;
    let directory = data.path("pg");
    if directory.exists() {
        let failure = Failure::refused(format!("there is a cluster in `{}` already", directory.display()));
        return Err(failure.with_hint("name a data directory that has none with --data"));
    }
    let repository_settings = settings.repository.in_data_directory(&data.path(""))?;
    let repository = open_repository(&repository_settings).await?;
    let target = match (settings.time, settings.lsn) {
        (Some(time), _) => Some(Target::Time(time)),
        (None, lsn) => lsn.map(Target::Lsn),
    };
    let plan = repository.plan_recovery(target, time::now()).await.map_err(refused)?;
    if json {
        output::json(&plan)?;
    } else {
        show(&repository, &plan);
    }
    if settings.dry_run {
        return Ok(());
    }
    lay_out(settings, &data, &repository, &plan, json, &repository_settings.arguments()).await?;
    if !json {
        output::line(format!("done; `loomworks serve --data {}` goes on from here", settings.data.display()));
    }
    Ok(())
}

fn refused(error: CannotRecover) -> Failure {
    let hint = error.hint();
    Failure { hint, ..Failure::refused(error.to_string()) }
}

fn show(repository: &Repository, plan: &ClusterPlan) {
    let target = match plan.target {
        None => format!("the end of the archive, {}", plan.archived_up_to),
        Some(Target::Lsn(lsn)) => format!("before {lsn}"),
        Some(Target::Time(time)) => moment(time),
    };
    let erased: Vec<String> = plan.erased.iter().map(ToString::to_string).collect();
    let rows = [
        ["repository".into(), repository.location().to_string()],
        ["target".into(), target],
        ["base backup".into(), format!("{} ({})", plan.backup.label, bytes(plan.backup.size_bytes))],
        ["WAL".into(), bytes(plan.wal_bytes)],
        ["databases".into(), (plan.backup.groups.len() - 1 - plan.erased.len()).to_string()],
        ["erased".into(), if erased.is_empty() { "-".into() } else { erased.join(", ") }],
    ];
    output::table(["RECOVERY", ""], &rows);
}

/// Everything is laid out under other names. The cluster gets its own last: a directory that was laid out by half is
/// none.
async fn lay_out(
    settings: &Recover,
    data: &DataDirectory,
    repository: &Repository,
    plan: &ClusterPlan,
    quiet: bool,
    arguments: &str,
) -> Result<(), Failure> {
    let (making, wal) = (data.path("pg.recovering"), data.path("recovered-wal"));
    remove_directory(&making).await?;
    remove_directory(&wal).await?;
    durable::create_dir_all(&wal).with_context(|| format!("make `{}`", wal.display()))?;
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(plan.backup.size_bytes) };
    let style = ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {eta} left");
    bar.set_style(style.context("a bar")?);
    let report = |progress: Progress| bar.set_position(progress.bytes_done);
    let (_, replayable) =
        repository.lay_out_cluster(plan, &making, &wal, &report).await.map_err(|error| {
            let hint = error.hint().map(str::to_owned);
            Failure { hint, ..Failure::from(error) }
        })?;
    bar.finish_and_clear();
    let cluster = Cluster {
        installation: Installation::find(settings.postgres_bin.as_deref()).await?,
        directory: making.clone(),
        socket_directory: data.directory("run")?,
        port: 0,
    };
    let program = data.path("bin/loomworks");
    let command = format!(
        "{} wal fetch {arguments} --laid-out {} %f %p",
        shell_word(&program.to_string_lossy()),
        shell_word(&wal.to_string_lossy())
    );
    cluster.prepare_recovery(&[PLATFORM_ROLE, API_ROLE, UNDO_ROLE], plan.timeline, &command)?;
    let cluster_directory = data.path("pg");
    durable::rename(&making, &cluster_directory).context("give the cluster its name")?;
    tracing::info!(end = %replayable.outcome.end, "the cluster is laid out");
    Ok(())
}
