//! API keys: made, checked, replaced, revoked.
//!
//! A key is found by a keyed checksum (its pepper is not in the database), so a key that nobody made is refused
//! without any bcrypt. What was checked is kept in the [`KeyRing`]; a key that is revoked or changed is announced by
//! the database to every process, which forgets it ([`watch`]).

pub mod expiry;
mod hashing;
mod ring;
mod turns;
pub mod watch;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use loomworks_core::api_key::{ApiKey, Environment};
use loomworks_core::ids::{ApiKeyId, TenantId};
use loomworks_core::name::Label;
use loomworks_core::{ExposeSecret, time};
use serde_json::json;
use sqlx::PgConnection;

pub use self::ring::KeyRing;
use crate::World;
use crate::access::{Caller, Granted, Identity, Operator, Permission, Scope, Scoped};
use crate::audit;
use crate::credentials::random;
use crate::db::keys::{self, After, KeyInfo, Stored};
use crate::error::Error;
use crate::page::{Asked, Page};

/// Specification: bcrypt, cost 10.
const BCRYPT_COST: u32 = 10;

/// How long an old key may live beside the one that replaces it: a week.
pub const OVERLAP_MINUTES_MAX: i32 = 7 * 24 * 60;

/// Ten years: who wants a key for longer wants one that does not expire.
const LIFETIME_MAX: SignedDuration = SignedDuration::from_hours(10 * 366 * 24);

/// What a new key is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: Label,
    /// `operator` or `gateway`, `tenant_admin` or `tenant_user`.
    pub scope: String,
    /// Nothing: all that the scope may have and whoever makes the key has.
    pub permissions: Option<Vec<Permission>>,
    pub environment: Environment,
    pub expires_at: Option<Timestamp>,
}

/// Whether a key can be had from memory, without asking the database.
#[must_use]
pub fn recognise(world: &World, text: &str) -> Option<Caller> {
    world.keys.trusted(&world.keys.mac(&text.parse().ok()?))
}

/// Who holds the key that came with a request.
pub async fn authenticate(world: &World, text: &str) -> Result<Caller, Error> {
    let key: ApiKey = text.parse().map_err(|_| Error::Unauthenticated)?;
    let mac = world.keys.mac(&key);
    if let Some(caller) = world.keys.trusted(&mac) {
        return Ok(caller);
    }
    let _alone = world.keys.look_alone(&mac).await?;
    if let Some(caller) = world.keys.trusted(&mac) {
        return Ok(caller);
    }
    let before = world.keys.generation();
    let stored = keys::find(&world.db.platform, &mac).await?.ok_or(Error::Unauthenticated)?;
    if world.keys.proven(&mac).as_deref() != Some(&*stored.hash) {
        let (owner, hash) = (stored.tenant_id.map(TenantId), stored.hash.clone());
        if !world.keys.check(owner, move || bcrypt::verify(key.expose_secret(), &hash)).await? {
            return Err(Error::Unauthenticated);
        }
    }
    let good_for = stored.seconds_left.map(|left| Duration::try_from_secs_f64(left).unwrap_or_default());
    let hash = stored.hash.clone();
    let caller = caller(stored)?;
    world.keys.trust(before, mac, caller.clone(), &hash, good_for);
    Ok(caller)
}

fn caller(stored: Stored) -> Result<Caller, Error> {
    let odd = || Error::Internal(format!("key {} has the scope `{}`", stored.id, stored.scope));
    let scope = Scope::of_row(&stored.scope, stored.tenant_id.map(TenantId)).ok_or_else(odd)?;
    let mut permissions = Permission::of_row(&stored.permissions);
    permissions.retain(|permission| Permission::of(scope).contains(permission));
    Ok(Caller { identity: Identity::Key(stored.id), scope, permissions, name: stored.name })
}

