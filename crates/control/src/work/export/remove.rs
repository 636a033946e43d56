//! Removing an export when its time is over, and finding what one that failed has left.

use std::io;
use std::path::{Path, PathBuf};

use loomworks_core::ids::{ExportId, TenantId};
use loomworks_postgres::PgConnection;
use loomworks_postgres::cluster::remove_directory;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::collected;
use crate::World;
use crate::audit;
use crate::db::exports as rows;
use crate::error::Error;
use crate::exports;
use crate::jobs::runner::nothing;
use crate::jobs::{Context, Progress, StepError, Then, Work};

/// Removes an export that is over, or what one that failed has left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveExport {
    pub tenant: TenantId,
    pub export: ExportId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoveStep {
    Remove,
}

impl Work for RemoveExport {
    const KIND: &'static str = "remove_export";
    type Step = RemoveStep;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("remove_export {}", self.export)
    }

    fn first(&self) -> RemoveStep {
        RemoveStep::Remove
    }

    fn progress(_: &RemoveStep) -> Progress {
        Progress { percent: 0, words: "removing an export" }
    }

    /// What is not wanted must not stay.
    fn can_cancel(_: &RemoveStep) -> bool {
        false
    }

    /// The state last: what is `ready` can be downloaded, or is removed again.
    async fn run(
        &self,
        _: &RemoveStep,
        world: &World,
        context: &Context,
    ) -> Result<Then<RemoveStep>, StepError> {
        let sealed = exports::sealed_file(world, self.tenant, self.export);
        let mut removed = Vec::new();
        for path in [sealed.with_extension("partial"), sealed] {
            match tokio::fs::remove_file(&path).await {
                Ok(()) => removed.push(file_name(&path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(Error::Internal(format!("remove `{}`: {error}", path.display())).into());
                }
            }
        }
        let collected = collected(world, self.tenant, self.export);
        if tokio::fs::try_exists(&collected).await.unwrap_or(true) {
            remove_directory(&collected).await?;
            removed.push(file_name(&collected));
        }
        let mut transaction = world.db.platform.begin().await?;
        let expired = rows::set_state(&mut transaction, self.export, "ready", "expired").await?;
        if expired || !removed.is_empty() {
            let detail = json!({ "export": self.export, "expired": expired, "removed": removed });
            let by = &context.requested_by;
            audit::record(&mut transaction, by, "export.removed", Some(self.tenant), detail).await?;
        }
        transaction.commit().await?;
        Ok(Then::Done(nothing()))
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Exports of which there are files and that nobody makes or may have.
pub(crate) async fn left_over(
    world: &World,
    mgmt: &mut PgConnection,
) -> Result<Vec<(TenantId, ExportId)>, Error> {
    let directory = world.exports_directory.clone();
    let found = tokio::task::spawn_blocking(move || found(&directory))
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(|error| Error::Internal(format!("look for exports: {error}")))?;
    Ok(rows::unwanted(mgmt, &found).await?)
}

/// Whose files there are in a directory of exports. What has another name is not ours.
fn found(directory: &Path) -> io::Result<Vec<(TenantId, ExportId)>> {
    let mut found = Vec::new();
    for (name, path) in entries(directory)? {
        let Ok(tenant) = name.parse::<TenantId>() else { continue };
        for (name, _) in entries(&path)? {
            let export = name.split('.').next().unwrap_or_default().parse::<ExportId>();
            found.extend(export.ok().map(|export| (tenant, export)));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// What is in a directory, which need not be there.
fn entries(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    entries.map(|entry| entry.map(|entry| (file_name(&entry.path()), entry.path()))).collect()
}
