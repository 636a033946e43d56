//! Making a tenant: a database copied from its profile's template, roles, the app's first user, a route.
//!
//! ```text
//! Database   takes a copy that waits in the pool, or finds that there is none
//! AwaitTemplate, Copy   only then: makes a copy now
//! Admin      only if the profile makes a first user
//! Publish    credentials, then the transaction that makes it a tenant
//! ```

use std::time::Duration;

use loomworks_core::ids::TenantId;
use loomworks_core::tenant::{Change, TenantState};
use loomworks_core::{ExposeSecret, SecretString};
use loomworks_postgres::databases::Rename;
use loomworks_postgres::roles::{self, Login, Verifier};
use loomworks_postgres::{databases, handover};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use super::limits;
use super::template::{self, App};
use crate::World;
use crate::credentials::{app_password_purpose, random_password, write_password_file};
use crate::db::jobs::Queue;
use crate::db::lifecycle::{self, Standing};
use crate::db::templates::{self, PoolDatabase, TemplateState};
use crate::db::tenants::{self, Names, TenantDatabase};
use crate::db::{self, changes, routes, usage};
use crate::error::Error;
use crate::jobs::{Context, Progress, StepError, Then, Work};
use crate::profile::{Admin, Profile};
use crate::tenants::state_after;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Provision {
    pub tenant: TenantId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Database,
    AwaitTemplate,
    Copy { template: String },
    Admin,
    Publish,
}

/// How often it is looked whether the template is there.
const POLL: Duration = Duration::from_millis(100);

impl Work for Provision {
    const KIND: &'static str = "provision";
    const QUEUE: Queue = Queue::HighPriority;
    type Step = Step;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        format!("provision {}", self.tenant)
    }

    fn first(&self) -> Step {
        Step::Database
    }

    fn progress(step: &Step) -> Progress {
        let (percent, words) = match step {
            Step::Database => (0, "looking for a database that waits"),
            Step::AwaitTemplate => (5, "waiting for the profile's template"),
            Step::Copy { .. } => (20, "copying the profile's template"),
            Step::Admin => (70, "making the app's first user"),
            Step::Publish => (90, "publishing the route"),
        };
        Progress { percent, words }
    }

    async fn run(&self, step: &Step, world: &World, context: &Context) -> Result<Then<Step>, StepError> {
        let mut mgmt = world.db.platform.acquire().await?;
        let names = tenants::names(&mut mgmt, self.tenant).await?;
        // A job of long ago that is tried again would open what was closed since.
        let standing = lifecycle::look(&mut mgmt, self.tenant).await?;
        check_wanted(&standing)?;
        if standing.state != TenantState::Provisioning {
            return Ok(done(&names));
        }
        let profile = world.profiles.get(&names.profile).ok_or_else(|| {
            StepError::permanent(
                format!("there is no profile `{}`", names.profile),
                "start the platform with `--profile FILE` for it",
            )
        })?;
        let template = world.template(profile);
        let next = if profile.admin.is_some() { Step::Admin } else { Step::Publish };
        match step {
            Step::Database => {
                // Of templates as they are now only. What was claimed already is gone on with.
                if let Some(copy) = templates::claim(&mut mgmt, self.tenant, &template).await? {
                    drop(mgmt);
                    take(world, &names, profile, &copy).await?;
                    return Ok(Then::Next(next));
                }
                match templates::state(&mut mgmt, &template).await? {
                    TemplateState::Ready => Ok(Then::Next(Step::Copy { template })),
                    TemplateState::Building => Ok(Then::Next(Step::AwaitTemplate)),
                    TemplateState::Missing | TemplateState::Failed => {
                        drop(mgmt);
                        let mut transaction = world.db.platform.begin().await?;
                        template::request(&mut transaction, &names.profile, &template, &context.requested_by)
                            .await?;
                        transaction.commit().await?;
                        Ok(Then::Next(Step::AwaitTemplate))
                    }
                }
            }
            Step::AwaitTemplate => match templates::state(&mut mgmt, &template).await? {
                TemplateState::Ready => Ok(Then::Next(Step::Copy { template })),
                TemplateState::Building => Ok(Then::Later(POLL)),
                TemplateState::Missing => Ok(Then::Next(Step::Database)),
                TemplateState::Failed => {
                    let why = templates::why_failed(&mut mgmt, &template::dedup_key(&template)).await?;
                    let (error, hint) = why.unwrap_or_default();
                    Err(StepError {
                        message: format!(
                            "the template of profile `{}` was not built: {error}",
                            names.profile
                        ),
                        hint,
                        retry: false,
                    })
                }
            },
            Step::Copy { template: chosen } => {
                drop(mgmt);
                match copy(world, &names, chosen, *chosen == template).await? {
                    true => Ok(Then::Next(next)),
                    // It is an old one now, or was dropped.
                    false => Ok(Then::Next(Step::Database)),
                }
            }
            Step::Admin => {
                let wanted = templates::wanted_admin(&mut mgmt, self.tenant).await?;
                drop(mgmt);
                if let (Some(wanted), Some(admin)) = (wanted, &profile.admin) {
                    let purpose = admin_password_purpose(self.tenant);
                    let password = world.master_key.unwrap(&wanted.password_wrapped, &purpose)?;
                    make_admin(world, &names, admin, &wanted.login, &password).await?;
                }
                Ok(Then::Next(Step::Publish))
            }
            Step::Publish => {
                drop(mgmt);
                publish(world, &names, context).await
            }
        }
    }
}

