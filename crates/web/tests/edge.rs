//! The whole router on a real management database: who is counted, from where somebody is said to come, and for how
//! long somebody may listen.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use futures_util::StreamExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use loomworks_archive::store::Location;
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_control::access::{self, Caller, Identity, Operator, Permission, Scope};
use loomworks_control::credentials::MasterKey;
use loomworks_control::db::Db;
use loomworks_control::jobs;
use loomworks_control::keys::{self, Wanted};
use loomworks_control::operators::{self, NewOperator};
use loomworks_control::work::sweep::Sweep;
use loomworks_control::world::{Parts, World};
use loomworks_core::ExposeSecret;
use loomworks_core::api_key::{ApiKey, Environment};
use loomworks_core::ids::ApiKeyId;
use loomworks_testkit::server;
use loomworks_web::{Allowance, Settings};
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// Longer than anything here takes, shorter than anybody can follow a job.
const PATIENCE: Duration = Duration::from_secs(100);

async fn world() -> World {
    static SETTING_UP: Mutex<()> = Mutex::const_new(());
    let cluster = server().await.cluster.clone();
    let db = {
        let _alone = SETTING_UP.lock().await;
        Db::set_up(&cluster).await.expect("set up")
    };
    let directory = tempfile::tempdir().expect("a directory").keep();
    let (system_identifier, segment_bytes) = cluster.control_data().await.expect("look at the cluster");
    let major_version = cluster.installation.major_version;
    let identity = ClusterIdentity { system_identifier, segment_bytes, major_version };
    let master_key = MasterKey::load_or_create(&directory.join("master.key")).expect("a master key");
    let location = Location::Directory(directory.join("repository"));
    let repository = Repository::create(&location, identity, Arc::new(master_key.clone())).await;
    let repository = repository.expect("a repository");
    let _ = rustls::crypto::ring::default_provider().install_default();
    World::new(Parts::new(db, cluster, repository, master_key, &directory).expect("the parts"))
}

fn operator() -> Operator {
    let caller = Caller {
        identity: Identity::Key(ApiKeyId::random()),
        scope: Scope::Operator,
        permissions: Permission::ALL.to_vec(),
        name: "test".into(),
    };
    access::operator(&caller, Permission::Manage).expect("an operator")
}

async fn make_key(world: &World) -> (ApiKeyId, String) {
    let wanted = Wanted {
        name: "test".parse().expect("a name"),
        scope: "operator".into(),
        permissions: None,
        environment: Environment::Dev,
        expires_at: None,
    };
    let (info, key) = keys::create_for_platform(world, &operator(), &wanted).await.expect("make a key");
    (info.id, key.expose_secret().to_owned())
}

/// The API, behind a server on this machine that says for whom it asks.
struct Api(TowerToHyperService<axum::Router>);

impl Api {
    fn new(world: &World, settings: Settings) -> Self {
        Self(TowerToHyperService::new(loomworks_web::router(world.clone(), settings)))
    }

    /// One of whom each asker may ask so often at once, and then once a second.
    fn with_burst(world: &World, burst: u32, gateway_key: Option<&ApiKey>) -> Self {
        let burst = NonZeroU32::new(burst).expect("not 0");
        let gateway_key = gateway_key.map(|key| key.expose_secret().into());
        let allowance = Allowance { per_second: NonZeroU32::MIN, burst };
        Self::new(world, Settings { allowance, gateway_key, ..Settings::default() })
    }

    async fn ask(&self, from: &[&str], header: (&str, &str), method: &str, path: &str) -> Response<Body> {
        let body = if method == "POST" { json!({ "name": "made" }).to_string() } else { String::new() };
        let mut request = Request::builder().method(method).uri(path).header(header.0, header.1);
        for line in from {
            request = request.header("x-forwarded-for", *line);
        }
        let request = request.header("content-type", "application/json").body(Body::from(body));
        let mut request = request.expect("a request");
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 9))));
        let Ok(answer) = self.0.call(request).await;
        answer
    }

    /// What is answered to this key: 403 to one that is good, which is nobody's account.
    async fn status(&self, from: &str, key: &str) -> u16 {
        let header = format!("Bearer {key}");
        self.ask(&[from], ("authorization", &header), "GET", "/v1/auth/me").await.status().as_u16()
    }

    /// Asks with nothing good until no more is answered.
    async fn flood(&self, from: &str) {
        while self.status(from, "frt_live_00000000000000000000000000000000").await != 429 {}
    }
}

