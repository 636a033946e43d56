//! Who asks, and what he may touch.
//!
//! [`Granted`], [`Operator`] and [`Gateway`] can only be made here. Whoever reads or changes a tenant's things must hold one, so a
//! missing check does not compile. A tenant that the caller may not see and one that does not exist are the same
//! answer: no tenant can learn that another exists.

use loomworks_core::ids::{ApiKeyId, TenantId};
use loomworks_core::name::Subdomain;
use sqlx::{PgConnection, Postgres, Transaction};

use crate::db::{self, Db};
use crate::error::Error;

/// Whoever holds an API key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub key: ApiKeyId,
    pub scope: Scope,
    /// How he is named in jobs and in the audit log.
    pub name: String,
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
}

/// The right to act for the whole platform.
#[derive(Clone, Debug)]
pub struct Operator {
    pub(crate) actor: String,
}

/// The right of a gateway: to see the routes of all tenants.
#[derive(Clone, Copy, Debug)]
pub struct Gateway(());

/// The right to act for one tenant.
#[derive(Clone, Debug)]
pub struct Granted {
    tenant: TenantId,
    pub(crate) actor: String,
    confined: bool,
}

/// Somebody's transaction on the management database. A tenant's own requests run in one that sees only its rows.
pub struct Scoped(Transaction<'static, Postgres>);

/// The right of an operator.
pub fn operator(caller: &Caller) -> Result<Operator, Error> {
    match caller.scope {
        Scope::Operator => Ok(Operator { actor: caller.name.clone() }),
        Scope::Gateway | Scope::TenantAdmin(_) => Err(Error::Forbidden),
    }
}

/// The right of a gateway.
pub fn gateway(caller: &Caller) -> Result<Gateway, Error> {
    match caller.scope {
        Scope::Gateway => Ok(Gateway(())),
        Scope::Operator | Scope::TenantAdmin(_) => Err(Error::Forbidden),
    }
}

/// The right to a tenant, named by its id or its subdomain.
pub async fn tenant(db: &Db, caller: &Caller, name: &str) -> Result<Granted, Error> {
    let (confined, own) = match caller.scope {
        Scope::Operator => (false, None),
        Scope::TenantAdmin(own) => (true, Some(own)),
        Scope::Gateway => return Err(Error::Forbidden),
    };
    // What can be neither is nobody's name, and is not sent to the database.
    if name.parse::<TenantId>().is_err() && name.parse::<Subdomain>().is_err() {
        return Err(Error::NotFound("such tenant"));
    }
    let mut transaction = begin(db, own).await?;
    let tenant = db::tenants::find_id(&mut transaction.0, &name.to_ascii_lowercase())
        .await?
        .ok_or(Error::NotFound("such tenant"))?;
    Ok(Granted { tenant, actor: caller.name.clone(), confined })
}

/// The right to see things of any tenant (operator) or of one's own.
pub async fn listing(db: &Db, caller: &Caller) -> Result<Scoped, Error> {
    match caller.scope {
        Scope::Operator => begin(db, None).await,
        Scope::TenantAdmin(own) => begin(db, Some(own)).await,
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
    let mut transaction = db.tenants.begin().await?;
    sqlx::query("SELECT set_config('app.tenant_id', $1, true)")
        .bind(tenant.to_string())
        .execute(&mut *transaction)
        .await?;
    Ok(Scoped(transaction))
}

impl Scoped {
    pub async fn commit(self) -> Result<(), Error> {
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
