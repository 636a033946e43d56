//! Rows that hang on other rows.

use loomworks_undo::Mode;

use crate::tenant::Tenant;

const ORDERS: &str = "
    CREATE TABLE contact (id int PRIMARY KEY, name text);
    CREATE TABLE orders (id int PRIMARY KEY, contact_id int REFERENCES contact ON UPDATE CASCADE ON DELETE CASCADE, total numeric);
    CREATE TABLE line (order_id int REFERENCES orders ON DELETE CASCADE, nth int, what text, PRIMARY KEY (order_id, nth));
    CREATE TABLE note (id int PRIMARY KEY, contact_id int REFERENCES contact ON DELETE SET NULL ON UPDATE CASCADE);
    INSERT INTO contact SELECT g, 'contact ' || g FROM generate_series(1, 5) g;
    INSERT INTO orders SELECT g, (g - 1) / 2 + 1, g * 1.5 FROM generate_series(1, 10) g;
    INSERT INTO line SELECT o, n, o || '/' || n FROM generate_series(1, 10) o, generate_series(1, 3) n;
    INSERT INTO note SELECT g, (g - 1) % 5 + 1 FROM generate_series(1, 7) g;";

async fn everything(tenant: &Tenant) -> String {
    let mut all = String::new();
    for table in ["contact", "orders", "line", "note"] {
        all = all + &tenant.bytes(table).await + "\n";
    }
    all
}

#[tokio::test]
async fn a_delete_that_cascades_is_taken_back_with_all_that_went_with_it() {
    let tenant = Tenant::with(ORDERS).await;
    let before = everything(&tenant).await;
    let operation = tenant.by_agent("DELETE FROM contact WHERE id IN (1, 2)").await;
    assert_eq!(tenant.value("SELECT count(*)::text FROM line").await, "18");
    let outcome = tenant.undo(operation).await;
    assert_eq!(everything(&tenant).await, before);
    assert_eq!(outcome.undone, [operation]);
    assert_eq!(outcome.tables.iter().map(|table| table.recreate).sum::<u64>(), 2 + 4 + 12);
    assert_eq!(outcome.tables.iter().map(|table| table.restore).sum::<u64>(), 4, "notes were set null");
}

#[tokio::test]
async fn a_key_change_that_cascades_is_taken_back() {
    let tenant = Tenant::with(ORDERS).await;
    let before = everything(&tenant).await;
    let operation = tenant.by_agent("UPDATE contact SET id = id + 100 WHERE id < 4").await;
    tenant.undo(operation).await;
    assert_eq!(everything(&tenant).await, before);
}

#[tokio::test]
async fn rows_that_refer_to_each_other_are_taken_back() {
    let tenant = Tenant::with(
        "CREATE TABLE person (id int PRIMARY KEY, boss int REFERENCES person ON DELETE CASCADE);
         INSERT INTO person VALUES (1, NULL), (2, 1), (3, 2), (4, 3), (5, 5);
         CREATE TABLE a (id int PRIMARY KEY, b int);
         CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a DEFERRABLE INITIALLY DEFERRED);
         ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b DEFERRABLE INITIALLY DEFERRED;
         BEGIN; INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1); COMMIT;",
    )
    .await;
    let people = tenant.rows("person").await;
    let operation = tenant.by_agent("DELETE FROM person WHERE id IN (1, 5)").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.rows("person").await, people);

    let cycle = "WITH x AS (DELETE FROM a) DELETE FROM b";
    let operation = tenant.by_agent(cycle).await;
    tenant.undo(operation).await;
    assert_eq!((tenant.rows("a").await, tenant.rows("b").await), ("(1,1)".into(), "(1,1)".into()));
}

#[tokio::test]
async fn an_insert_with_children_of_others_stays_until_they_are_gone() {
    let tenant = Tenant::with(ORDERS).await;
    let operation = tenant.by_agent("INSERT INTO contact VALUES (6, 'six')").await;
    tenant.by_app("INSERT INTO orders VALUES (11, 6, 1)").await;
    let before = everything(&tenant).await;
    for mode in [Mode::Strict, Mode::Skip, Mode::Cascade, Mode::Force] {
        let conflicts = tenant.conflicts(&[operation], mode).await;
        assert_eq!(conflicts[0].reason, "rows of public.orders refer to (6)", "{mode:?}");
        assert_eq!(conflicts[0].table, "public.contact");
    }
    assert_eq!(everything(&tenant).await, before);
    tenant.by_app("DELETE FROM orders WHERE id = 11").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.value("SELECT count(*)::text FROM contact").await, "5");
}

#[tokio::test]
async fn a_child_does_not_come_back_without_its_parent() {
    let tenant = Tenant::with(ORDERS).await;
    let before = everything(&tenant).await;
    let line = tenant.by_agent("DELETE FROM line WHERE order_id = 1").await;
    let order = tenant.by_agent("DELETE FROM orders WHERE id = 1").await;
    for mode in [Mode::Strict, Mode::Skip, Mode::Force] {
        let conflicts = tenant.conflicts(&[line], mode).await;
        assert_eq!(conflicts[0].reason, "its parent (1) in public.orders is missing", "{mode:?}");
    }
    tenant.try_undo(&[line, order], Mode::Strict).await.unwrap();
    assert_eq!(everything(&tenant).await, before);
}

#[tokio::test]
async fn a_reference_that_was_changed_does_not_come_back_without_its_parent() {
    let tenant = Tenant::with(ORDERS).await;
    let operation = tenant.by_agent("UPDATE orders SET contact_id = 2 WHERE id = 1").await;
    tenant.by_app("DELETE FROM contact WHERE id = 1").await;
    let conflicts = tenant.conflicts(&[operation], Mode::Force).await;
    assert_eq!(conflicts[0].reason, "its parent (1) in public.contact is missing");
}

#[tokio::test]
async fn a_parent_in_a_partitioned_table_is_found() {
    let tenant = Tenant::with(
        "CREATE TABLE day (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE day_1 PARTITION OF day FOR VALUES FROM (0) TO (10);
         CREATE TABLE day_2 PARTITION OF day FOR VALUES FROM (10) TO (20);
         CREATE TABLE event (id int PRIMARY KEY, day int REFERENCES day ON DELETE CASCADE);
         INSERT INTO day VALUES (1), (11); INSERT INTO event VALUES (1, 1), (2, 11), (3, 11);",
    )
    .await;
    let operation = tenant.by_agent("DELETE FROM day WHERE id = 11").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.rows("event").await, "(1,1) (2,11) (3,11)");
    assert_eq!(tenant.rows("day").await, "(1) (11)");

    let operation = tenant.by_agent("INSERT INTO day VALUES (12)").await;
    tenant.by_app("INSERT INTO event VALUES (4, 12)").await;
    let conflicts = tenant.conflicts(&[operation], Mode::Strict).await;
    assert!(conflicts[0].reason.contains("refer to (12)"), "{conflicts:?}");
}

#[tokio::test]
async fn an_inserted_row_goes_and_others_stay() {
    let tenant = Tenant::with(ORDERS).await;
    let before = everything(&tenant).await;
    let operation = tenant
        .by_agent("INSERT INTO contact VALUES (7, 'seven'); INSERT INTO orders VALUES (70, 7, 1)")
        .await;
    tenant.undo(operation).await;
    assert_eq!(everything(&tenant).await, before);
}
