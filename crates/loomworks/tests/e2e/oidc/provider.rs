//! A small OpenID provider with its own socket: it says who it is, names its keys, and exchanges codes, each once and
//! only for the verifier that belongs to it. What is in a token, and who signs it, is the test's to say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::Url;
use ring::digest::{SHA256, digest};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};

pub(super) const CLIENT_ID: &str = "loomworks console";
pub(super) const SECRET: &str = "a secret: with = signs & more";

/// Who signs a token, and how.
#[derive(Clone, Copy, Debug)]
pub(super) enum Signer {
    Es256,
    Rs256,
    /// A key that the provider does not name, under the id of one that it does.
    Stranger,
    /// Nobody.
    None,
    /// Whoever knows the public RSA key, as if it were a shared secret.
    PublicKeyAsSecret,
}

/// What the next code is good for.
pub(super) struct Grant {
    pub(super) signer: Signer,
    pub(super) header: Value,
    /// These over the right ones. Null takes one out.
    pub(super) claims: Value,
    /// Changes the finished token.
    pub(super) after: fn(String) -> String,
}

impl Default for Grant {
    fn default() -> Self {
        Self { signer: Signer::Es256, header: json!({}), claims: json!({}), after: |token| token }
    }
}

struct Code {
    grant: Grant,
    challenge: String,
    nonce: String,
    redirect_uri: String,
}

struct Inner {
    issuer: String,
    ec: EcdsaKeyPair,
    ec_id: String,
    stranger: EcdsaKeyPair,
    rsa: RsaKeyPair,
    codes: Mutex<HashMap<String, Code>>,
    /// What was asked for, to see what was not.
    asked: Mutex<Vec<&'static str>>,
}

#[derive(Clone)]
pub(super) struct Provider(Arc<Inner>);

fn ec_key() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random).expect("a key")
}

