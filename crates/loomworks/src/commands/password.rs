//! Reading a new password: never from the command line, which everybody on the machine can read.

use std::fmt::Display;
use std::io::{BufRead, IsTerminal, Stdin, Write};

use anyhow::Context;
use loomworks_core::{ExposeSecret, SecretString};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::output::Failure;

/// Longer is no password but a file that was piped in by mistake.
const BYTES_MAX: u64 = 4096;

/// Asks twice on a terminal without showing what is typed; from anything else it takes the first line.
pub(super) fn ask(whose: &impl Display) -> Result<SecretString, Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return read_line(stdin.lock());
    }
    let _quiet = Quiet::start(&stdin)?;
    let first = prompt(&stdin, &format!("New password for {whose}: "))?;
    let second = prompt(&stdin, "The same again: ")?;
    if first.expose_secret() != second.expose_secret() {
        return Err(Failure::refused("the two passwords are not the same, nothing was done"));
    }
    Ok(first)
}

fn prompt(stdin: &Stdin, question: &str) -> Result<SecretString, Failure> {
    let mut stderr = std::io::stderr();
    write!(stderr, "{question}")?;
    stderr.flush()?;
    let line = read_line(stdin.lock());
    // The one that was typed was not shown.
    writeln!(stderr)?;
    line
}

fn read_line(from: impl BufRead) -> Result<SecretString, Failure> {
    let mut line = String::new();
    from.take(BYTES_MAX).read_line(&mut line).context("read the password")?;
    let password = line.strip_suffix('\n').unwrap_or(&line);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(Failure::refused("no password was given")
            .with_hint("type it, or pipe it in: `loomworks operator … < password-file`"));
    }
    Ok(SecretString::from(password.to_owned()))
}

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet<'a> {
    stdin: &'a Stdin,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn start(stdin: &'a Stdin) -> Result<Self, Failure> {
        let before = tcgetattr(stdin).context("look at the terminal")?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(stdin, OptionalActions::Flush, &quiet).context("switch the terminal's echo off")?;
        Ok(Self { stdin, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(self.stdin, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password_as_it_is() {
        for (text, password) in
            [("a b c\n", "a b c"), ("a b c", "a b c"), (" x \r\nmore\n", " x "), ("ä\n", "ä")]
        {
            assert_eq!(read_line(text.as_bytes()).expect("a password").expose_secret(), password);
        }
        assert!(read_line(&b""[..]).is_err());
        assert!(read_line(&b"\n"[..]).is_err());
    }
}
