//! Opening and closing AI sessions: making the role an agent logs in as, and taking it away.

use std::time::Duration;

use loomworks_core::ids::{SessionId, TenantId};
use loomworks_postgres::roles::{self, Login, Verifier};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use super::provision::names;
use crate::World;
use crate::access::Permission;
use crate::audit;
use crate::db::sessions::{self, Session};
use crate::db::snapshots;
use crate::error::Error;
use crate::jobs::{Context, Progress, Queue, StepError, Then, Work};

/// How often it is looked whether the snapshot has its position.
const POLL: Duration = Duration::from_millis(20);

/// Connections an agent may have at a time.
const CONNECTION_LIMIT: i32 = 5;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenSession {
    pub tenant: TenantId,
    pub session: SessionId,
    /// What PostgreSQL keeps of the password. One cannot log in with it.
    pub verifier: Verifier,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenStep {
    MakeRole,
    Record,
}

impl Work for OpenSession {
    const KIND: &'static str = "open_session";
    const QUEUE: Queue = Queue::HighPriority;
    const TENANTS_NEED: Option<Permission> = Some(Permission::Work);
    type Step = OpenStep;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("open_session {}", self.session)
    }

    fn first(&self) -> OpenStep {
        OpenStep::MakeRole
    }

    fn progress(step: &OpenStep) -> Progress {
        match step {
            OpenStep::MakeRole => Progress { percent: 0, words: "making the agent's role" },
            OpenStep::Record => Progress { percent: 80, words: "opening the session" },
        }
    }

    async fn run(&self, step: &OpenStep, world: &World, _: &Context) -> Result<Then<OpenStep>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        let Some(session) = sessions::get(&mut mgmt, self.tenant, self.session).await? else {
            return Err(Error::NotFound("such session").into());
        };
        match step {
            // Closed meanwhile: its role must not come back.
            _ if session.state != "opening" => Ok(Then::Done(json!({ "session": self.session }))),
            // First the moment before, then the agent.
            OpenStep::MakeRole if is_being_marked(&mut mgmt, &session).await? => Ok(Then::Later(POLL)),
            OpenStep::MakeRole => {
                let names = names(world, self.tenant).await?;
                let mut admin = world.cluster.connect("postgres").await?;
                let valid_until = session.expires_at.to_jiff().to_string();
                let login = Login {
                    role: &session.role,
                    verifier: &self.verifier,
                    acts_as: &names.owner_role,
                    valid_until: Some(&valid_until),
                    connection_limit: Some(CONNECTION_LIMIT),
                };
                roles::ensure_login(&mut admin, &login).await?;
                Ok(Then::Next(OpenStep::Record))
            }
            OpenStep::Record => {
                sessions::set_state(&mut mgmt, self.session, &["opening"], "open").await?;
                Ok(Then::Done(json!({ "session": self.session })))
            }
        }
    }
}

/// Whether the position of the session's snapshot is still to be taken.
async fn is_being_marked(mgmt: &mut PgConnection, session: &Session) -> Result<bool, Error> {
    let Some(id) = session.snapshot_id else { return Ok(false) };
    let snapshot = snapshots::get(mgmt, session.tenant_id.into(), id.into()).await?;
    Ok(snapshot.is_some_and(|snapshot| snapshot.state == "creating" && snapshot.lsn().is_none()))
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CloseSession {
    pub tenant: TenantId,
    pub session: SessionId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseStep {
    LockOut,
    Drop,
    Record,
}

impl Work for CloseSession {
    const KIND: &'static str = "close_session";
    const QUEUE: Queue = Queue::HighPriority;
    const TENANTS_NEED: Option<Permission> = Some(Permission::Work);
    type Step = CloseStep;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("close_session {}", self.session)
    }

    fn first(&self) -> CloseStep {
        CloseStep::LockOut
    }

    fn progress(step: &CloseStep) -> Progress {
        let (percent, words) = match step {
            CloseStep::LockOut => (0, "ending the agent's connections"),
            CloseStep::Drop => (40, "removing the agent's role"),
            CloseStep::Record => (90, "closing the session"),
        };
        Progress { percent, words }
    }

    /// A login that was to be taken away must not stay.
    fn can_cancel(_: &CloseStep) -> bool {
        false
    }

    async fn run(
        &self,
        step: &CloseStep,
        world: &World,
        context: &Context,
    ) -> Result<Then<CloseStep>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        let Some(session) = sessions::get(&mut mgmt, self.tenant, self.session).await? else {
            return Err(Error::NotFound("such session").into());
        };
        let mut admin = world.cluster.connect("postgres").await?;
        match step {
            CloseStep::LockOut => {
                roles::lock_out(&mut admin, &session.role).await?;
                Ok(Then::Next(CloseStep::Drop))
            }
            CloseStep::Drop => {
                let names = names(world, self.tenant).await?;
                // Former databases are copies of a time in which the role may have owned something there as well.
                let mut all = vec![names.database_name.clone()];
                let former = crate::db::tenants::former_databases(&mut mgmt, self.tenant).await?;
                all.extend(former.into_iter().map(|database| database.name));
                for database in all {
                    let mut inside = world.cluster.connect(&database).await?;
                    roles::disown(&mut inside, &session.role, &names.owner_role).await?;
                }
                roles::drop_role(&mut admin, &session.role).await?;
                Ok(Then::Next(CloseStep::Record))
            }
            CloseStep::Record => {
                drop(mgmt);
                let mut transaction = world.db.platform.begin().await?;
                let open = ["opening", "open", "closing"];
                if sessions::set_state(&mut transaction, self.session, &open, "closed").await? {
                    let detail = json!({ "session": self.session, "agent": session.agent });
                    let by = &context.requested_by;
                    let action = "ai_session.ended";
                    audit::record(&mut transaction, by, action, Some(self.tenant), detail).await?;
                }
                transaction.commit().await?;
                Ok(Then::Done(json!({ "session": self.session })))
            }
        }
    }
}
