//! The management database on a real PostgreSQL: who sees which rows, the queue, and what webhooks get.

mod audit;
mod changing;
mod fleet;
mod idempotency;
mod jobs;
mod keys;
mod lifecycle;
mod master_key;
mod metrics;
mod operators;
mod recovery;
mod rotation;
mod row_security;
mod row_security_verbs;
mod running;
mod webhooks;
#[path = "../support/world.rs"]
mod working;
mod world;

use std::sync::LazyLock;

use loomworks_control::credentials::{MasterKey, app_password_purpose};
use loomworks_control::db::Db;
use loomworks_control::db::tenants::{self, New};
use loomworks_core::SecretString;
use loomworks_core::ids::TenantId;
use loomworks_testkit::{Server, server};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// The management database that all tests share but those of an [`Alone`]: each looks at rows of its own only.
async fn database() -> Db {
    set_up(server().await).await
}

/// The database has one name, so there is one a server; it is set up twice, as at every start but the first.
async fn set_up(server: &Server) -> Db {
    static SETTING_UP: Mutex<()> = Mutex::const_new(());
    let _alone = SETTING_UP.lock().await;
    Db::set_up(&server.cluster).await.expect("set up");
    // Pools belong to the runtime of their test.
    Db::set_up(&server.cluster).await.expect("set up again")
}

/// A server for tests that empty, count or claim what is in whole tables. They take turns, and find no rows of others.
struct Alone {
    turn: Mutex<()>,
    server: OnceCell<Server>,
}

impl Alone {
    const fn new() -> Self {
        Self { turn: Mutex::const_new(()), server: OnceCell::const_new() }
    }

    async fn server(&self) -> &Server {
        self.server.get_or_init(Server::start).await
    }

    async fn database(&'static self) -> (Db, MutexGuard<'static, ()>) {
        let turn = self.turn.lock().await;
        (set_up(self.server().await).await, turn)
    }
}

/// The master key of this program's management database.
fn master_key() -> &'static MasterKey {
    static KEY: LazyLock<MasterKey> = LazyLock::new(|| {
        let path = tempfile::tempdir().expect("a directory").keep().join("master.key");
        MasterKey::load_or_create(&path).expect("make a key")
    });
    &KEY
}

async fn tenant(db: &Db) -> TenantId {
    let id = TenantId::random();
    let subdomain = format!("t{}", id.short()).parse().expect("a subdomain");
    let wrapped = master_key().wrap(&SecretString::from("password"), &app_password_purpose(id));
    let new = New { id, name: "Test", subdomain: &subdomain, profile: "erp", app_password_wrapped: &wrapped };
    let mut connection = db.platform.acquire().await.expect("connect");
    tenants::insert(&mut connection, &new).await.expect("insert a tenant");
    id
}
