//! What others changed since: merged, refused, skipped, overwritten.

use loomworks_undo::{Mode, OperationKind, UndoError};

use crate::tenant::{Tenant, counts};

const ITEMS: &str = "
    CREATE TABLE item (id int PRIMARY KEY, name text, price numeric, code text UNIQUE);
    INSERT INTO item VALUES (1, 'one', 1.00, 'a'), (2, 'two', 2.00, 'b'), (3, 'three', 3.00, NULL);";

#[tokio::test]
async fn an_update_an_insert_and_a_delete_are_taken_back() {
    let tenant = Tenant::with(ITEMS).await;
    let before = tenant.bytes("item").await;
    for statement in [
        "UPDATE item SET price = price * 2",
        "INSERT INTO item VALUES (4, 'four', 4, NULL)",
        "DELETE FROM item WHERE id = 2",
        "DELETE FROM item",
        "UPDATE item SET id = id + 100",
    ] {
        let operation = tenant.by_agent(statement).await;
        assert_ne!(tenant.bytes("item").await, before);
        tenant.undo(operation).await;
        assert_eq!(tenant.bytes("item").await, before, "{statement}");
    }
}

#[tokio::test]
async fn another_column_changed_since_is_kept() {
    let tenant = Tenant::with(ITEMS).await;
    let operation = tenant.by_agent("UPDATE item SET price = 9 WHERE id = 1").await;
    tenant.by_app("UPDATE item SET name = 'ONE' WHERE id = 1").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.rows("(SELECT * FROM item WHERE id = 1)").await, "(1,ONE,1.00,a)");
}

#[tokio::test]
async fn the_same_column_changed_since_is_a_conflict_with_three_values() {
    let tenant = Tenant::with(ITEMS).await;
    let operation = tenant.by_agent("UPDATE item SET price = 9").await;
    tenant.by_app("UPDATE item SET price = 5, name = 'ONE' WHERE id = 1").await;
    let before = tenant.bytes("item").await;
    let conflicts = tenant.conflicts(&[operation], Mode::Strict).await;
    assert_eq!(tenant.bytes("item").await, before);
    assert_eq!(
        serde_json::to_value(&conflicts).unwrap(),
        serde_json::json!([{
            "table": "public.item", "key": {"id": "1"}, "reason": "the row it changed was changed since",
            "columns": [{"column": "price", "before": "1.00", "wrote": "9", "now": "5"}],
        }])
    );
    let plan = tenant.plan(operation).await;
    assert_eq!((plan.conflicts, counts(&plan.tables[0])), (conflicts, (0, 2, 0, 0)));
    assert_eq!(tenant.bytes("item").await, before, "a plan changes nothing");

    let outcome = tenant.try_undo(&[operation], Mode::Skip).await.unwrap();
    assert_eq!(outcome.skipped.len(), 1);
    assert_eq!(tenant.rows("item").await, "(1,ONE,5,a) (2,two,2.00,b) (3,three,3.00,)");
}

#[tokio::test]
async fn force_overwrites_what_the_operation_changed_and_nothing_else() {
    let tenant = Tenant::with(ITEMS).await;
    let operation = tenant.by_agent("UPDATE item SET price = 9").await;
    tenant.by_app("UPDATE item SET price = 5, name = 'ONE' WHERE id = 1").await;
    tenant.try_undo(&[operation], Mode::Force).await.unwrap();
    assert_eq!(tenant.rows("item").await, "(1,ONE,1.00,a) (2,two,2.00,b) (3,three,3.00,)");

    let operation = tenant.by_agent("DELETE FROM item WHERE id = 3").await;
    tenant.by_app("INSERT INTO item VALUES (3, 'new', 0, NULL)").await;
    let conflicts = tenant.conflicts(&[operation], Mode::Strict).await;
    assert_eq!(conflicts[0].reason, "the key of the row it deleted is in use again");
    tenant.try_undo(&[operation], Mode::Force).await.unwrap();
    assert_eq!(tenant.rows("(SELECT * FROM item WHERE id = 3)").await, "(3,three,3.00,)");

    let operation = tenant.by_agent("INSERT INTO item VALUES (8, 'eight', 8, NULL)").await;
    tenant.by_app("UPDATE item SET price = 88 WHERE id = 8").await;
    let conflicts = tenant.conflicts(&[operation], Mode::Strict).await;
    assert_eq!(conflicts[0].reason, "the row it inserted was changed since");
    tenant.try_undo(&[operation], Mode::Force).await.unwrap();
    assert_eq!(tenant.value("SELECT count(*)::text FROM item").await, "3");
}

