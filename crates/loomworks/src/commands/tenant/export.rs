//! `loomworks tenant export`, `exports`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use loomworks_control::db::exports::Export;
use loomworks_control::exports::{MANIFEST, Manifest};
use loomworks_control::work::export::digest;
use loomworks_core::ids::ExportId;
use loomworks_web::api::exports::ExportCreated;

use crate::client::Client;
use crate::commands::{bytes, moment, or_dash};
use crate::output::{self, Failure, Progress};

pub(super) async fn list(client: &Client, tenant: &str, json: bool) -> Result<(), Failure> {
    let exports: Vec<Export> = client.get(&format!("/v1/tenants/{tenant}/exports")).await?;
    if json {
        return output::json(&exports);
    }
    let row = |export: &Export| {
        [
            export.id.to_string(),
            export.state.clone(),
            or_dash(export.size_bytes.map(|size| bytes(u64::try_from(size).unwrap_or(0))).as_ref()),
            moment(export.created_at.to_jiff()),
            or_dash(export.expires_at.map(|time| moment(time.to_jiff())).as_ref()),
        ]
    };
    let rows: Vec<_> = exports.iter().map(row).collect();
    output::table(["EXPORT", "STATE", "SIZE", "ASKED FOR", "KEPT UNTIL"], &rows);
    Ok(())
}

pub(super) async fn run(
    client: &Client,
    tenant: &str,
    output: &Path,
    export: Option<ExportId>,
    json: bool,
) -> Result<(), Failure> {
    if output.exists() {
        let failure = Failure::refused(format!("`{}` is there already", output.display()));
        return Err(failure.with_hint("name another file, or remove it"));
    }
    let id = match export {
        Some(id) => id,
        None => {
            let path = format!("/v1/tenants/{tenant}/exports");
            let created: ExportCreated = client.post(&path, &serde_json::json!({})).await?;
            client.follow(created.job).await?;
            created.export.id
        }
    };
    let exports: Vec<Export> = client.get(&format!("/v1/tenants/{tenant}/exports")).await?;
    let export = exports.into_iter().find(|export| export.id == id);
    let export = export.ok_or_else(|| Failure::new(format!("there is no export {id}")))?;
    // Beside it until it is whole and checked: what has the name is good.
    let partial = output.with_added_extension("partial");
    let downloaded = download(client, tenant, &export, &partial).await;
    let manifest = match downloaded.and_then(|()| verify(&partial, &export)) {
        Ok(manifest) => manifest,
        Err(failure) => {
            let _ = std::fs::remove_file(&partial);
            return Err(failure);
        }
    };
    loomworks_core::durable::rename(&partial, output).context("name the archive")?;
    if json {
        return output::json(&manifest);
    }
    let rows = manifest.members.iter().map(|member| {
        [member.name.clone(), bytes(member.bytes), member.sha256[..16].to_owned(), member.holds.clone()]
    });
    output::table(["FILE", "SIZE", "SHA-256", ""], &rows.collect::<Vec<_>>());
    output::told(format!("{} is whole: every file is as its manifest says", output.display()))
}

async fn download(client: &Client, tenant: &str, export: &Export, into: &Path) -> Result<(), Failure> {
    // Everything about a tenant is not for the other users of this machine.
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(into);
    let mut file = BufWriter::new(file.with_context(|| format!("write `{}`", into.display()))?);
    let total = export.size_bytes.and_then(|size| u64::try_from(size).ok()).unwrap_or(0).max(1);
    let progress = Progress::start();
    let path = format!("/v1/tenants/{tenant}/exports/{}/download", export.id);
    let shown = |done: u64| {
        let percent = i16::try_from((done * 100 / total).min(100)).unwrap_or(100);
        progress.show(percent, "downloading");
    };
    client.download(&path, &mut file, shown).await?;
    progress.end();
    file.flush().context("write the archive")?;
    Ok(file.get_ref().sync_all().context("flush the archive")?)
}

/// Reads the archive through: its checksum is the one that was told, and every file is as the manifest says.
fn verify(path: &Path, export: &Export) -> Result<Manifest, Failure> {
    let damaged = |what: String| {
        Failure::new(format!("the archive is not whole: {what}")).with_hint("download it again with --export")
    };
    let open = || File::open(path).map(BufReader::new).context("read the archive");
    let (_, sha256) = digest(open()?).context("read the archive")?;
    if export.sha256.as_ref() != Some(&sha256) {
        return Err(damaged("its checksum is another one".into()));
    }
    let mut archive = tar::Archive::new(zstd::Decoder::new(open()?).context("read the archive")?);
    let mut manifest: Option<Manifest> = None;
    let mut checked = 0;
    for entry in archive.entries().context("read the archive")? {
        let mut entry = entry.context("read the archive")?;
        let name = entry.path().context("read the archive")?.to_string_lossy().into_owned();
        let Some(manifest) = &manifest else {
            if name != MANIFEST {
                return Err(damaged("it does not begin with its manifest".into()));
            }
            let mut text = Vec::new();
            entry.read_to_end(&mut text).context("read the manifest")?;
            manifest = Some(serde_json::from_slice(&text).context("understand the manifest")?);
            continue;
        };
        let (bytes, sha256) = digest(&mut entry).context("read the archive")?;
        let member = manifest.members.get(checked).filter(|member| member.name == name);
        if member.is_none_or(|member| member.bytes != bytes || member.sha256 != sha256) {
            return Err(damaged(format!("`{name}` is not what the manifest says")));
        }
        checked += 1;
    }
    match manifest {
        Some(manifest) if manifest.members.len() == checked => Ok(manifest),
        _ => Err(damaged("files are missing".into())),
    }
}
