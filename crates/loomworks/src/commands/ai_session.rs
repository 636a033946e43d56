//! `loomworks ai-session`.

use loomworks_control::db::sessions::Session;
use loomworks_web::api::sessions::{OpenSession, SessionOpened};

use super::{moment, shortened};
use crate::client::Client;
use crate::output::{self, Failure};
use crate::settings::AiSessionCommand;

pub(super) async fn run(client: &Client, command: AiSessionCommand, json: bool) -> Result<(), Failure> {
    match command {
        AiSessionCommand::Open { tenant, agent, purpose, minutes } => {
            let body = OpenSession { agent, purpose, minutes };
            let opened: SessionOpened =
                client.post(&format!("/v1/tenants/{tenant}/ai-sessions"), &body).await?;
            if json {
                return output::json(&opened);
            }
            output::line(format!(
                "session {} is {} until {}",
                opened.session.id,
                opened.session.state,
                moment(opened.session.expires_at.to_jiff())
            ));
            output::line(format!("connection string, shown this once:\n  {}", opened.connection_string));
            Ok(())
        }
        AiSessionCommand::Close { tenant, session } => {
            list(&[client.delete(&format!("/v1/tenants/{tenant}/ai-sessions/{session}")).await?], json)
        }
        AiSessionCommand::List { tenant } => {
            list(&client.list::<Session>(&format!("/v1/tenants/{tenant}/ai-sessions")).await?, json)
        }
    }
}

fn list(sessions: &[Session], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&sessions);
    }
    let row = |session: &Session| {
        [
            session.id.to_string(),
            session.state.clone(),
            session.agent.clone(),
            session.role.clone(),
            moment(session.expires_at.to_jiff()),
            shortened(&session.purpose, 50),
        ]
    };
    let rows: Vec<_> = sessions.iter().map(row).collect();
    output::table(["SESSION", "STATE", "AGENT", "ROLE", "EXPIRES", "PURPOSE"], &rows);
    Ok(())
}
