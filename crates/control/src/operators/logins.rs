//! Logging in with a password, and what an operator is known by afterwards.
//!
//! A login is a row that is found by the hash of a token of 256 random bits; the browser holds the token. A request is
//! checked with one query, so that a login that was ended is refused everywhere from that moment.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use loomworks_core::email::Email;
use loomworks_core::ids::{LoginId, OperatorId};
use loomworks_core::{ExposeSecret, SecretString};
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::password::Passwords;
use super::throttle::Throttle;
use crate::World;
use crate::access::{Caller, Identity, Permission, Scope};
use crate::audit;
use crate::credentials::{MasterKey, random};
use crate::db::Time;
use crate::db::operators::{self as rows, LoginInfo, NewLogin, OperatorInfo};
use crate::error::Error;

/// How long a login lasts without being used.
pub const IDLE: Duration = Duration::from_secs(30 * 60);
/// How long it lasts however much it is used.
pub const LASTS: Duration = Duration::from_secs(12 * 3600);

const TOKEN_BYTES: usize = 32;

/// What logging in needs: the queue before the hashes, the counts of tries, keys.
#[derive(Clone)]
pub struct LogIn {
    pub(crate) passwords: Passwords,
    pub(crate) throttle: Throttle,
    csrf: hmac::Key,
    accounts: hmac::Key,
    /// The address at which browsers reach the platform, as far as it was told: `https://console.example.com`.
    pub public_url: Option<String>,
    /// Whether cookies are for TLS only.
    pub secure_cookies: bool,
}

impl LogIn {
    #[must_use]
    pub fn new(master_key: &MasterKey, public_url: Option<String>, secure_cookies: bool) -> Self {
        Self {
            passwords: Passwords::default(),
            throttle: Throttle::default(),
            csrf: derived_key(master_key, "loomworks operator csrf"),
            accounts: derived_key(master_key, "loomworks operator accounts in the audit log"),
            public_url,
            secure_cookies,
        }
    }

    /// What a state-changing request of this login has to send along. Another site's page cannot know it.
    #[must_use]
    pub fn csrf_token(&self, login: LoginId) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.csrf, login.0.as_bytes()))
    }

    /// Whether a request's token is that of its login; takes the same time whatever was sent.
    #[must_use]
    pub fn is_csrf_token(&self, login: LoginId, sent: &str) -> bool {
        let sent = URL_SAFE_NO_PAD.decode(sent).unwrap_or_default();
        hmac::verify(&self.csrf, login.0.as_bytes(), &sent).is_ok()
    }

    /// An address that somebody has typed, as it may be kept: people type passwords there too.
    fn account(&self, email: &str) -> String {
        let tag = hmac::sign(&self.accounts, email.trim().to_lowercase().as_bytes());
        URL_SAFE_NO_PAD.encode(&tag.as_ref()[..16])
    }
}

/// A key for one purpose. Made from the pepper, which signs nothing but API keys, and none of those is a purpose.
pub(crate) fn derived_key(master_key: &MasterKey, purpose: &str) -> hmac::Key {
    let parent = hmac::Key::new(hmac::HMAC_SHA256, master_key.pepper());
    hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&parent, purpose.as_bytes()).as_ref())
}

/// From where somebody comes.
#[derive(Clone, Debug)]
pub struct Browser {
    pub address: IpAddr,
    /// What it calls itself.
    pub user_agent: String,
}

/// Somebody who has just logged in.
pub struct LoggedIn {
    /// What the browser shows from now on. It is nowhere else.
    pub token: SecretString,
    pub me: Me,
}

/// What an operator is told about himself.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Me {
    pub operator: OperatorInfo,
    pub permissions: Vec<Permission>,
    /// This session.
    #[schema(value_type = uuid::Uuid)]
    pub session: LoginId,
    /// To be sent as `X-Loomworks-CSRF` with every request that is no GET.
    pub csrf_token: String,
    /// When the session ends, however much it is used.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Time,
    /// After so many minutes without a request it ends as well.
    pub idle_minutes: u64,
}

const WRONG: Error =
    Error::LoginRefused { hint: "is it the right address and password? a disabled account is refused too" };

/// Logs in with a password. Unknown, disabled and wrong are one answer, after the same work.
pub async fn log_in(
    world: &World,
    browser: &Browser,
    email: &str,
    password: SecretString,
) -> Result<LoggedIn, Error> {
    let account = world.log_in.account(email);
    world
        .log_in
        .throttle
        .admit(Some(&account), browser.address, Instant::now())
        .map_err(|seconds| Error::Throttled { seconds })?;
    let stored = match email.parse::<Email>() {
        Ok(email) => rows::by_email(&world.db.platform, &email).await?,
        Err(_) => None,
    };
    // A disabled account has no password that could be right.
    let hash =
        stored.as_ref().filter(|stored| !stored.disabled).and_then(|stored| stored.password_hash.clone());
    let right = world.log_in.passwords.verify(password, hash.clone()).await?;
    let Some(stored) = stored.filter(|_| right) else {
        refused(world, browser, "password", json!({ "account": account })).await?;
        return Err(WRONG);
    };
    let mut transaction = world.db.platform.begin().await?;
    let opened = open(world, &mut transaction, browser, stored.id, "password", hash.as_deref()).await?;
    let opened = opened.ok_or(WRONG)?;
    transaction.commit().await?;
    world.log_in.throttle.succeeded(Some(&account), browser.address);
    Ok(opened)
}

