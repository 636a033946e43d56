//! Asking twice without doing it twice.
//!
//! A request may carry a key of the client's choice. The first with a key takes it on, under a lease; if it did
//! anything its answer is kept for a day, and who asks the same again is given it. What did nothing, as a plan or a
//! refusal, is asked anew. Three things can go wrong between:
//!
//! - The process dies before anything was done: the lease runs out, and the request is carried out anew.
//! - It dies after: the transaction that did it has noted so (`note_effect`), and it is never done again. Only the
//!   answer is lost, which is what the client is told.
//! - It was only slow, and another attempt has begun: its transaction finds that and does not commit.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use loomworks_core::ids::TenantId;
use loomworks_core::{ExposeSecret, SecretString};
use ring::hmac;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::World;
use crate::access::{Caller, Identity};
use crate::db::idempotency as rows;
use crate::error::Error;
use crate::operators::logins::derived_key;

/// How long an answer is kept.
pub const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// How long a request may take before another attempt may begin.
const LEASE: Duration = Duration::from_secs(60);
/// Longer answers are not kept.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// So many requests of one caller are known at a time, so that none fills the disk with answers.
pub const KEYS_MAX: i64 = 10_000;

tokio::task_local! {
    /// The attempt that the present task carries out.
    static PRESENT: Attempt;
}

/// One go at a request with a key.
#[derive(Clone, Debug)]
pub struct Attempt {
    caller: String,
    key: String,
    id: Uuid,
    /// The tenant that the request has turned out to be about.
    about: Arc<OnceLock<TenantId>>,
}

/// An answer, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    pub status: u16,
    pub content_type: Option<String>,
    pub body: String,
}

/// How a request with a key stands.
#[derive(Debug)]
pub enum Begun {
    /// Carry it out, in [`within`], and [`finish`] it.
    Now(Attempt),
    Answered(Answer),
    /// The first one is being carried out.
    Running,
    /// The key was used for another request.
    Differs,
    /// It was done, and the answer was lost with the process that did it.
    AnswerLost,
    /// The caller has [`KEYS_MAX`] others.
    TooMany,
}

/// Takes a request on, or finds what has become of it. `request` is its method and its address.
pub async fn begin(
    world: &World,
    caller: &Caller,
    key: &str,
    request: &str,
    body: &[u8],
) -> Result<Begun, Error> {
    // Of an account, not of one browser: a login may end between two tries.
    let caller = match caller.identity {
        Identity::Key(id) => format!("key:{id}"),
        Identity::Operator { operator, .. } => format!("operator:{operator}"),
    };
    // Keyed: a body may hold a password, which is found out from a plain checksum by guessing.
    let body_mac = hmac::sign(&derived_key(&world.master_key, "loomworks idempotent bodies"), body);
    let asked = rows::Asked { caller: &caller, key, request, body_mac: body_mac.as_ref() };
    let (lease, kept_for) = (LEASE.as_secs_f64(), KEPT_FOR.as_secs_f64());
    let pool = &world.db.platform;
    // Twice: what was there may be gone when it is looked at.
    for _ in 0..2 {
        let id = Uuid::new_v4();
        if rows::begin(pool, &asked, id, lease, kept_for, KEYS_MAX).await? {
            return Ok(Begun::Now(Attempt { caller, key: key.to_owned(), id, about: Arc::default() }));
        }
        if let Some(known) = rows::known(pool, &caller, key).await? {
            if known.request != request || known.body_mac != body_mac.as_ref() {
                return Ok(Begun::Differs);
            }
            return Ok(match known.answer_wrapped {
                Some(wrapped) => Begun::Answered(open(world, &caller, key, &wrapped)?),
                None if known.took_effect && !known.leased => Begun::AnswerLost,
                None => Begun::Running,
            });
        }
        if rows::count(pool, &caller, KEYS_MAX).await? >= KEYS_MAX {
            return Ok(Begun::TooMany);
        }
    }
    Ok(Begun::Running)
}

/// Carries an attempt out: transactions that are committed in it note that they were.
pub async fn within<T>(attempt: Attempt, work: impl Future<Output = T>) -> T {
    PRESENT.scope(attempt, work).await
}

/// Says which tenant the present request is about: its answer is deleted with the tenant. Called where somebody gets the
/// right to one, and where something is audited.
pub(crate) fn note_tenant(tenant: TenantId) {
    let _ = PRESENT.try_with(|present| present.about.set(tenant));
}

/// Called by every commit of somebody's transaction. What is committed in another way counts as nothing done.
pub(crate) async fn note_effect(connection: &mut PgConnection) -> Result<(), Error> {
    let Ok(present) = PRESENT.try_with(Clone::clone) else { return Ok(()) };
    let about = present.about.get().copied();
    if rows::note_effect(connection, &present.caller, &present.key, present.id, about).await? {
        return Ok(());
    }
    Err(Error::conflict("this took so long that the same request was begun anew").with_hint("ask again"))
}

/// Keeps the answer for whoever asks again, unless nothing was changed: then the same request may be carried out
/// later, and a caller who may only look cannot have answers kept.
pub async fn finish(world: &World, attempt: &Attempt, answer: Option<&Answer>) -> Result<(), Error> {
    let Attempt { caller, key, id, about } = attempt;
    let pool = &world.db.platform;
    if rows::release(pool, caller, key, *id).await? {
        return Ok(());
    }
    match answer.filter(|answer| answer.status < 500 && answer.body.len() <= ANSWER_BYTES_MAX) {
        Some(answer) => {
            let text = serde_json::to_string(answer).map_err(|error| Error::Internal(error.to_string()))?;
            let (answer, purpose) = (SecretString::from(text), purpose(caller, key));
            let mut transaction = pool.begin().await?;
            let wrapped = world.master_key.wrap_for(&mut transaction, &answer, &purpose).await?;
            rows::keep(&mut transaction, caller, key, *id, &wrapped, about.get().copied()).await?;
            transaction.commit().await?;
        }
        None => rows::end_lease(pool, caller, key, *id).await?,
    }
    Ok(())
}

/// Removes answers that are older than a day.
pub async fn remove_old(world: &World) -> Result<(), Error> {
    Ok(rows::remove_old(&world.db.platform, KEPT_FOR.as_secs_f64()).await?)
}

fn purpose(caller: &str, key: &str) -> String {
    format!("answer to {caller} under {key}")
}

fn open(world: &World, caller: &str, key: &str, wrapped: &[u8]) -> Result<Answer, Error> {
    let text = world.master_key.unwrap(wrapped, &purpose(caller, key))?;
    serde_json::from_str(text.expose_secret())
        .map_err(|error| Error::Internal(format!("the answer that was kept cannot be read: {error}")))
}