/// The tenant's own names for a database that waited, and its roles. Nobody has been in it since it was made.
async fn take(world: &World, names: &Names, profile: &Profile, copy: &PoolDatabase) -> Result<(), StepError> {
    let mut admin = world.cluster.connect("postgres").await?;
    let there = databases::oid(&mut admin, &names.database_name).await?.map(i64::from);
    if there.is_none() || there != copy.oid {
        // Both names change or none. A database that has the name already and is another one is an error here.
        let database = Rename { from: &copy.name, to: &names.database_name };
        let owner = Rename { from: &copy.name, to: &names.owner_role };
        databases::rename_with_owner(&mut admin, &database, &owner).await?;
    }
    make_login(world, &mut admin, names).await?;
    let mut inside = world.cluster.connect(&names.database_name).await?;
    set_limits(world, &mut inside, names.id, copy.template == world.template(profile)).await
}

/// A copy made now. `Ok(false)`: not of this template.
async fn copy(world: &World, names: &Names, template: &str, current: bool) -> Result<bool, StepError> {
    let mut admin = world.cluster.connect("postgres").await?;
    if databases::oid(&mut admin, &names.database_name).await?.is_none() {
        let template_is_there = databases::oid(&mut admin, template).await?.is_some();
        if !current || !template_is_there {
            return Ok(false);
        }
    }
    roles::ensure_group(&mut admin, &names.owner_role).await?;
    databases::ensure_clone(&mut admin, &names.database_name, template).await?;
    let mut inside = world.cluster.connect(&names.database_name).await?;
    handover::hand_over(&mut inside, template, &names.owner_role).await.map_err(Error::TenantDatabase)?;
    loomworks_undo::admit(&mut inside, &names.owner_role).await.map_err(Error::from)?;
    set_limits(world, &mut inside, names.id, current).await?;
    make_login(world, &mut admin, names).await?;
    databases::open_to(&mut admin, &names.database_name, &names.owner_role).await?;
    databases::admit_everybody_granted(&mut admin, &names.database_name).await?;
    Ok(true)
}

/// The app's login, which acts as the owner.
async fn make_login(world: &World, admin: &mut PgConnection, names: &Names) -> Result<(), StepError> {
    let password = app_password(world, names.id).await?;
    let login = Login {
        role: &names.app_role,
        verifier: &Verifier::of(&password),
        acts_as: &names.owner_role,
        valid_until: None,
        connection_limit: None,
    };
    Ok(roles::ensure_login(admin, &login).await?)
}

async fn app_password(world: &World, tenant: TenantId) -> Result<SecretString, Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    let credentials = tenants::credentials(&mut mgmt, tenant).await?;
    world.master_key.unwrap(&credentials.app_password_wrapped, &app_password_purpose(tenant))
}

/// Tells the tenant's database its limits, and notes what it was told: until the tenant is active, others may hold.
async fn set_limits(
    world: &World,
    inside: &mut PgConnection,
    tenant: TenantId,
    has_current_parts: bool,
) -> Result<(), StepError> {
    let mut common = limits::common(world);
    if !has_current_parts {
        common.parts.clear();
    }
    let mut mgmt = world.db.platform.acquire().await?;
    let wanted = usage::wanted(&mut mgmt, tenant, &common).await?;
    limits::tell(inside, &limits::Told::read(&wanted)?).await?;
    Ok(usage::record_told(&mut mgmt, tenant, &wanted).await?)
}

/// What the wrapped password of an app's first user is bound to.
#[must_use]
pub fn admin_password_purpose(tenant: TenantId) -> String {
    format!("admin password of tenant {tenant}")
}