/// Whose keys somebody looks after, and in the name of whom.
enum Owner<'a> {
    Tenant(&'a Granted),
    Platform(&'a Operator),
}

impl Owner<'_> {
    fn tenant(&self) -> Option<TenantId> {
        match self {
            Self::Tenant(granted) => Some(granted.tenant()),
            Self::Platform(_) => None,
        }
    }

    fn actor(&self) -> &str {
        match self {
            Self::Tenant(granted) => &granted.actor,
            Self::Platform(operator) => &operator.actor,
        }
    }

    fn permissions(&self) -> &[Permission] {
        match self {
            Self::Tenant(granted) => &granted.permissions,
            Self::Platform(operator) => &operator.permissions,
        }
    }

    async fn begin(&self, world: &World) -> Result<Scoped, Error> {
        match self {
            Self::Tenant(granted) => granted.begin(&world.db).await,
            Self::Platform(operator) => operator.begin(&world.db).await,
        }
    }

    fn scope(&self, name: &str) -> Result<Scope, Error> {
        let hint = match self {
            Self::Tenant(_) => "a tenant's key is `tenant_admin` or `tenant_user`",
            Self::Platform(_) => "a key of the platform is `operator` or `gateway`",
        };
        let refused = || Error::invalid(format!("there is no scope `{name}` here")).with_hint(hint);
        Scope::of_row(name, self.tenant()).ok_or_else(refused)
    }
}

/// Makes a key for a tenant's own people. The key is in the answer and nowhere else.
pub async fn create_for_tenant(
    world: &World,
    granted: &Granted,
    wanted: &Wanted,
) -> Result<(KeyInfo, ApiKey), Error> {
    create(world, &Owner::Tenant(granted), wanted).await
}

/// Makes a key for an operator or a gateway.
pub async fn create_for_platform(
    world: &World,
    operator: &Operator,
    wanted: &Wanted,
) -> Result<(KeyInfo, ApiKey), Error> {
    create(world, &Owner::Platform(operator), wanted).await
}

async fn create(world: &World, owner: &Owner<'_>, wanted: &Wanted) -> Result<(KeyInfo, ApiKey), Error> {
    let scope = owner.scope(&wanted.scope)?;
    let permissions = permissions(scope, owner.permissions(), wanted.permissions.as_deref())?;
    if let Some(expires_at) = wanted.expires_at {
        let now = time::now();
        if expires_at <= now || expires_at.duration_since(now) > LIFETIME_MAX {
            return Err(Error::invalid("a key expires in the future, and within ten years")
                .with_hint("leave `expires_at` out for a key that does not expire"));
        }
    }
    let new = Draft {
        scope,
        permissions: &permissions,
        environment: wanted.environment,
        name: wanted.name.as_str(),
        created_by: owner.actor(),
        expires_at: wanted.expires_at,
        replaces: None,
    };
    let sealed = seal(world, owner.tenant(), wanted.environment).await?;
    let mut scoped = owner.begin(world).await?;
    let info = insert(world, &mut scoped, &new, &sealed).await?;
    let detail = json!({ "key": info.id, "prefix": info.prefix, "scope": info.scope,
        "permissions": info.permissions, "expires_at": info.expires_at });
    audit::record(&mut scoped, owner.actor(), "api_key.created", owner.tenant(), detail).await?;
    scoped.commit().await?;
    Ok((info, sealed.key))
}

/// What a key gets: nothing that its scope cannot have or that its maker has not.
fn permissions(
    scope: Scope,
    makers: &[Permission],
    wanted: Option<&[Permission]>,
) -> Result<Vec<Permission>, Error> {
    let possible = Permission::of(scope);
    let Some(wanted) = wanted else {
        return Ok(possible.iter().copied().filter(|permission| makers.contains(permission)).collect());
    };
    let refused = |permission: &&Permission| !possible.contains(permission) || !makers.contains(permission);
    if let Some(odd) = wanted.iter().find(refused) {
        let message = format!("you cannot give `{}` to a key of scope `{}`", odd.as_str(), scope.as_str());
        return Err(Error::invalid(message)
            .with_hint("a key has no more than its scope allows, and no more than you have yourself"));
    }
    if wanted.is_empty() && !possible.is_empty() {
        return Err(Error::invalid("a key without any permission is of no use")
            .with_hint("name `read`, `work` or `manage`, or leave `permissions` out"));
    }
    Ok(Permission::ALL.into_iter().filter(|permission| wanted.contains(permission)).collect())
}

/// The keys of a tenant, newest first.
pub async fn list(world: &World, granted: &Granted, asked: &Asked<After>) -> Result<Page<KeyInfo>, Error> {
    listed(world, &Owner::Tenant(granted), asked).await
}

/// The keys of operators and gateways, newest first.
pub async fn list_of_platform(
    world: &World,
    operator: &Operator,
    asked: &Asked<After>,
) -> Result<Page<KeyInfo>, Error> {
    listed(world, &Owner::Platform(operator), asked).await
}

