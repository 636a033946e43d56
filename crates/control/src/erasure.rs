//! The proof that a tenant is gone: made by trying to read what could be left of it.

use loomworks_archive::RepositoryError;
use loomworks_core::ids::{ExportId, TenantId};
use loomworks_core::name::Subdomain;
use loomworks_core::time;
use loomworks_postgres::{closing, roles};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::access::Operator;
use crate::credentials::app_roles;
use crate::db::tenants::{self, TenantDatabase};
use crate::db::{erasure as rows, routes};
use crate::error::Error;
use crate::{World, data_keys, exports};

/// What was dropped, noted with the tenant that is gone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Erased {
    pub(crate) databases: Vec<TenantDatabase>,
    pub(crate) roles: Vec<String>,
}

impl Erased {
    /// What a tenant has, and what is noted that it had.
    pub(crate) async fn of(mgmt: &mut PgConnection, id: TenantId) -> Result<Self, Error> {
        let mut erased: Self = match rows::erased(mgmt, id).await? {
            Some(value) => {
                serde_json::from_value(value).map_err(|error| Error::Internal(error.to_string()))?
            }
            None => Self::default(),
        };
        let names = tenants::names(mgmt, id).await?;
        for database in tenants::databases(mgmt, id).await? {
            if erased.databases.iter().all(|known| known.oid != database.oid) {
                erased.databases.push(database);
            }
        }
        for role in [names.owner_role].into_iter().chain(app_roles(&names.app_role)) {
            if !erased.roles.contains(&role) {
                erased.roles.push(role);
            }
        }
        Ok(erased)
    }
}

/// What was looked for.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Check {
    /// What it is, and how it was looked for.
    pub what: String,
    pub gone: bool,
    /// What was found instead of nothing.
    pub found: Vec<String>,
}

/// What looking for a tenant's data has found.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErasureReport {
    #[schema(value_type = uuid::Uuid)]
    pub tenant: TenantId,
    /// Everything that was looked for is gone.
    pub complete: bool,
    #[schema(value_type = String, format = DateTime)]
    pub checked_at: jiff::Timestamp,
    pub checks: Vec<Check>,
    /// What is there still, on purpose.
    pub kept: Vec<String>,
}

impl ErasureReport {
    /// What was found of a tenant besides its row, for people. `None`: nothing, it may be called destroyed.
    pub(crate) fn remainder(&self) -> Option<String> {
        let left = self.checks.iter().filter(|check| !check.gone && check.what != ITS_ROW);
        let left: Vec<String> =
            left.map(|check| format!("{} ({})", check.what, check.found.join(", "))).collect();
        (!left.is_empty()).then(|| left.join("; "))
    }
}

/// The one check that a tenant passes by being called destroyed.
const ITS_ROW: &str = "its row, by its id: it has no name and no settings any more";

/// What the names of a tenant's roles and of all its databases but the live one begin with.
pub(crate) fn prefix(tenant: TenantId) -> String {
    format!("lwt_{}_", tenant.short())
}

/// Looks for what is left of a tenant, whatever its state is. One that was destroyed is found by its id.
pub async fn report(world: &World, operator: &Operator, name: &str) -> Result<ErasureReport, Error> {
    let id = match name.parse::<TenantId>() {
        Ok(id) => Some(id),
        Err(_) if Subdomain::try_from(name.to_owned()).is_err() => None,
        Err(_) => tenants::find_id(&mut *operator.begin(&world.db).await?, name).await?,
    };
    look(world, id.ok_or(Error::NotFound("such tenant"))?).await
}

