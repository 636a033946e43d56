//! `loomworks key`.

use loomworks_control::access::Permission;
use loomworks_control::db::keys::KeyInfo;
use loomworks_web::api::api_keys::{CreateKey, KeyCreated, RotateKey};

use super::{moment, or_dash};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::{KeyCommand, KeyOwner, PermissionName};

pub(super) async fn run(client: &Client, command: KeyCommand, json: bool) -> Result<(), Failure> {
    match command {
        KeyCommand::Create { owner, name, scope, permissions, environment, expires_at } => {
            let permissions: Vec<Permission> = permissions.into_iter().map(Into::into).collect();
            let permissions = (!permissions.is_empty()).then_some(permissions);
            let body = CreateKey { name, scope, permissions, environment: Some(environment), expires_at };
            created(&client.post(&path(&owner), &body).await?, json)
        }
        KeyCommand::List { owner } => list(&client.list(&path(&owner)).await?, json),
        KeyCommand::Rotate { owner, key, overlap_minutes } => {
            let path = format!("{}/{key}/rotate", path(&owner));
            created(&client.post(&path, &RotateKey { overlap_minutes }).await?, json)
        }
        KeyCommand::Revoke { owner, key, yes } => {
            if !yes {
                output::confirm("Whoever uses the key is refused from now on.", "revoke")?;
            }
            client.end(&format!("{}/{key}", path(&owner))).await?;
            if json { output::json(&serde_json::json!({ "revoked": key })) } else { output::told("revoked") }
        }
    }
}

impl From<PermissionName> for Permission {
    fn from(name: PermissionName) -> Self {
        match name {
            PermissionName::Read => Self::Read,
            PermissionName::Work => Self::Work,
            PermissionName::Manage => Self::Manage,
        }
    }
}

fn path(owner: &KeyOwner) -> String {
    match &owner.tenant {
        Some(tenant) => format!("/v1/tenants/{tenant}/api-keys"),
        None => "/v1/operator-keys".into(),
    }
}

fn created(created: &KeyCreated, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(created);
    }
    list(std::slice::from_ref(&created.info), false)?;
    output::told(format!("the key, shown this once:\n  {}", created.api_key))
}

fn list(keys: &[KeyInfo], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&keys);
    }
    let row = |key: &KeyInfo| {
        let state = if key.revoked_at.is_some() { "revoked" } else { "-" };
        [
            key.id.to_string(),
            key.prefix.clone(),
            key.scope.clone(),
            key.permissions.join(","),
            key.expires_at.map_or("-".into(), |end| moment(end.to_jiff())),
            or_dash(key.last_used_at.map(|used| moment(used.to_jiff())).as_ref()),
            state.to_owned(),
            key.name.clone(),
        ]
    };
    let rows: Vec<_> = keys.iter().map(row).collect();
    output::table(
        ["KEY", "BEGINS", "SCOPE", "PERMISSIONS", "EXPIRES", "LAST USED", "REVOKED", "NAME"],
        &rows,
    );
    Ok(())
}
