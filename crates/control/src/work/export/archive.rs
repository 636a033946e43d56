//! The archive of an export: one tar file of its parts, compressed and then encrypted.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::{DUMP, FORMER, OPERATIONS, RECORDS};
use crate::data_keys::DataKey;
use crate::exports::{MANIFEST, Manifest, Member};
use crate::sealed::Sealer;

/// Packs what was collected. The file counts once it has its name, which is not this one's to give.
pub(super) fn seal_archive(
    directory: &Path,
    mut manifest: Manifest,
    into: &Path,
    key: &DataKey,
    identity: &str,
) -> io::Result<()> {
    let mut paths: Vec<PathBuf> =
        [DUMP, OPERATIONS].iter().map(|name| directory.join(name)).filter(|path| path.exists()).collect();
    for several in [FORMER, RECORDS] {
        let mut files: Vec<PathBuf> = std::fs::read_dir(directory.join(several))?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()?;
        files.sort();
        paths.extend(files);
    }
    for path in &paths {
        let name = path.strip_prefix(directory).map_err(io::Error::other)?.to_string_lossy().into_owned();
        let (bytes, sha256) = digest(File::open(path)?)?;
        manifest.members.push(Member { holds: holds(&name), name, bytes, sha256 });
    }
    let out = BufWriter::new(File::create(into)?);
    let compressed = zstd::Encoder::new(Sealer::new(out, key, identity)?, 3)?;
    let mut archive = tar::Builder::new(compressed);
    let text = serde_json::to_vec_pretty(&manifest)?;
    append(&mut archive, MANIFEST, u64::try_from(text.len()).unwrap_or(0), &manifest, &text[..])?;
    for (member, path) in manifest.members.iter().zip(&paths) {
        append(&mut archive, &member.name, member.bytes, &manifest, File::open(path)?)?;
    }
    let out = archive.into_inner()?.finish()?.finish()?;
    out.into_inner().map_err(|error| error.into_error())?.sync_all()
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    bytes: u64,
    manifest: &Manifest,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_mtime(u64::try_from(manifest.made_at.as_second()).unwrap_or(0));
    archive.append_data(&mut header, name, content)
}

fn holds(name: &str) -> String {
    match name {
        DUMP => "the tenant's database with its operation log; read it with pg_restore".into(),
        OPERATIONS => "what agents did and what was undone, newest first, one operation a line".into(),
        other if other.starts_with(FORMER) => {
            "a database of the tenant that was replaced, by a restore, and is kept; read it with pg_restore"
                .into()
        }
        other => {
            let table = other.trim_start_matches("records/").trim_end_matches(".jsonl");
            format!("the platform's rows about the tenant in `{table}`, one a line")
        }
    }
}

/// Length and SHA-256 of what can be read.
pub fn digest(mut from: impl Read) -> io::Result<(u64, String)> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            let digest = context.finish();
            return Ok((bytes, digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()));
        }
        bytes += u64::try_from(count).unwrap_or(0);
        context.update(&buffer[..count]);
    }
}
