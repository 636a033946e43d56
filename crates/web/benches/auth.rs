//! What it costs to know who asks: requests a second with a key in use, hashes for keys that nobody made, and how soon a
//! revocation is seen by another process. `bench/run auth` runs it.
//!
//! The handler is the smallest there is (`GET /v1/auth/me`), behind everything that every request passes. "In process"
//! calls the router without a socket, on all cores, so that what is measured is ours; "over sockets" shares the same
//! cores with the client that asks.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use loomworks_archive::store::Location;
use loomworks_archive::{ClusterIdentity, Repository};
use loomworks_control::access::{self, Caller, Identity, Operator, Permission, Scope};
use loomworks_control::credentials::MasterKey;
use loomworks_control::db::Db;
use loomworks_control::keys::{self, Wanted};
use loomworks_control::world::{Parts, World};
use loomworks_core::ExposeSecret;
use loomworks_core::api_key::{ApiKey, Environment};
use loomworks_core::ids::ApiKeyId;
use loomworks_testkit::server;
use loomworks_web::{Allowance, Settings, serve};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// `/v1/auth/me` is for those who have logged in: to somebody with a key, who is known, it says so and does nothing else.
const ANSWER: u16 = 403;

/// Different keys in use at once.
const KEYS: usize = 8;

#[tokio::main]
async fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let measured_for = Duration::from_secs(if quick { 2 } else { 10 });
    let directory = tempfile::tempdir().expect("a directory");
    let (one, other) = (process(directory.path()).await, process(directory.path()).await);
    let (_stop, stopped) = watch::channel(false);
    for world in [&one, &other] {
        tokio::spawn(keys::watch::run(world.clone(), stopped.clone()));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut texts = Vec::new();
    for _ in 0..KEYS {
        texts.push(make(&one).await.1.expose_secret().to_owned());
    }
    let many = NonZeroU32::new(1_000_000_000).expect("not 0");
    let allowance = Allowance { per_second: many, burst: many };
    let router = loomworks_web::router(one.clone(), Settings { allowance, ..Settings::default() });

    let in_process = in_process(router.clone(), &texts, measured_for).await;
    tell("authenticated_requests_in_process", "1/s", in_process, Some(60_000.0), |ours, goal| ours >= goal);
    let over_sockets = over_sockets(router, &texts, measured_for).await;
    tell("authenticated_requests_over_sockets", "1/s", over_sockets, None, |_, _| true);
    let hashes = hashes_for_unknown_keys(&one, if quick { 1_000 } else { 20_000 }).await;
    tell("hashes_for_unknown_keys", "hashes", hashes, Some(0.0), |ours, goal| ours <= goal);
    let revoked = slowest_revocation(&one, &other, if quick { 5 } else { 50 }).await;
    tell("revocation_seen_by_another_process", "ms", revoked, Some(1_000.0), |ours, goal| ours <= goal);
}

#[expect(clippy::print_stdout, reason = "this is what a measurement is for")]
fn tell(metric: &str, unit: &str, ours: f64, goal: Option<f64>, met: impl Fn(f64, f64) -> bool) {
    let met = goal.map(|goal| met(ours, goal));
    let ours = (ours * 10.0).round() / 10.0;
    println!(
        "{}",
        json!({ "metric": metric, "unit": unit, "ours": ours, "peer": null, "peer_name": null, "ratio": null, "goal": goal, "met": met })
    );
}

async fn process(directory: &Path) -> World {
    let cluster = server().await.cluster.clone();
    let db = Db::set_up(&cluster).await.expect("set up");
    let (system_identifier, segment_bytes) = cluster.control_data().await.expect("look at the cluster");
    let major_version = cluster.installation.major_version;
    let identity = ClusterIdentity { system_identifier, segment_bytes, major_version };
    let master_key = MasterKey::load_or_create(&directory.join("master.key")).expect("a master key");
    let location = Location::Directory(directory.join("repository"));
    let repository = Repository::create(&location, identity, Arc::new(master_key.clone())).await;
    let repository = repository.expect("a repository");
    World::new(Parts::new(db, cluster, repository, master_key, directory).expect("the parts"))
}

fn operator() -> Operator {
    let caller = Caller {
        identity: Identity::Key(ApiKeyId::random()),
        scope: Scope::Operator,
        permissions: Permission::ALL.to_vec(),
        name: "bench".into(),
    };
    access::operator(&caller, Permission::Manage).expect("an operator")
}

