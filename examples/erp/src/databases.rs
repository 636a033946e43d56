//! One small pool of connections a database, made when a request first asks for it.
//!
//! Databases may be exchanged while the app runs: for a moment connections break, passwords are refused, or the name is
//! gone. Passwords change too: a line that says something else than the pool was made with makes a new pool, while the
//! old password still works. [`Databases::run`] then starts once more with a new pool and a password read anew. What it runs must be
//! safe to repeat, so each piece of work is one statement that may happen twice.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::passfile::{self, Entry};

const CONNECTIONS_MAX: u32 = 8;
const IDLE_MAX: Duration = Duration::from_secs(30);
const ACQUIRE_MAX: Duration = Duration::from_secs(10);
/// How long an exchange of databases may leave a name without a database.
const PAUSE: Duration = Duration::from_millis(250);

/// Why a database could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatabaseError {
    #[error("there is no database `{0}` here")]
    Unknown(String),
    #[error("read the password file `{path}`")]
    Passfile { path: PathBuf, source: io::Error },
    #[error("ask the database")]
    Sql(#[from] sqlx::Error),
}

pub(crate) struct Databases {
    passfile: PathBuf,
    /// Goes before what the password file says.
    host: Option<String>,
    pools: Mutex<HashMap<String, Known>>,
}

/// A pool, and what it was made with.
struct Known {
    pool: Arc<PgPool>,
    entry: Entry,
    /// The state of the password file in which the line was last found.
    seen: FileState,
}

/// Tells whether a file is the one that was read: each new one is put in the place of the one before.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileState {
    changed: Option<SystemTime>,
    bytes: u64,
    number: u64,
}

impl Databases {
    pub(crate) fn new(passfile: PathBuf, host: Option<String>) -> Self {
        Self { passfile, host, pools: Mutex::default() }
    }

    /// Does a piece of work, and once more if the connection was lost.
    pub(crate) async fn run<T, F>(
        &self,
        database: &str,
        work: impl Fn(PgPool) -> F,
    ) -> Result<T, DatabaseError>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        let pool = self.pool(database).await?;
        match work(PgPool::clone(&pool)).await {
            Err(error) if is_lost(&error) => {
                tracing::info!(database, %error, "the connection was lost, trying once more");
                self.forget(database, &pool);
                tokio::time::sleep(PAUSE).await;
                let pool = self.pool(database).await?;
                Ok(work(PgPool::clone(&pool)).await.inspect_err(|error| {
                    if is_lost(error) {
                        self.forget(database, &pool);
                    }
                })?)
            }
            done => Ok(done?),
        }
    }

    async fn pool(&self, database: &str) -> Result<Arc<PgPool>, DatabaseError> {
        let unreadable = |source| DatabaseError::Passfile { path: self.passfile.clone(), source };
        let file = tokio::fs::metadata(&self.passfile).await.map_err(unreadable)?;
        let seen =
            FileState { changed: file.modified().ok(), bytes: file.len(), number: MetadataExt::ino(&file) };
        if let Some(known) = self.pools().get(database).filter(|known| known.seen == seen) {
            return Ok(Arc::clone(&known.pool));
        }
        let text = tokio::fs::read_to_string(&self.passfile).await.map_err(unreadable)?;
        let entry =
            passfile::find(&text, database).ok_or_else(|| DatabaseError::Unknown(database.to_owned()))?;
        let mut pools = self.pools();
        // Of two requests that came at once, the first pool is everybody's.
        if let Some(known) = pools.get_mut(database)
            && known.entry == entry
        {
            known.seen = seen;
            return Ok(Arc::clone(&known.pool));
        }
        let pool = Arc::new(self.connect(database, entry.clone()));
        let known = Known { pool: Arc::clone(&pool), entry, seen };
        if let Some(former) = pools.insert(database.to_owned(), known) {
            tracing::info!(database, "the password is another one, new connections use it");
            tokio::spawn(async move { former.pool.close().await });
        }
        Ok(pool)
    }

    fn connect(&self, database: &str, entry: Entry) -> PgPool {
        let host = self.host.clone().or(entry.host);
        let options = PgConnectOptions::new_without_pgpass()
            .host(host.as_deref().unwrap_or("127.0.0.1"))
            .port(entry.port.unwrap_or(5432))
            .username(&entry.user)
            .password(&entry.password)
            .database(database)
            .application_name("erp");
        PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .min_connections(0)
            .idle_timeout(IDLE_MAX)
            .acquire_timeout(ACQUIRE_MAX)
            .test_before_acquire(true)
            .connect_lazy_with(options)
    }

    /// Forgets a pool, unless somebody has put another in its place already.
    fn forget(&self, database: &str, broken: &Arc<PgPool>) {
        let mut pools = self.pools();
        if pools.get(database).is_some_and(|known| Arc::ptr_eq(&known.pool, broken)) {
            pools.remove(database);
        }
        drop(pools);
        // Statements that still run in it may end; nothing new begins.
        let broken = PgPool::clone(broken);
        tokio::spawn(async move { broken.close().await });
    }

    fn pools(&self) -> std::sync::MutexGuard<'_, HashMap<String, Known>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the database was taken away underneath, so that a new connection may do better.
fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolClosed
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Protocol(_) => true, // what a proxy between us and PostgreSQL says when it hangs up
        sqlx::Error::Database(error) => error.code().is_some_and(|code| lost_codes(&code)),
        _ => false,
    }
}

fn lost_codes(code: &str) -> bool {
    // Class 57P: terminated, crashed, starting up, dropped. Class 08: the connection. 28: password or role refused.
    // 3D000: no such database. 55006: the database is being used for something else.
    code.starts_with("57P") || code.starts_with("08") || matches!(code, "28P01" | "28000" | "3D000" | "55006")
}
