//! Making an export.
//!
//! ```text
//! Collect    the files of the archive, in a directory beside it
//! Pack       one compressed, encrypted archive of them; its name makes it whole
//! Publish    it can be downloaded
//! ```

mod archive;
mod remove;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use loomworks_core::ids::{ExportId, TenantId};
use loomworks_core::tenant::TenantState;
use loomworks_core::{durable, time};
use loomworks_postgres::cluster::remove_directory;
use loomworks_postgres::copy;
use loomworks_undo::{Filter, UNDO_ROLE};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use crate::World;
use crate::access::Permission;
use crate::audit;
use crate::data_keys::{self, DataKey};
use crate::db::notifications::Severity;
use crate::db::tenants::{self, Names};
use crate::db::{erasure, exports as rows, lifecycle};
use crate::error::Error;
use crate::exports::{self, KEPT_DAYS, Manifest};
use crate::jobs::{self, Context, Progress, StepError, Then, Work};
use crate::notifications::{self, Notice};
use crate::sealed::Opener;
use archive::seal_archive;

pub use archive::digest;
pub(crate) use remove::left_over;
pub use remove::{RemoveExport, RemoveStep};

const DUMP: &str = "database.dump";
const FORMER: &str = "former";
const OPERATIONS: &str = "operations.jsonl";
const RECORDS: &str = "records";

/// Operations read from the log at a time.
const PAGE: i64 = 500;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MakeExport {
    pub tenant: TenantId,
    pub export: ExportId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Collect,
    Pack,
    Publish { size_bytes: i64, sha256: String },
}

impl Work for MakeExport {
    const KIND: &'static str = "export";
    const TENANTS_NEED: Option<Permission> = Some(Permission::Manage);
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("export {}", self.export)
    }

    fn first(&self) -> Step {
        Step::Collect
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::Collect => (0, "collecting what there is"),
            Step::Pack => (60, "packing and encrypting"),
            Step::Publish { .. } => (95, "making it ready"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        match step {
            Step::Collect => {
                self.collect(world).await?;
                Ok(Then::Next(Step::Pack))
            }
            Step::Pack => {
                let (size_bytes, sha256) = self.pack(world).await?;
                Ok(Then::Next(Step::Publish { size_bytes, sha256 }))
            }
            Step::Publish { size_bytes, sha256 } => self.publish(world, context, *size_bytes, sha256).await,
        }
    }

    async fn give_up(&self, connection: &mut PgConnection, context: &Context) -> Result<(), Error> {
        rows::set_state(connection, self.export, "making", "failed").await?;
        let work = RemoveExport { tenant: self.tenant, export: self.export };
        jobs::enqueue(connection, &work, &context.requested_by).await.map(drop)
    }

    /// What it had made is being removed.
    async fn take_up(&self, _: &Step, _: &mut PgConnection, _: &Context) -> Result<Option<Step>, Error> {
        Ok(None)
    }
}

impl MakeExport {
    /// Begun anew each time: what was cut off cannot be gone on with.
    async fn collect(&self, world: &World) -> Result<(), StepError> {
        let directory = collected(world, self.tenant, self.export);
        remove_directory(&directory).await?;
        make_directory(directory.join(RECORDS)).await?;
        make_directory(directory.join(FORMER)).await?;
        let mut mgmt = world.db.platform.acquire().await?;
        let tenant = tenants::get(&mut mgmt, self.tenant).await?;
        let names = tenants::names(&mut mgmt, self.tenant).await?;
        drop(mgmt);
        if tenant.state != TenantState::Draft {
            copy::dump_to_file(&world.cluster, &names.database_name, &directory.join(DUMP)).await?;
            let mut mgmt = world.db.platform.acquire().await?;
            let former = tenants::former_databases(&mut mgmt, self.tenant).await?;
            drop(mgmt);
            for database in former {
                let dump = directory.join(FORMER).join(format!("{}.dump", database.name));
                copy::dump_to_file(&world.cluster, &database.name, &dump).await?;
            }
            write_operations(world, &names, &directory.join(OPERATIONS)).await?;
        }
        Ok(write_records(world, self.tenant, &directory.join(RECORDS)).await?)
    }

