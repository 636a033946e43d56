//! Real WAL: what servers of each version write is split, merged back, and recovered from for one database at a time.
//!
//! The installed PostgreSQL is always tested. Versions 16, 17 and 18 are if their programs are there
//! (`scripts/fetch-postgresql.sh`); each test says which it ran.

#![expect(clippy::print_stdout, reason = "which versions were tested is to be said")]

mod server;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use loomworks_archive::wal::{
    Carry, Geometry, Outcome, Range, SHARED, SelectError, Selection, Split, Tail, Until, checkpoint_next_xid,
    merge, split,
};
use loomworks_core::durable;
use loomworks_core::lsn::{Lsn, Segment};
use loomworks_postgres::Installation;
use loomworks_testkit::{installation, installation_of};
use sqlx::Row;

use server::{Made, Server, ask, close, copy, give, run};

/// A history that a server wrote, and what was true at some points of it.
struct History {
    /// A copy of the data directory, made while the server ran; never started.
    backup: Server,
    geometry: Geometry,
    segments: Vec<(Segment, Vec<u8>)>,
    /// `backup_label`.
    label: String,
    next_xid: u64,
    from: Lsn,
    oids: BTreeMap<String, u32>,
    points: Vec<Point>,
    tablespace: String,
}

/// A moment at which nothing happened, and what the tenants had.
struct Point {
    lsn: Lsn,
    time: i64,
    digests: BTreeMap<String, Vec<String>>,
}

const TENANTS: [&str; 3] = ["alder", "birch", "cedar"];

async fn history(installation: &Installation, made: &Made<'_>) -> History {
    let server = Server::start(installation, made).await;
    let mut admin = server.connect("postgres").await;
    for tenant in TENANTS.into_iter().chain(["dogwood"]) {
        run(&mut admin, &format!("CREATE DATABASE {tenant};\n")).await;
        let mut connection = server.connect(tenant).await;
        workload::prepare(&mut connection, tenant).await;
        close(connection).await;
    }
    // A transaction that is open while the backup begins, and one that is prepared.
    let mut older = server.connect("alder").await;
    run(&mut older, "BEGIN;\nINSERT INTO parents VALUES (9000, 'older than the backup');\n").await;
    let mut prepared = server.connect("birch").await;
    run(
        &mut prepared,
        "BEGIN;\nINSERT INTO parents VALUES (9001, 'prepared before');\nPREPARE TRANSACTION 'before';\n",
    )
    .await;

    let from: Lsn =
        ask(&mut admin, "SELECT pg_backup_start('test', true)::text").await.parse().expect("a position");
    // Pages change while they are copied: the tenants go on.
    run(&mut prepared, "COMMIT PREPARED 'before';\nUPDATE counters SET value = 7;\n").await;
    let backup = Server::lay_out(installation);
    let all: Vec<u32> = databases(&server).await.into_values().collect();
    copy(&server, &backup, &all);
    run(&mut older, "COMMIT;\n").await;
    close(older).await;
    close(prepared).await;
    let label = sqlx::query("SELECT labelfile FROM pg_backup_stop(false)")
        .fetch_one(&mut admin)
        .await
        .expect("end the backup")
        .get::<String, _>(0);
    let says = ask(&mut admin, "SELECT next_xid FROM pg_control_checkpoint()").await;

    let mut points = Vec::new();
    let mut oids = BTreeMap::new();
    for round in 1..=3 {
        let (one, two, three) = (
            workload::work(&server, TENANTS[0], round),
            workload::work(&server, TENANTS[1], round),
            workload::work(&server, TENANTS[2], round),
        );
        tokio::join!(one, two, three);
        let more = match round {
            1 => "CREATE ROLE late_one;\nCREATE DATABASE logged TEMPLATE dogwood STRATEGY wal_log;\n",
            2 => {
                "CREATE DATABASE copied TEMPLATE logged STRATEGY file_copy;\nCREATE ROLE late_two;\n\
                 SELECT pg_switch_wal();\nDROP DATABASE logged;\n"
            }
            _ => "DROP ROLE late_one;\nSELECT pg_create_restore_point('here');\nCHECKPOINT;\n",
        };
        run(&mut admin, more).await;
        points.push(point(&server).await);
        oids.extend(databases(&server).await);
    }
    let tablespace = backup.cluster.socket_directory.join("space").to_string_lossy().into_owned();
    std::fs::create_dir(&tablespace).expect("make a directory");
    give(Path::new(&tablespace), installation.account().map(|account| (account.uid, account.gid)));
    run(&mut admin, &format!("CREATE TABLESPACE elsewhere LOCATION '{tablespace}';\nCHECKPOINT;\n")).await;

    // A crash within a record: what it had written of it stays, and the next page says that it was given up.
    let end: Lsn = ask(&mut admin, "SELECT pg_logical_emit_message(false, 'cut', repeat('x', 100000))::text")
        .await
        .parse()
        .expect("a position");
    run(&mut admin, "SELECT pg_switch_wal();\n").await;
    server.crash().await;
    let geometry = first_geometry(&server);
    cut(&server, &geometry, Lsn((end.0 - 50_000) & !8191));
    server.cluster.start().await.expect("start after the crash");
    let admin_again = server.connect("postgres").await;
    drop(std::mem::replace(&mut admin, admin_again));
    workload::work(&server, TENANTS[0], 4).await;
    workload::work(&server, TENANTS[1], 4).await;
    points.push(point(&server).await);
    // One more, of which nothing is kept: time stops before it.
    run(
        &mut admin,
        "CREATE ROLE after_all;\nSELECT pg_switch_wal();\nDROP ROLE after_all;\nSELECT pg_switch_wal();\n",
    )
    .await;
    close(admin).await;
    server.cluster.stop().await.expect("stop");

    let segments = segments(&server, &geometry);
    let given_up = |page: &[u8]| page[0] != 0 && page[2] & 8 != 0;
    assert!(segments.iter().any(|(_, bytes)| bytes.chunks(8192).any(given_up)), "a record was given up");
    let checkpoint: Lsn = after(&label, "CHECKPOINT LOCATION: ").parse().expect("a position");
    let next_xid = checkpoint_next_xid(&record_at(&geometry, &segments, checkpoint), geometry.version)
        .expect("a checkpoint");
    let (epoch, xid) = says.split_once(':').expect("an epoch and an id");
    assert!(
        next_xid <= epoch.parse::<u64>().unwrap() << 32 | xid.parse::<u64>().unwrap(),
        "{next_xid} {says}"
    );
    History { backup, geometry, segments, label, next_xid, from, oids, points, tablespace }
}