/// Until a key has to be looked up again.
async fn until_not_trusted(world: &World, key: &str) {
    while keys::recognise(world, key).is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_an_address_locks_out_nobody_who_was_known_there() {
    let world = world().await;
    let (id, known) = make_key(&world).await;
    let (_, unused) = make_key(&world).await;
    let gateway = keys::renew_platform_key(&world, "gateway", "test").await.expect("a gateway's key");
    let api = Api::with_burst(&world, 20, Some(&gateway));
    let (shared, elsewhere) = ("192.0.2.1", "192.0.2.2");

    let password = "four words put together";
    let new = NewOperator {
        name: "Ann".into(),
        email: format!("ann-{}@example.com", uuid::Uuid::new_v4()).parse().expect("an address"),
        password: Some(password.into()),
        permissions: vec![Permission::Read],
    };
    let account = operators::create(&world, &operator(), new).await.expect("an account");
    let address = "192.0.2.3".parse().expect("an address");
    let browser = operators::logins::Browser { address, user_agent: String::new() };
    let logged_in = operators::logins::log_in(&world, &browser, &account.email, password.into()).await;
    let cookie = logged_in.expect("logged in").token;
    // Over TLS, which nobody else can put a cookie like it into.
    let cookie = format!("loomworks_session=evil; __Host-loomworks_session={}", cookie.expose_secret());
    let browse =
        async || api.ask(&[shared], ("cookie", &cookie), "GET", "/v1/auth/me").await.status().as_u16();

    assert_eq!(api.status(shared, &known).await, 403);
    assert_eq!(browse().await, 200);
    api.flood(shared).await;
    // Looked up again, and not counted with those who flood.
    until_not_trusted(&world, &known).await;
    assert_eq!(api.status(shared, &known).await, 403);
    assert_eq!(browse().await, 200);
    // Never seen before, and still not counted.
    for _ in 0..50 {
        assert_eq!(api.status(shared, gateway.expose_secret()).await, 403);
    }
    // Whoever was not known there has to wait, and is let in from elsewhere.
    api.flood(shared).await;
    assert_eq!(api.status(shared, &unused).await, 429);
    assert_eq!(api.status(elsewhere, &unused).await, 403);

    // One that is good no more is refused, and then counted like any other.
    keys::revoke_of_platform(&world, &operator(), id).await.expect("revoke it");
    assert_eq!(api.status(shared, &known).await, 401);
    api.flood(shared).await;
    assert_eq!(api.status(shared, &known).await, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_says_from_where_and_not_what_a_client_made_up() {
    let world = world().await;
    let api = Api::new(&world, Settings::default());
    let (_, key) = make_key(&world).await;
    let header = ("authorization", format!("Bearer {key}"));
    let header = (header.0, header.1.as_str());
    let made =
        api.ask(&["203.0.113.66", "203.0.113.66, 192.0.2.77"], header, "POST", "/v1/operator-keys").await;
    assert_eq!(made.status(), 201);
    let listed = api.ask(&[], header, "GET", "/v1/audit?action=api_key.created").await;
    let listed = to_bytes(listed.into_body(), usize::MAX).await.expect("a body");
    let listed: Value = serde_json::from_slice(&listed).expect("JSON");
    let origins: Vec<_> =
        listed["items"].as_array().expect("a list").iter().map(|line| line["origin"].to_string()).collect();
    assert!(origins.iter().any(|origin| origin.starts_with("\"192.0.2.77 request ")), "{origins:?}");
    assert!(!origins.iter().any(|origin| origin.contains("203.0.113.66")), "{origins:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_ends_with_the_key_it_was_asked_for_with() {
    let world = world().await;
    let api = Api::new(&world, Settings::default());
    let (id, key) = make_key(&world).await;
    // Nobody works here: it waits for ever.
    let mut transaction = world.db.platform.begin().await.expect("a transaction");
    let job = jobs::enqueue(&mut transaction, &Sweep {}, "test").await.expect("enqueue");
    transaction.commit().await.expect("commit");
    let header = format!("Bearer {key}");
    let path = format!("/v1/jobs/{job}/events");
    let events = api.ask(&[], ("authorization", &header), "GET", &path).await;
    assert_eq!(events.status(), 200);
    let mut events = events.into_body().into_data_stream();
    let first = events.next().await.expect("an event").expect("bytes");
    assert!(first.starts_with(b"event: progress"), "{first:?}");
    keys::revoke_of_platform(&world, &operator(), id).await.expect("revoke it");
    let rest = events.map(|piece| piece.expect("bytes")).collect::<Vec<Bytes>>();
    let rest = tokio::time::timeout(PATIENCE, rest).await.expect("it ends").concat();
    // Who follows asks again, and is told then.
    assert!(!String::from_utf8_lossy(&rest).contains("event: end"));
    assert_eq!(api.ask(&[], ("authorization", &header), "GET", &path).await.status(), 401);
}