pub(crate) async fn look(world: &World, id: TenantId) -> Result<ErasureReport, Error> {
    let mut mgmt = rows::connect(&world.cluster).await?;
    let tenant = tenants::find(&mut mgmt, id).await?.ok_or(Error::NotFound("such tenant"))?;
    let names = tenants::names(&mut mgmt, id).await?;
    let erased = Erased::of(&mut mgmt, id).await?;

    let row = match tenant.destroyed_at {
        Some(_) => Vec::new(),
        None => vec![format!("the tenant is {}", tenant.state)],
    };
    let mut left: Vec<String> = Vec::new();
    let mut audit_rows = 0;
    for count in rows::count(&mut mgmt, id).await? {
        match count.table.as_str() {
            rows::KEPT => audit_rows = count.rows,
            table => left.push(format!("{table}: {}", count.rows)),
        }
    }
    // As a reader of its exports and secrets would: without the key there is nothing to try.
    let key = match data_keys::get(world, &mut mgmt, id).await? {
        Some(_) => vec!["the key opens".into()],
        None => Vec::new(),
    };
    let routed = routes::rows(&mut mgmt).await?.into_iter().filter(|route| route.id == id);
    let routed = routed.map(|route| route.subdomain.to_string()).collect();
    let checks = vec![
        check(ITS_ROW, row),
        check(
            "its rows in the management database, in every table that says whose a row is or whom it is about",
            left,
        ),
        check(
            "its data key in the management database, by opening it: a copy of an export that somebody kept opens with \
             nothing else",
            key,
        ),
        check(
            "its databases, by number and by name, in the catalogue and among the server's files",
            databases(world, id, &erased).await?,
        ),
        check(
            "what is archived of its databases, by the keys without which backups and WAL cannot be read",
            archived(world, &erased).await?,
        ),
        check("its roles, by name", left_roles(world, id, &erased).await?),
        check("its exports, by decrypting what files there are", readable_exports(world, id).await),
        check("its files, in the directory of its exports", files(world, id).await),
        check(
            "its app's credentials, in the password file",
            password_lines(world, &names.profile, &app_roles(&names.app_role)).await,
        ),
        check("its address, in the route table", routed),
    ];
    let kept = vec![
        format!(
            "{audit_rows} rows of the audit log: who did what with the tenant, with what it was called, its limits, the \
             names and reasons that were given, and which of its settings were changed, without their values"
        ),
        "its id, its former subdomain (also where fleet migrations named it), when it was made and destroyed, and the \
         job that did it"
            .into(),
        "in backups and WAL of the management database, until they expire: its row, and its data key, which only the \
         master key opens. What its own databases held cannot be read there either: their keys are deleted"
            .into(),
    ];
    let complete = checks.iter().all(|check| check.gone);
    Ok(ErasureReport { tenant: id, complete, checked_at: time::now(), checks, kept })
}

fn check(what: &str, found: Vec<String>) -> Check {
    Check { what: what.into(), gone: found.is_empty(), found }
}

/// By number, because a name can be another tenant's by now.
async fn databases(world: &World, id: TenantId, erased: &Erased) -> Result<Vec<String>, Error> {
    let mut admin = world.cluster.connect("postgres").await?;
    let mut found = Vec::new();
    for database in &erased.databases {
        if let Some(name) = closing::name_of(&mut admin, database.oid).await? {
            found.push(name);
        }
        let files = world.cluster.directory.join("base").join(database.oid.to_string());
        if tokio::fs::try_exists(&files).await.unwrap_or(true) {
            found.push(files.display().to_string());
        }
    }
    let named = closing::databases_beginning_with(&mut admin, &prefix(id)).await?;
    found.extend(named.into_iter().map(|(_, name)| name));
    found.sort();
    found.dedup();
    Ok(found)
}

async fn archived(world: &World, erased: &Erased) -> Result<Vec<String>, Error> {
    let mut readable = Vec::new();
    for database in &erased.databases {
        let Ok(oid) = u32::try_from(database.oid) else { continue };
        if world.repository.keys().has(oid).await.map_err(RepositoryError::from)? {
            readable.push(format!("the key of database {oid} opens"));
        }
    }
    Ok(readable)
}

async fn left_roles(world: &World, id: TenantId, erased: &Erased) -> Result<Vec<String>, Error> {
    let mut admin = world.cluster.connect("postgres").await?;
    let mut found = roles::beginning_with(&mut admin, &prefix(id)).await?;
    for role in &erased.roles {
        if !found.contains(role) && roles::exists(&mut admin, role).await? {
            found.push(role.clone());
        }
    }
    Ok(found)
}

async fn files(world: &World, id: TenantId) -> Vec<String> {
    let directory = world.exports_directory.join(id.to_string());
    // What cannot be looked at is not known to be gone.
    let there = tokio::fs::try_exists(&directory).await.unwrap_or(true);
    there.then(|| directory.display().to_string()).into_iter().collect()
}

/// The sealed files that open and decrypt to their end.
async fn readable_exports(world: &World, id: TenantId) -> Vec<String> {
    let mut readable = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(exports::directory(world, id)).await else { return readable };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let path = entry.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(export) = name.parse::<ExportId>() else { continue };
        let Ok(mut opener) = exports::open_sealed(world, id, export).await else { continue };
        let read = tokio::task::spawn_blocking(move || std::io::copy(&mut opener, &mut std::io::sink()));
        if matches!(read.await, Ok(Ok(_))) {
            readable.push(path.display().to_string());
        }
    }
    readable
}

async fn password_lines(world: &World, profile: &str, roles: &[String]) -> Vec<String> {
    let path = world.apps_directory.join(profile).join("pgpass");
    match tokio::fs::read_to_string(&path).await {
        Ok(text) => text
            .lines()
            .filter(|line| line.split(':').nth(3).is_some_and(|user| roles.iter().any(|role| role == user)))
            .map(|_| format!("a line in {}", path.display()))
            .collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => vec![format!("{}: {error}", path.display())],
    }
}
