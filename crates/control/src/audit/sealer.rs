//! Sealing: the rows of the audit log become a chain, a moment after they were written.
//!
//! Chaining a row in the transaction that writes it would make every administrative act wait for the one before it, up
//! to its commit. So rows are written side by side and one sealer chains what has become visible, in an order of its
//! own, noted by `place`.
//!
//! ```text
//! hash(n) = SHA-256( hash(n-1), the row's id, at, actor, action, tenant, detail, origin, xid,
//!                    the seal's sealed_at, xid )                                          hash(0) = 32 times 0
//! ```

use std::time::Duration;

use ring::digest::{Context, SHA256};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::db::Db;
use crate::db::audit::{self, Head, Sealable, Sealing};
use crate::error::{Error, chain};

const EVERY: Duration = Duration::from_secs(1);

/// Rows that are sealed in one transaction.
const BATCH: i64 = 1000;

/// Seals until `stop` becomes true. Several processes may do so, one of them at a time.
pub async fn run(db: Db, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        if let Err(error) = seal(&db).await {
            warn!(error = chain(&error), "the audit log could not be sealed; trying again");
        }
        let _ = tokio::time::timeout(EVERY, stop.wait_for(|stop| *stop)).await;
    }
}

/// Seals all rows that are there.
pub async fn seal(db: &Db) -> Result<(), Error> {
    while seal_batch(db).await? {}
    let mut connection = db.platform.acquire().await?;
    if let Some(head) = audit::take_publication(&mut connection).await? {
        // A copy outside of the database: who changes the chain afterwards cannot change this line.
        let hash = hex(&head.hash);
        info!(rows = head.place, hash, "the audit log has {} rows and the head {hash}", head.place);
    }
    Ok(())
}

/// `Ok(true)`: there may be more.
async fn seal_batch(db: &Db) -> Result<bool, Error> {
    let mut transaction = db.platform.begin().await?;
    if !audit::begin_sealing(&mut transaction).await? {
        return Ok(false);
    }
    let head = audit::head(&mut transaction).await?;
    // Before the rows: what was running now may have committed when they are read, never the other way round.
    let horizon = audit::oldest_running(&mut transaction).await?;
    let rows = audit::unsealed(&mut transaction, BATCH).await?;
    let more = i64::try_from(rows.len()).is_ok_and(|count| count == BATCH);
    if !rows.is_empty() {
        // After the rows: see `audit_seals.xid`.
        let sealing = audit::sealing(&mut transaction).await?;
        let mut at = head;
        let (mut places, mut ids, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            at = Head { place: at.place + 1, hash: hash(&at.hash, row, sealing) };
            places.push(at.place);
            ids.push(row.id);
            hashes.push(at.hash.clone());
        }
        audit::insert_seals(&mut transaction, sealing, &places, &ids, &hashes).await?;
        audit::set_head(&mut transaction, &at).await?;
    }
    if !more {
        audit::set_horizon(&mut transaction, &horizon).await?;
    }
    transaction.commit().await?;
    Ok(more)
}

/// The hash of a row and of everything before it. Each part is preceded by its length, so that no two rows are the
/// same text.
pub(super) fn hash(before: &[u8], row: &Sealable, sealing: Sealing) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    context.update(before);
    let tenant = row.tenant_id.map(|id| id.to_string()).unwrap_or_default();
    let [id, at, sealed_at, sealed_by] =
        [row.id, row.at, sealing.sealed_at, sealing.xid].map(|number| number.to_string());
    for part in [
        &id,
        &at,
        &row.actor,
        &row.action,
        &tenant,
        &row.detail,
        &row.origin,
        &row.xid,
        &sealed_at,
        &sealed_by,
    ] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    context.finish().as_ref().to_vec()
}

/// Bytes as people compare them.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_whose_parts_run_together_have_different_hashes() {
        let row = |actor: &str, action: &str| Sealable {
            id: 1,
            at: 0,
            actor: actor.into(),
            action: action.into(),
            tenant_id: None,
            detail: "{}".into(),
            origin: String::new(),
            xid: "5".into(),
        };
        let hash =
            |before: u8, row: &Sealable| super::hash(&[before; 32], row, Sealing { sealed_at: 7, xid: 8 });
        assert_eq!(hash(0, &row("a", "b")), hash(0, &row("a", "b")));
        assert_ne!(hash(0, &row("ab", "")), hash(0, &row("a", "b")));
        assert_ne!(hash(1, &row("a", "b")), hash(0, &row("a", "b")));
        let sealed_at = |sealed_at| super::hash(&[0; 32], &row("a", "b"), Sealing { sealed_at, xid: 8 });
        assert_ne!(sealed_at(7), sealed_at(6));
    }
}
