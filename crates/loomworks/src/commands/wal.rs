//! `loomworks wal`: what PostgreSQL calls for each WAL file.

use std::process::ExitCode;

use anyhow::Context;
use loomworks_archive::archived::PushError;
use loomworks_archive::recover;

use crate::output::Failure;
use crate::repository::open_repository;
use crate::settings::WalCommand;

pub(super) async fn run(command: WalCommand) -> Result<ExitCode, Failure> {
    match command {
        WalCommand::Push { repository, path } => {
            let repository = open_repository(&repository).await?;
            repository.push(&path).await.map_err(failure)?;
            Ok(ExitCode::SUCCESS)
        }
        // A timeline's history comes from the repository: a new one must get a number that nothing else has.
        WalCommand::Fetch { laid_out: Some(directory), name, path, .. } if !name.ends_with(".history") => {
            let taken = recover::take(&directory, &name, &path);
            let taken = taken.with_context(|| format!("take `{name}`"));
            let taken = taken.map_err(|error| Failure { exit: FETCH_FAILED, ..Failure::from(error) })?;
            Ok(if taken { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        WalCommand::Fetch { repository, name, path, .. } => {
            // Recovery takes a status below 126 for "there is none" and would end too early; an error must stop it.
            let stop = |error| Failure { exit: FETCH_FAILED, ..failure(PushError::from(error)) };
            let opened = open_repository(&repository).await;
            let repository = opened.map_err(|failure| Failure { exit: FETCH_FAILED, ..failure })?;
            let found = repository.fetch(&name, &path).await.map_err(stop)?;
            Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// Source: PostgreSQL `src/backend/access/transam/xlogarchive.c`: above 125 recovery stops.
const FETCH_FAILED: u8 = 126;

fn failure(error: PushError) -> Failure {
    let hint = error.hint().map(str::to_owned);
    Failure { hint, ..Failure::from(error) }
}
