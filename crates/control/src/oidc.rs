//! Logging in by OpenID Connect: authorization code with PKCE, and a token that is believed only when all of it fits.
//!
//! ```text
//! start ──► state, nonce, verifier, signed, into the browser's cookie ──► the provider ──► back with code and state
//! finish ─► cookie and state belong together, once ─► code and verifier for an ID token ─► verified ─► allowed ─► login
//! ```
//!
//! What was wrong is in the audit log and in the program's log; the browser is told only that it was refused.

mod allow;
mod flow;
mod provider;
mod token;

use std::time::Instant;

use loomworks_core::SecretString;
use loomworks_core::email::Email;
use loomworks_core::ids::OperatorId;
use serde_json::json;
use sqlx::PgConnection;

pub use self::allow::Allowed;
pub use self::flow::{COOKIE_LASTS, ReturnTo};
use self::flow::{Flow, Flows};
use self::provider::Provider;
use self::token::Claims;
use crate::World;
use crate::access::Permission;
use crate::audit;
use crate::credentials::MasterKey;
use crate::db::operators::{self as rows, New, Permissions};
use crate::error::Error;
use crate::operators::logins::{self, Browser, LoggedIn};

/// What an operator tells us about the provider.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As the provider writes it, to the letter.
    pub issuer: String,
    pub client_id: String,
    /// None: the provider knows us as a client without one.
    pub client_secret: Option<SecretString>,
    /// The address of our callback, as the provider knows it.
    pub redirect_uri: String,
    pub allowed: Allowed,
    /// What somebody who is allowed and has no account gets. Nothing: he is refused.
    pub create_with: Vec<Permission>,
}

/// The provider, and who is on his way to it.
#[derive(Clone)]
pub struct Oidc {
    settings: Settings,
    provider: Provider,
    flows: Flows,
}

impl Oidc {
    pub fn new(settings: Settings, master_key: &MasterKey) -> Result<Self, Error> {
        let provider = Provider::new(&settings)?;
        Ok(Self { settings, provider, flows: Flows::new(master_key) })
    }
}

/// Somebody is sent to the provider.
pub struct Started {
    pub location: String,
    /// What the browser has to bring back.
    pub cookie: String,
}

/// What the provider sends the browser back with.
#[derive(Clone, Debug, Default)]
pub struct Callback {
    pub code: Option<String>,
    pub state: Option<String>,
    pub iss: Option<String>,
    pub error: Option<String>,
}

/// Somebody came back and is who he says.
pub struct Finished {
    pub logged_in: LoggedIn,
    pub return_to: ReturnTo,
}

