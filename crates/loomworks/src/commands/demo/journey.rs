//! The journey itself: two tenants, an agent's mistake, undone.

use std::collections::BTreeSet;

use anyhow::Context;
use loomworks_control::db::snapshots::Snapshot;
use loomworks_control::db::tenants::Tenant;
use loomworks_core::ids::SnapshotId;
use loomworks_undo::{Mode, OperationDetail, OperationId};
use loomworks_web::api::Accepted;
use loomworks_web::api::operations::Undo;
use loomworks_web::api::restores::{Confirm, RestoreStarted, RestoreTarget};
use loomworks_web::api::snapshots::{CreateSnapshot, SnapshotCreated};
use loomworks_web::api::tenants::{CreateTenant, TenantCreated};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Executor, PgConnection};

use super::agent::Agent;
use super::contents::{Contents, checksum};
use super::report::{Report, Step};
use super::traffic::Traffic;
use super::visitor::Visitor;
use crate::client::Client;
use crate::output::Failure;

const ACME: &str = "acme";
const GLOBEX: &str = "globex";

/// The agent "cleans up". Contacts up to 100 are the background clients'.
const WRONG_UPDATE: &str = "UPDATE contacts SET email = 'cleaned-' || id || '@example.invalid', city = 'Unknown' \
                            WHERE id > 100 AND id % 2 = 0";
const INSERTS: &str = "INSERT INTO contacts (company_id, name, email, phone, city) \
                       SELECT min(c.id), 'Merged Contact ' || n, 'merged-' || gen_random_uuid() || '@example.invalid', \
                       '+00 000', 'Unknown' FROM companies c, generate_series(1, 40) n GROUP BY n";
const CASCADING_DELETE: &str = "DELETE FROM contacts WHERE id > 100 AND id % 40 = 0";
const ONE_ROW: &str = "UPDATE contacts SET phone = '+00 000' WHERE id = 101";

/// A contact that the wrong UPDATE changed and that somebody changes afterwards.
const CONTACT_OF_A_HUMAN: i32 = 102;

/// Everything the steps share.
struct Journey<'a> {
    client: &'a Client,
    visitor: Visitor,
    agent: Agent<'a>,
    auditor: Agent<'a>,
    traffic: Traffic,
    run: String,
}

pub(super) async fn run(client: &Client, report: &mut Report) -> Result<(), Failure> {
    let visitor = Visitor::new(client.gateway()?, &[ACME, GLOBEX, "nobody-there"])?;
    provision(client, &visitor, report).await?;

    let run = uuid::Uuid::new_v4().simple().to_string();
    let traffic = Traffic::start(&visitor, &[ACME, GLOBEX], &run);
    let agent = Agent::open(client, ACME, "contact-cleaner", "merge duplicate contacts").await?;
    let auditor = Agent::open(client, GLOBEX, "auditor", "look, change nothing").await?;
    let journey = Journey { client, visitor, agent, auditor, traffic, run };

    isolation(&journey, report).await?;
    let globex = Contents::of(&mut journey.auditor.connect().await?).await?;
    mistakes_and_undo(&journey, report).await?;
    let before_snapshot = restores(&journey, report).await?;
    finish(journey, &globex, &before_snapshot, report).await
}

