//! The kinds of jobs, one file each.

pub mod ai_session;
pub mod backup;
pub mod drop_former;
pub mod exchange;
pub mod provision;
pub mod restore;
pub mod snapshot;

use crate::World;
use crate::db::jobs::Claim;
use crate::error::Error;
use crate::jobs::Work;
use crate::jobs::runner::{drive, refuse};

/// Finds the kind of a claimed job and runs it.
pub(crate) async fn dispatch(world: &World, claim: &Claim) -> Result<(), Error> {
    // Boxed: each is a large future, and only one of them is ever in use.
    match claim.kind.as_str() {
        provision::Provision::KIND => Box::pin(drive::<provision::Provision>(world, claim)).await,
        snapshot::TakeSnapshot::KIND => Box::pin(drive::<snapshot::TakeSnapshot>(world, claim)).await,
        restore::Restore::KIND => Box::pin(drive::<restore::Restore>(world, claim)).await,
        restore::RemoveRemains::KIND => Box::pin(drive::<restore::RemoveRemains>(world, claim)).await,
        exchange::SwapBack::KIND => Box::pin(drive::<exchange::SwapBack>(world, claim)).await,
        backup::TakeBackup::KIND => Box::pin(drive::<backup::TakeBackup>(world, claim)).await,
        ai_session::OpenSession::KIND => Box::pin(drive::<ai_session::OpenSession>(world, claim)).await,
        ai_session::CloseSession::KIND => Box::pin(drive::<ai_session::CloseSession>(world, claim)).await,
        drop_former::DropFormer::KIND => Box::pin(drive::<drop_former::DropFormer>(world, claim)).await,
        _ => refuse(world, claim).await,
    }
}
