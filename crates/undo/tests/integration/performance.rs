//! How long an undo takes on a warm connection, in a database of some size. Prints, asserts nothing:
//! `cargo test --release -p loomworks-undo -- --ignored --nocapture how_long`.

use std::time::Instant;

use loomworks_undo::Mode;

use crate::tenant::Tenant;

const SHOP: &str = "
    CREATE TABLE contact (id int PRIMARY KEY, name text, email text UNIQUE, note text);
    CREATE TABLE orders (id int PRIMARY KEY, contact_id int NOT NULL REFERENCES contact ON DELETE CASCADE, total numeric, at timestamptz DEFAULT now());
    CREATE TABLE line (id int PRIMARY KEY, order_id int NOT NULL REFERENCES orders ON DELETE CASCADE, what text, price numeric, n int);
    CREATE INDEX ON orders (contact_id); CREATE INDEX ON line (order_id);
    INSERT INTO contact SELECT g, 'contact ' || g, g || '@example.com', repeat('x', 50) FROM generate_series(1, 12500) g;
    INSERT INTO orders SELECT g, (g - 1) / 2 + 1, g * 1.5 FROM generate_series(1, 25000) g;
    INSERT INTO line SELECT g, (g - 1) / 3 + 1, 'thing ' || g, g / 7.0, g % 10 FROM generate_series(1, 75000) g;";

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
#[tokio::test]
#[ignore = "a measurement"]
async fn how_long_an_undo_takes() {
    for analyze in ["SELECT", "ANALYZE"] {
        let tenant = Tenant::with(SHOP).await;
        tenant.by_app(analyze).await;
        for n in 0..300 {
            tenant
                .by_app(&format!(
                    "CREATE TABLE other_{n} (id int PRIMARY KEY, v text, contact_id int REFERENCES contact)"
                ))
                .await;
        }
        let mut app = tenant.app().await;
        crate::tenant::run(&mut app, "ALTER TABLE other_1 ADD COLUMN x int").await.unwrap();
        let start = Instant::now();
        for n in 0..20 {
            crate::tenant::run(&mut app, &format!("ALTER TABLE other_{n} ADD COLUMN y int")).await.unwrap();
        }
        println!("{analyze}: DDL of the app among 300 tables: {} ms", start.elapsed().as_millis() / 20);
        let mut undoer = tenant.undoer().await;
        for (what, statement, times) in [
            ("1 row", "UPDATE contact SET name = 'other' WHERE id = 77", 10),
            ("UPDATE of 5,000 rows", "UPDATE line SET price = price * 2, n = n + 1 WHERE id <= 5000", 4),
            ("DELETE of 250 contacts", "DELETE FROM contact WHERE id <= 250", 4),
            (
                "INSERT of 5,000 rows",
                "INSERT INTO line SELECT g, 1, 'x', 1, 1 FROM generate_series(100001, 105000) g",
                4,
            ),
        ] {
            let mut figures = vec![];
            for _ in 0..times {
                let mut agent = tenant.agent().await;
                let start = Instant::now();
                crate::tenant::run(&mut agent, statement).await.unwrap();
                let change_ms = start.elapsed().as_millis();
                let id = tenant.last_operation().await;
                let start = Instant::now();
                loomworks_undo::plan(&mut undoer, &[id], Mode::Strict).await.unwrap();
                let plan_ms = start.elapsed().as_millis();
                let start = Instant::now();
                loomworks_undo::undo(&mut undoer, &[id], Mode::Strict, "measurement").await.unwrap();
                figures.push((change_ms, plan_ms, start.elapsed().as_millis()));
            }
            println!("{analyze}: {what}: change, plan, undo in ms: {figures:?}");
        }
    }
}
