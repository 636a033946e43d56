//! The commands. Each is a client of the API, but for `serve`, `wal` and `remove`, which work on this machine.

mod ai_session;
mod archive;
mod audit;
mod backup;
mod demo;
mod doctor;
mod fleet;
mod job;
mod key;
mod master_key;
mod notification;
mod operator;
mod ops;
mod password;
mod recover;
mod remove;
mod restore;
mod snapshot;
mod tenant;
mod tier;
mod wal;
mod webhook;

use std::process::ExitCode;

use crate::client::Client;
use crate::output::Failure;
use crate::serve;
use crate::settings::{Arguments, Command};

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let json = arguments.json;
    let client = || Client::new(&arguments.client);
    match arguments.command {
        Command::Serve(settings) => Box::pin(serve::run(*settings)).await?,
        Command::Wal(command) => return wal::run(*command).await,
        Command::Recover(settings) => Box::pin(recover::run(&settings, json)).await?,
        Command::Remove(settings) => remove::run(&settings).await?,
        Command::Tenant(command) => tenant::run(&client()?, command, json).await?,
        Command::Tier(command) => tier::run(&client()?, command, json).await?,
        Command::AiSession(command) => ai_session::run(&client()?, command, json).await?,
        Command::Ops(command) => ops::run(&client()?, command, json).await?,
        Command::Snapshot(command) => snapshot::run(&client()?, command, json).await?,
        Command::Restore(command) => restore::run(&client()?, command, json).await?,
        Command::Key(command) => key::run(&client()?, command, json).await?,
        Command::Job(command) => job::run(&client()?, command, json).await?,
        Command::Backup(command) => return backup::run(&client()?, command, json).await,
        Command::Archive(command) => return archive::run(&client()?, command, json).await,
        Command::Audit(command) => return audit::run(&client()?, command, json).await,
        Command::MasterKey(command) => master_key::run(&client()?, command, json).await?,
        Command::Operator(command) => operator::run(&client()?, command, json).await?,
        Command::Fleet(command) => return fleet::run(&client()?, command, json).await,
        Command::Notification(command) => notification::run(&client()?, command, json).await?,
        Command::Webhook(command) => webhook::run(&client()?, command, json).await?,
        Command::Doctor => return doctor::run(&client()?, json).await,
        Command::Demo => return Box::pin(demo::run(&client()?, json)).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// What a field is shown as when there is nothing in it.
fn or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".into(), T::to_string)
}

/// A moment, to the second.
fn moment(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A number of bytes for people.
fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// The beginning of a text, on one line.
fn shortened(text: &str, characters: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= characters {
        return line;
    }
    line.chars().take(characters - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_and_stay_on_one_line() {
        assert_eq!(shortened("UPDATE a\n  SET b", 40), "UPDATE a SET b");
        assert_eq!(shortened("äöüäöü", 4), "äöü…");
    }
}
