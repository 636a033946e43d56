//! A platform without its program: a PostgreSQL that archives, a repository, and as many workers as a test wants.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::post;
use loomworks_archive::store::Location;
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_control::access::{self, Caller, Granted, Identity, Operator, Permission, Scope};
use loomworks_control::credentials::{CredentialPolicy, MasterKey};
use loomworks_control::db::lifecycle::Update;
use loomworks_control::db::{DATABASE, Db};
use loomworks_control::jobs::{self, Cut, Signals, Work, cron};
use loomworks_control::profile::{Admin, Profile, Users};
use loomworks_control::webhooks::Sender;
use loomworks_control::work::daily_snapshots::DailySnapshots;
use loomworks_control::work::expire::Expire;
use loomworks_control::work::restore_drill::RestoreDrill;
use loomworks_control::work::sweep::Sweep;
use loomworks_control::world::Parts;
use loomworks_control::{World, backups, tenants};
use loomworks_core::durable;
use loomworks_core::ids::{ApiKeyId, JobId};
use loomworks_postgres::{PgConnection, config};
use loomworks_testkit::{Server, server};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the platform does regularly.
pub(crate) const OWN_SCHEDULES: [&str; 4] = ["sweep", "daily snapshots", "expiry", "restore drill"];

/// Long enough for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the program waits until there is a server that calls it.
pub(crate) fn copied_program() -> PathBuf {
    PathBuf::from(format!("/tmp/lwc-{}", std::process::id()))
}

pub(crate) struct Stage {
    pub(crate) server: &'static Server,
    pub(crate) db: Db,
    pub(crate) cut: Cut,
    signals: Signals,
    repository: Repository,
    /// Rises with each run, for what needs to be new each time.
    number: AtomicU32,
    /// Where webhooks send to, and which deliveries have come.
    pub(crate) receiver: String,
    pub(crate) received: Arc<Mutex<BTreeSet<String>>>,
    /// What differs from run to run: databases that are to wait, the content of a profile.
    pub(crate) pool: AtomicU32,
    pub(crate) content: AtomicU32,
}

const ITEMS: &str = "
    CREATE TABLE users (login text PRIMARY KEY, secret text NOT NULL, active boolean NOT NULL DEFAULT true);
    CREATE TABLE items (id int PRIMARY KEY, value text NOT NULL);
    INSERT INTO items SELECT n, 'as made' FROM generate_series(1, 100) n;";

const ADMIN: &str = "
    INSERT INTO users (login, secret)
    VALUES (current_setting('loomworks.admin_login'), current_setting('loomworks.admin_password'))
    ON CONFLICT (login) DO UPDATE SET secret = excluded.secret;";

