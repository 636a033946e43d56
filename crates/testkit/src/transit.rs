//! A service that encrypts with keys which never leave it, on a socket of its own: Vault's transit engine as its
//! documentation has it, with real AES-256-GCM.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

/// The engine, mounted as `transit` and as `team/secrets`. Ends with the test's runtime.
#[derive(Clone)]
pub struct Engine {
    pub url: String,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Default)]
struct Inside {
    /// Versions of each key, the first is 1.
    keys: BTreeMap<String, Vec<[u8; 32]>>,
    token: String,
    sealed: usize,
    hanging: usize,
    requests: usize,
}

impl Engine {
    /// Starts one that has no key and knows no token.
    pub async fn start() -> Self {
        let inside = Arc::<Mutex<Inside>>::default();
        let router = Router::new()
            .route("/v1/transit/{what}/{key}", post(answer))
            .route("/v1/team/secrets/{what}/{key}", post(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let served = axum::serve(listener, router.with_state(inside.clone()));
        tokio::spawn(async move { served.await });
        Self { url, inside }
    }

    /// Makes a key, or one more version of it.
    pub fn rotate(&self, key: &str) {
        self.inside().keys.entry(key.into()).or_default().push(random());
    }

    pub fn forget_keys(&self) {
        self.inside().keys.clear();
    }

    /// The only token that it takes from now on.
    pub fn renew_token(&self, token: &str) {
        self.inside().token = token.to_owned();
    }

    /// It answers so many requests as one that is sealed.
    pub fn seal(&self, requests: usize) {
        self.inside().sealed = requests;
    }

    /// It answers so many requests after a minute.
    pub fn hang(&self, requests: usize) {
        self.inside().hanging = requests;
    }

    /// How many requests there were.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.inside().requests
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Answer = (StatusCode, Json<Value>);

fn refusal(status: StatusCode, said: &str) -> Answer {
    (status, Json(json!({ "errors": [said] })))
}

async fn answer(
    State(inside): State<Arc<Mutex<Inside>>>,
    Path((what, name)): Path<(String, String)>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Answer {
    let take = |left: &mut usize| std::mem::replace(left, left.saturating_sub(1)) > 0;
    let (hangs, sealed) = {
        let mut inside = inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.requests += 1;
        (take(&mut inside.hanging), take(&mut inside.sealed))
    };
    if hangs {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    if sealed {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "Vault is sealed");
    }
    let inside = inside.lock().unwrap_or_else(PoisonError::into_inner);
    if headers.get("X-Vault-Token").is_none_or(|token| token != inside.token.as_str()) {
        return refusal(StatusCode::FORBIDDEN, "permission denied");
    }
    let Some(versions) = inside.keys.get(&name) else {
        return refusal(StatusCode::BAD_REQUEST, "encryption key not found");
    };
    let done = match what.as_str() {
        "encrypt" => encrypt(versions, &body).map(|ciphertext| json!({ "ciphertext": ciphertext })),
        "decrypt" => decrypt(versions, &body).map(|plaintext| json!({ "plaintext": plaintext })),
        _ => return refusal(StatusCode::NOT_FOUND, "unsupported path"),
    };
    match done {
        Some(data) => (StatusCode::OK, Json(json!({ "data": data }))),
        None => refusal(StatusCode::BAD_REQUEST, "cipher: message authentication failed"),
    }
}

fn encrypt(versions: &[[u8; 32]], body: &Value) -> Option<String> {
    let nonce = random::<NONCE_LEN>();
    let mut content = bytes(body, "plaintext")?;
    let aad = Aad::from(bytes(body, "associated_data")?);
    let key = aead(versions, versions.len())?;
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut content).ok()?;
    Some(format!("vault:v{}:{}", versions.len(), BASE64.encode([&nonce[..], &content].concat())))
}

fn decrypt(versions: &[[u8; 32]], body: &Value) -> Option<String> {
    let (version, sealed) = body["ciphertext"].as_str()?.strip_prefix("vault:v")?.split_once(':')?;
    let mut sealed = BASE64.decode(sealed).ok()?;
    let nonce = Nonce::try_assume_unique_for_key(sealed.get(..NONCE_LEN)?).ok()?;
    let aad = Aad::from(bytes(body, "associated_data")?);
    let key = aead(versions, version.parse().ok()?)?;
    let content = key.open_in_place(nonce, aad, &mut sealed[NONCE_LEN..]).ok()?;
    Some(BASE64.encode(content))
}

fn bytes(body: &Value, name: &str) -> Option<Vec<u8>> {
    BASE64.decode(body[name].as_str()?).ok()
}

fn aead(versions: &[[u8; 32]], version: usize) -> Option<LessSafeKey> {
    let bytes = versions.get(version.checked_sub(1)?)?;
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("random bytes");
    bytes
}
