//! Snapshots after much was changed, such as an import, of tenants that nobody has asked to take one of.
//!
//! PostgreSQL counts the rows that are inserted, updated and deleted in each database. Counting begins when a database
//! becomes a tenant's live one, and anew with the position of each snapshot, so what is counted is what was changed since.
//! How a database came to be (copied, loaded, brought back) is behind it by then. After a crash the counters begin anew,
//! and so does this.

use std::time::Duration;

use loomworks_core::ids::SnapshotId;
use loomworks_core::time;
use loomworks_undo::UNDO_ROLE;
use serde_json::json;
use sqlx::ConnectOptions;
use tracing::debug;

use crate::World;
use crate::audit;
use crate::db::Time;
use crate::db::changes::{self, Seen};
use crate::db::lifecycle;
use crate::db::snapshots::{self, SnapshotType};
use crate::error::{Error, chain};
use crate::jobs::{self, Context};
use crate::work::snapshot::TakeSnapshot;

/// One of each half hour is enough: an import that goes on for hours is not to have one of every five minutes.
const MINUTES_BETWEEN: i32 = 30;

/// A database that does not answer by then is asked the next time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is done about a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// It is another database, or another counter: counting begins.
    Begin,
    /// So many rows are more than there should be without a snapshot, unless they are the log's.
    Enough {
        rows: i64,
    },
    Nothing,
}

fn decide(seen: &Seen, enough: i64) -> Decision {
    match seen.changes_oid.zip(seen.changes_rows) {
        Some((oid, begun)) if oid == seen.oid && seen.counted >= begun => {
            match seen.counted.saturating_sub(begun) {
                rows if rows >= enough => Decision::Enough { rows },
                _ => Decision::Nothing,
            }
        }
        _ => Decision::Begin,
    }
}

/// Looks at all tenants, and asks for the snapshots. Says how many.
pub(super) async fn look(world: &World, context: &Context) -> Result<u64, Error> {
    let enough = i64::from(world.policy.snapshot_after_rows);
    if enough == 0 {
        return Ok(0);
    }
    let mut mgmt = world.db.platform.acquire().await?;
    let all = changes::look(&mut mgmt, enough, MINUTES_BETWEEN).await?;
    let (mut begun, mut asked) = (Vec::new(), 0);
    let mut much = Vec::new();
    for seen in all {
        match decide(&seen, enough) {
            Decision::Begin => begun.push(seen.tenant_id),
            Decision::Enough { rows } => much.push((seen, rows)),
            Decision::Nothing => {}
        }
    }
    changes::begin(&mut mgmt, &begun).await?;
    drop(mgmt);
    for (seen, rows) in much {
        let up_to = Time::from(time::now());
        let Some(logged) = logged(world, &seen).await else { continue };
        let changed = rows.saturating_sub(logged);
        if changed >= enough {
            asked += u64::from(ask(world, context, &seen, changed).await?);
        } else {
            // So that they are not counted again the next time.
            let mut mgmt = world.db.platform.acquire().await?;
            changes::leave_out(&mut mgmt, &seen, logged.min(rows), up_to).await?;
        }
    }
    Ok(asked)
}

/// How many of the rows are the operation log's, which grows by a row for each that an agent changes. `None`: the
/// database does not answer.
async fn logged(world: &World, seen: &Seen) -> Option<i64> {
    let asking = async {
        let inside = world.cluster.confined(UNDO_ROLE, &seen.database_name).connect().await;
        let mut inside = inside.map_err(Error::TenantDatabase)?;
        let since = seen.changes_since.map_or(jiff::Timestamp::MIN, |since| since.to_jiff());
        Ok::<_, Error>(loomworks_undo::logged_since(&mut inside, since).await?)
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(rows)) => Some(i64::try_from(rows).unwrap_or(i64::MAX)),
        Ok(Err(error)) => {
            debug!(tenant = %seen.tenant_id, error = chain(&error), "the log's rows could not be counted");
            None
        }
        Err(_) => None,
    }
}

/// Asks for a snapshot in one transaction, unless somebody else has.
async fn ask(world: &World, context: &Context, seen: &Seen, rows: i64) -> Result<bool, Error> {
    let (id, tenant, by) = (SnapshotId::random(), seen.tenant_id, &context.requested_by);
    let mut transaction = world.db.platform.begin().await?;
    // Whoever changes a tenant's life locks this first, too.
    let standing = lifecycle::lock(&mut transaction, tenant).await?;
    if !standing.state.is_made() || !changes::is_still(&mut transaction, seen, MINUTES_BETWEEN).await? {
        return Ok(false);
    }
    let (name, days) = (format!("after {} changed rows", grouped(rows)), world.policy.recovery_days);
    snapshots::insert(&mut transaction, id, tenant, &name, SnapshotType::Auto, by, days).await?;
    jobs::enqueue(&mut transaction, &TakeSnapshot { tenant, snapshot: id }, by).await?;
    let detail = json!({ "snapshot": id, "type": SnapshotType::Auto.as_str(), "changed_rows": rows });
    audit::record(&mut transaction, by, "snapshot.requested", Some(tenant), detail).await?;
    transaction.commit().await?;
    Ok(true)
}

/// A number as people read it: `1,250,000`.
fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use loomworks_core::ids::TenantId;

    use super::*;

    fn seen(begun: Option<(i64, i64)>, counted: i64) -> Seen {
        Seen {
            tenant_id: TenantId::random(),
            database_name: "acme".into(),
            oid: 7,
            counted,
            changes_oid: begun.map(|(oid, _)| oid),
            changes_rows: begun.map(|(_, rows)| rows),
            changes_since: begun.map(|_| time::now().into()),
        }
    }

    #[test]
    fn as_many_rows_as_are_set_are_enough_and_one_fewer_is_not() {
        let counted = |counted| decide(&seen(Some((7, 5_000)), counted), 1_000);
        assert_eq!(counted(5_999), Decision::Nothing);
        assert_eq!(counted(6_000), Decision::Enough { rows: 1_000 });
        assert_eq!(counted(5_000), Decision::Nothing);
    }

    #[test]
    fn what_was_done_before_a_database_became_the_tenants_does_not_count() {
        assert_eq!(decide(&seen(None, 1_000_000), 1_000), Decision::Begin);
        assert_eq!(decide(&seen(Some((6, 0)), 1_000_000), 1_000), Decision::Begin, "another database");
    }

    #[test]
    fn counters_that_have_begun_anew_are_no_work_of_the_tenants() {
        for counted in [0, 4_999] {
            assert_eq!(decide(&seen(Some((7, 5_000)), counted), 1_000), Decision::Begin);
        }
    }

    #[test]
    fn numbers_are_grouped_by_three() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_250_000, "1,250,000")] {
            assert_eq!(grouped(number), text);
        }
    }
}
