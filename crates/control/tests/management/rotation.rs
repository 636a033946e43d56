//! What the management database knows of tenants' credentials while they are exchanged for others.

use loomworks_control::credentials::app_roles;
use loomworks_control::db::{Db, credentials, tenants};
use loomworks_core::ids::TenantId;
use loomworks_core::tenant::TenantState;
use sqlx::PgConnection;

use super::{database, tenant};

/// Longer than any test, and shorter than the age that [`make_old`] gives.
const HOUR: f64 = 3600.0;

async fn active_tenant(db: &Db) -> TenantId {
    let id = tenant(db).await;
    let mut connection = db.platform.acquire().await.expect("connect");
    tenants::set_state(&mut connection, id, TenantState::Active, None).await.expect("make it active");
    id
}

async fn change(connection: &mut PgConnection, id: TenantId, set: &'static str) {
    let sql = sqlx::AssertSqlSafe(format!("UPDATE tenant_credentials SET {set} WHERE tenant_id = $1"));
    sqlx::query(sql).bind(id.0).execute(connection).await.expect(set);
}

async fn is_due(connection: &mut PgConnection, id: TenantId) -> bool {
    credentials::due(connection, HOUR, 1_000_000).await.expect("look").contains(&id)
}

#[tokio::test]
async fn a_password_is_due_when_it_is_old_and_when_its_rotation_was_not_brought_to_its_end() {
    let db = database().await;
    let id = active_tenant(&db).await;
    let mut connection = db.platform.acquire().await.expect("connect");
    assert!(!is_due(&mut connection, id).await, "a new one");
    change(&mut connection, id, "rotated_at = now() - interval '2 hours'").await;
    assert!(is_due(&mut connection, id).await, "an old one");

    let from = credentials::rotation(&mut connection, id).await.expect("look").expect("a row").app_role;
    let [_, to] = app_roles(&from);
    credentials::prepare(&mut connection, id, b"next").await.expect("prepare");
    credentials::prepare(&mut connection, id, b"another").await.expect("prepare again");
    let put = async |connection: &mut PgConnection| {
        credentials::put_in_use(connection, id, &from, &to, HOUR).await.expect("put in use")
    };
    assert!(put(&mut connection).await);
    assert!(!put(&mut connection).await, "twice is once");
    let row = tenants::credentials(&mut connection, id).await.expect("look");
    assert_eq!(
        (row.app_role, row.app_password_wrapped),
        (to.clone(), b"next".to_vec()),
        "the first that was prepared"
    );
    assert!(!is_due(&mut connection, id).await, "its overlap is not over");
    let rotation = credentials::rotation(&mut connection, id).await.expect("look").expect("a row");
    assert!(!rotation.is_over && rotation.is_retiring(&from));
    assert!(!rotation.is_retiring(&to), "{to} is in use");

    // The process died before the app was told, and came back when the overlap was over: it begins now.
    change(
        &mut connection,
        id,
        "rotated_at = now() - interval '3 hours', retire_after = now() - interval '2 hours'",
    )
    .await;
    credentials::record_handed_over(&mut connection, id, &to, HOUR).await.expect("another role");
    let rotation = credentials::rotation(&mut connection, id).await.expect("look").expect("a row");
    assert!(rotation.is_over && rotation.is_long_over);
    credentials::record_handed_over(&mut connection, id, &from, HOUR).await.expect("record");
    let rotation = credentials::rotation(&mut connection, id).await.expect("look").expect("a row");
    assert!(!rotation.is_over && !rotation.is_long_over, "{rotation:?}");

    change(&mut connection, id, "retire_after = now() - interval '1 second'").await;
    assert!(is_due(&mut connection, id).await, "nobody has locked the former role out");
    credentials::record_retired(&mut connection, id).await.expect("record");
    assert!(!is_due(&mut connection, id).await);
}
