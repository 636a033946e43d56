//! Giving a tenant's app another password, without a connection that fails.
//!
//! The app has two login roles that take turns. While they change, both can log in: the app reads the new line of its
//! password file whenever it next looks, and connections it has keep working.
//!
//! ```text
//!               next role made   put in use, handed over        overlap over          nobody left
//!                     │                  │                           │                     │
//!   former role  ─── logs in ────────── logs in ────────────────────×│ sessions finish ────×
//!   next role         ├── can log in ───┼── logs in ──────────────────────────────────────────►
//! ```

use std::time::Duration;

use loomworks_core::ids::TenantId;
use loomworks_postgres::roles::{self, Login, Verifier};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use super::provision::names;
use crate::World;
use crate::access::Permission;
use crate::audit;
use crate::credentials::{app_password_purpose, app_roles, random_password, write_password_file};
use crate::db::credentials;
use crate::error::Error;
use crate::jobs::{Context, Progress, StepError, Then, Work};
use crate::notifications::{self, Notice};

/// How often it is looked whether the time is over, or the former role's sessions.
const POLL: Duration = Duration::from_millis(250);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RotateCredentials {
    pub tenant: TenantId,
}

/// The roles are in the step: what is the next one changes in the middle of the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Prepare,
    MakeRole { from: String, to: String },
    PutInUse { from: String, to: String },
    HandOver { from: String },
    Overlap { from: String },
    LockOut { from: String },
    EndSessions { from: String },
}

impl Work for RotateCredentials {
    const KIND: &'static str = "rotate_credentials";
    const TENANTS_NEED: Option<Permission> = Some(Permission::Manage);
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("rotate_credentials {}", self.tenant)
    }

    fn first(&self) -> Step {
        Step::Prepare
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::Prepare => (0, "choosing a password"),
            Step::MakeRole { .. } => (10, "letting the next role log in"),
            Step::PutInUse { .. } => (20, "putting the next role in use"),
            Step::HandOver { .. } => (30, "handing the app its credentials"),
            Step::Overlap { .. } => (40, "both roles can log in"),
            Step::LockOut { .. } => (90, "locking the former role out"),
            Step::EndSessions { .. } => (95, "waiting for the former role's sessions"),
        };
        Progress { percent, words }
    }

    /// Not once the next role is in use: the app must be told, and the former role locked out.
    fn can_cancel(step: &Step) -> bool {
        matches!(step, Step::Prepare | Step::MakeRole { .. })
    }

    /// Which role is in use may be the other way round by now, so what a step says of them is not gone on with.
    async fn take_up(&self, _: &Step, _: &mut PgConnection, _: &Context) -> Result<Option<Step>, Error> {
        Ok(None)
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        if let Some(from) = step.retiring()
            && !self.rotation(world).await?.is_retiring(from)
        {
            // It was brought to its end by somebody else.
            return Ok(self.done(0));
        }
        match step {
            Step::Prepare => self.prepare(world).await,
            Step::MakeRole { from, to } => self.make_role(world, from, to).await,
            Step::PutInUse { from, to } => {
                let mut transaction = world.db.platform.begin().await?;
                let overlap = world.credential_policy.overlap.as_secs_f64();
                if credentials::put_in_use(&mut transaction, self.tenant, from, to, overlap).await? {
                    let detail = json!({ "before": from, "after": to, "overlap_seconds": overlap });
                    let (by, action) = (&context.requested_by, "credentials.rotated");
                    audit::record(&mut transaction, by, action, Some(self.tenant), detail.clone()).await?;
                    let message = "the app's password for its database is another one".to_owned();
                    let notice = Notice::info("credentials.rotated", message, detail);
                    notifications::raise(&mut transaction, Some(self.tenant), &notice).await?;
                }
                transaction.commit().await?;
                Ok(Then::Next(Step::HandOver { from: from.clone() }))
            }
            Step::HandOver { from } => {
                let names = names(world, self.tenant).await?;
                write_password_file(world, &names.profile).await?;
                let overlap = world.credential_policy.overlap.as_secs_f64();
                let mut mgmt = world.db.platform.acquire().await?;
                credentials::record_handed_over(&mut mgmt, self.tenant, from, overlap).await?;
                Ok(Then::Next(Step::Overlap { from: from.clone() }))
            }
            Step::Overlap { from } if self.rotation(world).await?.is_over => {
                Ok(Then::Next(Step::LockOut { from: from.clone() }))
            }
            Step::Overlap { .. } => Ok(Then::Later(POLL)),
            Step::LockOut { from } => {
                let mut admin = world.cluster.connect("postgres").await?;
                roles::refuse_login(&mut admin, from).await?;
                Ok(Then::Next(Step::EndSessions { from: from.clone() }))
            }
            Step::EndSessions { from } => self.end_sessions(world, from).await,
        }
    }
}