impl Provider {
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let rsa = include_bytes!("../../../../control/src/oidc/token/test_rsa.pk8");
        let provider = Self(Arc::new(Inner {
            issuer: format!("http://{}/realm", listener.local_addr().expect("an address")),
            ec: ec_key(),
            ec_id: "ec".into(),
            stranger: ec_key(),
            rsa: RsaKeyPair::from_pkcs8(rsa).expect("a key"),
            codes: Mutex::default(),
            asked: Mutex::default(),
        }));
        let router = Router::new()
            .route("/realm/.well-known/openid-configuration", get(metadata))
            .route("/keys", get(keys))
            .route("/token", post(token))
            .with_state(provider.clone());
        tokio::spawn(std::future::IntoFuture::into_future(axum::serve(listener, router)));
        provider
    }

    pub(super) fn issuer(&self) -> &str {
        &self.0.issuer
    }

    /// How often something was asked for.
    pub(super) fn asked(&self, what: &str) -> usize {
        lock(&self.0.asked).iter().filter(|asked| **asked == what).count()
    }

    /// Somebody says yes on the provider's page at this address. Gives what the browser is sent back with.
    pub(super) fn consent(&self, location: &str, grant: Grant) -> Vec<(String, String)> {
        let url = Url::parse(location).expect("an address");
        let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!(url.path(), "/authorize");
        for (name, value) in [
            ("response_type", "code"),
            ("client_id", CLIENT_ID),
            ("scope", "openid email profile"),
            ("code_challenge_method", "S256"),
        ] {
            assert_eq!(query.get(name).map(String::as_str), Some(value), "{location}");
        }
        let mut codes = lock(&self.0.codes);
        let [challenge, nonce, redirect_uri] =
            ["code_challenge", "nonce", "redirect_uri"].map(|name| query[name].clone());
        assert!(challenge.len() == 43 && nonce.len() >= 43, "{location}");
        let code = format!("code for {nonce}");
        codes.insert(code.clone(), Code { grant, challenge, nonce, redirect_uri });
        vec![("code".into(), code), ("state".into(), query["state"].clone())]
    }

    fn sign(&self, code: &Code) -> String {
        let now = loomworks_core::time::now().as_second();
        let mut claims = json!({
            "iss": self.0.issuer, "aud": CLIENT_ID, "sub": "subject of ann", "exp": now + 300, "iat": now,
            "nonce": code.nonce, "email": "ann@example.com", "email_verified": true, "name": "Ann",
        });
        let (alg, kid) = match code.grant.signer {
            Signer::Es256 | Signer::Stranger => ("ES256", self.0.ec_id.as_str()),
            Signer::Rs256 => ("RS256", "rsa"),
            Signer::None => ("none", "rsa"),
            Signer::PublicKeyAsSecret => ("HS256", "rsa"),
        };
        let mut header = json!({ "typ": "JWT", "alg": alg, "kid": kid });
        for (into, from) in [(&mut header, &code.grant.header), (&mut claims, &code.grant.claims)] {
            for (name, value) in from.as_object().expect("an object") {
                into[name] = value.clone();
            }
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let (random, bytes) = (SystemRandom::new(), signed.as_bytes());
        let signature = match code.grant.signer {
            Signer::Es256 => self.0.ec.sign(&random, bytes).expect("sign").as_ref().to_vec(),
            Signer::Stranger => self.0.stranger.sign(&random, bytes).expect("sign").as_ref().to_vec(),
            Signer::Rs256 => {
                let mut signature = vec![0; self.0.rsa.public().modulus_len()];
                self.0.rsa.sign(&RSA_PKCS1_SHA256, &random, bytes, &mut signature).expect("sign");
                signature
            }
            Signer::None => Vec::new(),
            Signer::PublicKeyAsSecret => {
                let secret = hmac::Key::new(hmac::HMAC_SHA256, self.0.rsa.public_key().as_ref());
                hmac::sign(&secret, bytes).as_ref().to_vec()
            }
        };
        (code.grant.after)(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody failed with it")
}

async fn metadata(State(provider): State<Provider>) -> Json<Value> {
    lock(&provider.0.asked).push("metadata");
    let base = provider.0.issuer.trim_end_matches("/realm");
    Json(json!({
        "issuer": provider.0.issuer,
        "authorization_endpoint": format!("{base}/authorize"),
        "token_endpoint": format!("{base}/token"),
        "jwks_uri": format!("{base}/keys"),
    }))
}

async fn keys(State(provider): State<Provider>) -> Json<Value> {
    lock(&provider.0.asked).push("keys");
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let point = provider.0.ec.public_key().as_ref();
    let rsa: ring::rsa::PublicKeyComponents<Vec<u8>> = provider.0.rsa.public().into();
    Json(json!({ "keys": [
        { "kty": "OKP", "crv": "Ed25519", "kid": "of a kind we do not know", "x": 7 },
        { "kty": "EC", "crv": "P-256", "kid": provider.0.ec_id, "use": "sig", "alg": "ES256",
          "x": encode(&point[1..33]), "y": encode(&point[33..]) },
        { "kty": "RSA", "kid": "rsa", "n": encode(&rsa.n), "e": encode(&rsa.e) },
    ] }))
}

async fn token(
    State(provider): State<Provider>,
    headers: HeaderMap,
    body: String,
) -> Result<Json<Value>, StatusCode> {
    lock(&provider.0.asked).push("token");
    let form = |text: &str| -> HashMap<String, String> {
        Url::parse(&format!("http://localhost/?{text}")).expect("a form").query_pairs().into_owned().collect()
    };
    let basic = headers["authorization"].to_str().expect("text").strip_prefix("Basic ").expect("Basic");
    let basic = String::from_utf8(STANDARD.decode(basic).expect("base64")).expect("text");
    let (id, secret) = basic.split_once(':').expect("a pair");
    let decoded = |text: &str| form(&format!("v={text}"))["v"].clone();
    assert_eq!((decoded(id), decoded(secret)), (CLIENT_ID.to_owned(), SECRET.to_owned()));

    let form = form(&body);
    assert_eq!(form["grant_type"], "authorization_code");
    let code = lock(&provider.0.codes).remove(&form["code"]).ok_or(StatusCode::BAD_REQUEST)?;
    let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, form["code_verifier"].as_bytes()));
    if challenge != code.challenge || form["redirect_uri"] != code.redirect_uri {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok(Json(json!({ "access_token": "x", "token_type": "Bearer", "id_token": provider.sign(&code) })))
}
