//! A private Redis for a test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running Redis on a socket of its own, which keeps nothing. Ends with the test.
pub struct Redis {
    directory: tempfile::TempDir,
    server: Child,
    /// Ends the server when this program ends, however that happens: the kernel closes the pipe.
    reaper: Child,
}

impl Redis {
    /// Starts one and waits until it answers.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("lwr-").tempdir_in("/tmp").expect("a directory");
        let (server, reaper) = serve(&directory.path().join("socket"));
        Self { directory, server, reaper }
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        // First: its number may be another's when the server is gone.
        self.reaper.kill().expect("end the shell");
        self.reaper.wait().expect("wait for the shell");
        self.server.kill().expect("kill redis-server");
        self.server.wait().expect("wait for redis-server");
        // A server that is killed leaves it.
        let _ = std::fs::remove_file(self.socket());
    }

    /// Starts one that was killed again, with nothing in it.
    pub fn start_again(&mut self) {
        (self.server, self.reaper) = serve(&self.socket());
    }

    /// Runs a command with Redis's own client and gives what it prints.
    #[must_use]
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli").arg("-s").arg(self.socket()).args(arguments).output();
        String::from_utf8_lossy(&output.expect("run redis-cli").stdout).trim().to_owned()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        for child in [&mut self.reaper, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn serve(socket: &Path) -> (Child, Child) {
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(socket);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = command.spawn().expect("start redis-server, of the package of that name");
    let mut reaper = Command::new("sh");
    reaper.args(["-c", "trap '' INT TERM; read -r _; kill -9 \"$0\"", &server.id().to_string()]);
    reaper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let reaper = reaper.spawn().expect("start a shell");
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    (server, reaper)
}
