//! ID tokens: believed when the signature is by a key of the provider, made for this, and every claim fits.
//!
//! The algorithm is one of two, and each takes keys of its own kind only: a token that names `none`, a shared secret or
//! another kind of key has no way through.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use loomworks_core::email::Email;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::{Map, Value};

/// How far the provider's clock may be from ours.
const LEEWAY_S: i64 = 60;
/// A token for a log-in was made a moment ago.
const AGE_MAX_S: i64 = 600;

/// Why a token is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadToken {
    #[error("the ID token is no signed JSON web token")]
    Malformed,
    #[error("the ID token is signed with an algorithm that is not accepted")]
    Algorithm,
    #[error("the ID token is signed with a key that the provider does not name")]
    UnknownKey,
    #[error("the ID token's signature is wrong")]
    Signature,
    #[error("the ID token's `{0}` does not fit")]
    Claim(&'static str),
}

/// A key of the provider.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// What must be in a token.
pub(super) struct Expected<'a> {
    pub(super) issuer: &'a str,
    pub(super) client_id: &'a str,
    pub(super) nonce: &'a str,
    pub(super) now: Timestamp,
}

/// What a token says.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Claims {
    iss: String,
    pub(super) sub: String,
    aud: Audience,
    azp: Option<String>,
    exp: f64,
    iat: f64,
    nbf: Option<f64>,
    nonce: Option<String>,
    email: Option<String>,
    #[serde(default)]
    email_verified: Value,
    pub(super) name: Option<String>,
    #[serde(flatten)]
    pub(super) other: Map<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Claims {
    /// The address, if the provider has made sure that it is this one's. Some write the word instead of the value.
    pub(super) fn verified_email(&self) -> Option<Email> {
        let verified = self.email_verified == Value::Bool(true) || self.email_verified == "true";
        self.email.as_ref().filter(|_| verified)?.parse().ok()
    }

    fn check(&self, expected: &Expected<'_>) -> Result<(), BadToken> {
        let now = expected.now.as_second() as f64;
        let leeway = LEEWAY_S as f64;
        let (in_audience, only) = match &self.aud {
            Audience::One(audience) => (audience == expected.client_id, true),
            Audience::Several(all) => (all.iter().any(|one| one == expected.client_id), all.len() == 1),
        };
        // For several audiences the token says to whom it was given.
        let given_to_us = match &self.azp {
            Some(party) => party == expected.client_id,
            None => only,
        };
        let checks = [
            ("iss", self.iss == expected.issuer),
            ("aud", in_audience),
            ("azp", given_to_us),
            ("exp", now < self.exp + leeway),
            ("nbf", self.nbf.is_none_or(|nbf| nbf <= now + leeway)),
            ("iat", self.iat <= now + leeway && now - self.iat <= AGE_MAX_S as f64 + leeway),
            ("nonce", self.nonce.as_deref() == Some(expected.nonce)),
            (
                "sub",
                (1..=255).contains(&self.sub.len())
                    && self.sub.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '),
            ),
        ];
        match checks.iter().find(|(_, fits)| !fits) {
            Some((claim, _)) => Err(BadToken::Claim(claim)),
            None => Ok(()),
        }
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that we would have to understand. We understand none.
    crit: Option<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Es256,
}

/// What the token says, if it is the provider's and meant for this log-in.
pub(super) fn verify(token: &str, keys: &[Jwk], expected: &Expected<'_>) -> Result<Claims, BadToken> {
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(BadToken::Malformed);
    };
    let signed = &token[..header.len() + 1 + payload.len()];
    let header: Header = json(header)?;
    if header.crit.is_some() {
        return Err(BadToken::Algorithm);
    }
    let algorithm = match header.alg.as_str() {
        "RS256" => Algorithm::Rs256,
        "ES256" => Algorithm::Es256,
        _ => return Err(BadToken::Algorithm),
    };
    let key = choose(keys, algorithm, header.kid.as_deref()).ok_or(BadToken::UnknownKey)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| BadToken::Malformed)?;
    key.check(algorithm, signed.as_bytes(), &signature)?;
    // Only now is anything that it says looked at.
    let claims: Claims = json(payload)?;
    claims.check(expected)?;
    Ok(claims)
}

/// The key with this id. A token without one must leave no choice.
fn choose<'a>(keys: &'a [Jwk], algorithm: Algorithm, kid: Option<&str>) -> Option<&'a Jwk> {
    let mut fitting =
        keys.iter().filter(|key| key.is_for(algorithm) && (kid.is_none() || key.kid.as_deref() == kid));
    match (fitting.next(), fitting.next()) {
        (Some(key), None) => Some(key),
        _ => None,
    }
}

impl Jwk {
    fn is_for(&self, algorithm: Algorithm) -> bool {
        let (kty, alg, curve) = match algorithm {
            Algorithm::Rs256 => ("RSA", "RS256", None),
            Algorithm::Es256 => ("EC", "ES256", Some("P-256")),
        };
        self.kty == kty
            && self.alg.as_deref().is_none_or(|named| named == alg)
            && self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.crv.as_deref() == curve
    }

    fn check(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> Result<(), BadToken> {
        let number = |field: &Option<String>| {
            let text = field.as_ref().ok_or(BadToken::UnknownKey)?;
            URL_SAFE_NO_PAD.decode(text).map_err(|_| BadToken::UnknownKey)
        };
        let checked = match algorithm {
            Algorithm::Rs256 => {
                let (n, e) = (number(&self.n)?, number(&self.e)?);
                let key =
                    RsaPublicKeyComponents { n: without_leading_zeros(&n), e: without_leading_zeros(&e) };
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, signed, signature)
            }
            Algorithm::Es256 => {
                // An uncompressed point: 4, x, y.
                let point = [&[4][..], &number(&self.x)?, &number(&self.y)?].concat();
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(signed, signature)
            }
        };
        checked.map_err(|_| BadToken::Signature)
    }
}

fn without_leading_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
}

fn json<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, BadToken> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| BadToken::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| BadToken::Malformed)
}

#[cfg(test)]
mod tests;
