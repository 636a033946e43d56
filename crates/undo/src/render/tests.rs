//! The statements as text.

use super::*;

fn column(slot: i32, name: &str, key: bool) -> Column {
    Column {
        slot,
        name: name.into(),
        type_name: "public.mood".into(),
        user_type: slot == 2,
        generated: false,
        identity_always: false,
        key,
        since: i64::from(slot) * 10,
    }
}

fn table(columns: Vec<Column>) -> Table {
    Table { id: 7, oid: 1, name: "public.t".into(), columns, retyped: vec![] }
}

#[test]
fn a_value_of_a_type_somebody_made_is_read_back_from_its_text() {
    assert_eq!(column(1, "a", false).value("x", 'o'), "x.o1");
    assert_eq!(column(2, "b", false).value("x", 'n'), "(x.n2)::public.mood");
}

#[test]
fn only_columns_that_were_changed_are_put_back_and_never_the_key() {
    let table = table(vec![column(1, "id", true), column(3, "na\"me", false)]);
    let update = Statements::new(&table).restore(1).unwrap();
    assert!(
        update.starts_with(
            "UPDATE ONLY public.t t SET \"na\"\"me\" = CASE WHEN record_image_ne(ROW(x.n3), ROW(x.o3)) \
             THEN x.o3 ELSE t.\"na\"\"me\" END FROM"
        ),
        "{update}"
    );
}

#[test]
fn a_table_of_nothing_but_keys_has_nothing_to_put_back() {
    let table = table(vec![column(1, "a", true), column(2, "b", true)]);
    assert_eq!(Statements::new(&table).restore(1), None);
}

#[test]
fn a_column_younger_than_the_row_is_not_inserted() {
    let table = table(vec![column(1, "id", true), column(3, "young", false)]);
    let statements = Statements::new(&table);
    assert!(statements.recreate(1, 1)[1].starts_with("INSERT INTO public.t (\"id\") OVERRIDING"));
    assert!(statements.recreate(1, 2)[1].starts_with("INSERT INTO public.t (\"id\", \"young\") OVERRIDING"));
}

#[test]
fn without_a_key_nothing_is_locked_and_nothing_depends() {
    let table = table(vec![column(1, "a", false)]);
    let statements = Statements::new(&table);
    assert_eq!((statements.lock(1), statements.dependents("'{1}'")), (None, None));
}
