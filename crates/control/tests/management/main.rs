//! The management database on a real PostgreSQL: who sees which rows, and the queue.

mod jobs;
mod row_security;

use loomworks_control::db::Db;
use loomworks_control::db::tenants::{self, New};
use loomworks_core::ids::TenantId;
use loomworks_testkit::server;
use tokio::sync::Mutex;

/// The database has one name, so there is one a test program; it is set up twice, as at every start but the first.
async fn database() -> Db {
    static SETTING_UP: Mutex<()> = Mutex::const_new(());
    let _alone = SETTING_UP.lock().await;
    let cluster = &server().await.cluster;
    Db::set_up(cluster).await.expect("set up");
    // Pools belong to the runtime of their test.
    Db::set_up(cluster).await.expect("set up again")
}

async fn tenant(db: &Db) -> TenantId {
    let id = TenantId::random();
    let subdomain = format!("t{}", id.short()).parse().expect("a subdomain");
    let new =
        New { id, name: "Test", subdomain: &subdomain, profile: "erp", app_password_wrapped: b"wrapped" };
    let mut connection = db.platform.acquire().await.expect("connect");
    tenants::insert(&mut connection, &new).await.expect("insert a tenant");
    id
}