/// The app's first user, as whoever asked for the tenant is told of him: this once.
pub struct NewAdmin {
    pub login: String,
    pub password: SecretString,
}

/// Notes in the transaction that writes a tenant down that it is to have a first user. `None`: the profile makes none.
pub async fn want_admin(
    world: &World,
    connection: &mut PgConnection,
    tenant: TenantId,
    profile: &str,
    login: Option<&str>,
) -> Result<Option<NewAdmin>, Error> {
    if world.profiles.get(profile).is_none_or(|profile| profile.admin.is_none()) {
        return match login {
            None => Ok(None),
            Some(_) => Err(Error::invalid(format!("the app of profile `{profile}` makes no first user"))
                .with_hint("leave `admin_login` out, or give the profile an `[admin]`")),
        };
    }
    let login = login.unwrap_or("admin").trim();
    if login.is_empty() || login.chars().count() > 255 || login.chars().any(char::is_control) {
        return Err(Error::invalid("a login has 1 to 255 characters, none of them a control character"));
    }
    let password = random_password();
    let wrapped =
        world.master_key.wrap_for(&mut *connection, &password, &admin_password_purpose(tenant)).await?;
    templates::want_admin(connection, tenant, login, &wrapped).await?;
    Ok(Some(NewAdmin { login: login.to_owned(), password }))
}

async fn make_admin(
    world: &World,
    names: &Names,
    admin: &Admin,
    login: &str,
    password: &SecretString,
) -> Result<(), StepError> {
    let app_password = app_password(world, names.id).await?;
    let app = App { world, database: &names.database_name, role: &names.app_role, password: &app_password };
    match admin {
        Admin::Sql(statements) => {
            let settings =
                [("loomworks.admin_login", login), ("loomworks.admin_password", password.expose_secret())];
            app.run_sql(std::slice::from_ref(statements), &settings).await
        }
        Admin::Program(program) => {
            let login = SecretString::from(login);
            let secrets = [("LOOMWORKS_ADMIN_LOGIN", &login), ("LOOMWORKS_ADMIN_PASSWORD", password)];
            app.run_program(program, &secrets).await
        }
    }
}

/// The transaction that makes it a tenant: active, with its database noted and a new generation of routes.
async fn publish(world: &World, names: &Names, context: &Context) -> Result<Then<Step>, StepError> {
    write_password_file(world, &names.profile).await?;
    let mut admin = world.cluster.connect("postgres").await?;
    let oid = databases::oid(&mut admin, &names.database_name)
        .await?
        .ok_or_else(|| Error::Internal(format!("database `{}` is gone", names.database_name)))?;
    let mut transaction = world.db.platform.begin().await?;
    let standing = lifecycle::lock(&mut transaction, names.id).await?;
    check_wanted(&standing)?;
    if standing.state == TenantState::Provisioning {
        let state = state_after(&standing, Change::Provisioned)?;
        tenants::set_state(&mut transaction, names.id, state, None).await?;
        let live = TenantDatabase { oid: i64::from(oid), name: names.database_name.clone() };
        tenants::record_live(&mut transaction, names.id, &live, None).await?;
        templates::admin_is_made(&mut transaction, names.id).await?;
        templates::forget_claim(&mut transaction, names.id).await?;
        usage::begin(&mut transaction, names.id, i64::from(oid)).await?;
        changes::begin(&mut transaction, &[names.id]).await?;
        let detail = json!({ "database": names.database_name });
        crate::audit::record(
            &mut transaction,
            &context.requested_by,
            "tenant.provisioned",
            Some(names.id),
            detail,
        )
        .await?;
        routes::next_generation(&mut transaction).await?;
    }
    transaction.commit().await?;
    Ok(done(names))
}

fn done(names: &Names) -> Then<Step> {
    Then::Done(json!({ "tenant": names.id, "subdomain": names.subdomain }))
}

/// Nothing more is made of a tenant whose end has begun.
fn check_wanted(standing: &Standing) -> Result<(), StepError> {
    match standing.destroying_since {
        Some(_) => Err(StepError::permanent("the tenant is being destroyed", "make another one")),
        None => Ok(()),
    }
}

/// The names of a tenant's database and roles, for jobs.
pub(crate) async fn names(world: &World, tenant: TenantId) -> Result<Names, Error> {
    let mut mgmt = world.db.platform.acquire().await?;
    Ok(db::tenants::names(&mut mgmt, tenant).await?)
}
