//! The kinds of jobs, one file each.

pub mod ai_session;
pub mod archive;
pub mod backup;
pub mod deliver_webhook;
pub mod destroy;
pub mod drop_former;
pub mod exchange;
pub mod export;
pub mod fan_out;
pub mod fleet_migration;
pub mod fleet_snapshots;
pub mod limits;
pub mod pool;
pub mod provision;
pub mod restore;
pub mod rotate_credentials;
pub mod rotate_master_key;
pub mod snapshot;
pub mod subscription;
pub mod sweep;
pub mod template;

use crate::jobs::Kinds;

/// The kinds that the program carries out.
#[must_use]
pub fn kinds() -> Kinds {
    Kinds::default()
        .with::<provision::Provision>()
        .with::<template::BuildTemplate>()
        .with::<limits::ApplyLimits>()
        .with::<limits::MeasureUsage>()
        .with::<pool::FillPool>()
        .with::<pool::TidyTemplates>()
        .with::<snapshot::TakeSnapshot>()
        .with::<restore::Restore>()
        .with::<restore::RemoveRemains>()
        .with::<exchange::SwapBack>()
        .with::<backup::TakeBackup>()
        .with::<ai_session::OpenSession>()
        .with::<ai_session::CloseSession>()
        .with::<drop_former::DropFormer>()
        .with::<rotate_credentials::RotateCredentials>()
        .with::<rotate_master_key::RotateMasterKey>()
        .with::<fleet_migration::MigrateFleet>()
        .with::<fleet_snapshots::AwaitFleetSnapshots>()
        .with::<fan_out::FanOut>()
        .with::<deliver_webhook::DeliverWebhook>()
        .with::<subscription::ApplySubscription>()
        .with::<archive::Archive>()
        .with::<archive::Unarchive>()
        .with::<destroy::Destroy>()
        .with::<export::MakeExport>()
        .with::<export::RemoveExport>()
        .with::<sweep::Sweep>()
}
