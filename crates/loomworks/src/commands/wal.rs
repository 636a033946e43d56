//! `loomworks wal`: what PostgreSQL calls for each WAL file.

use std::process::ExitCode;

use std::sync::Arc;

use loomworks_archive::Repository;
use loomworks_archive::archived::PushError;
use loomworks_archive::store::Location;
use loomworks_control::credentials::MasterKey;

use crate::output::Failure;
use crate::settings::WalCommand;

pub(super) async fn run(command: WalCommand) -> Result<ExitCode, Failure> {
    match command {
        WalCommand::Push { repository, master_key_file, path } => {
            let key = Arc::new(MasterKey::load(&master_key_file)?);
            let repository = Repository::open(&Location::Directory(repository), key).await;
            let repository = repository.map_err(PushError::from).map_err(failure)?;
            repository.push(&path).await.map_err(failure)?;
            Ok(ExitCode::SUCCESS)
        }
        WalCommand::Fetch { repository, master_key_file, name, path } => {
            let key = Arc::new(MasterKey::load(&master_key_file)?);
            // Recovery takes a status below 126 for "there is none" and would end too early; an error must stop it.
            let stop = |error| Failure { exit: FETCH_FAILED, ..failure(PushError::from(error)) };
            let repository = Repository::open(&Location::Directory(repository), key).await.map_err(stop)?;
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
