//! One platform for all tests of this program, with a worker and reconcilers, and no archive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use loomworks_archive::store::Location;
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_control::World;
use loomworks_control::access::{self, Caller, Granted, Identity, Operator, Permission, Scope};
use loomworks_control::credentials::MasterKey;
use loomworks_control::db::Db;
use loomworks_control::db::jobs::Job;
use loomworks_control::db::lifecycle::Update;
use loomworks_control::db::templates;
use loomworks_control::jobs;
use loomworks_control::profile::{Admin, Profile, Users};
use loomworks_control::reconcile::{self, Duties};
use loomworks_control::tenants::{self, Wanted};
use loomworks_control::world::Parts;
use loomworks_core::ids::{ApiKeyId, JobId, TenantId};
use loomworks_testkit::server;
use sqlx::PgConnection;
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, watch};

/// The worker outlives each test, so it has a runtime of its own.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
static WORLD: OnceCell<(World, watch::Sender<bool>)> = OnceCell::const_new();

/// Runs a test.
pub(crate) fn with_world(test: impl AsyncFnOnce(World)) {
    RUNTIME.block_on(async { Box::pin(test(world().await)).await });
}

const SHOP: &str = "
    CREATE TABLE users (login text PRIMARY KEY, secret text NOT NULL, active boolean NOT NULL DEFAULT true);
    CREATE SEQUENCE numbers;
    CREATE TABLE items (id int PRIMARY KEY, value text NOT NULL);
    CREATE TABLE parts (id int, item int REFERENCES items ON DELETE CASCADE) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000);
    CREATE SCHEMA more;
    CREATE TYPE more.size AS ENUM ('s', 'm');
    CREATE FUNCTION more.twice(n int) RETURNS int LANGUAGE sql RETURN n * 2;
    CREATE VIEW more.all_items AS SELECT * FROM items;
    ALTER TABLE items ENABLE ROW LEVEL SECURITY;
    CREATE POLICY mine ON items TO CURRENT_USER USING (true);
    ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
    ALTER DEFAULT PRIVILEGES IN SCHEMA more GRANT SELECT ON TABLES TO PUBLIC;
    GRANT SELECT ON items TO PUBLIC;
    INSERT INTO items SELECT n, 'as made' FROM generate_series(1, 100) n;";

const ADMIN: &str = "
    INSERT INTO users (login, secret)
    VALUES (current_setting('loomworks.admin_login'), current_setting('loomworks.admin_password'))
    ON CONFLICT (login) DO UPDATE SET secret = excluded.secret;";

fn profile(name: &str, init: &str, pool: u32) -> (String, Profile) {
    let profile = Profile {
        name: name.into(),
        description: String::new(),
        upstream: ([127, 0, 0, 1], 9).into(),
        init_sql: vec![init.into()],
        init_command: None,
        admin: None,
        users: None,
        pool: Some(pool),
    };
    (name.into(), profile)
}

async fn world() -> World {
    let (world, _) = WORLD
        .get_or_init(|| async {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let server = server().await;
            let cluster = server.cluster.clone();
            let directory = server.directory.clone();
            let (system_identifier, segment_bytes) = cluster.control_data().await.expect("control data");
            let identity = ClusterIdentity {
                system_identifier,
                segment_bytes,
                major_version: cluster.installation.major_version,
            };
            let master_key = MasterKey::load_or_create(&directory.join("master.key")).expect("a key");
            let users = Some(Users { table: "public.users".into(), active: "active".into() });
            let mut profiles: BTreeMap<String, Profile> = [
                profile("shop", SHOP, 2),
                profile("cold", SHOP, 0),
                profile("broken", "CREATE TABLE t (); SELECT nothing", 0),
            ]
            .into();
            for name in ["shop", "cold"] {
                let profile = profiles.get_mut(name).expect("it is there");
                profile.users = users.clone();
                profile.admin = Some(Admin::Sql(ADMIN.into()));
            }
            let location = Location::Directory(directory.join("repository"));
            let repository = Repository::create(&location, identity, Arc::new(master_key.clone())).await;
            let repository = repository.expect("a repository");
            let db = Db::set_up(&cluster).await.expect("set up");
            let parts = Parts::new(db, cluster, repository, master_key, &directory).expect("the parts");
            let world = World::new(Parts { profiles, ..parts });
            let (stop, stopped) = watch::channel(false);
            tokio::spawn(jobs::runner::run(world.clone(), stopped.clone()));
            let duties = Duties { tenants: true, backups: false };
            tokio::spawn(reconcile::run(world.clone(), duties, stopped));
            (world, stop)
        })
        .await;
    world.clone()
}

pub(crate) fn operator_as_caller() -> Caller {
    Caller {
        identity: Identity::Key(ApiKeyId::random()),
        scope: Scope::Operator,
        permissions: Permission::ALL.to_vec(),
        name: "test".into(),
    }
}

pub(crate) fn operator() -> Operator {
    access::operator(&operator_as_caller(), Permission::Manage).expect("an operator")
}

pub(crate) async fn granted(world: &World, tenant: TenantId) -> Granted {
    let caller = operator_as_caller();
    access::tenant(&world.db, &caller, &tenant.to_string(), Permission::Manage).await.expect("granted")
}

/// Waits until a job has ended.
pub(crate) async fn ended(world: &World, job: JobId) -> Job {
    let job = jobs::wait(world, job, Duration::from_secs(120)).await.expect("look");
    assert!(job.is_finished(), "{job:?}");
    job
}

/// A tenant that is active.
pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    pub(crate) name: String,
    /// The password of the app's first user.
    pub(crate) admin_password: String,
}

impl Tenant {
    pub(crate) async fn new(world: &World, profile: &str) -> Self {
        let name = format!("t{}", TenantId::random().short());
        let wanted = Wanted {
            name: name.parse().expect("a name"),
            subdomain: name.parse().expect("a subdomain"),
            profile: Some(profile.into()),
            admin_login: None,
            draft: false,
            fields: Update::default(),
        };
        let created = tenants::create(world, &operator(), &wanted).await.expect("create");
        let job = ended(world, created.job.expect("a job")).await;
        assert_eq!(job.state, "succeeded", "{job:?}");
        let admin = created.admin.expect("a first user");
        let password = loomworks_core::ExposeSecret::expose_secret(&admin.password).to_owned();
        Self { id: created.tenant.id, name, admin_password: password }
    }

    /// One that is only written down: its id and its subdomain.
    pub(crate) async fn draft(world: &World, profile: &str) -> (TenantId, String) {
        let name = format!("t{}", TenantId::random().short());
        let wanted = Wanted {
            name: name.parse().expect("a name"),
            subdomain: name.parse().expect("a subdomain"),
            profile: Some(profile.into()),
            admin_login: None,
            draft: true,
            fields: Update::default(),
        };
        let created = tenants::create(world, &operator(), &wanted).await.expect("create");
        (created.tenant.id, name)
    }

    pub(crate) async fn admin(&self, world: &World) -> PgConnection {
        world.cluster.connect(&self.name).await.expect("connect")
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Copies that wait for a tenant of the profile that has a pool.
pub(crate) async fn waiting(world: &World) -> usize {
    let mut mgmt = world.db.platform.acquire().await.expect("connect");
    let current = world.template(&world.profiles["shop"]);
    let copies = templates::all_copies(&mut mgmt).await.expect("look");
    copies.iter().filter(|copy| copy.template == current && copy.state == "ready").count()
}
