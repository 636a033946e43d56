//! Whether the audit log is as it was written.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::history::History;
use super::sealer::{self, hash, hex};
use crate::World;
use crate::access::Operator;
use crate::db::Db;
use crate::db::audit::{self, Sealed};
use crate::error::Error;

const PAGE: i64 = 1000;

/// What is to be verified.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only what was sealed from this moment on; what is before it is believed.
    pub since: Option<Timestamp>,
    /// A head that was noted earlier: the chain must still lead through it.
    pub expect: Option<String>,
}

/// How the log stands.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verdict {
    pub intact: bool,
    /// Rows that were looked at.
    pub checked: i64,
    /// Rows that have a seal.
    pub sealed: i64,
    /// Rows that were written a moment ago and have none yet.
    pub waiting: i64,
    /// The hash of the last seal, hexadecimal. Note it: with it a later look finds that the end was cut off.
    pub head: String,
    /// The first thing that is not as it was written.
    pub broken: Option<Broken>,
}

/// Where the chain is broken, and how.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, utoipa::ToSchema)]
pub struct Broken {
    pub kind: BrokenKind,
    /// The place in the chain.
    pub place: Option<i64>,
    /// The row of the log.
    pub id: Option<i64>,
    /// For people.
    pub message: String,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BrokenKind {
    /// The row says something else than it did.
    Changed,
    /// The row is gone.
    Deleted,
    /// The row was not there when its time was sealed.
    Inserted,
    /// Seals are gone from the middle.
    SealMissing,
    /// The end of the chain is not where it was.
    CutOff,
    /// The chain does not lead through the head that was noted.
    NotExpected,
}

/// Goes through the chain. What was written a moment ago is sealed first.
pub async fn verify(world: &World, _: &Operator, wanted: &Wanted) -> Result<Verdict, Error> {
    verify_in(&world.db, wanted).await
}

/// The same for whoever holds the database itself.
pub async fn verify_in(db: &Db, wanted: &Wanted) -> Result<Verdict, Error> {
    let expect = wanted.expect.as_deref().map(parse_hash).transpose()?;
    sealer::seal(db).await?;
    let mut transaction = db.platform.begin().await?;
    // One moment for all of it: what is sealed meanwhile belongs to the next look.
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        .execute(&mut *transaction)
        .await?;
    let head = audit::head(&mut transaction).await?;
    let (waiting, _) = audit::lag(&mut transaction).await?;
    // One seal more than was asked for: that it is older is believed only if it is as it was made. Whoever makes seals
    // look older must make this one look older too.
    let start = match wanted.since {
        Some(since) => (audit::place_before(&mut transaction, since).await? - 1).max(0),
        None => 0,
    };
    let mut verdict = Verdict {
        intact: true,
        checked: 0,
        sealed: head.place,
        waiting,
        head: hex(&head.hash),
        broken: None,
    };
    let (walked, mut broken) = walk(&mut transaction, start).await?;
    verdict.checked = walked.place - start;
    if broken.is_none() && walked != head {
        let message = format!(
            "the chain ends at place {} with {}, and not at {} with {}",
            walked.place,
            hex(&walked.hash),
            head.place,
            verdict.head
        );
        broken = Some(Broken { kind: BrokenKind::CutOff, place: Some(walked.place), id: None, message });
    }
    if broken.is_none()
        && let Some(id) = audit::slipped_in(&mut transaction).await?
    {
        let message = format!("row {id} appeared after everything of its time had been sealed");
        broken = Some(Broken { kind: BrokenKind::Inserted, place: None, id: Some(id), message });
    }
    if broken.is_none()
        && let Some(expected) = expect
        && audit::place_of(&mut transaction, &expected).await?.is_none()
    {
        let message = format!("the chain does not lead through {}", hex(&expected));
        broken = Some(Broken { kind: BrokenKind::NotExpected, place: None, id: None, message });
    }
    verdict.intact = broken.is_none();
    verdict.broken = broken;
    Ok(verdict)
}

/// A head, or its beginning: the metrics have 12 digits of it.
fn parse_hash(text: &str) -> Result<Vec<u8>, Error> {
    let text = text.trim();
    let byte = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let valid = (12..=64).contains(&text.len()) && text.len().is_multiple_of(2);
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes = if valid && digits { (0..text.len()).step_by(2).map(byte).collect() } else { None };
    bytes.ok_or_else(|| {
        Error::invalid("a head has 64 hexadecimal digits, and at least 12 of them are needed")
            .with_hint("`loomworks audit verify` shows one")
    })
}

/// Follows the seals after a place to the end, or to the first that is wrong.
async fn walk(connection: &mut PgConnection, start: i64) -> Result<(audit::Head, Option<Broken>), Error> {
    let hash = match start {
        0 => Some(vec![0; 32]),
        start => audit::hash_at(connection, start).await?,
    };
    let mut at = audit::Head { place: start, hash: hash.unwrap_or_default() };
    let mut history = History::default();
    if let Some((sealing, largest_id)) = audit::sealing_at(connection, start).await? {
        history.add(sealing, largest_id);
    }
    loop {
        let page = audit::sealed(connection, at.place, PAGE).await?;
        if page.is_empty() {
            return Ok((at, None));
        }
        for seal in page {
            if let Some(broken) = look(&at, &history, &seal) {
                return Ok((at, Some(broken)));
            }
            history.add(seal.sealing, seal.audit_id);
            at = audit::Head { place: seal.place, hash: seal.hash };
        }
    }
}

/// What is wrong with the seal that follows.
fn look(before: &audit::Head, history: &History, seal: &Sealed) -> Option<Broken> {
    let (place, id) = (seal.place, seal.audit_id);
    let broken = |kind, message| Some(Broken { kind, place: Some(place), id: Some(id), message });
    if place != before.place + 1 {
        let message = format!("seals {} to {} are gone", before.place + 1, place - 1);
        return broken(BrokenKind::SealMissing, message);
    }
    let Some(row) = &seal.row else {
        return broken(BrokenKind::Deleted, format!("row {id} is gone"));
    };
    if hash(&before.hash, row, seal.sealing) != seal.hash {
        return broken(BrokenKind::Changed, format!("row {id}, or its seal, is not as it was written"));
    }
    if history.was_sealed_later(seal.sealing) {
        return broken(BrokenKind::Changed, format!("the seal of row {id} is older than the one before it"));
    }
    let why = history.contradiction(row, seal.sealing)?;
    broken(BrokenKind::Inserted, format!("row {id} appeared later than it says: {why}"))
}
