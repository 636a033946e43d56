//! Telling people that a key ends, while there is time to rotate it.

use loomworks_core::ids::TenantId;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::db::keys::{self, KeyInfo};
use crate::db::notifications::Severity;
use crate::error::Error;
use crate::notifications::{self, Notice};

/// How many days before its end people are told of a key. One that was made for less than that is not told of.
pub const TOLD_DAYS_BEFORE: i32 = 7;

/// Tells of up to `rows` keys that end soon, of each once; says of how many.
pub async fn tell(connection: &mut PgConnection, rows: i64) -> Result<usize, Error> {
    let mut transaction = connection.begin().await?;
    let ending = keys::take_ending(&mut transaction, TOLD_DAYS_BEFORE, rows).await?;
    for key in &ending {
        notifications::raise(&mut transaction, key.tenant_id.map(TenantId), &notice(key)).await?;
    }
    transaction.commit().await?;
    Ok(ending.len())
}

fn notice(key: &KeyInfo) -> Notice {
    let end = key.expires_at.map(|end| end.to_jiff().to_string()).unwrap_or_default();
    Notice {
        event: "api_key.expires_soon",
        severity: Severity::Warning,
        message: format!(
            "the API key `{}` ({}…) expires at {end}; rotate it if it is in use",
            key.name, key.prefix
        ),
        detail: json!({ "key": key.id, "prefix": key.prefix, "expires_at": end, "last_used_at": key.last_used_at }),
    }
}