    /// Seals the archive beside, reads it back, and gives it its name.
    async fn pack(&self, world: &World) -> Result<(i64, String), StepError> {
        let key = self.key(world).await?;
        let sealed = exports::sealed_file(world, self.tenant, self.export);
        let directory = collected(world, self.tenant, self.export);
        let manifest = self.manifest(world).await?;
        let identity = exports::identity(self.tenant, self.export);
        let digest = tokio::task::spawn_blocking(move || {
            if !sealed.exists() {
                let temporary = sealed.with_extension("partial");
                seal_archive(&directory, manifest, &temporary, &key, &identity)?;
                durable::rename(&temporary, &sealed)?;
            }
            // What was written is what can be read.
            let opener = Opener::new(BufReader::new(File::open(&sealed)?), &key, &identity)?;
            digest(opener)
        });
        let (bytes, sha256) = digest
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| Error::Internal(format!("pack export {}: {error}", self.export)))?;
        remove_directory(&collected(world, self.tenant, self.export)).await?;
        Ok((i64::try_from(bytes).unwrap_or(i64::MAX), sha256))
    }

    /// The tenant's data key. Not for one whose end has begun: its key is gone, and must not come back.
    async fn key(&self, world: &World) -> Result<DataKey, StepError> {
        let mut transaction = world.db.platform.begin().await.map_err(Error::from)?;
        let standing = lifecycle::lock(&mut transaction, self.tenant).await?;
        if standing.destroying_since.is_some() || standing.state == TenantState::Destroyed {
            return Err(StepError::permanent(
                "the tenant is being destroyed",
                "nothing of it can be exported",
            ));
        }
        let key = data_keys::ensure(world, &mut transaction, self.tenant).await?;
        transaction.commit().await?;
        Ok(key)
    }

    async fn manifest(&self, world: &World) -> Result<Manifest, Error> {
        let mut mgmt = world.db.platform.acquire().await?;
        let names = tenants::names(&mut mgmt, self.tenant).await?;
        Ok(Manifest {
            format: 1,
            tenant: self.tenant,
            subdomain: names.subdomain.to_string(),
            export: self.export,
            made_at: time::now(),
            version: env!("CARGO_PKG_VERSION").into(),
            postgresql_version: world.cluster.installation.major_version,
            members: Vec::new(),
            left_out: erasure::left_out(&mut mgmt).await?,
        })
    }

    async fn publish(
        &self,
        world: &World,
        context: &Context,
        size_bytes: i64,
        sha256: &str,
    ) -> Result<Then<Step>, StepError> {
        let mut transaction = world.db.platform.begin().await?;
        let export = rows::get(&mut transaction, self.tenant, self.export).await?;
        let state = export.map(|export| export.state).unwrap_or_default();
        if state != "making" && state != "ready" {
            return Err(StepError::permanent("the export was given up", "ask for a new one"));
        }
        if state == "making" {
            rows::record_ready(&mut transaction, self.export, size_bytes, sha256, KEPT_DAYS).await?;
            let detail = json!({ "export": self.export, "size_bytes": size_bytes });
            let by = &context.requested_by;
            audit::record(&mut transaction, by, "export.made", Some(self.tenant), detail.clone()).await?;
            let notice = Notice {
                event: "export.ready",
                severity: Severity::Info,
                message: format!("An export of all data can be downloaded for {KEPT_DAYS} days."),
                detail,
            };
            notifications::raise(&mut transaction, Some(self.tenant), &notice).await?;
        }
        transaction.commit().await?;
        Ok(Then::Done(json!({ "export": self.export, "size_bytes": size_bytes, "sha256": sha256 })))
    }
}

/// Where the files of an archive are until they are packed. Readable by us only; not encrypted, and gone with the step
/// that packs them.
fn collected(world: &World, tenant: TenantId, export: ExportId) -> PathBuf {
    exports::directory(world, tenant).join(format!("{export}.collected"))
}

async fn make_directory(path: PathBuf) -> Result<(), Error> {
    tokio::task::spawn_blocking(move || durable::create_dir_all(&path))
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(|error| Error::Internal(format!("make the export's directory: {error}")))
}

/// The operation log, newest first, one operation a line. The rows that each changed are in the dump.
async fn write_operations(world: &World, names: &Names, path: &Path) -> Result<(), Error> {
    let options = world.cluster.confined(UNDO_ROLE, &names.database_name);
    let mut connection = options.connect().await.map_err(Error::TenantDatabase)?;
    let mut lines = Lines::create(path)?;
    let mut before = None;
    loop {
        let filter = Filter { session: None, before, limit: PAGE };
        let page = loomworks_undo::list(&mut connection, &filter).await?;
        for operation in &page {
            lines.add(
                &serde_json::to_string(operation).map_err(|error| Error::Internal(error.to_string()))?,
            )?;
        }
        match page.last() {
            Some(last) => before = Some(last.id),
            None => return lines.finish(),
        }
    }
}

/// The tenant's rows of every table, all as they are at one moment.
async fn write_records(world: &World, tenant: TenantId, directory: &Path) -> Result<(), Error> {
    let mut mgmt = erasure::connect(&world.cluster).await?;
    let mut transaction = mgmt.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let mut tables = erasure::tables(&mut transaction).await?;
    tables.push("tenants".into());
    for table in tables {
        let sql = erasure::rows_as_json(&mut transaction, &table).await?;
        let mut lines = Lines::create(&directory.join(format!("{table}.jsonl")))?;
        let mut found =
            sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).bind(tenant.0).fetch(&mut *transaction);
        while let Some(row) = found.try_next().await? {
            lines.add(&row)?;
        }
        lines.finish()?;
    }
    Ok(())
}

/// A file of lines.
struct Lines(BufWriter<File>);

impl Lines {
    fn create(path: &Path) -> Result<Self, Error> {
        Ok(Self(BufWriter::new(File::create_new(path).map_err(unwritable)?)))
    }

    fn add(&mut self, line: &str) -> Result<(), Error> {
        self.0.write_all(line.as_bytes()).and_then(|()| self.0.write_all(b"\n")).map_err(unwritable)
    }

    fn finish(mut self) -> Result<(), Error> {
        self.0.flush().map_err(unwritable)
    }
}

fn unwritable(error: io::Error) -> Error {
    Error::Internal(format!("write a part of an export: {error}"))
}