async fn provision(client: &Client, visitor: &Visitor, report: &mut Report) -> Result<(), Failure> {
    let mut step = Step::begin("1. provision acme and globex");
    let there: Vec<Tenant> = client.get_all("/v1/tenants", &[]).await?;
    for tenant in [ACME, GLOBEX] {
        if there.iter().any(|there| there.subdomain.as_str() == tenant) {
            step.note(format!("{tenant} is there already"));
            continue;
        }
        let body = CreateTenant { subdomain: tenant.into(), ..CreateTenant::default() };
        let created: TenantCreated = client.post("/v1/tenants", &body).await?;
        if let Some(job) = created.job {
            client.follow(job).await?;
        }
    }
    step.stop_clock();
    for tenant in [ACME, GLOBEX] {
        // A route is live a moment after its commit.
        let mut page = visitor.get(tenant, "/").send().await.context("visit a tenant")?;
        for _ in 0..100 {
            if page.status() != StatusCode::NOT_FOUND {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            page = visitor.get(tenant, "/").send().await.context("visit a tenant")?;
        }
        step.same(format!("{tenant} is served"), StatusCode::OK, page.status());
        let text = page.text().await.context("read a page")?;
        step.same(format!("its page is {tenant}'s"), true, text.contains(tenant));
    }
    let unknown = visitor.get("nobody-there", "/").send().await.context("visit nobody")?;
    step.same("an unknown subdomain", StatusCode::NOT_FOUND, unknown.status());
    report.add(step);
    Ok(())
}

async fn isolation(journey: &Journey<'_>, report: &mut Report) -> Result<(), Failure> {
    let mut step = Step::begin("2. neighbours are out of reach");
    step.same("acme's credentials open globex's database", false, journey.agent.gets_into(GLOBEX).await?);
    step.same(
        "acme's credentials open the management database",
        false,
        journey.agent.gets_into("loomworks_mgmt").await?,
    );
    let request = journey.visitor.get(ACME, "/api/summary").header("X-Loomworks-Tenant", GLOBEX);
    let request = request.header("X-Loomworks-Database", GLOBEX).header("X-Odoo-dbfilter", GLOBEX);
    let summary: Value =
        request.send().await.context("visit acme")?.json().await.context("read acme's summary")?;
    step.same("headers that claim to be globex reach", ACME, summary["tenant"].as_str().unwrap_or_default());
    report.add(step);
    Ok(())
}

/// Steps 3 and 4: what the agent does, what the log knows of it, and taking it back.
async fn mistakes_and_undo(journey: &Journey<'_>, report: &mut Report) -> Result<(), Failure> {
    let mut connection = journey.agent.connect().await?;
    let agent = &journey.agent;
    let at_first = Contents::of(&mut connection).await?;

    let mut step = Step::begin("3. an agent cleans up, by plain SQL");
    let update = agent.run(&mut connection, WRONG_UPDATE).await?;
    let insert = agent.run(&mut connection, INSERTS).await?;
    let before_delete = Contents::of(&mut connection).await?;
    let delete = agent.run(&mut connection, CASCADING_DELETE).await?;
    let before_one_row = Contents::of(&mut connection).await?;
    let one_row = agent.run(&mut connection, ONE_ROW).await?;
    step.stop_clock();
    for ran in [&update, &insert, &delete, &one_row] {
        step.note(ran.in_words());
        let table = ran.operation.tables.iter().find(|table| table.table.ends_with("contacts"));
        let logged = table.map_or(0, |table| table.inserted + table.updated + table.deleted);
        step.same("rows of contacts in the log", ran.rows, logged);
    }
    let detail: OperationDetail =
        journey.client.get(&format!("/v1/tenants/{ACME}/operations/{}?rows=1", delete.id.0)).await?;
    step.same("a row before and after is shown", 1, detail.rows.len());
    report.add(step);

    let mut step = Step::begin("4a. undo one row");
    journey.undo(&[one_row.id], Mode::Strict).await?;
    step.stop_clock();
    step.same("contents as before it", &before_one_row, Contents::of(&mut connection).await?);
    report.add(step);

    let mut step = Step::begin("4b. undo the cascading DELETE");
    journey.undo(&[delete.id], Mode::Strict).await?;
    step.stop_clock();
    step.same("contents as before it", &before_delete, Contents::of(&mut connection).await?);
    report.add(step);

    undo_with_conflict(journey, &mut connection, update.id, report).await?;

    let mut step = Step::begin("4e. undo the INSERT too");
    journey.undo(&[insert.id], Mode::Strict).await?;
    step.stop_clock();
    let now = Contents::of(&mut connection).await?;
    step.note(format!("at first: {at_first}"));
    step.note(format!("now, with somebody's change kept: {now}"));
    report.add(step);
    Ok(())
}

/// A row that somebody changed since is a conflict and is not overwritten; the others come back.
async fn undo_with_conflict(
    journey: &Journey<'_>,
    connection: &mut PgConnection,
    update: OperationId,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut step = Step::begin("4c. undo the chosen UPDATE: somebody has changed a row of it since");
    let path = format!("/api/contacts/{CONTACT_OF_A_HUMAN}");
    // Another one each time: a value that is already as before would be no conflict.
    let city = format!("Reykjavik {}", &journey.run[..6]);
    let changed =
        journey.visitor.post(ACME, &path, &json!({ "city": city })).await.context("change a contact")?;
    step.same("somebody changes a contact through the app", StatusCode::OK, changed.status());

    let before = Contents::of(connection).await?;
    let body = Undo { operations: vec![update], mode: Mode::Strict };
    let (status, answer) =
        journey.client.try_post(&format!("/v1/tenants/{ACME}/operations/undo"), &body).await?;
    step.same("strict undo is refused", StatusCode::CONFLICT, status);
    step.same("conflicts", 1, answer["conflicts"].as_array().map_or(0, Vec::len));
    step.note(format!("conflict: {}", answer["conflicts"][0]));
    step.same("nothing was changed", &before, Contents::of(connection).await?);

    report.add(step);

    let mut step = Step::begin("4d. undo it but for that row");
    journey.undo(&[update], Mode::Skip).await?;
    step.stop_clock();
    let kept: String = sqlx::query_scalar("SELECT city FROM public.contacts WHERE id = $1")
        .bind(CONTACT_OF_A_HUMAN)
        .fetch_one(&mut *connection)
        .await
        .context("look at the contact")?;
    step.same("somebody's change is kept", city, kept);
    let cleaned = format!(
        "city = 'Unknown' AND id > 100 AND id % 2 = 0 AND id <> {CONTACT_OF_A_HUMAN} AND name NOT LIKE 'Merged %'"
    );
    step.same("rows still cleaned", "0:0", checksum(connection, "contacts", &cleaned).await?);
    report.add(step);
    Ok(())
}

/// Steps 5 and 6: a snapshot, what rows cannot bring back, and exchanging databases back and forth.
async fn restores(journey: &Journey<'_>, report: &mut Report) -> Result<BTreeSet<String>, Failure> {
    let agent = &journey.agent;
    let mut connection = agent.connect().await?;
    let written = journey.traffic.written(ACME);
    let whole = Contents::of(&mut connection).await?;

    let mut step = Step::begin("5a. take a snapshot");
    let body = CreateSnapshot { name: "before the clean-up".into() };
    let path = format!("/v1/tenants/{ACME}/snapshots");
    let created: SnapshotCreated = journey.client.post(&path, &body).await?;
    journey.client.follow(created.job).await?;
    step.stop_clock();
    let all: Vec<Snapshot> = journey.client.list(&path).await?;
    let taken = all.iter().find(|snapshot| snapshot.id == created.snapshot.id);
    step.same("its state", "ready", taken.map_or("missing", |snapshot| &snapshot.state));
    report.add(step);

    let mut step = Step::begin("5b. the agent drops a table and deletes all invoices");
    connection.execute("DROP TABLE order_lines").await.context("drop a table")?;
    let dropped = agent.last_operation().await?;
    connection.execute("DELETE FROM invoices").await.context("delete all invoices")?;
    step.stop_clock();
    let body = Undo { operations: vec![dropped.id], mode: Mode::Strict };
    let (status, answer) =
        journey.client.try_post(&format!("/v1/tenants/{ACME}/operations/undo"), &body).await?;
    step.same("undo row by row is refused", true, status.is_client_error());
    step.note(format!("it says: {}", answer["message"].as_str().unwrap_or_default()));
    report.add(step);

    let mut step = Step::begin("5c. restore acme to the snapshot");
    journey.restore(Some(created.snapshot.id), None).await?;
    step.stop_clock();
    let mut connection = agent.connect().await?;
    step.same("contents as at the snapshot", &whole, Contents::of(&mut connection).await?);
    report.add(step);
    journey.traffic.go_on_for(20).await;

    let time: String = sqlx::query_scalar(
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    )
    .fetch_one(&mut connection)
    .await
    .context("ask for the time")?;
    connection.execute("DELETE FROM invoices").await.context("delete all invoices")?;
    let without_invoices = Contents::of(&mut connection).await?;
    let mut step = Step::begin("5d. the invoices again: restore acme to a timestamp");
    step.note(format!("to {time}"));
    journey.restore(None, Some(time.parse().context("read the time")?)).await?;
    step.stop_clock();
    step.same("contents as then", &whole, Contents::of(&mut agent.connect().await?).await?);
    report.add(step);

    for (name, what, expected) in [
        ("6a. swap back: undo of the restore", "contents as before the restore", &without_invoices),
        ("6b. swap back once more: forward again", "contents as restored", &whole),
    ] {
        let mut step = Step::begin(name);
        let body = Confirm { confirm: ACME.into() };
        let accepted: Accepted =
            journey.client.post(&format!("/v1/tenants/{ACME}/restores/swap-back"), &body).await?;
        journey.client.follow(accepted.job).await?;
        step.stop_clock();
        step.same(what, expected, Contents::of(&mut agent.connect().await?).await?);
        report.add(step);
        journey.traffic.go_on_for(20).await;
    }
    Ok(written)
}

/// What the background clients have seen, and that nothing of the neighbour's is missing.
async fn finish(
    journey: Journey<'_>,
    globex_at_first: &Contents,
    acme_before_snapshot: &BTreeSet<String>,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut step = Step::begin("what the background clients saw");
    let Journey { agent, auditor, traffic, run, .. } = journey;
    for (tenant, tally) in traffic.stop().await {
        step.note(format!(
            "{tenant}: {} requests, the longest took {} ms",
            tally.requests,
            tally.longest.as_millis()
        ));
        if let Some(failure) = &tally.first_failure {
            step.note(format!("{tenant}: first failure: {failure}"));
        }
        step.same(format!("failed requests on {tenant}"), 0, tally.failures);
        let (session, expected) =
            if tenant == GLOBEX { (&auditor, &tally.written) } else { (&agent, acme_before_snapshot) };
        let found = activities(&mut session.connect().await?, &run).await?;
        let lost = expected.difference(&found).count();
        step.same(format!("writes confirmed and lost on {tenant}, of {}", expected.len()), 0, lost);
    }
    let now = Contents::of(&mut auditor.connect().await?).await?;
    step.same("globex's contents", globex_at_first, now);
    agent.close().await?;
    auditor.close().await?;
    report.add(step);
    Ok(())
}

async fn activities(connection: &mut PgConnection, run: &str) -> Result<BTreeSet<String>, Failure> {
    let found: Vec<String> =
        sqlx::query_scalar("SELECT client_ref FROM public.activities WHERE starts_with(client_ref, $1)")
            .bind(run)
            .fetch_all(connection)
            .await
            .context("read the activities")?;
    Ok(found.into_iter().collect())
}

impl Journey<'_> {
    async fn undo(&self, operations: &[OperationId], mode: Mode) -> Result<Value, Failure> {
        let body = Undo { operations: operations.to_vec(), mode };
        self.client.post(&format!("/v1/tenants/{ACME}/operations/undo"), &body).await
    }

    async fn restore(
        &self,
        snapshot: Option<SnapshotId>,
        time: Option<jiff::Timestamp>,
    ) -> Result<(), Failure> {
        let body = RestoreTarget { snapshot, time, confirm: ACME.into(), ..RestoreTarget::default() };
        let started: RestoreStarted =
            self.client.post(&format!("/v1/tenants/{ACME}/restores"), &body).await?;
        self.client.follow(started.job).await.map(drop)
    }
}
