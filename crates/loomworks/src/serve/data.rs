//! The data directory: one process at a time has it.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use loomworks_core::durable;
use rustix::fs::{FlockOperation, flock};

use crate::output::Failure;

/// A data directory that is ours until the process ends, however it ends: the kernel frees the lock.
pub(crate) struct DataDirectory {
    path: PathBuf,
    _lock: File,
}

impl DataDirectory {
    /// Takes the directory, or says who has it.
    pub(crate) fn take(path: &Path) -> Result<Self, Failure> {
        durable::create_dir_all(path).with_context(|| format!("make `{}`", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("find `{}`", path.display()))?;
        let lock =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join("lock"));
        let lock = match lock {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                let failure = Failure::refused(format!("`{}` belongs to another user", path.display()));
                return Err(failure.with_hint("start the platform as the user who made it, or as root"));
            }
            lock => lock.with_context(|| format!("open the lock in `{}`", path.display()))?,
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let failure = Failure::refused(format!("another loomworks serves `{}`", path.display()));
            return Err(failure.with_hint("stop it first, or choose another --data"));
        }
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a directory in it.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.path(name);
        durable::create_dir_all(&path).with_context(|| format!("make `{}`", path.display()))?;
        Ok(path)
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), Failure> {
        let path = self.path(name);
        durable::write(&path, content).with_context(|| format!("write `{}`", path.display()))?;
        Ok(())
    }

    /// Reads a file of it, or makes it with what `make` gives.
    pub(crate) fn read_or(&self, name: &str, make: impl FnOnce() -> String) -> Result<String, Failure> {
        let path = self.path(name);
        if !path.exists() {
            self.write(name, make().as_bytes())?;
        }
        Ok(std::fs::read_to_string(&path).with_context(|| format!("read `{}`", path.display()))?)
    }
}
