//! The audit log: what is done to it afterwards is found, also when a superuser does it.

use jiff::{SignedDuration, Timestamp};
use loomworks_control::audit::verify::{BrokenKind, Verdict, Wanted, verify_in};
use loomworks_control::audit::{record, sealer, with_origin};
use loomworks_control::db::Db;
use loomworks_control::db::audit::{self, Filter};
use loomworks_core::ids::TenantId;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{Alone, tenant};

/// Each of these tests has the log to itself, and leaves it as it found it.
static LOG: Alone = Alone::new();

async fn write(db: &Db, action: &str, tenant: Option<TenantId>) -> i64 {
    let mut connection = db.platform.acquire().await.expect("connect");
    record(&mut connection, "test", action, tenant, json!({ "before": 1, "after": 2 }))
        .await
        .expect("record");
    sqlx::query_scalar("SELECT max(id) FROM audit").fetch_one(&mut *connection).await.expect("its id")
}

async fn verify(db: &Db, since: Option<Timestamp>, expect: Option<&str>) -> Verdict {
    let wanted = Wanted { since, expect: expect.map(str::to_owned) };
    verify_in(db, &wanted).await.expect("verify")
}

/// A superuser who has switched off what would refuse him.
async fn superuser() -> PgConnection {
    let mut admin = LOG.server().await.cluster.connect("loomworks_mgmt").await.expect("connect");
    for sql in ["SET session_replication_role = replica", "SET search_path = public"] {
        sqlx::query(sql).execute(&mut admin).await.expect(sql);
    }
    admin
}

/// Copies of both tables, to be put back.
async fn tampered(since: Option<Timestamp>, tampering: &[&str]) -> Verdict {
    let (db, _alone) = LOG.database().await;
    for action in ["a", "b", "c", "d", "e"] {
        if action == "c" {
            // A number that is used by nobody.
            let mut rolled_back = db.platform.begin().await.expect("begin");
            record(&mut rolled_back, "never", "test.gap", None, json!({})).await.expect("record");
            rolled_back.rollback().await.expect("roll back");
        }
        write(&db, action, None).await;
    }
    let intact = verify(&db, None, None).await;
    assert!(intact.intact && intact.waiting == 0 && intact.checked == intact.sealed, "{intact:?}");
    let mut admin = superuser().await;
    for sql in ["audit", "audit_seals", "audit_head"] {
        let sql = format!("CREATE TEMPORARY TABLE kept_{sql} AS SELECT * FROM {sql}");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut admin).await.expect("copy");
    }
    for statement in tampering {
        let done =
            sqlx::query(AssertSqlSafe((*statement).to_owned())).execute(&mut admin).await.expect(statement);
        assert!(done.rows_affected() > 0, "{statement} changed nothing");
    }
    let verdict = verify(&db, since, Some(&intact.head)).await;
    let put_back = "TRUNCATE audit, audit_seals, audit_head;
        INSERT INTO audit OVERRIDING SYSTEM VALUE SELECT * FROM kept_audit;
        INSERT INTO audit_seals SELECT * FROM kept_audit_seals; INSERT INTO audit_head SELECT * FROM kept_audit_head";
    sqlx::raw_sql(put_back).execute(&mut admin).await.expect("put back");
    admin.close().await.expect("close");
    assert!(self::verify(&db, None, Some(&intact.head)).await.intact, "as it was");
    verdict
}

