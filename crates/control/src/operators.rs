//! Operators' accounts: who runs the platform and logs in with a password or by OpenID Connect.
//!
//! API keys of operators are not accounts: a platform without any account is run with the key of its client file, and
//! so is one whose last account was disabled.

pub mod logins;
pub mod password;
mod throttle;

use loomworks_core::SecretString;
use loomworks_core::email::Email;
use loomworks_core::ids::OperatorId;
use serde_json::json;

use crate::World;
use crate::access::{Operator, Permission};
use crate::audit;
use crate::db::operators::{self as rows, New, OperatorInfo, Permissions};
use crate::error::Error;
use crate::page::{Asked, Page};

/// An account that is to be.
#[derive(Debug)]
pub struct NewOperator {
    pub name: String,
    pub email: Email,
    /// None: the operator comes by OpenID Connect.
    pub password: Option<SecretString>,
    pub permissions: Vec<Permission>,
}

/// Makes an account, which may do no more than whoever makes it.
pub async fn create(world: &World, operator: &Operator, new: NewOperator) -> Result<OperatorInfo, Error> {
    let name = check_name(&new.name)?;
    let permissions = check_permissions(new.permissions)?;
    if let Some(more) = beyond(operator, &permissions) {
        let message = format!("you cannot give `{}` to an account", more.as_str());
        return Err(Error::invalid(message).with_hint("an account has no more than you have yourself"));
    }
    let hash = match new.password {
        None => None,
        Some(secret) => {
            password::check(&secret, name, &new.email)?;
            Some(world.log_in.passwords.hash(secret).await?)
        }
    };
    let mut scoped = operator.begin(&world.db).await?;
    let new = New {
        name,
        email: &new.email,
        password_hash: hash.as_deref(),
        permissions: &Permissions(permissions),
    };
    let made = rows::insert(&mut scoped, &new).await?;
    let detail = json!({ "operator": made.id, "email": made.email, "permissions": made.permissions });
    audit::record(&mut scoped, &operator.actor, "operator.created", None, detail).await?;
    scoped.commit().await?;
    Ok(made)
}

/// The accounts, by address.
pub async fn list(
    world: &World,
    _operator: &Operator,
    asked: &Asked<Email>,
) -> Result<Page<OperatorInfo>, Error> {
    let found = rows::list(&world.db.platform, asked).await?;
    // What is in the table went through `Email` when it was put there.
    let mut keys = Vec::with_capacity(found.len());
    for info in &found {
        keys.push(info.email.parse::<Email>().map_err(|error| Error::Internal(error.to_string()))?);
    }
    let page = asked.page(found.into_iter().zip(keys).collect(), |(_, key)| key.clone());
    Ok(Page { items: page.items.into_iter().map(|(info, _)| info).collect(), next_cursor: page.next_cursor })
}

/// Lets nobody log in to an account any more, and ends where its operator is logged in; or lets him in again, and
/// forgets who he is at the OpenID provider until he comes from there the next time.
///
/// Everybody may lock an account; only who may do as much opens it.
pub async fn set_disabled(
    world: &World,
    operator: &Operator,
    id: OperatorId,
    disabled: bool,
) -> Result<OperatorInfo, Error> {
    let mut scoped = operator.begin(&world.db).await?;
    // The account's row first, here and at every log-in: nobody who comes at this moment slips through.
    let changed =
        rows::set_disabled(&mut scoped, id, disabled).await?.ok_or(Error::NotFound("such operator"))?;
    if !disabled && beyond(operator, &changed.permissions.0).is_some() {
        return Err(Error::Forbidden);
    }
    let ended = if disabled { rows::end_all_logins(&mut scoped, id).await? } else { 0 };
    let action = if disabled { "operator.disabled" } else { "operator.enabled" };
    let detail = json!({ "operator": id, "email": changed.email, "sessions_ended": ended });
    audit::record(&mut scoped, &operator.actor, action, None, detail).await?;
    scoped.commit().await?;
    Ok(changed)
}

/// Gives an account another password, and ends where its operator is logged in. Not one that may do more: whoever
/// knows its password has what it has.
pub async fn set_password(
    world: &World,
    operator: &Operator,
    id: OperatorId,
    secret: SecretString,
) -> Result<OperatorInfo, Error> {
    let unknown = || Error::NotFound("such operator");
    let mut scoped = operator.begin(&world.db).await?;
    let account = rows::get(&mut scoped, id).await?.ok_or_else(unknown)?;
    drop(scoped);
    if beyond(operator, &account.permissions.0).is_some() {
        return Err(Error::Forbidden);
    }
    let email: Email = account.email.parse().map_err(|error| Error::Internal(format!("{error}")))?;
    password::check(&secret, &account.name, &email)?;
    // Takes its time: no transaction is open meanwhile.
    let hash = world.log_in.passwords.hash(secret).await?;
    let mut scoped = operator.begin(&world.db).await?;
    rows::set_password(&mut scoped, id, &hash).await?;
    let ended = rows::end_all_logins(&mut scoped, id).await?;
    let changed = rows::get(&mut scoped, id).await?.ok_or_else(unknown)?;
    let detail = json!({ "operator": id, "email": changed.email, "sessions_ended": ended });
    audit::record(&mut scoped, &operator.actor, "operator.password_changed", None, detail).await?;
    scoped.commit().await?;
    Ok(changed)
}

/// The first of these permissions that the operator has not himself.
fn beyond(operator: &Operator, permissions: &[Permission]) -> Option<Permission> {
    permissions.iter().find(|permission| !operator.permissions.contains(permission)).copied()
}

/// A name for people: on one line, and not empty.
fn check_name(name: &str) -> Result<&str, Error> {
    let name = name.trim();
    if (1..=100).contains(&name.chars().count()) && !name.chars().any(char::is_control) {
        return Ok(name);
    }
    Err(Error::invalid("an operator's name has 1 to 100 characters, on one line"))
}

fn check_permissions(mut permissions: Vec<Permission>) -> Result<Vec<Permission>, Error> {
    permissions.sort_unstable();
    permissions.dedup();
    if permissions.is_empty() {
        return Err(Error::invalid("an operator has at least one permission")
            .with_hint("the permissions are `read`, `work` and `manage`"));
    }
    Ok(permissions)
}