#[tokio::test]
async fn a_row_deleted_since_is_a_conflict() {
    let tenant = Tenant::with(ITEMS).await;
    let operation = tenant.by_agent("UPDATE item SET price = 9 WHERE id < 3").await;
    tenant.by_app("DELETE FROM item WHERE id = 1").await;
    for mode in [Mode::Strict, Mode::Cascade] {
        let conflicts = tenant.conflicts(&[operation], mode).await;
        assert_eq!(conflicts[0].reason, "the row it changed was deleted since");
    }
    let outcome = tenant.try_undo(&[operation], Mode::Skip).await.unwrap();
    assert_eq!(outcome.skipped.len(), 1);
    assert_eq!(tenant.rows("item").await, "(2,two,2.00,b) (3,three,3.00,)");
}

#[tokio::test]
async fn what_is_already_as_it_was_is_no_conflict() {
    let tenant = Tenant::with(ITEMS).await;
    let update = tenant.by_agent("UPDATE item SET price = 9 WHERE id = 1").await;
    tenant.by_app("UPDATE item SET price = 1.00 WHERE id = 1").await;
    assert_eq!(counts(&tenant.undo(update).await.tables[0]), (0, 0, 0, 1));
    let delete = tenant.by_agent("DELETE FROM item WHERE id = 3").await;
    tenant.by_app("INSERT INTO item VALUES (3, 'three', 3.00, NULL)").await;
    assert_eq!(counts(&tenant.undo(delete).await.tables[0]), (0, 0, 0, 1));
    let insert = tenant.by_agent("INSERT INTO item VALUES (4, 'four', 4, NULL)").await;
    tenant.by_app("DELETE FROM item WHERE id = 4").await;
    assert_eq!(counts(&tenant.undo(insert).await.tables[0]), (0, 0, 0, 1));
}

#[tokio::test]
async fn a_unique_value_that_is_in_use_again_is_a_conflict_and_nothing_is_half_done() {
    let tenant = Tenant::with(ITEMS).await;
    let delete = tenant.by_agent("DELETE FROM item WHERE id < 3").await;
    tenant.by_app("INSERT INTO item VALUES (9, 'nine', 9, 'a')").await;
    let before = tenant.bytes("item").await;
    let conflicts = tenant.conflicts(&[delete], Mode::Strict).await;
    assert!(conflicts[0].reason.starts_with("a unique value it would get back is in use"), "{conflicts:?}");
    assert_eq!(conflicts[0].key["id"].as_deref(), Some("1"));
    assert_eq!(tenant.bytes("item").await, before);
    let outcome = tenant.try_undo(&[delete], Mode::Skip).await.unwrap();
    assert_eq!(outcome.skipped.len(), 1, "{outcome:?}");
    assert_eq!(tenant.rows("item").await, "(2,two,2.00,b) (3,three,3.00,) (9,nine,9,a)");
}

#[tokio::test]
async fn a_unique_value_an_update_gave_away_may_be_in_use_again() {
    let tenant = Tenant::with(ITEMS).await;
    let update = tenant.by_agent("UPDATE item SET code = 'z' || id WHERE id < 3").await;
    tenant.by_app("UPDATE item SET code = 'a' WHERE id = 3").await;
    let before = tenant.bytes("item").await;
    tenant.conflicts(&[update], Mode::Strict).await;
    assert_eq!(tenant.bytes("item").await, before);
    tenant.try_undo(&[update], Mode::Force).await.unwrap();
    assert_eq!(tenant.rows("item").await, "(1,one,1.00,z1) (2,two,2.00,b) (3,three,3.00,a)");
}

#[tokio::test]
async fn a_later_operation_on_the_same_column_is_a_conflict_and_cascade_adds_it() {
    let tenant = Tenant::with(ITEMS).await;
    let before = tenant.bytes("item").await;
    let first = tenant.by_agent("UPDATE item SET price = 9 WHERE id = 1").await;
    let other_column = tenant.by_agent("UPDATE item SET name = 'x' WHERE id = 1").await;
    let second = tenant.by_agent("UPDATE item SET price = 10").await;
    let third = tenant.by_agent("DELETE FROM item WHERE id = 2").await;
    tenant.conflicts(&[first], Mode::Strict).await;
    let outcome = tenant.try_undo(&[first], Mode::Cascade).await.unwrap();
    assert_eq!(outcome.undone, [first, second, third]);
    assert_eq!(tenant.rows("item").await, "(1,x,1.00,a) (2,two,2.00,b) (3,three,3.00,)");
    tenant.undo(other_column).await;
    assert_eq!(tenant.bytes("item").await, before);
}

