//! Secrets: made, wrapped before they are stored, and handed to the apps.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use loomworks_core::ids::TenantId;
use loomworks_core::{ExposeSecret, SecretString, durable};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::World;
use crate::db;
use crate::error::Error;

const KEY_BYTES: usize = 32;

/// The key that wraps every stored secret. It lives outside the database it protects.
pub struct MasterKey {
    aead: LessSafeKey,
    pepper: [u8; KEY_BYTES],
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey")
    }
}

impl MasterKey {
    /// Reads the key file, or makes one if there is none.
    pub fn load_or_create(path: &Path) -> std::io::Result<Self> {
        if !path.exists() {
            durable::write_if_absent(path, &random::<KEY_BYTES>())?;
        }
        let bytes: [u8; KEY_BYTES] = std::fs::read(path)?
            .try_into()
            .map_err(|_| std::io::Error::other("a master key has 32 bytes"))?;
        Ok(Self::from_bytes(bytes))
    }

    fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("AES-256 takes 32 bytes");
        // A key of its own for the other purpose, so that neither says anything about the other.
        let parent = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &bytes);
        let pepper = ring::hmac::sign(&parent, b"loomworks api key pepper");
        let pepper = pepper.as_ref().try_into().expect("HMAC-SHA-256 gives 32 bytes");
        Self { aead: LessSafeKey::new(key), pepper }
    }

    /// What API keys are looked up with.
    #[must_use]
    pub fn pepper(&self) -> &[u8] {
        &self.pepper
    }

    /// Encrypts a secret. `what_for` is bound to it: the result opens only for the same purpose.
    #[must_use]
    pub fn wrap(&self, secret: &SecretString, what_for: &str) -> Vec<u8> {
        let nonce = random::<NONCE_LEN>();
        let mut sealed = secret.expose_secret().as_bytes().to_vec();
        self.aead
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(what_for.as_bytes()),
                &mut sealed,
            )
            .expect("a short secret can be sealed");
        [&nonce[..], &sealed].concat()
    }

    /// Opens what [`Self::wrap`] made for the same purpose.
    pub fn unwrap(&self, wrapped: &[u8], what_for: &str) -> Result<SecretString, Error> {
        let refused =
            || Error::Internal(format!("the secret for {what_for} does not open with this master key"));
        let (nonce, sealed) = wrapped.split_at_checked(NONCE_LEN).ok_or_else(refused)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| refused())?;
        let mut sealed = sealed.to_vec();
        let opened = self
            .aead
            .open_in_place(nonce, Aad::from(what_for.as_bytes()), &mut sealed)
            .map_err(|_| refused())?;
        String::from_utf8(opened.to_vec()).map(SecretString::from).map_err(|_| refused())
    }
}

/// Bytes from the operating system.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .expect("the system gives random bytes");
    bytes
}

/// A password nobody can guess and that needs no quoting in a URL: 192 bits.
#[must_use]
pub fn random_password() -> SecretString {
    SecretString::from(URL_SAFE_NO_PAD.encode(random::<24>()))
}

/// What the wrapped password of a tenant's app role is bound to.
#[must_use]
pub fn app_password_purpose(tenant: TenantId) -> String {
    format!("app password of tenant {tenant}")
}

/// Writes the password file of a profile's app anew: one line for each tenant, in libpq's format.
///
/// The file is whole each time, and only one process writes at a time, so that no tenant that was just made is lost.
pub async fn write_password_file(world: &World, profile: &str) -> Result<(), Error> {
    let mut transaction = world.db.platform.begin().await?;
    db::advisory_lock(&mut transaction, "password file", profile).await?;
    let rows = db::tenants::credentials_of_profile(&mut transaction, profile).await?;
    let mut text = String::from("# Written by Loomworks. host:port:database:user:password\n");
    for row in rows {
        let password =
            world.master_key.unwrap(&row.app_password_wrapped, &app_password_purpose(row.tenant_id))?;
        let port = world.cluster.port.to_string();
        let fields = ["127.0.0.1", &port, &row.database_name, &row.app_role, password.expose_secret()];
        let line: Vec<String> = fields.iter().map(|field| escape(field)).collect();
        text += &line.join(":");
        text.push('\n');
    }
    let path = world.apps_directory.join(profile).join("pgpass");
    let write = move || {
        durable::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        durable::write(&path, text.as_bytes())
    };
    tokio::task::spawn_blocking(write)
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|error| Error::Internal(format!("write the password file: {error}")))?;
    Ok(transaction.commit().await?)
}

/// Source: PostgreSQL `src/interfaces/libpq/fe-connect.c`, `passwordFromFile`: `:` and `\` are escaped.
fn escape(field: &str) -> String {
    field.replace('\\', "\\\\").replace(':', "\\:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_for_its_purpose_and_with_its_key_only() {
        let key = MasterKey::from_bytes([1; 32]);
        let wrapped = key.wrap(&SecretString::from("hunter2"), "tenant a");
        assert!(!wrapped.windows(7).any(|window| window == b"hunter2"));
        assert_eq!(key.unwrap(&wrapped, "tenant a").unwrap().expose_secret(), "hunter2");
        assert!(key.unwrap(&wrapped, "tenant b").is_err());
        assert!(MasterKey::from_bytes([2; 32]).unwrap(&wrapped, "tenant a").is_err());
        for cut in 0..wrapped.len() {
            assert!(key.unwrap(&wrapped[..cut], "tenant a").is_err());
        }
    }

    #[test]
    fn the_key_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let wrapped = MasterKey::load_or_create(&path).unwrap().wrap(&SecretString::from("x"), "y");
        assert!(MasterKey::load_or_create(&path).unwrap().unwrap(&wrapped, "y").is_ok());
        assert_eq!(format!("{:?}", MasterKey::load_or_create(&path).unwrap()), "MasterKey");
    }
}
