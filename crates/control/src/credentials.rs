//! Tenants' passwords: made, exchanged for others, and handed to the apps.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use loomworks_core::ids::{JobId, TenantId};
use loomworks_core::{ExposeSecret, SecretString, durable};

use serde_json::json;
use tracing::error;

use crate::World;
use crate::access::Granted;
use crate::db;
use crate::error::{Error, chain};
pub use crate::master_key::MasterKey;
use crate::work::rotate_credentials::RotateCredentials;
use crate::{audit, jobs, tenants};

/// How tenants' passwords are changed.
#[derive(Clone, Copy, Debug)]
pub struct CredentialPolicy {
    /// How old one may become.
    pub lifetime: Duration,
    /// How long the former one works beside the new one.
    pub overlap: Duration,
}

impl Default for CredentialPolicy {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(90 * 86_400), overlap: Duration::from_secs(300) }
    }
}

/// Asks for other credentials for a tenant's app.
pub async fn rotate(world: &World, granted: &Granted) -> Result<JobId, Error> {
    tenants::provisioned(world, granted).await?;
    let mut scoped = granted.begin(&world.db).await?;
    let work = RotateCredentials { tenant: granted.tenant() };
    let job = jobs::enqueue(&mut scoped, &work, &granted.actor).await?;
    let action = "credentials.rotation_requested";
    audit::record(&mut scoped, &granted.actor, action, Some(granted.tenant()), json!({ "job": job })).await?;
    scoped.commit().await?;
    Ok(job)
}

/// The two roles that a tenant's app logs in as in turn, of which this is one. The other need not exist.
#[must_use]
pub fn app_roles(app_role: &str) -> [String; 2] {
    let first = app_role.strip_suffix("_b").unwrap_or(app_role);
    [first.to_owned(), format!("{first}_b")]
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
        let opened = world.master_key.unwrap(&row.app_password_wrapped, &app_password_purpose(row.tenant_id));
        let password = match opened {
            Ok(password) => password,
            // One tenant's damage is not the end of all the others.
            Err(error) => {
                let (tenant, error) = (row.tenant_id, chain(&error));
                error!(%tenant, error, "tenant {tenant} is left out of the password file: {error}");
                continue;
            }
        };
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
