//! Not being root.
//!
//! PostgreSQL refuses to run as root, and nothing else here needs it. A platform that root starts goes on as another
//! user, in the same process: root makes the data directory and gives it away, puts a copy of the program there (its
//! own place may be one that only root can reach), and replaces itself by the copy.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use loomworks_core::durable;
use loomworks_postgres::cluster::account;
use loomworks_postgres::installation::Account;

use crate::output::Failure;

/// Puts the program into the data directory; if we are root, goes on as somebody else and does not return.
pub(crate) fn leave_root(data: &Path, user: &str) -> Result<(), Failure> {
    let program = std::env::current_exe().context("find this program")?;
    if !rustix::process::geteuid().is_root() {
        durable::create_dir_all(data).with_context(|| format!("make `{}`", data.display()))?;
        install(&program, data)?;
        return Ok(());
    }
    let account = account(user).filter(|account| account.uid != 0).ok_or_else(|| {
        Failure::refused(format!("there is no user `{user}` to run as"))
            .with_hint("PostgreSQL refuses to run as root; name another user with --user")
    })?;
    if let Some(parent) = data.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make `{}`", parent.display()))?;
    }
    durable::create_dir_all(data).with_context(|| format!("make `{}`", data.display()))?;
    give(data, &account)?;
    let copy = install(&program, data)?;
    give(&data.join("bin"), &account)?;
    give(&copy, &account)?;
    let error = Command::new(&copy)
        .args(std::env::args_os().skip(1))
        .env("HOME", data)
        .env_remove("XDG_CONFIG_HOME")
        .uid(account.uid)
        .gid(account.gid)
        .exec();
    let failure = Failure::new(format!("go on as user `{}`: {error}", account.name));
    Err(failure.with_hint(format!("can `{}` reach `{}`?", account.name, copy.display())))
}

/// The program's copy, for PostgreSQL to call and for us to be: one that a new build does not replace under a
/// running platform.
fn install(program: &Path, data: &Path) -> Result<PathBuf, Failure> {
    let copy = data.join("bin/loomworks");
    if program == copy {
        return Ok(copy);
    }
    let content = std::fs::read(program).with_context(|| format!("read `{}`", program.display()))?;
    if std::fs::read(&copy).is_ok_and(|there| there == content) {
        return Ok(copy);
    }
    durable::create_dir_all(&data.join("bin")).context("make the directory for the program")?;
    durable::write(&copy, &content).with_context(|| format!("write `{}`", copy.display()))?;
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&copy, executable)
        .with_context(|| format!("make `{}` a program", copy.display()))?;
    Ok(copy)
}

fn give(path: &Path, account: &Account) -> Result<(), Failure> {
    std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid))
        .with_context(|| format!("give `{}` to {}", path.display(), account.name))?;
    Ok(())
}
