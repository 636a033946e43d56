//! A tenant that is destroyed is gone from the archive too: with the repository and the master key nothing of it can be
//! read, and its neighbour comes back to a time before that.

use std::collections::BTreeMap;
use std::sync::Arc;

use loomworks_archive::Repository;
use loomworks_archive::store::Location;
use loomworks_control::master_key::MasterKey;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::platform::{App, Platform};

/// Where a marker is planted, and so what it begins with.
const PLACES: [&str; 6] = ["row", "toast", "message", "index", "dropped", "last"];

/// What nobody else writes. Long enough to be found by nobody's chance, short enough for an index.
fn marker(tenant: &str, place: &str) -> String {
    format!("<{place} of {tenant} {:08x}>", 0x5EED_u32.wrapping_mul(place.len() as u32 + 77))
}

async fn plant(app: &mut PgConnection, tenant: &str, places: &[&str]) {
    for place in places {
        let marker = marker(tenant, place);
        let sql = match *place {
            // In the place of what is compressed it is left as it is.
            "toast" => format!(
                "ALTER TABLE planted ALTER COLUMN long SET STORAGE EXTERNAL;
                 INSERT INTO planted (long) SELECT string_agg(md5(n::text) || '{marker}', '') FROM generate_series(1, 200) n"
            ),
            "message" => format!("SELECT pg_logical_emit_message(true, 'planted', '{marker}')"),
            "dropped" => format!("CREATE TABLE gone AS SELECT '{marker}'::text AS word; DROP TABLE gone"),
            _ => format!("INSERT INTO planted (word) VALUES ('{marker}')"),
        };
        app.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("plant a marker");
    }
}

async fn digest(app: &mut PgConnection) -> String {
    let sql = "SELECT md5(string_agg(p::text, '|' ORDER BY p::text)) || (SELECT count(*) FROM items) FROM planted p";
    sqlx::query_scalar(sql).fetch_one(app).await.expect("what there is")
}

