//! Exports: everything about a tenant in one archive, for whoever's data it is.
//!
//! ```text
//! manifest.json          what, when, and the length and SHA-256 of each of the others
//! database.dump          the tenant's database with its operation log, for pg_restore
//! former/NAME.dump       the databases that were replaced and are kept
//! operations.jsonl       the operation log to read
//! records/TABLE.jsonl    the platform's rows about the tenant, without secrets
//! ```
//!
//! On disk it is encrypted with the tenant's data key, and removed after seven days.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use jiff::Timestamp;
use loomworks_core::ids::{ExportId, JobId, TenantId};
use loomworks_core::tenant::TenantState;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::World;
use crate::access::Granted;
use crate::db::exports::{self, Export};
use crate::db::tenants;
use crate::error::Error;
use crate::sealed::Opener;
use crate::work::export::MakeExport;
use crate::{audit, data_keys, jobs};

/// For how many days an export can be downloaded.
pub const KEPT_DAYS: i32 = 7;

/// The name of the manifest in the archive.
pub const MANIFEST: &str = "manifest.json";

/// What an archive says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the archive's layout.
    pub format: u32,
    pub tenant: TenantId,
    pub subdomain: String,
    pub export: ExportId,
    pub made_at: Timestamp,
    /// Of Loomworks.
    pub version: String,
    pub postgresql_version: u32,
    pub members: Vec<Member>,
    /// Columns that were left out because they are secrets.
    pub left_out: Vec<String>,
}

/// A file in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    /// What is in it.
    pub holds: String,
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
}

/// What a sealed export is bound to.
pub(crate) fn identity(tenant: TenantId, export: ExportId) -> String {
    format!("export {export} of tenant {tenant}")
}

/// Where a tenant's exports are.
pub(crate) fn directory(world: &World, tenant: TenantId) -> PathBuf {
    world.exports_directory.join(tenant.to_string())
}

pub(crate) fn sealed_file(world: &World, tenant: TenantId, export: ExportId) -> PathBuf {
    directory(world, tenant).join(format!("{export}.sealed"))
}

/// Asks for an export of all there is now.
pub async fn request(world: &World, granted: &Granted) -> Result<(Export, JobId), Error> {
    let (id, tenant) = (ExportId::random(), granted.tenant());
    let mut scoped = granted.begin(&world.db).await?;
    if tenants::get(&mut scoped, tenant).await?.state == TenantState::Provisioning {
        return Err(Error::conflict("the tenant is still being made")
            .with_hint("follow its job with `loomworks job follow`"));
    }
    if let Some(making) =
        exports::list(&mut scoped, tenant).await?.iter().find(|export| export.state == "making")
    {
        return Err(Error::conflict("an export of this tenant is being made")
            .with_hint(format!("it is export {}", making.id)));
    }
    exports::insert(&mut scoped, id, tenant, &granted.actor).await?;
    let job = jobs::enqueue(&mut scoped, &MakeExport { tenant, export: id }, &granted.actor).await?;
    let detail = json!({ "export": id });
    audit::record(&mut scoped, &granted.actor, "export.requested", Some(tenant), detail).await?;
    let export = exports::get(&mut scoped, tenant, id).await?.ok_or(Error::NotFound("such export"))?;
    scoped.commit().await?;
    Ok((export, job))
}

/// A tenant's exports, newest first.
pub async fn list(world: &World, granted: &Granted) -> Result<Vec<Export>, Error> {
    let mut scoped = granted.begin(&world.db).await?;
    Ok(exports::list(&mut scoped, granted.tenant()).await?)
}

/// An export with its archive, which is decrypted and checked while it is read.
pub struct Download {
    pub export: Export,
    pub archive: Opener<BufReader<File>>,
}

/// Opens an export for whoever may have it. That somebody did is audited.
pub async fn open(world: &World, granted: &Granted, id: ExportId) -> Result<Download, Error> {
    let tenant = granted.tenant();
    let mut scoped = granted.begin(&world.db).await?;
    let export = exports::get(&mut scoped, tenant, id).await?.ok_or(Error::NotFound("such export"))?;
    if export.state != "ready" {
        return Err(Error::conflict(format!("the export is {}", export.state))
            .with_hint("only one that is ready can be downloaded; ask for a new one"));
    }
    let detail = json!({ "export": id });
    audit::record(&mut scoped, &granted.actor, "export.downloaded", Some(tenant), detail).await?;
    scoped.commit().await?;
    let archive = open_sealed(world, tenant, id).await?;
    Ok(Download { export, archive })
}

/// Opens the file of an export with the tenant's data key. Without the key nobody can.
pub(crate) async fn open_sealed(
    world: &World,
    tenant: TenantId,
    id: ExportId,
) -> Result<Opener<BufReader<File>>, Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    let key = data_keys::get(world, &mut mgmt, tenant).await?.ok_or(Error::NotFound("such export"))?;
    let path = sealed_file(world, tenant, id);
    let opened = tokio::task::spawn_blocking(move || {
        let file = File::open(&path)?;
        Opener::new(BufReader::new(file), &key, &identity(tenant, id))
    });
    opened
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|error| Error::Internal(format!("open export {id}: {error}")))
}
