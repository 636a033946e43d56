//! Dropping a database that a restore replaced, once nobody will want it back.

use loomworks_core::ids::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::drops::{POLL, drop_in_turn};
use crate::db::tenants::{self, TenantDatabase};
use crate::jobs::runner::nothing;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};
use crate::{World, audit};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropFormer {
    pub tenant: TenantId,
    pub database: TenantDatabase,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Drop,
}

impl Work for DropFormer {
    const KIND: &'static str = "drop_former";
    const QUEUE: Queue = Queue::LowPriority;
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    /// The key of an exchange: one of the two at a time, so that what is dropped is not becoming live.
    fn dedup_key(&self) -> String {
        super::exchange::dedup_key(self.tenant)
    }

    fn first(&self) -> Step {
        Step::Drop
    }

    fn progress(_: &Step) -> Progress {
        Progress { percent: 0, words: "dropping the former database" }
    }

    async fn run(
        &self,
        Step::Drop: &Step,
        world: &World,
        context: &Context,
    ) -> Result<Then<Step>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        if !tenants::is_to_be_dropped(&mut mgmt, self.tenant, self.database.oid).await? {
            return Ok(Then::Done(nothing()));
        }
        drop(mgmt);
        if !drop_in_turn(world, self.database.oid).await? {
            return Ok(Then::Later(POLL));
        }
        let mut transaction = world.db.platform.begin().await?;
        if tenants::record_dropped(&mut transaction, self.tenant, self.database.oid).await? {
            let (by, action) = (&context.requested_by, "tenant.former_database_dropped");
            let detail = json!({ "database": self.database });
            audit::record(&mut transaction, by, action, Some(self.tenant), detail).await?;
        }
        transaction.commit().await?;
        Ok(Then::Done(nothing()))
    }
}
