//! Every way in which a token can be wrong, each with one thing changed in a token that is right.

use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use ring::{hmac, rsa};
use serde_json::json;

use super::*;

const ISSUER: &str = "https://id.example.com";
const NOW_S: i64 = 1_800_000_000;

/// A key for tests, known to everybody.
const RSA: &[u8] = include_bytes!("test_rsa.pk8");

enum Key {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Key {
    fn ec() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self::Ec(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap())
    }

    fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::from_pkcs8(RSA).unwrap())
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Ec(_) => "ES256",
            Self::Rsa(_) => "RS256",
        }
    }

    fn sign(&self, signed: &[u8]) -> Vec<u8> {
        match self {
            Self::Ec(key) => key.sign(&SystemRandom::new(), signed).unwrap().as_ref().to_vec(),
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed, &mut signature).unwrap();
                signature
            }
        }
    }

    fn jwk(&self, kid: &str) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Ec(key) => {
                let point = key.public_key().as_ref();
                json!({ "kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "alg": "ES256",
                        "x": encode(&point[1..33]), "y": encode(&point[33..]) })
            }
            Self::Rsa(key) => {
                let public: rsa::PublicKeyComponents<Vec<u8>> = key.public().into();
                json!({ "kty": "RSA", "kid": kid, "use": "sig", "n": encode(&public.n), "e": encode(&public.e) })
            }
        }
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "ann-1", "aud": "loomworks", "exp": NOW_S + 300, "iat": NOW_S, "nonce": "n",
        "email": "Ann@Example.com", "email_verified": true, "groups": ["operators"],
    })
}

fn token(key: &Key, header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn right(key: &Key) -> String {
    token(key, &json!({ "alg": key.algorithm(), "kid": "k" }), &claims())
}

fn check(token: &str, keys: &[Value]) -> Result<Claims, BadToken> {
    let keys: Vec<Jwk> = keys.iter().map(|key| serde_json::from_value(key.clone()).unwrap()).collect();
    let expected = Expected {
        issuer: ISSUER,
        client_id: "loomworks",
        nonce: "n",
        now: Timestamp::from_second(NOW_S).unwrap(),
    };
    verify(token, &keys, &expected)
}

#[test]
fn a_token_of_the_provider_is_believed_with_both_algorithms() {
    for key in [Key::ec(), Key::rsa()] {
        let claims = check(&right(&key), &[Key::ec().jwk("other"), key.jwk("k")]).unwrap();
        assert_eq!(claims.verified_email().unwrap().as_str(), "ann@example.com");
        assert_eq!(claims.other["groups"], json!(["operators"]));
        // Without an id the key must be the only one of its kind.
        let nameless = token(&key, &json!({ "alg": key.algorithm() }), &self::claims());
        assert!(check(&nameless, &[key.jwk("k")]).is_ok());
    }
    let key = Key::ec();
    let nameless = token(&key, &json!({ "alg": "ES256" }), &claims());
    assert_eq!(check(&nameless, &[key.jwk("k"), Key::ec().jwk("j")]).unwrap_err(), BadToken::UnknownKey);
}

#[test]
fn each_claim_has_to_fit() {
    let key = Key::ec();
    let header = json!({ "alg": "ES256", "kid": "k" });
    let jwks = [key.jwk("k")];
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        check(&token(&key, &header, &claims), &jwks).map(drop)
    };
    let refused = [
        ("iss", json!("https://id.example.com/")),
        ("iss", json!("https://evil.example.com")),
        ("aud", json!("another")),
        ("aud", json!([])),
        ("aud", json!(["another"])),
        ("azp", json!("another")),
        ("exp", json!(NOW_S - 61)),
        ("nbf", json!(NOW_S + 61)),
        ("iat", json!(NOW_S + 61)),
        ("iat", json!(NOW_S - 661)),
        ("nonce", json!("another")),
        ("nonce", json!(null)),
        ("sub", json!("")),
        ("sub", json!("a\u{0}b")),
    ];
    for (claim, value) in refused {
        assert_eq!(with(claim, value.clone()), Err(BadToken::Claim(claim)), "{claim} = {value}");
    }
    assert_eq!(with("aud", json!(["loomworks", "another"])), Err(BadToken::Claim("azp")), "given to whom?");
    for (claim, value) in [("exp", json!("soon")), ("sub", json!(7)), ("iat", json!(null))] {
        assert_eq!(with(claim, value.clone()), Err(BadToken::Malformed), "{claim} = {value}");
    }
    for (claim, value) in [
        ("aud", json!(["loomworks"])),
        ("azp", json!("loomworks")),
        ("exp", json!(NOW_S - 59)),
        ("nbf", json!(NOW_S)),
    ] {
        assert_eq!(with(claim, value.clone()), Ok(()), "{claim} = {value}");
    }
}