/// Why somebody was not let in, for the logs. Nothing secret, and nothing long, is in it.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the browser brought no cookie of ours back, or an old one")]
    NoFlow,
    #[error("the state is not the one that was sent")]
    WrongState,
    #[error("the answer was used before")]
    Replayed,
    #[error("the answer comes from another issuer")]
    WrongIssuer,
    #[error("the provider answers `{0}`")]
    Denied(String),
    #[error(transparent)]
    Provider(#[from] provider::ProviderError),
    #[error(transparent)]
    Token(#[from] token::BadToken),
    #[error("the provider names no verified address")]
    NoVerifiedEmail,
    #[error("{0} is not among those who may log in")]
    NotAllowed(Email),
    #[error("{0} has no account")]
    NoAccount(Email),
    #[error("the account of {0} is disabled")]
    Disabled(Email),
    #[error("the account of {0} is bound to somebody else at the provider")]
    BoundToAnother(Email),
}

const REFUSED: Error = Error::LoginRefused {
    hint: "begin again at /v1/auth/oidc/start; why it was refused is in the audit log, for operators",
};

/// Sends somebody to the provider.
pub async fn start(oidc: &Oidc, return_to: ReturnTo) -> Result<Started, Error> {
    let flow = Flow::random(return_to, loomworks_core::time::now());
    let location = oidc.provider.authorization_url(&oidc.settings, &flow).await.map_err(|error| {
        tracing::warn!(error = %crate::error::chain(&error), "the OpenID provider cannot be used");
        Error::LoginRefused { hint: "the OpenID provider cannot be used at the moment; the log says why" }
    })?;
    Ok(Started { location, cookie: oidc.flows.seal(&flow) })
}

/// Lets somebody in who comes back from the provider.
pub async fn finish(
    world: &World,
    oidc: &Oidc,
    browser: &Browser,
    callback: Callback,
    cookie: Option<&str>,
) -> Result<Finished, Error> {
    world
        .log_in
        .throttle
        .admit(None, browser.address, Instant::now())
        .map_err(|seconds| Error::Throttled { seconds })?;
    let (claims, return_to) = match prove(oidc, callback, cookie).await {
        Ok(proved) => proved,
        Err(refusal) => return Err(refuse(world, browser, &refusal).await?),
    };
    let mut transaction = world.db.platform.begin().await?;
    let operator = match account(&mut transaction, oidc, &claims).await? {
        Ok(operator) => operator,
        Err(refusal) => {
            drop(transaction);
            return Err(refuse(world, browser, &refusal).await?);
        }
    };
    let opened = logins::open(world, &mut transaction, browser, operator, "oidc", None).await?;
    let logged_in = opened.ok_or(REFUSED)?;
    transaction.commit().await?;
    world.log_in.throttle.succeeded(None, browser.address);
    Ok(Finished { logged_in, return_to })
}

async fn refuse(world: &World, browser: &Browser, refusal: &Refusal) -> Result<Error, Error> {
    let reason = logins::printable(&crate::error::chain(refusal), 300);
    tracing::warn!(reason, "an OpenID log-in is refused: {reason}");
    logins::refused(world, browser, "oidc", json!({ "reason": reason })).await?;
    Ok(REFUSED)
}

/// Who has come, if all that he brought fits together.
async fn prove(oidc: &Oidc, callback: Callback, cookie: Option<&str>) -> Result<(Claims, ReturnTo), Refusal> {
    let now = loomworks_core::time::now();
    let flow = cookie.and_then(|cookie| oidc.flows.open(cookie, now)).ok_or(Refusal::NoFlow)?;
    if callback.state.as_deref() != Some(flow.state.as_str()) {
        return Err(Refusal::WrongState);
    }
    // From here on this answer is used up, whatever comes of it.
    if !oidc.flows.use_up(&flow, now) {
        return Err(Refusal::Replayed);
    }
    if callback.iss.is_some_and(|issuer| issuer != oidc.settings.issuer) {
        return Err(Refusal::WrongIssuer);
    }
    let code = match (callback.error, callback.code) {
        (None, Some(code)) => code,
        (error, _) => {
            return Err(Refusal::Denied(error.unwrap_or_default().chars().take(60).collect()));
        }
    };
    let id_token = oidc.provider.exchange(&oidc.settings, &code, &flow.verifier).await?;
    let expected = token::Expected {
        issuer: &oidc.settings.issuer,
        client_id: &oidc.settings.client_id,
        nonce: &flow.nonce,
        now: loomworks_core::time::now(),
    };
    let claims = oidc.provider.verify(&id_token, &expected).await?;
    let email = claims.verified_email().ok_or(Refusal::NoVerifiedEmail)?;
    if !oidc.settings.allowed.covers(&email, &claims.other) {
        return Err(Refusal::NotAllowed(email));
    }
    Ok((claims, flow.return_to))
}

/// The account of whoever has come: the one that is bound to him, else the one with his address, else a new one.
async fn account(
    connection: &mut PgConnection,
    oidc: &Oidc,
    claims: &Claims,
) -> Result<Result<OperatorId, Refusal>, Error> {
    let Some(email) = claims.verified_email() else { return Ok(Err(Refusal::NoVerifiedEmail)) };
    let (issuer, subject) = (&oidc.settings.issuer, &claims.sub);
    let known = rows::by_subject(connection, issuer, subject, &email).await?;
    let id = match known {
        Some(known) if known.disabled => return Ok(Err(Refusal::Disabled(email))),
        Some(known) if known.same => return Ok(Ok(known.id)),
        Some(known) if known.bound => return Ok(Err(Refusal::BoundToAnother(email))),
        Some(known) => known.id,
        None if oidc.settings.create_with.is_empty() => return Ok(Err(Refusal::NoAccount(email))),
        None => {
            let name = claims.name.as_deref().map(|name| logins::printable(name.trim(), 100));
            let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| email.local_part().to_owned());
            let permissions = Permissions(oidc.settings.create_with.clone());
            let new = New { name: &name, email: &email, password_hash: None, permissions: &permissions };
            let made = rows::insert(connection, &new).await?;
            let detail = json!({ "operator": made.id, "email": made.email, "permissions": made.permissions });
            audit::record(connection, "OpenID Connect", "operator.created", None, detail).await?;
            made.id
        }
    };
    rows::bind_subject(connection, id, issuer, subject).await?;
    let detail = json!({ "operator": id, "issuer": issuer, "subject": subject });
    audit::record(connection, email.as_str(), "operator.bound_to_provider", None, detail).await?;
    Ok(Ok(id))
}