async fn listed(world: &World, owner: &Owner<'_>, asked: &Asked<After>) -> Result<Page<KeyInfo>, Error> {
    let mut scoped = owner.begin(world).await?;
    let rows = keys::list(&mut scoped, owner.tenant(), asked).await?;
    Ok(asked.page(rows, |key| (key.created_at, key.id.0)))
}

/// Ends a tenant's key. It is refused from now on, in other processes as soon as they hear of it.
pub async fn revoke(world: &World, granted: &Granted, id: ApiKeyId) -> Result<(), Error> {
    end(world, &Owner::Tenant(granted), id).await
}

/// Ends a key of an operator or a gateway.
pub async fn revoke_of_platform(world: &World, operator: &Operator, id: ApiKeyId) -> Result<(), Error> {
    end(world, &Owner::Platform(operator), id).await
}

async fn end(world: &World, owner: &Owner<'_>, id: ApiKeyId) -> Result<(), Error> {
    let mut scoped = owner.begin(world).await?;
    let key = keys::get(&mut scoped, owner.tenant(), id).await?.ok_or(Error::NotFound("such key"))?;
    if !keys::revoke(&mut scoped, owner.tenant(), id).await? {
        // It was revoked before, and every process has been told.
        return Ok(());
    }
    let detail = json!({ "key": id, "prefix": key.prefix });
    audit::record(&mut scoped, owner.actor(), "api_key.revoked", owner.tenant(), detail).await?;
    scoped.commit().await?;
    world.keys.forget(id);
    Ok(())
}

/// Makes a key with the same rights; the old one ends after the overlap.
pub async fn rotate(
    world: &World,
    granted: &Granted,
    id: ApiKeyId,
    overlap_minutes: i32,
) -> Result<(KeyInfo, ApiKey), Error> {
    replace(world, &Owner::Tenant(granted), id, overlap_minutes).await
}

/// The same for a key of an operator or a gateway.
pub async fn rotate_of_platform(
    world: &World,
    operator: &Operator,
    id: ApiKeyId,
    overlap_minutes: i32,
) -> Result<(KeyInfo, ApiKey), Error> {
    replace(world, &Owner::Platform(operator), id, overlap_minutes).await
}

async fn replace(
    world: &World,
    owner: &Owner<'_>,
    id: ApiKeyId,
    overlap_minutes: i32,
) -> Result<(KeyInfo, ApiKey), Error> {
    if !(0..=OVERLAP_MINUTES_MAX).contains(&overlap_minutes) {
        return Err(Error::invalid(format!("the overlap is 0 to {OVERLAP_MINUTES_MAX} minutes")));
    }
    let mut scoped = owner.begin(world).await?;
    let old = may_have(&mut scoped, owner, id).await?;
    drop(scoped);
    let environment = environment(&old.environment)?;
    let sealed = seal(world, owner.tenant(), environment).await?;

    let mut scoped = owner.begin(world).await?;
    if !keys::expire_in(&mut scoped, id, overlap_minutes).await? {
        return Err(Error::conflict("this key is not good any more")
            .with_hint("make a new one, or rotate the one that has replaced it"));
    }
    // As long as the old one had from its beginning.
    let lifetime = old.expires_at.map(|end| end.to_jiff().duration_since(old.created_at.to_jiff()));
    let expires_at = lifetime.map(|lifetime| time::now().saturating_add(lifetime));
    let expires_at = expires_at.transpose().map_err(|error| Error::Internal(error.to_string()))?;
    let new = Draft {
        scope: owner.scope(&old.scope)?,
        permissions: &Permission::of_row(&old.permissions),
        environment,
        name: &old.name,
        created_by: owner.actor(),
        expires_at,
        replaces: Some(id),
    };
    let info = insert(world, &mut scoped, &new, &sealed).await?;
    let detail = json!({ "key": id, "replaced_by": info.id, "overlap_minutes": overlap_minutes });
    audit::record(&mut scoped, owner.actor(), "api_key.rotated", owner.tenant(), detail).await?;
    scoped.commit().await?;
    world.keys.forget(id);
    Ok((info, sealed.key))
}

/// The key, if it is the owner's and has no rights that whoever asks has not: he could take them for himself.
async fn may_have(scoped: &mut Scoped, owner: &Owner<'_>, id: ApiKeyId) -> Result<KeyInfo, Error> {
    let key = keys::get(scoped, owner.tenant(), id).await?.ok_or(Error::NotFound("such key"))?;
    let more = |permission: &Permission| !owner.permissions().contains(permission);
    if Permission::of_row(&key.permissions).iter().any(more) {
        return Err(Error::Forbidden);
    }
    Ok(key)
}