#[test]
fn an_address_counts_when_the_provider_has_verified_it() {
    let email = |verified: Value| {
        let mut claims = claims();
        claims["email_verified"] = verified;
        serde_json::from_value::<Claims>(claims).unwrap().verified_email()
    };
    assert!(email(json!(true)).is_some());
    assert!(email(json!("true")).is_some());
    for not in [json!(false), json!("false"), json!(null), json!(1), json!("yes")] {
        assert_eq!(email(not.clone()), None, "{not}");
    }
}

#[test]
fn no_algorithm_but_ours_and_no_key_of_another_kind() {
    let (ec, rsa) = (Key::ec(), Key::rsa());
    let jwks = [ec.jwk("k"), rsa.jwk("r")];
    let parts: Vec<String> = right(&ec).split('.').map(str::to_owned).collect();
    let header = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let payload = &parts[1];
    for alg in ["none", "None", "NONE", "HS256", "HS512", "RS384", "PS256", "ES384", "EdDSA", "", "rs256"] {
        for (signature, what) in [("", "no signature"), (parts[2].as_str(), "another's signature")] {
            let token = format!("{}.{payload}.{signature}", header(json!({ "alg": alg, "kid": "k" })));
            assert_eq!(check(&token, &jwks).unwrap_err(), BadToken::Algorithm, "{alg} with {what}");
        }
    }
    // Signed with what everybody knows as if it were a shared secret.
    for key in &jwks {
        for secret in [key["n"].to_string(), key.to_string(), key["x"].to_string()] {
            let signed = format!("{}.{payload}", header(json!({ "alg": "HS256", "kid": key["kid"] })));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), signed.as_bytes());
            let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag));
            assert_eq!(check(&token, &jwks).unwrap_err(), BadToken::Algorithm);
        }
    }
    // One kind of key under the other's id.
    for (key, alg, kid) in [(&ec, "ES256", "r"), (&ec, "RS256", "k"), (&rsa, "RS256", "k")] {
        let token = token(key, &json!({ "alg": alg, "kid": kid }), &claims());
        assert_eq!(check(&token, &jwks).unwrap_err(), BadToken::UnknownKey, "{alg} {kid}");
    }
    // A key that is for something else.
    let mut encrypts = ec.jwk("k");
    encrypts["use"] = json!("enc");
    assert_eq!(check(&right(&ec), &[encrypts]).unwrap_err(), BadToken::UnknownKey);
    let critical =
        token(&ec, &json!({ "alg": "ES256", "kid": "k", "crit": ["b64"], "b64": false }), &claims());
    assert_eq!(check(&critical, &jwks).unwrap_err(), BadToken::Algorithm);
}

#[test]
fn what_was_changed_after_signing_is_not_believed() {
    let (key, other) = (Key::ec(), Key::ec());
    let jwks = [key.jwk("k")];
    let good = right(&key);
    let parts: Vec<&str> = good.split('.').collect();
    let mut claims = claims();
    claims["email"] = json!("eve@example.com");
    let changed = URL_SAFE_NO_PAD.encode(claims.to_string());
    let tampered = format!("{}.{changed}.{}", parts[0], parts[2]);
    assert_eq!(check(&tampered, &jwks).unwrap_err(), BadToken::Signature);
    assert_eq!(check(&right(&other), &jwks).unwrap_err(), BadToken::Signature, "another's key of that name");
    assert_eq!(check(&format!("{}.{}.", parts[0], parts[1]), &jwks).unwrap_err(), BadToken::Signature);
    let zeros = URL_SAFE_NO_PAD.encode([0; 64]);
    assert_eq!(check(&format!("{}.{}.{zeros}", parts[0], parts[1]), &jwks).unwrap_err(), BadToken::Signature);
    for malformed in
        ["", ".", "..", "a.b", "a.b.c", &format!("{good}.x"), &format!("{good}="), &good.replace('.', ",")]
    {
        assert_eq!(check(malformed, &jwks).unwrap_err(), BadToken::Malformed, "{malformed}");
    }
}