async fn databases(server: &Server) -> BTreeMap<String, u32> {
    let mut admin = server.connect("postgres").await;
    let rows = sqlx::query("SELECT datname::text, oid::int8 FROM pg_database")
        .fetch_all(&mut admin)
        .await
        .expect("databases");
    close(admin).await;
    rows.iter().map(|row| (row.get(0), u32::try_from(row.get::<i64, _>(1)).expect("an oid"))).collect()
}

async fn point(server: &Server) -> Point {
    let mut digests = BTreeMap::new();
    let databases: Vec<String> = databases(server)
        .await
        .into_keys()
        .filter(|name| !name.starts_with("template") && name != "postgres")
        .collect();
    for database in databases {
        let mut connection = server.connect(&database).await;
        digests.insert(database, workload::digest(&mut connection).await);
        close(connection).await;
    }
    let mut admin = server.connect("postgres").await;
    // A transaction's id and end, so that the position after it has a record before and after it.
    run(&mut admin, "SELECT pg_current_xact_id();\n").await;
    let lsn = ask(&mut admin, "SELECT pg_current_wal_insert_lsn()::text").await.parse().expect("a position");
    let time = ask(
        &mut admin,
        "SELECT (extract(epoch FROM clock_timestamp() - '2000-01-01 00:00:00+00'::timestamptz) * 1000000)::int8::text",
    )
    .await
    .parse()
    .expect("a time");
    run(&mut admin, "SELECT pg_sleep(0.01);\n").await;
    close(admin).await;
    Point { lsn, time, digests }
}

fn after<'a>(label: &'a str, what: &str) -> &'a str {
    let rest = label.split_once(what).expect("a line of the label").1;
    rest.split_whitespace().next().expect("a word")
}

fn first_geometry(server: &Server) -> Geometry {
    let mut names: Vec<_> = std::fs::read_dir(server.wal())
        .expect("pg_wal")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name.len() == 24))
        .collect();
    names.sort();
    let bytes = std::fs::read(&names[0]).expect("read a segment");
    Geometry::of_segment(&bytes).expect("its geometry")
}

