//! Writing files so that a crash leaves the old content or the new one, never half of it.
//!
//! The order is always the same: write a temporary file beside the target, flush it, give it its name, flush the
//! directory. Only the directory's flush makes the name survive a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Replaces `path` with `content`. Readable by the owner only, because most of what we write is not for others.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = temporary_beside(path);
    write_new(&temporary, content)?;
    rename(&temporary, path)
}

/// Writes `path` unless it exists. `Ok(false)`: it existed, and nothing was changed.
///
/// A hard link is made only if the name is free, so of several writers exactly one wins.
pub fn write_if_absent(path: &Path, content: &[u8]) -> io::Result<bool> {
    let temporary = temporary_beside(path);
    write_new(&temporary, content)?;
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Renames and makes the new name durable. The content must be flushed already.
#[expect(clippy::disallowed_methods, reason = "this is the one place that renames")]
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_parent(to)
}

/// Flushes a file's content, or a directory's entries.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a directory and its missing parents, for the owner only, and makes their names durable.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_dir_all(parent)?;
    }
    let made = std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(path);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_parent(path),
    }
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync(Path::new(".")),
        Some(parent) => sync(parent),
        None => Ok(()),
    }
}

/// A name that no other process and no other thread of this one uses at the same time.
fn temporary_beside(path: &Path) -> PathBuf {
    let unique = uuid::Uuid::new_v4().simple();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{unique}.tmp"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings");
        write(&path, b"one, and longer").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn of_many_writers_one_wins_and_the_file_is_its() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest");
        let winners: Vec<u8> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..16_u8)
                .map(|n| {
                    let path = &path;
                    scope.spawn(move || write_if_absent(path, &[n; 1000]).unwrap().then_some(n))
                })
                .collect();
            writers.into_iter().filter_map(|writer| writer.join().unwrap()).collect()
        });
        assert_eq!(winners.len(), 1);
        assert_eq!(fs::read(&path).unwrap(), [winners[0]; 1000]);
    }

    #[test]
    fn directories_are_made_with_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        create_dir_all(&path).unwrap();
        create_dir_all(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
