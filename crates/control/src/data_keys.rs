//! Tenants' data keys: one a tenant, wrapped with the master key, gone for ever when the tenant is destroyed.

use loomworks_core::ids::TenantId;
use loomworks_core::{ExposeSecret, SecretString};
use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use sqlx::PgConnection;

use crate::World;
use crate::credentials::random;
use crate::db::data_keys;
use crate::error::Error;

/// What encrypts things of one tenant (AES-256-GCM). Not printed, not stored unwrapped.
pub struct DataKey(LessSafeKey);

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey")
    }
}

impl DataKey {
    /// A key of these bytes, for tests of what is encrypted with one.
    #[cfg(test)]
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?)))
    }

    #[must_use]
    pub fn aead(&self) -> &LessSafeKey {
        &self.0
    }
}

/// What a wrapped data key is bound to.
#[must_use]
pub fn purpose(tenant: TenantId) -> String {
    format!("data key of tenant {tenant}")
}

/// The tenant's data key; makes it, in the caller's transaction, if there is none yet.
pub async fn ensure(
    world: &World,
    connection: &mut PgConnection,
    tenant: TenantId,
) -> Result<DataKey, Error> {
    let secret = encode(&random::<32>());
    let new = world.master_key.wrap_for(connection, &secret, &purpose(tenant)).await?;
    data_keys::insert_if_absent(connection, tenant, &new).await?;
    get(world, connection, tenant).await?.ok_or(Error::NotFound("such tenant"))
}

/// The tenant's data key. `None`: it was destroyed, or never made.
pub async fn get(
    world: &World,
    connection: &mut PgConnection,
    tenant: TenantId,
) -> Result<Option<DataKey>, Error> {
    let Some(wrapped) = data_keys::wrapped(connection, tenant).await? else { return Ok(None) };
    let text = world.master_key.unwrap(&wrapped, &purpose(tenant))?;
    let damaged = || Error::Internal(format!("the data key of tenant {tenant} is damaged"));
    let bytes = decode(&text).ok_or_else(damaged)?;
    let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| damaged())?;
    Ok(Some(DataKey(LessSafeKey::new(key))))
}

/// Deletes the tenant's data key: what was encrypted with it can be read by nobody any more.
pub async fn destroy(connection: &mut PgConnection, tenant: TenantId) -> sqlx::Result<()> {
    data_keys::delete(connection, tenant).await
}

fn encode(bytes: &[u8]) -> SecretString {
    use base64::Engine as _;
    SecretString::from(base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn decode(text: &SecretString) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text.expose_secret()).ok()
}