async fn make(world: &World) -> (ApiKeyId, ApiKey) {
    let wanted = Wanted {
        name: "bench".parse().expect("a name"),
        scope: "operator".into(),
        permissions: None,
        environment: Environment::Dev,
        expires_at: None,
    };
    let (info, key) = keys::create_for_platform(world, &operator(), &wanted).await.expect("make a key");
    (info.id, key)
}

/// Requests a second, from as many tasks as there are cores.
async fn in_process(router: axum::Router, texts: &[String], measured_for: Duration) -> f64 {
    let service = TowerToHyperService::new(router);
    let request = |text: &str| {
        let request = Request::get("/v1/auth/me").header("authorization", format!("Bearer {text}"));
        request.body(Body::empty()).expect("a request")
    };
    for text in texts {
        let answer = service.call(request(text)).await.expect("an answer");
        assert_eq!(answer.status(), ANSWER);
    }
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut tasks = JoinSet::new();
    for core in 0..std::thread::available_parallelism().map_or(1, usize::from) {
        let (service, done, stop, texts) = (service.clone(), done.clone(), stop.clone(), texts.to_vec());
        tasks.spawn(async move {
            for n in core.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let answer = service.call(request(&texts[n % texts.len()])).await.expect("an answer");
                assert_eq!(answer.status(), ANSWER);
                done.fetch_add(1, Ordering::Relaxed);
                if n % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    rate(&done, &stop, tasks, measured_for).await
}

async fn rate(done: &AtomicU64, stop: &AtomicBool, tasks: JoinSet<()>, measured_for: Duration) -> f64 {
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (began, before) = (Instant::now(), done.load(Ordering::Relaxed));
    tokio::time::sleep(measured_for).await;
    let rate = (done.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    rate
}

/// The same through TCP, 16 connections with 16 requests on their way each.
async fn over_sockets(router: axum::Router, texts: &[String], measured_for: Duration) -> f64 {
    const ON_THEIR_WAY: usize = 16;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("an address");
    // The program's own listener.
    tokio::spawn(serve::serve(listener, router, serve::Patience::default(), std::future::pending()));
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut tasks = JoinSet::new();
    for n in 0..16 {
        let (done, stop, text) = (done.clone(), stop.clone(), texts[n % texts.len()].clone());
        tasks.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("connect");
            let request =
                format!("GET /v1/auth/me HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {text}\r\n\r\n");
            let requests = request.repeat(ON_THEIR_WAY);
            let mut buffer = vec![0; 64 * 1024];
            while !stop.load(Ordering::Relaxed) {
                stream.write_all(requests.as_bytes()).await.expect("ask");
                let (mut answered, mut tail) = (0, Vec::new());
                while answered < ON_THEIR_WAY {
                    let read = stream.read(&mut buffer).await.expect("read");
                    assert_ne!(read, 0, "the connection ended");
                    // An answer's first line may be cut by the end of a read.
                    tail.extend_from_slice(&buffer[..read]);
                    answered += tail.windows(12).filter(|window| *window == b"HTTP/1.1 403").count();
                    tail.drain(..tail.len().saturating_sub(11));
                }
                done.fetch_add(ON_THEIR_WAY as u64, Ordering::Relaxed);
            }
        });
    }
    rate(&done, &stop, tasks, measured_for).await
}

async fn hashes_for_unknown_keys(world: &World, count: u32) -> f64 {
    let before = world.keys.hashes();
    for n in 0..count {
        let mut random = [0; 26];
        random[..4].copy_from_slice(&n.to_be_bytes());
        let invented = ApiKey::from_random(Environment::Live, &random);
        assert!(keys::authenticate(world, invented.expose_secret()).await.is_err());
    }
    (world.keys.hashes() - before) as f64
}

/// From the answer to the revocation in one process to the first refusal in the other.
async fn slowest_revocation(one: &World, other: &World, count: u32) -> f64 {
    let mut slowest = Duration::ZERO;
    for _ in 0..count {
        let (id, key) = make(one).await;
        keys::authenticate(other, key.expose_secret()).await.expect("let in");
        keys::revoke_of_platform(one, &operator(), id).await.expect("revoke");
        let began = Instant::now();
        while keys::authenticate(other, key.expose_secret()).await.is_ok() {
            tokio::task::yield_now().await;
        }
        slowest = slowest.max(began.elapsed());
    }
    slowest.as_secs_f64() * 1000.0
}
