//! The app's own triggers.

use crate::tenant::Tenant;

#[tokio::test]
async fn what_the_apps_triggers_did_is_taken_back_and_not_done_again() {
    let tenant = Tenant::with(
        "CREATE TABLE account (id int PRIMARY KEY, balance numeric, changed int DEFAULT 0);
         CREATE TABLE total (one int PRIMARY KEY, sum numeric); CREATE TABLE audit (id serial PRIMARY KEY, what text);
         INSERT INTO account VALUES (1, 10), (2, 20); INSERT INTO total VALUES (1, 30);
         CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.changed := OLD.changed + 1; RETURN NEW; END $$;
         CREATE FUNCTION add_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             UPDATE total SET sum = (SELECT coalesce(sum(balance), 0) FROM account);
             INSERT INTO audit (what) VALUES (TG_OP); RETURN NULL; END $$;
         CREATE TRIGGER touch BEFORE UPDATE ON account FOR EACH ROW EXECUTE FUNCTION touch();
         CREATE TRIGGER add_up AFTER INSERT OR UPDATE OR DELETE ON account FOR EACH ROW EXECUTE FUNCTION add_up();",
    )
    .await;
    let before = (tenant.bytes("account").await, tenant.bytes("total").await, tenant.bytes("audit").await);
    for statement in [
        "UPDATE account SET balance = balance * 2",
        "DELETE FROM account",
        "INSERT INTO account VALUES (3, 5)",
    ] {
        let operation = tenant.by_agent(statement).await;
        assert_ne!(tenant.bytes("audit").await, before.2);
        tenant.undo(operation).await;
        let after = (tenant.bytes("account").await, tenant.bytes("total").await, tenant.bytes("audit").await);
        assert_eq!(after, before, "{statement}");
    }
}

#[tokio::test]
async fn a_trigger_may_change_the_row_again() {
    let tenant = Tenant::with(
        "CREATE TABLE doc (id int PRIMARY KEY, title text, slug text); INSERT INTO doc VALUES (1, 'One', 'one'), (2, 'Two', 'two');
         CREATE FUNCTION slugify() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             UPDATE doc SET slug = lower(title) WHERE id = NEW.id AND slug IS DISTINCT FROM lower(title); RETURN NULL; END $$;
         CREATE TRIGGER a_slugify AFTER INSERT OR UPDATE ON doc FOR EACH ROW EXECUTE FUNCTION slugify();",
    )
    .await;
    let before = tenant.bytes("doc").await;
    for statement in ["UPDATE doc SET title = title || '!'", "INSERT INTO doc VALUES (3, 'Three', NULL)"] {
        let operation = tenant.by_agent(statement).await;
        tenant.undo(operation).await;
        assert_eq!(tenant.bytes("doc").await, before, "{statement}");
    }
}

#[tokio::test]
async fn a_trigger_may_change_other_rows_of_the_same_statement() {
    let tenant = Tenant::with(
        "CREATE TABLE place (id int PRIMARY KEY, n int, touched int DEFAULT 0);
         INSERT INTO place SELECT g, g FROM generate_series(1, 4) g;
         CREATE FUNCTION neighbours() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             UPDATE place SET touched = touched + 1 WHERE id <> NEW.id; RETURN NULL; END $$;
         CREATE TRIGGER neighbours AFTER UPDATE OF n ON place FOR EACH ROW EXECUTE FUNCTION neighbours();
         CREATE TABLE person (id int PRIMARY KEY, boss int REFERENCES person ON UPDATE CASCADE);
         INSERT INTO person VALUES (1, 1), (2, 1), (3, 2), (4, 4)",
    )
    .await;
    let before = (tenant.bytes("place").await, tenant.bytes("person").await);
    for statement in ["UPDATE place SET n = n * 10", "UPDATE person SET id = id + 100"] {
        let operation = tenant.by_agent(statement).await;
        tenant.undo(operation).await;
        assert_eq!((tenant.bytes("place").await, tenant.bytes("person").await), before, "{statement}");
    }
}
