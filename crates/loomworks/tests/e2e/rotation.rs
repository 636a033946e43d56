//! Passwords change under clients that never stop, and none of them notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sqlx::Connection;

use crate::platform::{App, Platform};

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_stop_notice_nothing_of_three_rotations() {
    let platform = Arc::new(Platform::start(&App::Erp));
    platform.cli(&["tenant", "create", "acme", "--wait"]);
    let stop = Arc::new(AtomicBool::new(false));
    let (connections, requests) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));

    // One reads the password file for each connection; `connect_as_app` fails the test if it is refused.
    let reconnecting = tokio::spawn({
        let (platform, stop, connections) = (platform.clone(), stop.clone(), connections.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let mut connection = platform.connect_as_app("acme").await;
                sqlx::query("SELECT 1").execute(&mut connection).await.expect("ask");
                connection.close().await.expect("close");
                connections.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    // The other is a visitor of the app, which keeps connections.
    let visiting = tokio::spawn({
        let (platform, stop, requests) = (platform.clone(), stop.clone(), requests.clone());
        async move {
            let http = reqwest::Client::new();
            let url = format!("http://127.0.0.1:{}/", platform.gateway);
            while !stop.load(Ordering::Relaxed) {
                let answer = http.get(&url).header("host", "acme.localhost").send().await.expect("an answer");
                assert!(answer.status().is_success(), "{}", answer.status());
                requests.fetch_add(1, Ordering::Relaxed);
            }
        }
    });

    let mut seen = vec![platform.app_credentials("acme")];
    for _ in 0..3 {
        let rotating = platform.clone();
        let rotate = move || rotating.cli(&["tenant", "rotate-credentials", "acme"]);
        let job = tokio::task::spawn_blocking(rotate).await.expect("rotate");
        assert_eq!(job["state"], "succeeded", "{job}");
        let now = platform.app_credentials("acme");
        assert!(seen.iter().all(|before| before[3] != now[3]), "a password of its own each time");
        // What was in use before is worth nothing.
        let [host, port, user, password] = seen.last().expect("one").clone();
        assert_ne!(user, now[2]);
        let refused = platform.try_connect(&host, &port, &user, &password, "acme").await;
        assert!(refused.is_err(), "the former password still works");
        seen.push(now);
    }
    let before = (connections.load(Ordering::Relaxed), requests.load(Ordering::Relaxed));
    assert!(before.0 > 10 && before.1 > 10, "{before:?}");
    stop.store(true, Ordering::Relaxed);
    reconnecting.await.expect("no connection failed");
    visiting.await.expect("no request failed");
}
