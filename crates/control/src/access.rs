//! Who asks, and what he may touch.
//!
//! [`Granted`], [`Operator`] and [`Gateway`] can only be made here. Whoever reads or changes a tenant's things must hold one, so a
//! missing check does not compile. A tenant that the caller may not see and one that does not exist are the same
//! answer: no tenant can learn that another exists.

use loomworks_core::ids::{ApiKeyId, LoginId, OperatorId, TenantId};
use loomworks_core::name::Subdomain;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Transaction};

use crate::db::{self, Db};
use crate::error::Error;
use crate::idempotency;

/// Whoever holds an API key, or is logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub identity: Identity,
    pub scope: Scope,
    /// What of that scope's rights he may use.
    pub permissions: Vec<Permission>,
    /// How he is named in jobs and in the audit log.
    pub name: String,
}

/// What somebody is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    Key(ApiKeyId),
    /// An operator who came with a password or by OpenID Connect.
    Operator {
        operator: OperatorId,
        login: LoginId,
    },
}

/// What an API key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything, for every tenant.
    Operator,
    /// Fetching routes.
    Gateway,
    /// Everything that a tenant may do for itself.
    TenantAdmin(TenantId),
    /// Seeing a tenant's things, and the daily work with them.
    TenantUser(TenantId),
}

impl Scope {
    /// Puts together what a row says in two columns.
    #[must_use]
    pub fn of_row(scope: &str, tenant: Option<TenantId>) -> Option<Self> {
        Some(match (scope, tenant) {
            ("operator", None) => Self::Operator,
            ("gateway", None) => Self::Gateway,
            ("tenant_admin", Some(tenant)) => Self::TenantAdmin(tenant),
            ("tenant_user", Some(tenant)) => Self::TenantUser(tenant),
            _ => return None,
        })
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Gateway => "gateway",
            Self::TenantAdmin(_) => "tenant_admin",
            Self::TenantUser(_) => "tenant_user",
        }
    }

    /// The tenant that the scope is confined to.
    #[must_use]
    pub fn tenant(self) -> Option<TenantId> {
        match self {
            Self::TenantAdmin(tenant) | Self::TenantUser(tenant) => Some(tenant),
            Self::Operator | Self::Gateway => None,
        }
    }
}

/// What is done with things, from seeing them to replacing them.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Permission {
    /// See everything that the scope covers.
    Read,
    /// What can be taken back: AI sessions, undo, snapshots.
    Work,
    /// What cannot: restores, keys, settings, exports; for operators, tenants themselves.
    Manage,
}

impl Permission {
    pub const ALL: [Self; 3] = [Self::Read, Self::Work, Self::Manage];

    /// The most that a scope may be given.
    #[must_use]
    pub fn of(scope: Scope) -> &'static [Self] {
        match scope {
            Scope::Operator | Scope::TenantAdmin(_) => &Self::ALL,
            Scope::TenantUser(_) => &[Self::Read, Self::Work],
            Scope::Gateway => &[],
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Work => "work",
            Self::Manage => "manage",
        }
    }

    /// As a column holds them. What cannot be read gives no right.
    #[must_use]
    pub fn of_row(texts: &[String]) -> Vec<Self> {
        Self::ALL
            .into_iter()
            .filter(|permission| texts.iter().any(|text| text == permission.as_str()))
            .collect()
    }
}

/// The right to act for the whole platform.
#[derive(Clone, Debug)]
pub struct Operator {
    pub(crate) actor: String,
    pub(crate) permissions: Vec<Permission>,
}

/// The right of a gateway: to see the routes of all tenants.
#[derive(Clone, Copy, Debug)]
pub struct Gateway(());

/// The right to act for one tenant.
#[derive(Clone, Debug)]
pub struct Granted {
    tenant: TenantId,
    pub(crate) actor: String,
    pub(crate) permissions: Vec<Permission>,
    confined: bool,
}

/// Somebody's transaction on the management database. A tenant's own requests run in one that sees only its rows.
pub struct Scoped(Transaction<'static, Postgres>);

/// The right of an operator to do this.
pub fn operator(caller: &Caller, permission: Permission) -> Result<Operator, Error> {
    match caller.scope {
        Scope::Operator if caller.permissions.contains(&permission) => {
            Ok(Operator { actor: caller.name.clone(), permissions: caller.permissions.clone() })
        }
        _ => Err(Error::Forbidden),
    }
}

/// The right of a gateway.
pub fn gateway(caller: &Caller) -> Result<Gateway, Error> {
    match caller.scope {
        Scope::Gateway => Ok(Gateway(())),
        _ => Err(Error::Forbidden),
    }
}

/// The right to do this with a tenant, named by its id or its subdomain.
///
/// Whether it is the caller's own is looked at first: what he may do says nothing about who else there is.
pub async fn tenant(db: &Db, caller: &Caller, name: &str, permission: Permission) -> Result<Granted, Error> {
    let (confined, own) = match caller.scope {
        Scope::Operator => (false, None),
        Scope::TenantAdmin(own) | Scope::TenantUser(own) => (true, Some(own)),
        Scope::Gateway => return Err(Error::Forbidden),
    };
    // What can be neither is nobody's name, and is not sent to the database.
    if name.parse::<TenantId>().is_err() && Subdomain::try_from(name.to_ascii_lowercase()).is_err() {
        return Err(Error::NotFound("such tenant"));
    }
    let mut transaction = begin(db, own).await?;
    let tenant = db::tenants::find_id(&mut transaction.0, &name.to_ascii_lowercase())
        .await?
        .ok_or(Error::NotFound("such tenant"))?;
    idempotency::note_tenant(tenant);
    if !caller.permissions.contains(&permission) {
        return Err(Error::Forbidden);
    }
    let permissions = caller.permissions.clone();
    Ok(Granted { tenant, actor: caller.name.clone(), permissions, confined })
}

/// The right to see things of any tenant (operator) or of one's own.
pub async fn listing(db: &Db, caller: &Caller) -> Result<Scoped, Error> {
    if !caller.permissions.contains(&Permission::Read) {
        return Err(Error::Forbidden);
    }
    match caller.scope {
        Scope::Operator => begin(db, None).await,
        Scope::TenantAdmin(own) | Scope::TenantUser(own) => begin(db, Some(own)).await,
        Scope::Gateway => Err(Error::Forbidden),
    }
}

impl Granted {
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// A transaction for this tenant. If the right is the tenant's own, the database shows it nothing else.
    pub async fn begin(&self, db: &Db) -> Result<Scoped, Error> {
        begin(db, self.confined.then_some(self.tenant)).await
    }
}

impl Operator {
    pub async fn begin(&self, db: &Db) -> Result<Scoped, Error> {
        begin(db, None).await
    }
}

async fn begin(db: &Db, confined_to: Option<TenantId>) -> Result<Scoped, Error> {
    let Some(tenant) = confined_to else {
        return Ok(Scoped(db.platform.begin().await?));
    };
    // One round trip. An id is hexadecimal digits and hyphens: nothing in it can end the text it stands in.
    let begin = format!("BEGIN; SET LOCAL app.tenant_id = '{}'", tenant.0.as_hyphenated());
    Ok(Scoped(db.tenants.begin_with(AssertSqlSafe(begin)).await?))
}

impl Scoped {
    /// Makes it count. A request with an idempotency key notes in the same transaction that it has.
    pub async fn commit(mut self) -> Result<(), Error> {
        idempotency::note_effect(&mut self.0).await?;
        Ok(self.0.commit().await?)
    }
}

impl std::ops::Deref for Scoped {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl std::ops::DerefMut for Scoped {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}