/// Zeroes all WAL from a position on, as if it had never been written.
fn cut(server: &Server, geometry: &Geometry, from: Lsn) {
    use std::os::unix::fs::FileExt;
    let bytes = u64::from(geometry.segment_bytes);
    for number in from.0 / bytes..from.0 / bytes + 3 {
        let path = server.wal().join(Segment { timeline: 1, number }.file_name(bytes));
        let start = from.0.max(number * bytes) - number * bytes;
        if let Ok(file) = std::fs::OpenOptions::new().write(true).open(path) {
            file.write_all_at(&vec![0; (bytes - start) as usize], start).expect("zero");
        }
    }
}

fn segments(server: &Server, geometry: &Geometry) -> Vec<(Segment, Vec<u8>)> {
    let bytes = u64::from(geometry.segment_bytes);
    let mut segments: Vec<(Segment, Vec<u8>)> = std::fs::read_dir(server.wal())
        .expect("pg_wal")
        .filter_map(|entry| {
            let path = entry.expect("an entry").path();
            let segment = Segment::from_file_name(path.file_name()?.to_str()?, bytes)?;
            Some((segment, std::fs::read(&path).expect("read a segment")))
        })
        .collect();
    segments.sort_by_key(|(segment, _)| *segment);
    // What was made in advance holds nothing yet.
    segments.retain(|(segment, bytes)| bytes[8..16] == (segment.number * bytes.len() as u64).to_le_bytes());
    for pair in segments.windows(2) {
        assert_eq!(pair[0].0.number + 1, pair[1].0.number, "all WAL is kept");
    }
    segments
}

/// The bytes from `lsn` on without page headers: a record that lies within a page or two.
fn record_at(geometry: &Geometry, segments: &[(Segment, Vec<u8>)], lsn: Lsn) -> Vec<u8> {
    let bytes = u64::from(geometry.segment_bytes);
    let byte = |at: u64| {
        let (_, segment) = &segments[(at / bytes - segments[0].0.number) as usize];
        segment[(at % bytes) as usize]
    };
    let mut at = lsn.0;
    let mut record = Vec::new();
    while record.len() < 114 {
        if at.is_multiple_of(8192) {
            at += if at.is_multiple_of(bytes) { 40 } else { 24 };
        }
        record.push(byte(at));
        at += 1;
    }
    record
}

type Ranges = Vec<(Range, Split)>;

/// Splits all of the history at `bounds`, and checks on the way that each range merges back and that no tenant's marker is in
/// a stream that is not his.
fn split_at(history: &History, bounds: &[u64]) -> Ranges {
    let bytes = u64::from(history.geometry.segment_bytes);
    let first = history.segments[0].0.number * bytes;
    let all: Vec<u8> = history.segments.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
    let mut carry: Option<Carry> = None;
    let mut ranges = Vec::new();
    for pair in bounds.windows(2) {
        let range = Range { timeline: 1, start: Lsn(pair[0]), end: Lsn(pair[1]) };
        let bytes = &all[(pair[0] - first) as usize..(pair[1] - first) as usize];
        let split = split(&history.geometry, &range, bytes, carry.as_ref(), Tail::Kept).expect("split");
        let streams: Vec<&[u8]> = split.streams.values().map(Vec::as_slice).collect();
        let merged = merge(&history.geometry, &range, &streams).expect("merge");
        assert!(merged == bytes, "{range:?} does not merge back");
        carry = split.carry.clone();
        ranges.push((range, split));
    }
    ranges
}

fn whole_segments(history: &History) -> Vec<u64> {
    let bytes = u64::from(history.geometry.segment_bytes);
    let first = history.segments[0].0.number;
    (first..=first + history.segments.len() as u64).map(|number| number * bytes).collect()
}

