//! Who did what, from where. Rows can be added and read, by nobody changed.
//!
//! Each row gets a seal ([`sealer`]): the SHA-256 of the row and of the seal before it, in a chain without a gap. Who
//! changes, removes or adds a row afterwards breaks the chain, and [`verify`] tells where. Who rewrites the whole chain
//! cannot rewrite the heads that were noted elsewhere: in the log each day, in the metrics, in a file of the operator's.

mod history;
pub mod sealer;
pub mod verify;

use loomworks_core::ids::TenantId;
use serde_json::Value;
use sqlx::PgConnection;

use crate::World;
use crate::access::{self, Caller, Scope};
use crate::db::audit::{self, Entry, Filter};
use crate::error::Error;
use crate::idempotency;
use crate::page::{Asked, Page};

tokio::task_local! {
    /// Where what the present task does was asked for.
    static ORIGIN: String;
}

/// Runs something whose audit rows say that it came from `origin`: an address and a request, or a job.
pub async fn with_origin<T>(origin: String, doing: impl Future<Output = T>) -> T {
    ORIGIN.scope(origin, doing).await
}

/// Where what the present task does was asked for: what a task that it starts goes on under.
#[must_use]
pub fn origin() -> String {
    ORIGIN.try_with(Clone::clone).unwrap_or_default()
}

/// Writes a line in the transaction that does the thing, so that neither is there without the other.
pub async fn record(
    connection: &mut PgConnection,
    actor: &str,
    action: &str,
    tenant: Option<TenantId>,
    detail: Value,
) -> sqlx::Result<()> {
    let origin = origin();
    if let Some(tenant) = tenant {
        idempotency::note_tenant(tenant);
    }
    // The transaction has its number before the row gets its id: whoever has a smaller id than a row that can be seen
    // has a number by then, and `verify` relies on it.
    sqlx::query(
        "INSERT INTO audit (actor, action, tenant_id, detail, origin)
         SELECT $1, $2, $3, $4, $5 FROM pg_current_xact_id()",
    )
    .bind(actor)
    .bind(action)
    .bind(tenant.map(|tenant| tenant.0))
    .bind(detail)
    .bind(origin)
    .execute(connection)
    .await
    .map(drop)
}

/// How many lines wait for their seal, and for how many seconds the oldest does.
pub async fn lag(world: &World) -> Result<(i64, f64), Error> {
    let mut connection = world.db.platform.acquire().await?;
    Ok(audit::lag(&mut connection).await?)
}

/// The number of sealed lines, and the hash of the last seal: to be noted outside of the database.
pub async fn head(world: &World) -> Result<(i64, String), Error> {
    let mut connection = world.db.platform.acquire().await?;
    let head = audit::head(&mut connection).await?;
    Ok((head.place, sealer::hex(&head.hash)))
}

/// Lines of the log, newest first: an operator's all, a tenant's own people's their tenant's.
pub async fn list(
    world: &World,
    caller: &Caller,
    tenant: Option<&str>,
    mut filter: Filter,
    asked: Asked<i64>,
) -> Result<Page<Entry>, Error> {
    if let Some(name) = tenant {
        let granted = access::tenant(&world.db, caller, name, access::Permission::Read).await?;
        filter.tenant = Some(granted.tenant());
    }
    // Row security says the same; said here too so that the index is used.
    if let Scope::TenantAdmin(own) | Scope::TenantUser(own) = caller.scope {
        filter.tenant = filter.tenant.or(Some(own));
    }
    let mut scoped = access::listing(&world.db, caller).await?;
    let rows = audit::list(&mut scoped, &filter, asked.after, asked.rows()).await?;
    Ok(asked.page(rows, |entry| entry.id))
}