#[tokio::test]
async fn each_kind_of_tampering_is_told_with_its_place() {
    let middle = "(SELECT max(id) - 2 FROM audit)";
    let change = |set: &str| format!("UPDATE audit SET {set} WHERE id = {middle}");
    let forged = |id: &str, at: &str, xid: &str| {
        format!(
            "INSERT INTO audit (id, at, actor, action, xid) OVERRIDING SYSTEM VALUE
             SELECT {id}, {at}, 'forger', 'forged', {xid} FROM audit"
        )
    };
    let last_seal = |set: &str| {
        format!("UPDATE audit_seals SET {set} WHERE place = (SELECT max(place) FROM audit_seals)")
    };
    let cases = [
        (vec![change("actor = 'somebody else'")], BrokenKind::Changed),
        (vec![change("at = at - interval '1 microsecond'")], BrokenKind::Changed),
        (vec![change("detail = '{}'")], BrokenKind::Changed),
        (vec![change("origin = 'elsewhere'")], BrokenKind::Changed),
        (vec![change("tenant_id = gen_random_uuid()")], BrokenKind::Changed),
        (vec![format!("DELETE FROM audit WHERE id = {middle}")], BrokenKind::Deleted),
        (vec!["DELETE FROM audit WHERE id = (SELECT max(id) FROM audit)".into()], BrokenKind::Deleted),
        // The row and its seal, in the middle.
        (
            vec![
                format!("DELETE FROM audit_seals WHERE audit_id = {middle}"),
                format!("DELETE FROM audit WHERE id = {middle}"),
            ],
            BrokenKind::SealMissing,
        ),
        // The rows and the seals at the end; the head tells.
        (
            vec![
                format!("DELETE FROM audit_seals WHERE audit_id > {middle}"),
                format!("DELETE FROM audit WHERE id > {middle}"),
            ],
            BrokenKind::CutOff,
        ),
        // The head as well: only a head that was noted elsewhere tells.
        (
            vec![
                format!("DELETE FROM audit_seals WHERE audit_id > {middle}"),
                format!("DELETE FROM audit WHERE id > {middle}"),
                "UPDATE audit_head h SET place = s.place, hash = s.hash
                 FROM (SELECT * FROM audit_seals ORDER BY place DESC LIMIT 1) s"
                    .into(),
            ],
            BrokenKind::NotExpected,
        ),
        (
            vec![
                "INSERT INTO audit (id, at, actor, action, xid) OVERRIDING SYSTEM VALUE
                 SELECT max(id) + 1000, min(at), 'forger', 'forged', min(xid) FROM audit"
                    .into(),
            ],
            BrokenKind::Inserted,
        ),
        // As if it had always been there, with a number that nobody used. The transaction is not named, so that the
        // sealer takes it for a new row.
        (vec![forged("max(id) - 3", "min(at)", "pg_current_xact_id()")], BrokenKind::Inserted),
        (vec![forged("max(id) - 3", "now()", "pg_current_xact_id()")], BrokenKind::Inserted),
        (
            vec![forged("max(id) + 1", "now() - interval '2 hours'", "pg_current_xact_id()")],
            BrokenKind::Inserted,
        ),
        // In the name of a transaction that may be late, or of one that is yet to come.
        (vec![forged("min(id) - 1", "min(at)", "(SELECT horizon FROM audit_head)")], BrokenKind::Inserted),
        (vec![forged("max(id) + 1", "now()", "'1000000000000'::xid8")], BrokenKind::Inserted),
        // The seals themselves.
        (vec![last_seal("sealed_at = '2000-01-01'")], BrokenKind::Changed),
        (vec![last_seal("xid = '3'")], BrokenKind::Changed),
        // Two rows exchanged.
        (
            vec![format!(
                "UPDATE audit a SET actor = b.actor || '!', action = b.action FROM audit b
                 WHERE a.id = {middle} AND b.id = a.id + 1"
            )],
            BrokenKind::Changed,
        ),
    ];
    for (statements, kind) in cases {
        let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
        let verdict = tampered(None, &statements).await;
        let broken = verdict.broken.unwrap_or_else(|| panic!("not found: {statements:?}"));
        assert!(!verdict.intact && broken.kind == kind, "{statements:?}: {broken:?}");
    }
}

#[tokio::test]
async fn what_was_changed_lately_is_found_though_its_seals_look_old() {
    let yesterday = loomworks_core::time::now() - SignedDuration::from_hours(24);
    let middle = "(SELECT max(id) - 2 FROM audit)";
    let change = format!("UPDATE audit SET actor = 'somebody else' WHERE id = {middle}");
    let old = "UPDATE audit_seals SET sealed_at = '2000-01-01'";
    let up_to = format!("{old} WHERE audit_id <= {middle}");
    for seals in [None, Some(old), Some(&up_to)] {
        let statements: Vec<&str> = std::iter::once(change.as_str()).chain(seals).collect();
        let verdict = tampered(Some(yesterday), &statements).await;
        let broken = verdict.broken.unwrap_or_else(|| panic!("not found: {statements:?}"));
        assert!(!verdict.intact && broken.kind == BrokenKind::Changed, "{statements:?}: {broken:?}");
    }
}

