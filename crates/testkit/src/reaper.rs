//! Stops a server when the test program ends, however it ends.
//!
//! Destructors of statics do not run and a killed program cleans up nothing. So a shell waits on a pipe that only the
//! test program holds: when the kernel closes it, the shell stops the server and removes its directory.

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Keeps the server alive; the pipe closes with the process at the latest.
pub struct Reaper {
    _shell: Child,
}

impl Reaper {
    /// Stops the server on `data` and removes `remove` once this process is gone. `uid`: as whom.
    ///
    /// # Panics
    ///
    /// If no shell can be started.
    #[must_use]
    pub fn watch(pg_ctl: &Path, data: &Path, remove: &Path, uid: Option<(u32, u32)>) -> Self {
        let script = r#"trap '' INT TERM; read -r _; "$0" stop -s -m immediate -D "$1"; rm -rf "$2""#;
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(pg_ctl).arg(data).arg(remove).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((uid, gid)) = uid {
            std::os::unix::process::CommandExt::uid(&mut command, uid);
            std::os::unix::process::CommandExt::gid(&mut command, gid);
        }
        Self { _shell: command.spawn().expect("start a shell") }
    }
}
