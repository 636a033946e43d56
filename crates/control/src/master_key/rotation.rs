//! Changing the master key: a new one wraps, then everything that is stored is wrapped anew, in the management database
//! and in the repository.

use loomworks_archive::RepositoryError;
use loomworks_archive::keys::{Keys, Standing};
use loomworks_core::ids::JobId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{MasterKey, MasterKeyError};
use crate::access::Operator;
use crate::db::Db;
use crate::db::wrapped::{self, PLACES};
use crate::error::Error;
use crate::work::rotate_master_key::RotateMasterKey;
use crate::{World, audit, jobs};

/// Secrets that are wrapped anew in one transaction.
const BATCH: i64 = 200;

/// How the master key and what it wraps stand.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyStatus {
    /// The id of the key that wraps.
    pub current: String,
    /// Those of keys that only open.
    pub former: Vec<String>,
    pub wrapped: Vec<WrappedStatus>,
    pub repository: RepositoryKeys,
}

/// How the keys of the repository stand: one for each database, and one for what they share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RepositoryKeys {
    /// Wrapped with the present key.
    pub current: u64,
    /// Wrapped with a former one.
    pub former: u64,
    /// Deleted, with everything that they have sealed.
    pub erased: u64,
    /// Those that do not open, by their names in the repository.
    pub unopened: Vec<String>,
}

/// How the secrets of one column stand.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WrappedStatus {
    /// `tenant_credentials.app_password_wrapped`
    pub column: String,
    /// Wrapped with the present key.
    pub current: i64,
    /// Wrapped with a former one.
    pub former: i64,
}

/// Which keys there are, and what is wrapped with which.
pub async fn status(world: &World, operator: &Operator) -> Result<KeyStatus, Error> {
    let mut scoped = operator.begin(&world.db).await?;
    let header = super::header(world.master_key.current());
    let mut columns = Vec::new();
    for place in &PLACES {
        let (current, former) = wrapped::count(&mut scoped, place, &header).await?;
        columns.push(WrappedStatus { column: format!("{}.{}", place.table, place.column), current, former });
    }
    Ok(KeyStatus {
        current: world.master_key.current().to_string(),
        former: world.master_key.former().iter().map(ToString::to_string).collect(),
        wrapped: columns,
        repository: repository_keys(world.repository.keys()).await?,
    })
}

/// Opens every key of the repository.
pub async fn repository_keys(keys: &Keys) -> Result<RepositoryKeys, Error> {
    let mut all = RepositoryKeys::default();
    for key in keys.examine().await.map_err(RepositoryError::from)? {
        match key.standing {
            Standing::Current => all.current += 1,
            Standing::Former => all.former += 1,
            Standing::Erased => all.erased += 1,
            Standing::DoesNotOpen | Standing::Damaged => all.unopened.push(key.name),
        }
    }
    Ok(all)
}

/// Asks for another master key.
pub async fn rotate(world: &World, operator: &Operator, forget_former: bool) -> Result<JobId, Error> {
    if !world.master_key.can_change() {
        let error =
            Error::conflict("the master key is given from outside, and there is no other one behind it");
        return Err(error.with_hint(MasterKeyError::Given.hint().unwrap_or_default()));
    }
    let mut scoped = operator.begin(&world.db).await?;
    let from = world.master_key.current().to_string();
    let job = jobs::enqueue(&mut scoped, &RotateMasterKey { from, forget_former }, &operator.actor).await?;
    // One that is under way is found instead. It must do what is asked for.
    let found: RotateMasterKey = jobs::work(&mut scoped, job).await?;
    if found.forget_former != forget_former {
        let what = if found.forget_former { "forgets" } else { "keeps" };
        let error = Error::conflict(format!("a rotation is under way that {what} the former key: job {job}"));
        return Err(error.with_hint("ask again when it has ended"));
    }
    let detail = json!({ "job": job, "before": world.master_key.current().to_string(), "forget_former": forget_former });
    audit::record(&mut scoped, &operator.actor, "master_key.rotation_requested", None, detail).await?;
    scoped.commit().await?;
    Ok(job)
}

/// Drops all keys but the present one, unless something is wrapped with one of them: `Ok(false)`.
pub async fn forget_former(db: &Db, repository: &Keys, master_key: &MasterKey) -> Result<bool, Error> {
    // Whoever makes a key of the repository with a former one has written it when this returns.
    let _held = repository.hold().await;
    let mut transaction = db.platform.begin().await?;
    // Whoever wrapped with a former key before there was another has committed it when this returns.
    wrapped::stop_wrapping(&mut transaction).await?;
    let header = super::header(master_key.current());
    for place in &PLACES {
        if wrapped::count(&mut transaction, place, &header).await?.1 > 0 {
            return Ok(false);
        }
    }
    if !repository.not_current().await.map_err(RepositoryError::from)?.is_empty() {
        return Ok(false);
    }
    master_key.forget_former().await?;
    transaction.commit().await?;
    Ok(true)
}

/// What was wrapped anew.
#[derive(Clone, Debug, Default)]
pub struct Rewrapped {
    pub count: u64,
    /// What those are for that open with none of the keys. They are as they were.
    pub unopened: Vec<String>,
}

/// Wraps everything anew that is wrapped with a former key. May be cut off anywhere.
pub async fn rewrap_all(db: &Db, master_key: &MasterKey) -> Result<Rewrapped, Error> {
    let header = super::header(master_key.current());
    let mut rewrapped = Rewrapped::default();
    for place in &PLACES {
        let mut after = String::from("(0,0)");
        loop {
            let mut transaction = db.platform.begin().await?;
            // Locked, so that nobody puts another secret in between.
            let old = wrapped::lock_old(&mut transaction, place, &header, &after, BATCH).await?;
            for row in &old {
                match master_key.rewrap(&row.wrapped, &row.purpose) {
                    Some(new) => {
                        wrapped::replace(&mut transaction, place, row, &new).await?;
                        rewrapped.count += 1;
                    }
                    None => rewrapped.unopened.push(row.purpose.clone()),
                }
            }
            transaction.commit().await?;
            match old.last() {
                Some(last) => after.clone_from(&last.row),
                None => break,
            }
        }
    }
    Ok(rewrapped)
}