#[tokio::test]
async fn cascade_never_takes_back_what_people_did() {
    let tenant = Tenant::with(ITEMS).await;
    let first = tenant.by_agent("UPDATE item SET price = 9 WHERE id = 1").await;
    tenant.by_app("UPDATE item SET price = 10 WHERE id = 1").await;
    tenant.by_agent("UPDATE item SET price = 11 WHERE id = 1").await;
    tenant.conflicts(&[first], Mode::Cascade).await;
    assert_eq!(tenant.rows("(SELECT price FROM item WHERE id = 1)").await, "(11)");
}

#[tokio::test]
async fn a_change_of_people_between_two_operations_is_kept_or_a_conflict() {
    let tenant = Tenant::with(ITEMS).await;
    let one = tenant.by_agent("UPDATE item SET price = 9 WHERE id = 1").await;
    tenant.by_app("UPDATE item SET name = 'human' WHERE id = 1").await;
    let two = tenant.by_agent("UPDATE item SET price = 10 WHERE id = 1").await;
    tenant.try_undo(&[one, two], Mode::Strict).await.unwrap();
    assert_eq!(tenant.rows("(SELECT * FROM item WHERE id = 1)").await, "(1,human,1.00,a)");

    let one = tenant.by_agent("UPDATE item SET price = 9 WHERE id = 1").await;
    tenant.by_app("UPDATE item SET price = 7 WHERE id = 1").await;
    let two = tenant.by_agent("UPDATE item SET price = 10 WHERE id = 1").await;
    let conflicts = tenant.conflicts(&[one, two], Mode::Strict).await;
    assert_eq!(conflicts[0].columns[0].now.as_deref(), Some("7"));
}

#[tokio::test]
async fn several_operations_are_taken_back_together() {
    let tenant = Tenant::with(ITEMS).await;
    let before = tenant.bytes("item").await;
    let statements = [
        "INSERT INTO item VALUES (5, 'five', 5, 'e')",
        "UPDATE item SET price = price + 1",
        "UPDATE item SET id = 50 WHERE id = 5",
        "DELETE FROM item WHERE id IN (1, 50)",
        "INSERT INTO item VALUES (1, 'another', 0, 'a')",
        "UPDATE item SET name = upper(name), code = NULL",
    ];
    let mut ids = vec![];
    for statement in statements {
        ids.push(tenant.by_agent(statement).await);
    }
    let outcome = tenant.try_undo(&ids, Mode::Strict).await.unwrap();
    assert_eq!(tenant.bytes("item").await, before);
    assert_eq!(outcome.undone, ids);
}

#[tokio::test]
async fn an_operation_is_undone_once_and_its_undo_can_be_undone_again_and_again() {
    let tenant = Tenant::with(ITEMS).await;
    let before = tenant.bytes("item").await;
    let operation = tenant.by_agent("UPDATE item SET price = 9; DELETE FROM item WHERE id = 2").await;
    let after = tenant.bytes("item").await;
    let mut last = operation;
    for expected in [&before, &after, &before, &after] {
        let undo = tenant.undo(last).await.operation;
        assert_eq!(tenant.bytes("item").await, *expected);
        let error = tenant.try_undo(&[last], Mode::Strict).await.unwrap_err();
        let UndoError::AlreadyUndone { operation, by } = error else { panic!("{error:?}") };
        assert_eq!((operation, by), (last, undo));
        let state = tenant.operations().await;
        let first = state.iter().find(|other| other.id == operation).unwrap();
        assert!(first.undone_by.is_some());
        last = undo;
    }
    let state = tenant.operations().await;
    assert_eq!(state[0].kind, OperationKind::Undo);
    assert_eq!(state[0].requested_by.as_deref(), Some("someone@example.com"));
    let original = state.iter().find(|other| other.id == operation).unwrap();
    assert_eq!(original.undone_by, None, "redone twice: in force");
}

#[tokio::test]
async fn an_operation_may_change_a_row_several_times() {
    let tenant = Tenant::with(ITEMS).await;
    let before = tenant.bytes("item").await;
    for statement in [
        "UPDATE item SET price = 5; UPDATE item SET price = 6; UPDATE item SET name = 'n'",
        "INSERT INTO item VALUES (6, 'six', 6, 'f'); UPDATE item SET price = 7; DELETE FROM item WHERE id = 6",
        "DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (1, 'x', 0, 'y'); UPDATE item SET name = 'z'",
        "UPDATE item SET id = 10 WHERE id = 1; UPDATE item SET id = 1 WHERE id = 2; UPDATE item SET price = 0",
    ] {
        let operation = tenant.by_agent(statement).await;
        tenant.undo(operation).await;
        assert_eq!(tenant.bytes("item").await, before, "{statement}");
    }
}

#[tokio::test]
async fn what_is_unknown_is_said() {
    let tenant = Tenant::with(ITEMS).await;
    let error = tenant.try_undo(&[loomworks_undo::OperationId(77)], Mode::Strict).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no operation 77");
}
