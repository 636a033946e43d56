//! Background clients: they write to and read from both tenants through the gateway during all that happens, and
//! count what fails.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::visitor::Visitor;

/// Clients a tenant.
const CLIENTS: usize = 2;

/// The contacts whose activities they write. The agent leaves these alone.
pub(super) const CONTACTS: std::ops::RangeInclusive<usize> = 1..=100;

/// What happened to one tenant's requests.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) first_failure: Option<String>,
    pub(super) longest: Duration,
    /// What the app has confirmed to have written.
    pub(super) written: BTreeSet<String>,
}

/// Clients at work.
pub(super) struct Traffic {
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
    tallies: Vec<(&'static str, Arc<Mutex<Tally>>)>,
}

impl Traffic {
    /// `run` begins every reference that is written, so that those of an earlier demo are not taken for ours.
    pub(super) fn start(visitor: &Visitor, tenants: &[&'static str], run: &str) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut clients = JoinSet::new();
        let mut tallies = Vec::new();
        for tenant in tenants {
            let tally = Arc::new(Mutex::new(Tally::default()));
            for number in 0..CLIENTS {
                let work = work(
                    visitor.clone(),
                    tenant,
                    format!("{run}-{tenant}-{number}"),
                    tally.clone(),
                    stopped.clone(),
                );
                clients.spawn(work);
            }
            tallies.push((*tenant, tally));
        }
        Self { stop, clients, tallies }
    }

    /// What a tenant's app has confirmed until now.
    pub(super) fn written(&self, tenant: &str) -> BTreeSet<String> {
        let tally = self.tallies.iter().find(|(name, _)| *name == tenant);
        tally.map(|(_, tally)| lock(tally).written.clone()).unwrap_or_default()
    }

    /// Waits until each tenant has been asked some more times, so that there was traffic after whatever just happened.
    pub(super) async fn go_on_for(&self, requests: u64) {
        let goals: Vec<u64> = self.tallies.iter().map(|(_, tally)| lock(tally).requests + requests).collect();
        let deadline = Instant::now() + Duration::from_secs(90);
        while Instant::now() < deadline {
            if self.tallies.iter().zip(&goals).all(|((_, tally), goal)| lock(tally).requests >= *goal) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the clients once their last requests are answered.
    pub(super) async fn stop(mut self) -> Vec<(&'static str, Tally)> {
        self.stop.send_replace(true);
        while self.clients.join_next().await.is_some() {}
        self.tallies.into_iter().map(|(tenant, tally)| (tenant, std::mem::take(&mut *lock(&tally)))).collect()
    }
}

async fn work(
    visitor: Visitor,
    tenant: &'static str,
    name: String,
    tally: Arc<Mutex<Tally>>,
    stopped: watch::Receiver<bool>,
) {
    for count in 0_usize.. {
        if *stopped.borrow() {
            return;
        }
        let contact = CONTACTS.start() + count % (CONTACTS.end() - CONTACTS.start() + 1);
        let reference = format!("{name}-{count}");
        let body = json!({ "client_ref": reference, "contact_id": contact, "note": "called, no answer" });
        let began = Instant::now();
        let wrote = visitor.post(tenant, "/api/activities", &body).await;
        if note(&tally, wrote, began).await {
            lock(&tally).written.insert(reference);
        }
        let began = Instant::now();
        let read = visitor.get(tenant, &format!("/api/contacts/{contact}")).send().await;
        note(&tally, read, began).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Counts an answer. A request is answered when its body has been read, too.
async fn note(tally: &Mutex<Tally>, answer: reqwest::Result<reqwest::Response>, began: Instant) -> bool {
    let failure = match answer {
        Err(error) => Some(format!("{error:?}")),
        Ok(response) => {
            let status = response.status();
            match response.text().await {
                Ok(_) if status.is_success() => None,
                Ok(body) => Some(format!("{status}: {body}")),
                Err(error) => Some(format!("{error:?}")),
            }
        }
    };
    let mut tally = lock(tally);
    tally.requests += 1;
    tally.longest = tally.longest.max(began.elapsed());
    let ok = failure.is_none();
    if let Some(failure) = failure {
        tally.failures += 1;
        tally.first_failure.get_or_insert(failure);
    }
    ok
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
