//! API keys: made, checked, revoked.
//!
//! A key is found by a keyed checksum (its pepper is not in the database), so a key that nobody made is refused
//! without any bcrypt. The hash is checked once a minute for each key in use, never twice at the same time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use loomworks_core::ExposeSecret;
use loomworks_core::api_key::{ApiKey, Environment};
use loomworks_core::ids::{ApiKeyId, TenantId};
use serde_json::json;
use sqlx::PgConnection;

use crate::World;
use crate::access::{Caller, Granted, Operator, Scope};
use crate::audit;
use crate::credentials::{MasterKey, random};
use crate::db::keys::{self, KeyInfo, Stored};
use crate::error::Error;

/// Specification: bcrypt, cost 10.
const BCRYPT_COST: u32 = 10;

/// How long a checked key is believed.
const TRUSTED_FOR: Duration = Duration::from_secs(60);

type Mac = [u8; 32];

/// Keys that were checked a moment ago.
#[derive(Clone)]
pub struct KeyRing {
    pepper: Arc<ring::hmac::Key>,
    checked: Arc<std::sync::Mutex<HashMap<Mac, (Caller, Instant)>>>,
    /// Held while a hash is checked, so that a burst of requests with one new key costs one bcrypt.
    checking: Arc<tokio::sync::Mutex<()>>,
}

impl KeyRing {
    #[must_use]
    pub fn new(master_key: &MasterKey) -> Self {
        let pepper = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, master_key.pepper());
        Self { pepper: Arc::new(pepper), checked: Arc::default(), checking: Arc::default() }
    }

    fn mac(&self, key: &ApiKey) -> Mac {
        let tag = ring::hmac::sign(&self.pepper, key.expose_secret().as_bytes());
        tag.as_ref().try_into().expect("HMAC-SHA-256 gives 32 bytes")
    }

    fn trusted(&self, mac: &Mac) -> Option<Caller> {
        let checked = self.lock();
        checked.get(mac).filter(|(_, at)| at.elapsed() < TRUSTED_FOR).map(|(caller, _)| caller.clone())
    }

    fn trust(&self, mac: Mac, caller: Caller) {
        let mut checked = self.lock();
        checked.retain(|_, (_, at)| at.elapsed() < TRUSTED_FOR);
        checked.insert(mac, (caller, Instant::now()));
    }

    fn forget(&self, id: ApiKeyId) {
        self.lock().retain(|_, (caller, _)| caller.key != id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Mac, (Caller, Instant)>> {
        self.checked.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Who holds the key that came with a request.
pub async fn authenticate(world: &World, text: &str) -> Result<Caller, Error> {
    let key: ApiKey = text.parse().map_err(|_| Error::Unauthenticated)?;
    let mac = world.keys.mac(&key);
    if let Some(caller) = world.keys.trusted(&mac) {
        return Ok(caller);
    }
    let _checking = world.keys.checking.lock().await;
    if let Some(caller) = world.keys.trusted(&mac) {
        return Ok(caller);
    }
    let stored = keys::find(&world.db.platform, &mac).await?.ok_or(Error::Unauthenticated)?;
    let hash = stored.hash.clone();
    let right = blocking(move || bcrypt::verify(key.expose_secret(), &hash)).await?;
    if !right {
        return Err(Error::Unauthenticated);
    }
    let caller = caller(stored)?;
    world.keys.trust(mac, caller.clone());
    Ok(caller)
}

fn caller(stored: Stored) -> Result<Caller, Error> {
    let scope = match (stored.scope.as_str(), stored.tenant_id) {
        ("operator", None) => Scope::Operator,
        ("gateway", None) => Scope::Gateway,
        ("tenant_admin", Some(tenant)) => Scope::TenantAdmin(TenantId(tenant)),
        (scope, _) => return Err(Error::Internal(format!("key {} has the scope `{scope}`", stored.id))),
    };
    Ok(Caller { key: stored.id, scope, name: stored.name })
}

/// Makes a key for a tenant's own people. The key is in the answer and nowhere else.
pub async fn create_for_tenant(
    world: &World,
    operator: &Operator,
    granted: &Granted,
    name: &str,
) -> Result<(KeyInfo, ApiKey), Error> {
    let name = name.trim();
    if !(1..=100).contains(&name.chars().count()) {
        return Err(Error::invalid("a key's name has 1 to 100 characters"));
    }
    let mut scoped = operator.begin(&world.db).await?;
    let made = insert(world, &mut scoped, Some(granted.tenant()), "tenant_admin", name).await?;
    let detail = json!({ "key": made.0.id, "prefix": made.0.prefix });
    audit::record(&mut scoped, &operator.actor, "api_key.created", Some(granted.tenant()), detail).await?;
    scoped.commit().await?;
    Ok(made)
}

/// The keys of a tenant.
pub async fn list(world: &World, operator: &Operator, granted: &Granted) -> Result<Vec<KeyInfo>, Error> {
    let mut scoped = operator.begin(&world.db).await?;
    Ok(keys::list(&mut scoped, granted.tenant()).await?)
}

/// Ends a tenant's key. Here it is refused at once, in other processes when their minute is over.
pub async fn revoke(
    world: &World,
    operator: &Operator,
    granted: &Granted,
    id: ApiKeyId,
) -> Result<(), Error> {
    let mut scoped = operator.begin(&world.db).await?;
    if !keys::revoke(&mut scoped, granted.tenant(), id).await? {
        return Err(Error::NotFound("such key"));
    }
    let detail = json!({ "key": id });
    audit::record(&mut scoped, &operator.actor, "api_key.revoked", Some(granted.tenant()), detail).await?;
    scoped.commit().await?;
    world.keys.forget(id);
    Ok(())
}

/// Makes the platform's key of this scope and name anew: what had it before is refused from now on.
///
/// For the first operator's key, and for the gateway that runs in the same process.
pub async fn renew_platform_key(world: &World, scope: &str, name: &str) -> Result<ApiKey, Error> {
    let mut transaction = world.db.platform.begin().await?;
    keys::revoke_platform_keys(&mut transaction, scope, name).await?;
    let (_, key) = insert(world, &mut transaction, None, scope, name).await?;
    transaction.commit().await?;
    Ok(key)
}

async fn insert(
    world: &World,
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    scope: &str,
    name: &str,
) -> Result<(KeyInfo, ApiKey), Error> {
    let key = ApiKey::from_random(Environment::Live, &random());
    let text = key.clone();
    let hash = blocking(move || bcrypt::hash(text.expose_secret(), BCRYPT_COST)).await?;
    let new = keys::New {
        tenant,
        scope,
        name,
        prefix: &key.display_prefix(),
        hash: &hash,
        mac: &world.keys.mac(&key),
    };
    Ok((keys::insert(connection, &new).await?, key))
}

/// bcrypt takes 50 milliseconds of a core: not on the threads that serve.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, bcrypt::BcryptError> + Send + 'static,
) -> Result<T, Error> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined
        .map_err(|error| Error::Internal(error.to_string()))?
        .map_err(|error| Error::Internal(error.to_string()))
}
