//! A server that replays WAL while more of it is brought.
//!
//! ```text
//! begin_replay   it waits for the next segment in `pg_wal` whenever it has replayed all that is there
//! end_replay     no more will come: it replays what is left, and answers
//! ```
//!
//! It is a standby that has nobody to stream from. Source: PostgreSQL `src/backend/access/transam/xlogrecovery.c`,
//! `WaitForWALToBecomeAvailable`: `pg_wal` is looked into again until a promotion is asked for, and once more then.

use std::time::Duration;

use loomworks_core::lsn::Lsn;
use sqlx::{ConnectOptions, PgConnection};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, ClusterError, PATIENCE};
use crate::config::Recovering;

/// How long a server takes at most until it has written down that it is there.
const SHORTLY: Duration = Duration::from_secs(10);

/// And until it has read the checkpoint where it begins. It waits for ever for one that does not come.
const IN_TIME: Duration = Duration::from_secs(10 * 60);

const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOKS_A_SECOND: u32 = 100;

impl Cluster {
    /// Configures a directory that was laid out from a base backup and starts a server on it. A segment must get its name
    /// when it is complete.
    ///
    /// Whether it really replays shows at the end.
    pub async fn begin_replay(&self) -> Result<(), ClusterError> {
        self.check_socket_path()?;
        self.configure(&Recovering { socket_directory: &self.socket_directory }.render())?;
        // What `ALTER SYSTEM` set at the source comes with the backup and would win.
        self.write_in(&self.directory, "postgresql.auto.conf", "")?;
        self.write_in(&self.directory, "standby.signal", "")?;
        self.start_once("-W").await?;
        // By this file it is found by whoever has to stop it.
        let (pid, begun) = (self.directory.join("postmaster.pid"), Instant::now());
        while !pid.exists() {
            if begun.elapsed() > SHORTLY {
                return Err(self.not_started());
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Waits until everything is replayed and the server answers; may be asked for again. Up to where it has replayed, or
    /// `None`: it does not run any more.
    pub async fn end_replay(&self) -> Result<Option<Lsn>, ClusterError> {
        let begun = Instant::now();
        let mut is_told = false;
        for look in 0.. {
            // Nobody is let in before the end.
            if let Ok(mut connection) = self.admin("postgres").connect().await {
                return self.replayed(&mut connection).await.map(Some);
            }
            if look % LOOKS_A_SECOND == 0 && !self.is_running().await? {
                break;
            }
            if begun.elapsed() > if is_told { PATIENCE } else { IN_TIME } {
                return Err(self.not_started());
            }
            if !is_told {
                // Refused before it has looked where it begins, and when it has ended already.
                let directory = self.directory.as_os_str();
                let arguments = ["promote".as_ref(), "-s".as_ref(), "-W".as_ref(), "-D".as_ref(), directory];
                is_told = self.installation.run("pg_ctl", arguments).await.is_ok();
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(None)
    }

    async fn replayed(&self, connection: &mut PgConnection) -> Result<Lsn, ClusterError> {
        let text = sqlx::query_scalar("SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text");
        let text: sqlx::Result<String> = text.fetch_one(connection).await;
        let lsn = text.and_then(|text| text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error))));
        lsn.map_err(|source| ClusterError::Query { directory: self.directory.clone(), source })
    }
}
