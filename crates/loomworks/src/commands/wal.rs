//! `loomworks wal`: what PostgreSQL calls for each WAL file.

use std::process::ExitCode;

use loomworks_archive::archived::PushError;

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
        WalCommand::Fetch { repository, name, path } => {
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
