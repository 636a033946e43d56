//! A copy of a server's cluster beside it, and what tests ask of either.

use std::path::Path;
use std::process::Command;

use loomworks_postgres::Cluster;
use loomworks_postgres::sql::run;
use loomworks_testkit::{Server, free_port};

/// A cluster that ends with the test. It lies in the server's directory, so it is dropped before that.
pub(crate) struct Copy(pub(crate) Cluster);

impl Copy {
    /// Of a server that does not run.
    pub(crate) fn of(server: &Server) -> Self {
        let cluster = Cluster {
            directory: server.directory.join("copy"),
            socket_directory: server.directory.clone(),
            port: free_port(),
            installation: server.cluster.installation.clone(),
        };
        copy(&server.cluster.directory, &cluster.directory);
        Self(cluster)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if self.0.directory.join("postmaster.pid").exists() {
            stop_at_once(&self.0);
        }
    }
}

/// With owners and rights.
pub(crate) fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
}

pub(crate) fn stop_at_once(cluster: &Cluster) {
    let mut command = cluster.installation.command("pg_ctl").into_std();
    command.args(["stop", "-s", "-m", "immediate", "-D"]).arg(&cluster.directory);
    let output = command.output().expect("run pg_ctl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) async fn text(cluster: &Cluster, database: &str, sql: &'static str) -> String {
    let mut connection = cluster.connect(database).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
}

pub(crate) async fn execute(cluster: &Cluster, database: &str, sql: &str) -> sqlx::Result<()> {
    run(&mut cluster.connect(database).await.unwrap(), sql.to_owned()).await
}
