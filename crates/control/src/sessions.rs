//! AI sessions: opened, listed, closed.

use std::time::Duration;

use loomworks_core::ids::{JobId, SessionId};
use loomworks_core::name::Label;
use loomworks_core::{ExposeSecret, SecretString};
use loomworks_postgres::roles::Verifier;
use loomworks_undo::AI_ROLE_PREFIX;
use serde_json::json;

use crate::World;
use crate::access::Granted;
use crate::credentials::random_password;
use crate::db::sessions::{self, New, Session};
use crate::db::snapshots::SnapshotType;
use crate::error::Error;
use crate::page::{Asked, Page};
use crate::work::ai_session::{CloseSession, OpenSession};
use crate::{audit, jobs, snapshots, tenants};

/// How long a session may be open.
pub const MINUTES_MAX: i32 = 24 * 60;

/// How long somebody who opens a session waits for its role. It takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// A session that somebody wants, checked by [`open`].
#[derive(Clone, Debug)]
pub struct Wanted {
    pub agent: Label,
    pub purpose: String,
    pub minutes: i32,
}

/// An open session with the secret that is told once.
#[derive(Debug)]
pub struct Opened {
    pub session: Session,
    /// `postgres://…`, all an agent needs.
    pub connection_string: SecretString,
    /// Takes the snapshot of the moment before the agent began.
    pub snapshot_job: JobId,
}

/// Opens a session: from now on the agent may log in, and all that it changes is recorded.
pub async fn open(world: &World, granted: &Granted, wanted: &Wanted) -> Result<Opened, Error> {
    if !(1..=MINUTES_MAX).contains(&wanted.minutes) {
        return Err(Error::invalid(format!("a session is open for 1 to {MINUTES_MAX} minutes")));
    }
    if wanted.purpose.chars().count() > 2000 || wanted.purpose.contains('\0') {
        return Err(Error::invalid("a purpose has at most 2,000 characters"));
    }
    let tenant = tenants::provisioned(world, granted).await?;
    let (id, password) = (SessionId::random(), random_password());
    let role = format!("{AI_ROLE_PREFIX}{}", id.short());

    let mut scoped = granted.begin(&world.db).await?;
    let name = format!("before {}", wanted.agent);
    let name: String = name.chars().take(255).collect();
    let (snapshot, snapshot_job) =
        snapshots::request(world, &mut scoped, granted, &name, SnapshotType::PreAi).await?;
    let new = New {
        id,
        tenant: granted.tenant(),
        agent: wanted.agent.as_str(),
        purpose: &wanted.purpose,
        role: &role,
        snapshot: snapshot.id,
        minutes: wanted.minutes,
        requested_by: &granted.actor,
    };
    sessions::insert(&mut scoped, &new).await?;
    let work = OpenSession { tenant: granted.tenant(), session: id, verifier: Verifier::of(&password) };
    let job = jobs::enqueue(&mut scoped, &work, &granted.actor).await?;
    let detail = json!({ "session": id, "agent": wanted.agent, "minutes": wanted.minutes });
    audit::record(&mut scoped, &granted.actor, "ai_session.opened", Some(granted.tenant()), detail).await?;
    scoped.commit().await?;

    jobs::wait(world, job, PATIENCE).await?;
    let connection_string = SecretString::from(format!(
        "postgres://{role}:{password}@127.0.0.1:{port}/{database}",
        password = password.expose_secret(),
        port = world.cluster.port,
        database = tenant.database_name,
    ));
    Ok(Opened { session: get(world, granted, id).await?, connection_string, snapshot_job })
}

/// Ends a session: its connections end, its role goes. What it did stays in the operation log.
pub async fn close(world: &World, granted: &Granted, id: SessionId) -> Result<(Session, JobId), Error> {
    let session = get(world, granted, id).await?;
    let work = CloseSession { tenant: granted.tenant(), session: id };
    let mut scoped = granted.begin(&world.db).await?;
    let job = jobs::enqueue(&mut scoped, &work, &granted.actor).await?;
    let detail = json!({ "session": session.id });
    audit::record(&mut scoped, &granted.actor, "ai_session.closed", Some(granted.tenant()), detail).await?;
    scoped.commit().await?;
    jobs::wait(world, job, PATIENCE).await?;
    Ok((get(world, granted, id).await?, job))
}

pub async fn get(world: &World, granted: &Granted, id: SessionId) -> Result<Session, Error> {
    let mut scoped = granted.begin(&world.db).await?;
    sessions::get(&mut scoped, granted.tenant(), id).await?.ok_or(Error::NotFound("such session"))
}

/// A tenant's sessions, newest first.
pub async fn list(
    world: &World,
    granted: &Granted,
    asked: &Asked<sessions::After>,
) -> Result<Page<Session>, Error> {
    let mut scoped = granted.begin(&world.db).await?;
    let rows = sessions::list(&mut scoped, granted.tenant(), asked).await?;
    Ok(asked.page(rows, |session| (session.created_at, session.id.0)))
}