fn holds(bytes: &[u8], wanted: &str) -> bool {
    let wanted = wanted.as_bytes();
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == wanted[0]) {
        if rest[at..].starts_with(wanted) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// In which kinds of objects each marker of the tenants was read, by tenant and place.
#[derive(Debug, Default)]
struct Found {
    readable: BTreeMap<(String, String), Vec<String>>,
    /// How many parts did not open.
    closed: usize,
    objects: usize,
}

impl Found {
    fn of(&self, tenant: &str) -> Vec<(&str, &[String])> {
        let own = self.readable.iter().filter(|((of, _), _)| of == tenant);
        own.map(|((_, place), names)| (place.as_str(), names.as_slice())).collect()
    }
}

/// Reads all that the repository says to whoever has it and the master key: the bytes of each object, and all that opens.
async fn search(platform: &Platform) -> Found {
    let master_key = MasterKey::load(&platform.data().join("master.key")).expect("the master key");
    let location = Location::Directory(platform.data().join("repository"));
    let repository = Repository::open(&location, Arc::new(master_key)).await.expect("open the repository");
    let mut found = Found::default();
    for directory in ["keys", "wal", "backups", "packs", "probe"] {
        for entry in repository.store().list(directory).await.expect("list") {
            // What was there when it was listed may have been replaced by something that holds it.
            let Some(raw) = repository.store().get(&entry.name).await.expect("read") else { continue };
            let readable = repository.readable(&entry.name).await.expect("open what can be opened");
            found.objects += 1;
            found.closed += readable.closed.len();
            let parts = readable.parts.iter().map(|(_, content)| content.as_slice());
            for content in parts.chain([&raw[..]]) {
                for (tenant, place) in TENANTS.iter().flat_map(|tenant| PLACES.map(|place| (tenant, place))) {
                    if holds(content, &marker(tenant, place)) {
                        let names =
                            found.readable.entry(((*tenant).to_owned(), place.to_owned())).or_default();
                        names.push(entry.name.clone());
                    }
                }
            }
        }
    }
    found
}

const TENANTS: [&str; 2] = ["acme", "globex"];

/// Lets all that has been written be archived as a whole segment.
async fn archive_all(platform: &mut Platform) {
    platform.as_superuser("postgres", "SELECT pg_create_restore_point('here')").await;
    platform.as_superuser("postgres", "CHECKPOINT").await;
    let segment = platform.sql("SELECT pg_walfile_name(pg_current_wal_lsn())").await;
    platform.as_superuser("postgres", "SELECT pg_switch_wal()").await;
    let stored = platform.data().join("repository/wal").join(&segment[..8]).join(&segment);
    platform.wait_for("the segment to be archived", |_| stored.exists());
    let pieces = stored.with_file_name(format!("{segment}.pieces"));
    let gone = |pieces: &std::path::Path| std::fs::read_dir(pieces).map_or(0, Iterator::count) == 0;
    platform.wait_for("its pieces to go", |_| gone(&pieces));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_destroyed_tenant_can_be_read_from_the_archive_and_its_neighbour_comes_back() {
    let mut platform = Platform::start(&App::OneTable);
    for tenant in TENANTS {
        platform.cli(&["tenant", "create", tenant, "--wait"]);
        let mut app = platform.connect_as_app(tenant).await;
        let sql = "CREATE TABLE planted (id int GENERATED BY DEFAULT AS IDENTITY, word text, long text);
                   CREATE INDEX ON planted (word)";
        app.execute(sqlx::raw_sql(sql)).await.expect("make a table");
        plant(&mut app, tenant, &PLACES[..3]).await;
    }
    platform.cli(&["backup", "run"]);
    for tenant in TENANTS {
        plant(&mut platform.connect_as_app(tenant).await, tenant, &PLACES[3..5]).await;
    }
    archive_all(&mut platform).await;
    platform.cli(&["backup", "run"]);
    let before = search(&platform).await;
    for tenant in TENANTS {
        let planted = before.of(tenant);
        let places: Vec<&str> = planted.iter().map(|(place, _)| *place).collect();
        assert_eq!(
            places,
            ["dropped", "index", "message", "row", "toast"],
            "what was planted is found: {before:#?}"
        );
        for kind in ["wal/", "packs/"] {
            let of_kind = planted.iter().filter(|(_, names)| names.iter().any(|name| name.starts_with(kind)));
            assert!(of_kind.count() >= 3, "{tenant} is read in {kind}: {before:#?}");
        }
    }

    let mut globex = platform.connect_as_app("globex").await;
    let (noted, then) = (digest(&mut globex).await, loomworks_core::time::now().to_string());
    globex.execute("INSERT INTO planted (word) VALUES ('later')").await.expect("go on");
    // What comes last is in a segment that is archived whole only when the tenant is gone.
    for tenant in TENANTS {
        plant(&mut platform.connect_as_app(tenant).await, tenant, &PLACES[5..]).await;
    }
    let id = platform.cli(&["tenant", "show", "acme"])["id"].as_str().expect("an id").to_owned();
    platform.cli(&["tenant", "archive", "acme", "--yes"]);
    let report = platform.cli(&["tenant", "destroy", "acme", "--before-retention-ends", "--yes"]);
    assert_eq!(report["complete"], true, "{report:#}");
    nothing_is_read(&search(&platform).await, "once it is destroyed");

    // Its last records are archived once more, in the whole segment, and the neighbour goes on.
    archive_all(&mut platform).await;
    let after = search(&platform).await;
    nothing_is_read(&after, "after more WAL");
    assert_eq!(after.of("globex").len(), PLACES.len(), "the neighbour's is all there: {after:#?}");
    platform.cli(&["backup", "run"]);
    archive_all(&mut platform).await;
    nothing_is_read(&search(&platform).await, "after another backup");

    let job: Value = platform.cli(&["restore", "run", "globex", "--time", &then, "--yes"]);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(digest(&mut platform.connect_as_app("globex").await).await, noted);
    archive_all(&mut platform).await;
    nothing_is_read(&search(&platform).await, "after its neighbour came back");
    assert_eq!(platform.cli(&["tenant", "erasure", &id])["complete"], true);
}

fn nothing_is_read(found: &Found, when: &str) {
    assert!(
        found.objects > 10 && found.closed > 0,
        "{when}: there is something that does not open: {found:#?}"
    );
    assert_eq!(found.of("acme"), [], "{when}: something can be read: {found:#?}");
}
