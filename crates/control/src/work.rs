//! The kinds of jobs, one file each.

pub mod ai_session;
pub mod archive;
pub mod backup;
pub mod daily_snapshots;
pub mod deliver_webhook;
pub mod destroy;
pub mod drop_former;
mod drops;
pub mod exchange;
pub mod expire;
pub mod export;
pub mod fan_out;
pub mod fleet_migration;
pub mod fleet_snapshots;
pub mod limits;
pub mod pool;
pub mod provision;
pub mod restore;
pub mod restore_drill;
pub mod rotate_credentials;
pub mod rotate_master_key;
pub mod snapshot;
pub mod subscription;
pub mod sweep;
pub mod template;
pub mod verify_backup;

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
        .with::<verify_backup::VerifyBackup>()
        .with::<expire::Expire>()
        .with::<restore_drill::RestoreDrill>()
        .with::<daily_snapshots::DailySnapshots>()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Work as _;

    #[test]
    fn a_job_that_changes_a_tenants_life_is_cancelled_only_before_it_has() {
        use archive::{Archive, Step as Archiving, Unarchive, UnarchiveStep as TakingBack};
        use destroy::{Destroy, Step as Destroying};
        assert!(Archive::can_cancel(&Archiving::StopServing));
        for step in [Archiving::Quiet, Archiving::Close, Archiving::Mark] {
            assert!(!Archive::can_cancel(&step), "{step:?}");
        }
        assert!(Unarchive::can_cancel(&TakingBack::Open));
        for step in [TakingBack::Publish, TakingBack::Credentials] {
            assert!(!Unarchive::can_cancel(&step), "{step:?}");
        }
        assert!(Destroy::can_cancel(&Destroying::Begin));
        for step in [Destroying::Quiet, Destroying::Protect, Destroying::Forget, Destroying::Drop] {
            assert!(!Destroy::can_cancel(&step), "{step:?}");
        }
        assert!(!export::RemoveExport::can_cancel(&export::RemoveStep::Remove));
    }
}