impl Step {
    /// The former role, in the steps that come after the next one was put in use.
    fn retiring(&self) -> Option<&str> {
        match self {
            Self::Prepare | Self::MakeRole { .. } | Self::PutInUse { .. } => None,
            Self::HandOver { from }
            | Self::Overlap { from }
            | Self::LockOut { from }
            | Self::EndSessions { from } => Some(from),
        }
    }
}

impl RotateCredentials {
    fn done(&self, sessions_ended: i64) -> Then<Step> {
        Then::Done(json!({ "tenant": self.tenant, "sessions_ended": sessions_ended }))
    }

    async fn rotation(&self, world: &World) -> Result<credentials::Rotation, Error> {
        let mut mgmt = world.db.platform.acquire().await?;
        credentials::rotation(&mut mgmt, self.tenant).await?.ok_or(Error::NotFound("such tenant"))
    }

    async fn prepare(&self, world: &World) -> Result<Then<Step>, StepError> {
        // A rotation that failed after its middle is brought to its end: the app may not know the role that is in use,
        // and the other one must not change under it.
        if let Some(from) = self.rotation(world).await?.retiring_role {
            return Ok(Then::Next(Step::HandOver { from }));
        }
        let (password, purpose) = (random_password(), app_password_purpose(self.tenant));
        let mut transaction = world.db.platform.begin().await.map_err(Error::from)?;
        let wrapped = world.master_key.wrap_for(&mut transaction, &password, &purpose).await?;
        credentials::prepare(&mut transaction, self.tenant, &wrapped).await?;
        transaction.commit().await?;
        let from = self.rotation(world).await?.app_role;
        let to = other_role(&from);
        Ok(Then::Next(Step::MakeRole { from, to }))
    }

    /// The next role can do what the former one can, and is set as that one is.
    async fn make_role(&self, world: &World, from: &str, to: &str) -> Result<Then<Step>, StepError> {
        let names = names(world, self.tenant).await?;
        let rotation = self.rotation(world).await?;
        // It would set the password of a role that is in use, or that its last sessions still use.
        if rotation.app_role != from || rotation.retiring_role.is_some() {
            return Err(StepError::permanent(
                format!("`{from}` is not the role that is in use"),
                "ask for the credentials to be rotated anew",
            ));
        }
        let wrapped = rotation.next_password_wrapped.ok_or_else(|| {
            Error::Internal(format!("tenant {} has no password for its next role", self.tenant))
        })?;
        let password = world.master_key.unwrap(&wrapped, &app_password_purpose(self.tenant))?;
        let mut admin = world.cluster.connect("postgres").await?;
        let login = Login {
            role: to,
            verifier: &Verifier::of(&password),
            acts_as: &names.owner_role,
            valid_until: None,
            connection_limit: None,
        };
        roles::ensure_login(&mut admin, &login).await?;
        roles::copy_settings(&mut admin, from, to).await?;
        Ok(Then::Next(Step::PutInUse { from: from.to_owned(), to: to.to_owned() }))
    }

    /// Sessions that do nothing are ended, the others when they have finished, or when they were given as long again
    /// as the overlap was.
    async fn end_sessions(&self, world: &World, from: &str) -> Result<Then<Step>, StepError> {
        let mut admin = world.cluster.connect("postgres").await?;
        let busy = roles::end_idle_sessions(&mut admin, from).await?;
        if busy > 0 && !self.rotation(world).await?.is_long_over {
            return Ok(Then::Later(POLL));
        }
        roles::lock_out(&mut admin, from).await?;
        roles::forget_password(&mut admin, from).await?;
        let mut mgmt = world.db.platform.acquire().await?;
        credentials::record_retired(&mut mgmt, self.tenant).await?;
        Ok(self.done(busy))
    }
}

/// The role that takes turns with this one.
fn other_role(role: &str) -> String {
    let [first, second] = app_roles(role);
    if role == first { second } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_roles_take_turns() {
        assert_eq!(other_role("lwt_0a_app"), "lwt_0a_app_b");
        assert_eq!(other_role(&other_role("lwt_0a_app")), "lwt_0a_app");
    }
}
