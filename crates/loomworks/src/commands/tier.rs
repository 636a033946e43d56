//! `loomworks tier`.

use loomworks_control::db::tiers::TierLimits;
use loomworks_web::api::tiers::SetTier;

use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::TierCommand;

pub(super) async fn run(client: &Client, command: TierCommand, json: bool) -> Result<(), Failure> {
    let tiers = match command {
        TierCommand::List => client.get::<Vec<TierLimits>>("/v1/tiers").await?,
        TierCommand::Set { tier, max_users, max_storage_gb, max_ai_operations_daily, recovery_days } => {
            let recovery_days = recovery_days.map(|days| days.0);
            let body = SetTier { max_users, max_storage_gb, max_ai_operations_daily, recovery_days };
            vec![client.put(&format!("/v1/tiers/{tier}"), &body).await?]
        }
    };
    if json {
        return output::json(&tiers);
    }
    let row = |tier: &TierLimits| {
        [
            tier.name.to_string(),
            tier.max_users.to_string(),
            tier.max_storage_gb.to_string(),
            tier.max_ai_operations_daily.to_string(),
            tier.recovery_days.map_or_else(|| "the platform's".to_owned(), |days| days.to_string()),
        ]
    };
    let rows: Vec<_> = tiers.iter().map(row).collect();
    output::table(["TIER", "USERS", "STORAGE GB", "AI OPERATIONS A DAY", "RECOVERY DAYS"], &rows);
    Ok(())
}