#[tokio::test]
async fn rows_of_transactions_that_cross_are_all_sealed_once() {
    let (db, _alone) = LOG.database().await;
    // The first to write is the last to commit.
    let mut slow = db.platform.begin().await.expect("begin");
    record(&mut slow, "slow", "test.crossing", None, json!({})).await.expect("record");
    for _ in 0..3 {
        write(&db, "test.crossing", None).await;
        sealer::seal(&db).await.expect("seal");
    }
    slow.commit().await.expect("commit");
    let mut rolled_back = db.platform.begin().await.expect("begin");
    record(&mut rolled_back, "never", "test.crossing", None, json!({})).await.expect("record");
    rolled_back.rollback().await.expect("roll back");
    let sealers = (sealer::seal(&db), sealer::seal(&db), sealer::seal(&db));
    let (a, b, c) = tokio::join!(sealers.0, sealers.1, sealers.2);
    a.and(b).and(c).expect("seal side by side");
    let verdict = verify(&db, None, None).await;
    assert!(verdict.intact && verdict.waiting == 0, "{verdict:?}");
    let mut connection = db.platform.acquire().await.expect("connect");
    let (rows, sealed): (i64, i64) =
        sqlx::query_as("SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM audit_seals)")
            .fetch_one(&mut *connection)
            .await
            .expect("count");
    assert_eq!(rows, sealed);
}

#[tokio::test]
async fn a_row_says_where_it_came_from_and_nobody_says_when_or_in_which_transaction() {
    let (db, _alone) = LOG.database().await;
    let acme = tenant(&db).await;
    with_origin("192.0.2.7 request r".into(), write(&db, "test.origin", Some(acme))).await;
    let mut connection = db.platform.acquire().await.expect("connect");
    let filter = Filter { tenant: Some(acme), ..Filter::default() };
    let rows = audit::list(&mut connection, &filter, None, 10).await.expect("list");
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].origin.as_str(), rows[0].action.as_str()), ("192.0.2.7 request r", "test.origin"));
    let filter = Filter { action: Some("test".into()), tenant: Some(acme), ..Filter::default() };
    assert_eq!(audit::list(&mut connection, &filter, None, 10).await.expect("list").len(), 1);
    let filter = Filter { action: Some("tes".into()), tenant: Some(acme), ..Filter::default() };
    assert!(audit::list(&mut connection, &filter, None, 10).await.expect("list").is_empty());
    for pool in [&db.platform, &db.tenants] {
        for statement in [
            "INSERT INTO audit (actor, action, at) VALUES ('x', 'y', '2000-01-01')",
            "INSERT INTO audit (actor, action, xid) VALUES ('x', 'y', '3')",
            "INSERT INTO audit (actor, action, id) OVERRIDING SYSTEM VALUE VALUES ('x', 'y', 1)",
            "UPDATE audit SET actor = 'x'",
            "DELETE FROM audit",
            "TRUNCATE audit",
            "UPDATE audit_seals SET hash = hash",
            "DELETE FROM audit_seals",
            "TRUNCATE audit_seals",
            "DELETE FROM audit_head",
        ] {
            let error = sqlx::query(statement).execute(pool).await.expect_err(statement);
            let code = error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
            assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error}");
        }
    }
    // Not even who owns the tables, unless he takes the trigger away first.
    let mut owner = LOG.server().await.cluster.connect("loomworks_mgmt").await.expect("connect");
    sqlx::query("SET ROLE loomworks_owner").execute(&mut owner).await.expect("become the owner");
    for statement in ["UPDATE public.audit SET actor = 'x'", "TRUNCATE public.audit"] {
        assert!(sqlx::query(statement).execute(&mut owner).await.is_err(), "{statement}");
    }
}