/// Reads `live`, `test` or `dev`.
pub fn environment(name: &str) -> Result<Environment, Error> {
    Ok(match name {
        "live" => Environment::Live,
        "test" => Environment::Test,
        "dev" => Environment::Dev,
        _ => {
            return Err(Error::invalid(format!("there is no environment `{name}`"))
                .with_hint("it is `live`, `test` or `dev`"));
        }
    })
}

/// Makes the platform's key of this scope and name anew: what had it before is refused from now on.
///
/// For the first operator's key, and for the gateway that runs in the same process.
pub async fn renew_platform_key(world: &World, scope: &str, name: &str) -> Result<ApiKey, Error> {
    let odd = || Error::Internal(format!("the platform has no keys of scope `{scope}`"));
    let scope = Scope::of_row(scope, None).ok_or_else(odd)?;
    let sealed = seal(world, None, Environment::Live).await?;
    let mut transaction = world.db.platform.begin().await?;
    let revoked = keys::revoke_platform_keys(&mut transaction, scope.as_str(), name).await?;
    let new = Draft {
        scope,
        permissions: Permission::of(scope),
        environment: Environment::Live,
        name,
        created_by: "loomworks",
        expires_at: None,
        replaces: None,
    };
    let info = insert(world, &mut transaction, &new, &sealed).await?;
    let detail = json!({ "key": info.id, "prefix": info.prefix, "scope": info.scope, "name": info.name,
        "permissions": info.permissions, "revoked": revoked });
    audit::record(&mut transaction, new.created_by, "api_key.renewed", None, detail).await?;
    transaction.commit().await?;
    Ok(sealed.key)
}

/// A key and its hash, which is made before any transaction is begun: it takes its time.
struct Sealed {
    key: ApiKey,
    hash: String,
}

struct Draft<'a> {
    scope: Scope,
    permissions: &'a [Permission],
    environment: Environment,
    name: &'a str,
    created_by: &'a str,
    expires_at: Option<Timestamp>,
    replaces: Option<ApiKeyId>,
}

async fn seal(world: &World, owner: Option<TenantId>, environment: Environment) -> Result<Sealed, Error> {
    let key = ApiKey::from_random(environment, &random());
    let text = key.clone();
    let hash = world.keys.make(owner, move || bcrypt::hash(text.expose_secret(), BCRYPT_COST)).await?;
    Ok(Sealed { key, hash })
}

async fn insert(
    world: &World,
    connection: &mut PgConnection,
    draft: &Draft<'_>,
    sealed: &Sealed,
) -> Result<KeyInfo, Error> {
    let permissions: Vec<&str> = draft.permissions.iter().map(|permission| permission.as_str()).collect();
    let new = keys::New {
        tenant: draft.scope.tenant(),
        scope: draft.scope.as_str(),
        permissions: &permissions,
        environment: draft.environment.as_str(),
        name: draft.name,
        prefix: &sealed.key.display_prefix(),
        hash: &sealed.hash,
        mac: &world.keys.mac(&sealed.key),
        created_by: draft.created_by,
        expires_at: draft.expires_at.map(Into::into),
        replaces: draft.replaces,
    };
    Ok(keys::insert(connection, &new).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gives_what_he_has_not_or_what_the_scope_cannot_have() {
        use Permission::{Manage, Read, Work};
        let tenant = TenantId::random();
        let (admin, user) = (Scope::TenantAdmin(tenant), Scope::TenantUser(tenant));
        assert_eq!(permissions(admin, &Permission::ALL, None).unwrap(), [Read, Work, Manage]);
        assert_eq!(permissions(user, &Permission::ALL, None).unwrap(), [Read, Work]);
        assert_eq!(permissions(admin, &[Read, Manage], None).unwrap(), [Read, Manage]);
        assert_eq!(permissions(admin, &[Read, Manage], Some(&[Read, Read])).unwrap(), [Read]);
        assert!(permissions(admin, &[Read, Manage], Some(&[Work])).is_err());
        assert!(permissions(user, &Permission::ALL, Some(&[Manage])).is_err());
        assert!(permissions(user, &Permission::ALL, Some(&[])).is_err());
        assert_eq!(permissions(Scope::Gateway, &Permission::ALL, None).unwrap(), []);
    }
}