/// Opens a login for an account whose operator has proved that it is his. `None`: the account was changed meanwhile.
pub(crate) async fn open(
    world: &World,
    connection: &mut PgConnection,
    browser: &Browser,
    operator: OperatorId,
    method: &'static str,
    checked_hash: Option<&str>,
) -> Result<Option<LoggedIn>, Error> {
    let token = SecretString::from(URL_SAFE_NO_PAD.encode(random::<TOKEN_BYTES>()));
    let (client_address, user_agent) = (browser.address.to_string(), printable(&browser.user_agent, 200));
    let hash = hash_token(&token);
    let new = NewLogin {
        operator,
        token_hash: hash.as_ref(),
        method,
        client_address: &client_address,
        user_agent: &user_agent,
        lasts_s: LASTS.as_secs_f64(),
    };
    let Some(login) = rows::log_in(connection, &new, checked_hash).await? else { return Ok(None) };
    let account = rows::get(connection, operator).await?.ok_or(WRONG)?;
    let detail = json!({
        "operator": operator, "session": login.id, "method": method, "client_address": login.client_address
    });
    audit::record(connection, &account.email, "operator.logged_in", None, detail).await?;
    Ok(Some(LoggedIn { token, me: me_of(world, account, login) }))
}

/// Notes that somebody was not let in. `whom` names no address that has no account.
pub(crate) async fn refused(
    world: &World,
    browser: &Browser,
    method: &str,
    mut whom: Value,
) -> Result<(), Error> {
    if let Value::Object(detail) = &mut whom {
        detail.insert("method".into(), method.into());
        detail.insert("client_address".into(), browser.address.to_string().into());
    }
    let mut connection = world.db.platform.acquire().await?;
    Ok(audit::record(&mut connection, "nobody", "operator.login_refused", None, whom).await?)
}

/// Who holds the token that came with a request.
pub async fn authenticate(world: &World, token: &SecretString) -> Result<Caller, Error> {
    let right_form =
        URL_SAFE_NO_PAD.decode(token.expose_secret()).is_ok_and(|bytes| bytes.len() == TOKEN_BYTES);
    if !right_form {
        return Err(Error::Unauthenticated);
    }
    let current = rows::current(&world.db.platform, hash_token(token).as_ref(), IDLE.as_secs_f64()).await?;
    let current = current.ok_or(Error::Unauthenticated)?;
    if current.seen_long_ago {
        rows::note_seen(&world.db.platform, current.login).await?;
    }
    Ok(Caller {
        identity: Identity::Operator { operator: current.operator, login: current.login },
        scope: Scope::Operator,
        permissions: current.permissions.0,
        name: current.email,
    })
}

/// What an operator who is logged in is told about himself.
pub async fn me(world: &World, caller: &Caller) -> Result<Me, Error> {
    let (operator, login) = identity(caller)?;
    let mut connection = world.db.platform.acquire().await?;
    let account = rows::get(&mut connection, operator).await?.ok_or(Error::Unauthenticated)?;
    drop(connection);
    let login = rows::login(&world.db.platform, login).await?.ok_or(Error::Unauthenticated)?;
    Ok(me_of(world, account, login))
}

/// Where the caller is logged in, the newest first.
pub async fn list(world: &World, caller: &Caller) -> Result<Vec<LoginInfo>, Error> {
    let (operator, _) = identity(caller)?;
    Ok(rows::logins(&world.db.platform, operator, IDLE.as_secs_f64()).await?)
}

/// Ends the login of this request.
pub async fn log_out(world: &World, caller: &Caller) -> Result<(), Error> {
    let (_, login) = identity(caller)?;
    end(world, caller, login, "operator.logged_out").await
}

/// Ends one of the caller's own logins.
pub async fn revoke(world: &World, caller: &Caller, login: LoginId) -> Result<(), Error> {
    end(world, caller, login, "operator.session_revoked").await
}

async fn end(world: &World, caller: &Caller, login: LoginId, action: &str) -> Result<(), Error> {
    let (operator, _) = identity(caller)?;
    let mut transaction = world.db.platform.begin().await?;
    if !rows::end_login(&mut transaction, operator, login).await? {
        return Err(Error::NotFound("such session"));
    }
    let detail = json!({ "operator": operator, "session": login });
    audit::record(&mut transaction, &caller.name, action, None, detail).await?;
    Ok(transaction.commit().await?)
}

/// Who of the operators asks. API keys are nobody's account.
fn identity(caller: &Caller) -> Result<(OperatorId, LoginId), Error> {
    match caller.identity {
        Identity::Operator { operator, login } => Ok((operator, login)),
        Identity::Key(_) => Err(Error::Forbidden),
    }
}

fn me_of(world: &World, operator: OperatorInfo, login: LoginInfo) -> Me {
    Me {
        permissions: operator.permissions.0.clone(),
        operator,
        session: login.id,
        csrf_token: world.log_in.csrf_token(login.id),
        expires_at: login.expires_at,
        idle_minutes: IDLE.as_secs() / 60,
    }
}

fn hash_token(token: &SecretString) -> digest::Digest {
    digest::digest(&digest::SHA256, token.expose_secret().as_bytes())
}

/// What somebody says about himself, as it can be stored and shown.
pub(crate) fn printable(text: &str, characters: usize) -> String {
    text.chars().filter(|character| !character.is_control()).take(characters).collect()
}
