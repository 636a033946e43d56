//! The `loomworks` program: reads settings, sets up logging, prints, and hands everything else on.

mod client;
mod commands;
mod output;
#[cfg(test)]
mod reference;
mod repository;
mod serve;
mod settings;

use std::process::ExitCode;

use clap::Parser;

use crate::output::Failure;
use crate::settings::{Arguments, Command};

fn main() -> ExitCode {
    // Before the first client is made. Only the first call counts, and there is no other.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    let json = arguments.json;
    match run(arguments) {
        Ok(code) => code,
        Err(failure) => {
            output::report(&failure, json);
            failure.exit_code()
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    settings::set_up_logging(&arguments);
    // Before any thread is started: a program that was started by root goes on as somebody else.
    match &arguments.command {
        Command::Serve(serve) => serve::account::leave_root(&serve.data, &serve.user)?,
        Command::Recover(recover) => serve::account::leave_root(&recover.data, &recover.user)?,
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(commands::run(arguments));
    // Blocking work that is still under way (a file being written) is of no use to anybody any more.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}
