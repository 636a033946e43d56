//! A private server that speaks S3, for a test: moto, which `scripts/` installs into `target/s3`.
//!
//! It checks signatures, and its only account may do no more than `docs/operate/repository.md` asks for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use loomworks_core::SecretString;
use rustix::process::{Pid, Signal};

use crate::free_port;

/// A running server with a bucket. Ends with the test.
pub struct S3 {
    /// `s3://bucket/prefix`
    pub location: String,
    server: Child,
    port: u16,
    account: BTreeMap<String, String>,
}

/// How a server differs from S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// It replaces an object also when it was asked to write it only if there is none.
    Unconditional,
    /// Its bucket keeps former versions of objects, also of those that are removed.
    Versioned,
}

impl S3 {
    /// Starts one and waits until it answers.
    #[must_use]
    pub fn start() -> Self {
        Self::with(&[])
    }

    #[must_use]
    pub fn with(features: &[Feature]) -> Self {
        // What its clients cannot be made without.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let port = free_port();
        let mut command = Command::new(python());
        command.args(["-c", include_str!("s3.py"), &port.to_string()]);
        command.args(features.iter().map(|feature| match feature {
            Feature::Unconditional => "unconditional",
            Feature::Versioned => "versioned",
        }));
        // It ends when the pipe closes, which the kernel does at the latest when this program has ended.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = command.spawn().expect("start the server that speaks S3");
        let mut line = String::new();
        BufReader::new(server.stdout.take().expect("its output")).read_line(&mut line).expect("read from it");
        let mut account: BTreeMap<String, String> =
            serde_json::from_str(&line).expect("it says how it is reached");
        let location = account.remove("location").expect("a location");
        Self { location, server, port, account }
    }

    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What a client is set to, by the names that the service's settings usually have. Patient for a second.
    #[must_use]
    pub fn options(&self) -> BTreeMap<String, SecretString> {
        let endpoint = [("aws_endpoint", self.endpoint()), ("aws_allow_http", "true".into())];
        let patience = ["connect_timeout", "read_timeout"].map(|name| (name, "1 second".into()));
        let ours = endpoint.into_iter().chain(patience).map(|(name, value)| (name.to_owned(), value));
        ours.chain(self.account.clone()).map(|(name, value)| (name, value.into())).collect()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.server.kill().expect("kill the server");
        self.server.wait().expect("wait for the server");
    }

    /// It takes connections and answers none.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// It goes on answering.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.server), signal).expect("signal the server");
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The Python that has the server. Installed when it is missing: a test may be run by itself.
fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the checkout");
    let install = Command::new("bash")
        .args(["-c", "set -euo pipefail; . scripts/dev-common.sh; install_s3"])
        .current_dir(&root)
        .status();
    assert!(install.is_ok_and(|status| status.success()), "install what `scripts/s3.txt` names");
    root.join("target/s3/bin/python")
}