impl Stage {
    pub(crate) async fn set() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let server = server().await;
        let root = &server.directory;
        let program = root.join("loomworks");
        durable::rename(&copied_program(), &program).expect("put the program where it is called");
        let (system_identifier, segment_bytes) = server.cluster.control_data().await.expect("control data");
        let identity = ClusterIdentity {
            system_identifier,
            segment_bytes,
            major_version: server.cluster.installation.major_version,
        };
        let key = root.join("master.key");
        let master_key = MasterKey::load_or_create(&key).expect("a master key");
        let location = Location::Directory(root.join("repository"));
        let repository = Repository::create(&location, identity, Arc::new(master_key)).await;
        let repository = repository.expect("a repository");
        archive(server, &repository, &program, &key).await;
        let db = Db::set_up(&server.cluster).await.expect("set up");
        let (receiver, received) = receive().await;
        let stage = Self {
            server,
            db,
            cut: Cut::default(),
            signals: Signals::default(),
            repository,
            number: AtomicU32::new(0),
            receiver,
            received,
            pool: AtomicU32::new(0),
            content: AtomicU32::new(0),
        };
        let world = stage.world("nobody");
        world.master_key.adopt_pepper(&stage.db).await.expect("a pepper");
        let mut mgmt = stage.management().await;
        // What comes by itself would be taken for an effect.
        let nightly = "20 3 * * *".parse().expect("a timing");
        cron::ensure(&mut mgmt, "sweep", &nightly, &Sweep {}).await.expect("a schedule");
        cron::ensure(&mut mgmt, "daily snapshots", &nightly, &DailySnapshots {}).await.expect("a schedule");
        cron::ensure(&mut mgmt, "expiry", &nightly, &Expire {}).await.expect("a schedule");
        cron::ensure(&mut mgmt, "restore drill", &nightly, &RestoreDrill {}).await.expect("a schedule");
        for name in OWN_SCHEDULES {
            cron::enable(&mut mgmt, name, false).await.expect("let it rest");
        }
        for profile in world.profiles.values() {
            stage.build_template(profile).await;
        }
        let backup = backups::run(&world, &operator(), false).await.expect("ask for a backup");
        stage.carry_out(backup).await;
        stage
    }

    /// What a process has that was started now.
    pub(crate) fn world(&self, node: &str) -> World {
        let root = &self.server.directory;
        let master_key = MasterKey::load_or_create(&root.join("master.key")).expect("a key");
        // Its repository has its master key: what changes one changes the other.
        let provider = Arc::new(master_key.clone());
        let store = self.repository.store().clone();
        let opened = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(Repository::open_in(store, provider))
        });
        let repository = opened.expect("open the repository");
        let parts = Parts::new(self.db.clone(), self.server.cluster.clone(), repository, master_key, root);
        World::new(Parts {
            node: node.to_owned(),
            profiles: self.profiles(),
            credential_policy: CredentialPolicy { overlap: Duration::ZERO, ..CredentialPolicy::default() },
            webhooks: Sender::new(true).expect("a sender"),
            signals: self.signals.clone(),
            cut: self.cut.clone(),
            ..parts.expect("the parts")
        })
    }

    fn profiles(&self) -> BTreeMap<String, Profile> {
        let content = format!("-- {}\n{ITEMS}", self.content.load(Ordering::Relaxed));
        let profile = |name: &str, content: &str, pool| {
            let profile = Profile {
                name: name.to_owned(),
                description: String::new(),
                upstream: ([127, 0, 0, 1], 9).into(),
                init_sql: vec![content.to_owned()],
                init_command: None,
                admin: Some(Admin::Sql(ADMIN.to_owned())),
                users: Some(Users { table: "public.users".into(), active: "active".into() }),
                pool: Some(pool),
            };
            (name.to_owned(), profile)
        };
        [
            profile("shop", ITEMS, 0),
            profile("pooled", ITEMS, self.pool.load(Ordering::Relaxed)),
            profile("changing", &content, 0),
        ]
        .into()
    }

    async fn build_template(&self, profile: &Profile) {
        let job = ask_for_template(self, profile).await;
        self.carry_out(job).await;
    }

    /// Another one each time.
    pub(crate) fn next_number(&self) -> u32 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    /// The superuser, in the management database.
    pub(crate) async fn management(&self) -> PgConnection {
        let mut connection = self.connect(DATABASE).await;
        self.run(&mut connection, "SET search_path = public").await;
        connection
    }

    pub(crate) async fn connect(&self, database: &str) -> PgConnection {
        self.server.cluster.connect(database).await.expect("connect")
    }

    pub(crate) async fn run(&self, connection: &mut PgConnection, sql: &str) {
        let statements = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
        if let Err(error) = sqlx::Executor::execute(connection, statements).await {
            panic!("{sql}: {error}");
        }
    }

    /// Statements on the management database.
    pub(crate) async fn set_rows(&self, sql: &str) {
        let mut mgmt = self.management().await;
        self.run(&mut mgmt, sql).await;
    }

    pub(crate) async fn enqueue<W: Work>(&self, work: &W) -> JobId {
        let mut connection = self.db.platform.acquire().await.expect("connect");
        jobs::enqueue(&mut connection, work, "test").await.expect("enqueue")
    }

    /// A tenant with this name, made if there is none.
    pub(crate) async fn tenant(&self, name: &str) -> Granted {
        let world = self.world("nobody");
        let caller = operator_as_caller();
        if access::tenant(&world.db, &caller, name, Permission::Manage).await.is_err() {
            let job = self.ask_for_tenant(name, "shop").await;
            self.carry_out(job).await;
        }
        access::tenant(&world.db, &caller, name, Permission::Manage).await.expect("granted")
    }

    pub(crate) async fn ask_for_tenant(&self, name: &str, profile: &str) -> JobId {
        let wanted = tenants::Wanted {
            name: name.parse().expect("a name"),
            subdomain: name.parse().expect("a subdomain"),
            profile: Some(profile.to_owned()),
            admin_login: None,
            draft: false,
            fields: Update::default(),
        };
        let created = tenants::create(&self.world("nobody"), &operator(), &wanted).await.expect("create");
        created.job.expect("a job")
    }

    /// Has a job carried out that the run needs and is not about.
    pub(crate) async fn carry_out(&self, job: JobId) {
        let node = Node::start(self, "helper");
        self.until_all_have_ended(job).await;
        node.stop().await;
    }

    pub(crate) async fn until_ended(&self, job: JobId) {
        let world = self.world("nobody");
        let job = jobs::wait(&world, job, PATIENCE).await.expect("look");
        assert_eq!(job.state, "succeeded", "{job:#?}");
    }

    /// Also those that it has asked for.
    pub(crate) async fn until_all_have_ended(&self, job: JobId) {
        self.until_ended(job).await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let open: Vec<String> = sqlx::query_scalar(
                "SELECT concat_ws(' ', kind, state, error) FROM jobs WHERE state <> 'succeeded'",
            )
            .fetch_all(&self.db.platform)
            .await
            .expect("look");
            if open.is_empty() {
                return;
            }
            let failed = open.iter().any(|job| job.contains("failed") || job.contains("cancelled"));
            assert!(!failed && tokio::time::Instant::now() < deadline, "{open:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Nobody hears of the dead any more.
    pub(crate) async fn leases_run_out(&self) {
        self.set_rows("UPDATE jobs SET lease_until = now() - interval '1 second' WHERE state = 'running'")
            .await;
    }

    pub(crate) async fn saves_of(&self, job: JobId) -> i32 {
        let sql = "SELECT steps_done FROM jobs WHERE id = $1";
        sqlx::query_scalar(sql).bind(job.0).fetch_one(&self.db.platform).await.expect("look")
    }

    pub(crate) async fn finished_by(&self, job: JobId) -> String {
        let sql = "SELECT node FROM jobs WHERE id = $1";
        sqlx::query_scalar(sql).bind(job.0).fetch_one(&self.db.platform).await.expect("look")
    }
}

/// Enqueues the building of a profile's template as it is now.
pub(crate) async fn ask_for_template(stage: &Stage, profile: &Profile) -> JobId {
    use loomworks_control::db::templates;
    use loomworks_control::work::template::BuildTemplate;
    let template = stage.world("nobody").template(profile);
    let mut connection = stage.db.platform.acquire().await.expect("connect");
    templates::begin(&mut connection, &template, &profile.name).await.expect("begin");
    drop(connection);
    stage.enqueue(&BuildTemplate { profile: profile.name.clone(), template }).await
}

/// Lets the server archive, as the product's does.
async fn archive(server: &Server, repository: &Repository, program: &Path, key: &Path) {
    let (program, key) = (program.display(), key.display());
    let command =
        format!("{program} wal push --repository {} --master-key-file {key} %p", repository.location());
    let log = server.cluster.directory.join("log");
    let settings = config::Serving {
        port: server.cluster.port,
        socket_directory: &server.cluster.socket_directory,
        log_directory: &log,
        shared_buffers: 128,
        archive_command: Some(&command),
    };
    // Nothing here outlives the machine; that nothing is lost with a process is what it is about.
    let fast = "fsync = off\nfull_page_writes = off\nshared_buffers = '64MB'\n";
    server.cluster.stop().await.expect("stop");
    server.cluster.configure(&(settings.render() + fast)).expect("configure");
    server.cluster.start().await.expect("start");
}

/// A receiver of webhooks that notes what comes.
async fn receive() -> (String, Arc<Mutex<BTreeSet<String>>>) {
    let received: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let noting = received.clone();
    let note = async move |headers: HeaderMap| {
        let delivery = headers.get("Loomworks-Delivery").and_then(|value| value.to_str().ok());
        let delivery = delivery.expect("a delivery's id").to_owned();
        noting.lock().expect("not poisoned").insert(delivery);
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let router = Router::new().route("/", post(note));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (format!("http://{address}/"), received)
}

fn operator_as_caller() -> Caller {
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

/// A worker with everything that belongs to it.
pub(crate) struct Node {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Node {
    pub(crate) fn start(stage: &Stage, name: &str) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(jobs::runner::run(stage.world(name), stopped));
        Self { task, stop }
    }

    /// Ends it as it asks to be ended.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.expect("it ends");
    }

    /// Drops it where it is, with all that it has in hand.
    pub(crate) async fn die(self) {
        self.task.abort();
        let ended = self.task.await;
        assert!(ended.is_err_and(|error| error.is_cancelled()), "it was at work");
    }
}