/// Bounds anywhere, always the same for a seed.
fn scattered(history: &History, mut seed: u64) -> Vec<u64> {
    let whole = whole_segments(history);
    let (first, last) = (whole[0], whole[whole.len() - 1]);
    let mut bounds = vec![first];
    while bounds[bounds.len() - 1] < last {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // From a few bytes up to some hundred thousand.
        let step = (seed >> 33) % (1 << (4 + (seed >> 60)));
        bounds.push((bounds[bounds.len() - 1] + 1 + step).min(last));
    }
    bounds
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let first = wanted[0];
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(wanted) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

fn rows_are_where_they_belong(history: &History, ranges: &Ranges) {
    let mut found: BTreeMap<&str, u32> = BTreeMap::new();
    for (range, split) in ranges {
        for (owner, stream) in &split.streams {
            for tenant in TENANTS {
                if contains(stream, workload::marker(tenant).as_bytes()) {
                    assert_eq!(*owner, history.oids[tenant], "{range:?}: {owner} has rows of {tenant}");
                    *found.entry(tenant).or_default() += 1;
                }
            }
        }
    }
    assert_eq!(found.len(), TENANTS.len(), "each tenant's rows were found: {found:?}");
}

/// Recovers a database of the backup with only its WAL, and gives what it holds.
async fn recover(
    history: &History,
    ranges: &Ranges,
    database: &str,
    until: Until,
) -> (Vec<String>, Outcome, Vec<u32>) {
    let mut kept: BTreeSet<u32> = [history.oids[database]].into();
    let mut transactions_until = Lsn(0);
    let (segments, outcome) = loop {
        match select(history, ranges, &kept, until, transactions_until) {
            Err(SelectError::Copied(at)) => {
                assert!(at > transactions_until, "once for each copy");
                transactions_until = at;
            }
            Err(SelectError::NeedsDatabase(source)) => assert!(kept.insert(source)),
            selected => break selected.expect("select"),
        }
    };
    let side = Server::lay_out(&history.backup.cluster.installation);
    let kept: Vec<u32> = kept.into_iter().collect();
    copy(&history.backup, &side, &kept);
    let account = side.cluster.installation.account().map(|account| (account.uid, account.gid));
    for sparse in &segments {
        use std::os::unix::fs::FileExt;
        let path = side.wal().join(sparse.segment.file_name(u64::from(history.geometry.segment_bytes)));
        let file = std::fs::File::create(&path).expect("make a segment");
        file.set_len(sparse.bytes.len() as u64).expect("its length");
        for run in &sparse.runs {
            file.write_all_at(&sparse.bytes[run.start as usize..run.end as usize], u64::from(run.start))
                .expect("write a run");
        }
        give(&path, account);
    }
    let label = side.cluster.directory.join("backup_label");
    durable::write(&label, history.label.as_bytes()).expect("write the label");
    give(&label, account);
    side.configure(
        "hot_standby = off\nautovacuum = off\narchive_mode = off\nwal_level = replica\nmax_wal_senders = 0\n",
    );
    side.cluster.start().await.expect("recover");
    let mut connection = side.connect(database).await;
    let digest = workload::digest(&mut connection).await;
    // What is prepared holds its locks still, and the check would wait for them.
    let gids = "SELECT string_agg(gid, ' ') FROM pg_prepared_xacts WHERE database = current_database()";
    for gid in ask(&mut connection, gids).await.split_whitespace() {
        run(&mut connection, &format!("ROLLBACK PREPARED '{gid}';\n")).await;
    }
    close(connection).await;
    amcheck(&side, database).await;
    side.cluster.stop().await.expect("stop");
    (digest, outcome, kept)
}

fn select(
    history: &History,
    ranges: &Ranges,
    kept: &BTreeSet<u32>,
    until: Until,
    transactions_until: Lsn,
) -> Result<(Vec<loomworks_archive::wal::SparseSegment>, Outcome), SelectError> {
    let mut selection = Selection::new(history.geometry, history.from, kept, history.next_xid, until);
    selection.keep_transactions_until(transactions_until);
    let mut segments = Vec::new();
    for (range, split) in ranges.iter().filter(|(range, _)| range.end > history.from) {
        let streams: Vec<&[u8]> =
            kept.iter().filter_map(|database| split.streams.get(database)).map(Vec::as_slice).collect();
        let finished = selection.push(range, &split.streams[&SHARED], &streams)?;
        finished.iter().cloned().for_each(|segment| selection.reuse(segment.into_blank()));
        segments.extend(finished);
        if selection.is_complete() {
            break;
        }
    }
    let (rest, outcome) = selection.finish();
    segments.extend(rest);
    Ok((segments, outcome))
}

/// Checks heap and indexes against each other, with the installed server's program.
async fn amcheck(side: &Server, database: &str) {
    let installed = installation().await;
    let port = side.cluster.port.to_string();
    let socket = side.cluster.socket_directory.to_string_lossy().into_owned();
    // Named like this: with `-d` it would look into `template1`, which is not there.
    let arguments =
        ["-h", &socket, "-p", &port, "-U", "postgres", "--heapallindexed", "--rootdescend", database];
    let output = installed.command("pg_amcheck").args(arguments).output().await.expect("run pg_amcheck");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.is_empty(),
        "{database}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// All of it, for one version.
async fn everything_holds(installation: &Installation, made: &Made<'_>) {
    let history = history(installation, made).await;
    let major = history.geometry.version.major();
    assert_eq!(major, installation.major_version);
    let ranges = split_at(&history, &whole_segments(&history));
    rows_are_where_they_belong(&history, &ranges);
    let records: u64 = ranges.iter().map(|(_, split)| split.records).sum();
    // The last segment is the only one in which WAL ends; before the first record nothing is known.
    let ended: Vec<Lsn> = ranges.iter().filter_map(|(_, split)| split.end).collect();
    assert!(
        ended.len() <= 1 && ranges[..ranges.len() - 1].iter().all(|(_, split)| split.end.is_none()),
        "{ended:?}"
    );
    // The first segment may begin with the end of a record of one that `initdb` wrote and removed.
    assert!(ranges[1..].iter().all(|(_, split)| split.unclassified_bytes == 0), "all of it has an owner");
    let pieces = split_at(&history, &scattered(&history, 4711));
    rows_are_where_they_belong(&history, &pieces);
    assert_eq!(pieces.iter().map(|(_, split)| split.records).sum::<u64>(), records);
    let streams: usize = ranges.iter().map(|(_, split)| split.streams.len()).sum();
    println!(
        "PostgreSQL {major}: {} segments of {} MB, {records} records, {streams} streams; {} odd ranges",
        history.segments.len(),
        made.segment_mb,
        pieces.len(),
    );

    for (at, point) in history.points.iter().enumerate() {
        if at % 2 == 0 && !made.each_point {
            continue;
        }
        for (database, digest) in &point.digests {
            // Each database once at each point, by position or by time, from whole segments or from odd ranges.
            let by_time = (at / 2 + database.len() / 2) % 2 == 0;
            let until = if by_time { Until::Time(point.time) } else { Until::Before(point.lsn) };
            // One that does nothing is the same at each point.
            if database == "dogwood" && at != 1 {
                continue;
            }
            let from = if database.len() % 2 == 0 { &ranges } else { &pieces };
            let (found, outcome, kept) = recover(&history, from, database, until).await;
            assert_eq!(
                found, *digest,
                "PostgreSQL {major}, {database} at point {at}, {until:?}, {outcome:?}"
            );
            assert!(outcome.reached || by_time, "{outcome:?}");
            assert_eq!(kept.len(), if database == "copied" { 2 } else { 1 });
        }
    }
    let (_, outcome) =
        select(&history, &ranges, &BTreeSet::new(), Until::End, Lsn(0)).expect("select nothing");
    assert!(outcome.end > history.points[history.points.len() - 1].lsn);
    assert!(Path::new(&history.tablespace).exists());
}

const SMALL: Made<'_> = Made {
    segment_mb: 1,
    each_point: true,
    settings: "wal_level = logical\nwal_keep_size = 10GB\nautovacuum_naptime = 1s\nwal_compression = pglz\n",
};

#[tokio::test(flavor = "multi_thread")]
async fn the_installed_servers_wal_of_small_segments_and_logical_level() {
    everything_holds(&installation().await, &SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_installed_servers_wal_of_usual_segments() {
    let made = Made {
        segment_mb: 16,
        each_point: false,
        settings: "wal_level = replica\nwal_keep_size = 10GB\nautovacuum_naptime = 1s\n",
    };
    everything_holds(&installation().await, &made).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_versions_wal() {
    let installed = installation().await.major_version;
    for major in [16, 17, 18].into_iter().filter(|major| *major != installed) {
        match installation_of(major).await {
            Some(installation) => everything_holds(&installation, &Made { each_point: false, ..SMALL }).await,
            None => println!("NOT TESTED: PostgreSQL {major}; run scripts/fetch-postgresql.sh {major}"),
        }
    }
}
