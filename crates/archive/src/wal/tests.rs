//! Splitting and merging of forged WAL: any records, cut anywhere.

use std::collections::BTreeMap;

use loomworks_core::lsn::Lsn;
use proptest::collection::vec;
use proptest::prelude::*;

mod selection;

use super::forge::{Forge, MIB, block, blocks, end, geometry, main_only, message};
use super::*;

/// What a tenant's rows are full of in these tests, by database.
pub(super) fn marker(database: u32) -> [u8; 16] {
    let mut marker = *b"row-of-db-00000.";
    marker[10..15].copy_from_slice(format!("{database:05}").as_bytes());
    marker
}

pub(super) fn rows(database: u32, len: usize) -> Vec<u8> {
    marker(database).iter().copied().cycle().take(len).collect()
}

#[derive(Clone, Debug)]
pub(super) enum Act {
    Row { database: u32, len: usize, xid: u32 },
    Message { database: u32, len: usize },
    Catalog { len: usize, xid: u32 },
    Commit { xid: u32, time: i64 },
    Create { database: u32 },
    Abort { database: u32, pages: u64 },
    Switch,
}

pub(super) fn act() -> impl Strategy<Value = Act> {
    let database = || 16384_u32..16388;
    let xid = || 700_u32..708;
    let len = || prop_oneof![20 => 0_usize..300, 4 => 300_usize..9000, 1 => 9000_usize..60_000];
    prop_oneof![
        30 => (database(), len(), xid()).prop_map(|(database, len, xid)| Act::Row { database, len, xid }),
        3 => (database(), len()).prop_map(|(database, len)| Act::Message { database, len }),
        3 => (0_usize..200, xid()).prop_map(|(len, xid)| Act::Catalog { len, xid }),
        6 => (xid(), 0_i64..1000).prop_map(|(xid, time)| Act::Commit { xid, time }),
        1 => database().prop_map(|database| Act::Create { database }),
        1 => (database(), 0_u64..3).prop_map(|(database, pages)| Act::Abort { database, pages }),
        1 => Just(Act::Switch),
    ]
}

pub(super) fn forge(pages: u64, acts: &[Act]) -> Forge {
    let mut forge = Forge::before_segment_end(pages);
    for act in acts {
        match act {
            Act::Row { database, len, xid } => {
                // A block's data has 64 kB at most.
                let data = rows(*database, (*len).min(60_000));
                forge.record(10, 0x00, *xid, &block(*database, 5, &data, &[1, 2, 3]));
            }
            Act::Message { database, len } => {
                forge.record(21, 0x00, 0, &main_only(&message(*database, &rows(*database, *len))));
            }
            Act::Catalog { len, xid } => {
                forge.record(10, 0x20, *xid, &block(0, 1262, &vec![b'c'; *len], &[]));
            }
            Act::Commit { xid, time } => {
                let (more, main) = end(*time, &[], &[], None);
                forge.record(1, more, *xid, &main_only(&main));
            }
            Act::Create { database } => {
                let main: Vec<u8> =
                    [*database, 1663, 1, 1663].iter().flat_map(|n: &u32| n.to_le_bytes()).collect();
                forge.record(4, 0x00, 0, &main_only(&main));
            }
            Act::Abort { database, pages } => {
                let data = rows(*database, 40_000);
                forge.abort(10, 0x00, 701, &block(*database, 5, &data, &[1]), *pages);
            }
            // One is enough: the next segment is a megabyte away.
            Act::Switch if forge.here() < 6 * MIB => forge.switch(),
            Act::Switch => {}
        }
    }
    forge
}

/// Positions at which a range is cut, as fractions of it.
pub(super) fn cuts() -> impl Strategy<Value = Vec<f64>> {
    vec(0.0_f64..1.0, 0..12)
}

pub(super) fn bounds(forge: &Forge, cuts: &[f64]) -> Vec<u64> {
    let len = forge.bytes.len() as f64;
    let mut bounds: Vec<u64> = cuts.iter().map(|cut| forge.start + (cut * len) as u64).collect();
    bounds.extend([forge.start, forge.here()]);
    bounds.sort_unstable();
    bounds.dedup();
    bounds
}

pub(super) type Ranges = Vec<(Range, Split)>;

/// Splits range after range, and proves on the way that each merges back.
pub(super) fn split_all(forge: &Forge, bounds: &[u64], carry: Option<Carry>) -> Ranges {
    let mut carry = carry;
    let mut ranges = Vec::new();
    for pair in bounds.windows(2) {
        let range = forge.range(pair[0], pair[1]);
        let bytes = forge.slice(pair[0], pair[1]);
        let split = split(&forge.geometry, &range, bytes, carry.as_ref(), Tail::Kept).unwrap();
        let streams: Vec<&[u8]> = split.streams.values().map(Vec::as_slice).collect();
        let merged = merge(&forge.geometry, &range, &streams).unwrap();
        assert!(merged == bytes, "{range:?} does not merge back");
        carry = split.carry.clone();
        // As a caller keeps it.
        if let Some(kept) = &carry {
            let json = serde_json::to_string(kept).unwrap();
            assert_eq!(serde_json::from_str::<Carry>(&json).unwrap(), *kept);
        }
        ranges.push((range, split));
    }
    ranges
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// No stream holds a row of another database; and each row is somewhere.
fn rows_are_where_they_belong(ranges: &Ranges) {
    for (range, split) in ranges {
        for (owner, stream) in &split.streams {
            for database in 16384..16388 {
                // Any 11 bytes of a repeated marker hold the five digits that make it that database's.
                let digits = &marker(database)[9..15];
                assert!(
                    *owner == database || !contains(stream, digits),
                    "{range:?}: {owner} has rows of {database}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_is_split_merges_back_and_rows_stay_with_their_owner(
        pages in 1_u64..6,
        acts in vec(act(), 1..150),
        cuts in cuts(),
    ) {
        let forge = forge(pages, &acts);
        let ranges = split_all(&forge, &bounds(&forge, &cuts), Some(Carry::at_record(Lsn(forge.start))));
        let found: u64 = ranges.iter().map(|(_, split)| split.records).sum();
        prop_assert_eq!(found, forge.records.len() as u64);
        rows_are_where_they_belong(&ranges);
        for (_, split) in &ranges {
            prop_assert_eq!(split.end, None);
            prop_assert_eq!(split.unclassified_bytes, 0);
        }
    }

    #[test]
    fn wal_that_begins_anywhere_and_ends_in_garbage_merges_back(
        pages in 1_u64..4,
        acts in vec(act(), 1..60),
        cuts in cuts(),
        start in 0.0_f64..1.0,
        garbage in vec(any::<u8>(), 0..5000),
        flips in vec((0.0_f64..1.0, any::<u8>()), 0..3),
    ) {
        let mut forge = forge(pages, &acts);
        forge.bytes.extend_from_slice(&garbage);
        for (at, byte) in &flips {
            let at = (at * forge.bytes.len() as f64) as usize;
            forge.bytes[at] ^= byte;
        }
        let bounds: Vec<u64> = bounds(&forge, &cuts);
        let first = ((start * bounds.len() as f64) as usize).min(bounds.len() - 2);
        split_all(&forge, &bounds[first..], None);
    }

    #[test]
    fn a_changed_bit_is_noticed(
        acts in vec(act(), 1..20),
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let forge = forge(2, &acts);
        let range = forge.range(forge.start, forge.here());
        let split = split(&forge.geometry, &range, &forge.bytes, None, Tail::Kept).unwrap();
        let mut streams: Vec<Vec<u8>> = split.streams.into_values().collect();
        let stream = which.index(streams.len());
        let at = at.index(streams[stream].len());
        streams[stream][at] ^= 1_u8 << bit;
        let slices: Vec<&[u8]> = streams.iter().map(Vec::as_slice).collect();
        prop_assert!(merge(&forge.geometry, &range, &slices).is_err());
        // A caller who lost one, or has one twice.
        let fewer: Vec<&[u8]> = slices.iter().enumerate().filter(|(i, _)| *i != stream).map(|(_, s)| *s).collect();
        prop_assert!(merge(&forge.geometry, &range, &fewer).is_err());
    }

    #[test]
    fn streams_that_nobody_wrote_never_panic(
        bytes in vec(any::<u8>(), 56..400),
        small in vec(any::<u8>(), 5),
    ) {
        // With the right frame and checksum around it, so that the columns are read.
        let forge = forge(1, &[]);
        let range = forge.range(forge.start, forge.start + 3 * 8192);
        let mut stream = vec![0; 8];
        stream[0] = 1;
        stream.extend_from_slice(&bytes);
        stream[8..16].copy_from_slice(&range.start.0.to_le_bytes());
        stream[16..20].copy_from_slice(&(3_u32 * 8192).to_le_bytes());
        stream[20..24].copy_from_slice(&1_u32.to_le_bytes());
        stream[24..28].copy_from_slice(&0_u32.to_le_bytes());
        for (at, len) in (44..).step_by(4).zip(&small) {
            stream[at..at + 4].copy_from_slice(&u32::from(*len).to_le_bytes());
        }
        let crc = crc32c::crc32c(&stream[8..]);
        stream[4..8].copy_from_slice(&crc.to_le_bytes());
        let _ = merge(&forge.geometry, &range, &[&stream]);
    }
}

fn one(forge: &Forge, carry: Option<&Carry>, tail: Tail) -> Split {
    let range = forge.range(forge.start, forge.here());
    split(&forge.geometry, &range, &forge.bytes, carry, tail).unwrap()
}

#[test]
fn owners_are_told_by_the_record() {
    let number = |values: &[u32]| main_only(&values.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
    let cases: [(&str, u8, u8, Vec<u8>, u32); 21] = [
        ("heap", 10, 0x00, block(7, 1, b"x", b"y"), 7),
        ("full-page image", 0, 0xB0, block(7, 1, b"x", b""), 7),
        ("sequence", 15, 0x00, block(7, 1, b"x", b"y"), 7),
        ("generic", 20, 0x00, block(7, 1, b"x", b""), 7),
        ("an extension's", 140, 0x00, block(7, 1, b"x", b""), 7),
        ("shared catalog", 10, 0x00, block(0, 1, b"x", b"y"), SHARED),
        ("several databases", 10, 0x00, blocks(&[7, 8], 1, b"x", b"y"), SHARED),
        ("smgr create", 2, 0x10, number(&[1663, 7, 1, 0]), 7),
        ("smgr truncate", 2, 0x20, number(&[9, 1663, 7, 1, 0]), 7),
        ("database copied", 4, 0x00, number(&[7, 1663, 1, 1663]), 7),
        ("database logged", 4, 0x10, number(&[7, 1663]), 7),
        ("database dropped", 4, 0x20, number(&[7, 1, 1663]), 7),
        ("relation map", 7, 0x00, number(&[7, 1663, 4, 0]), 7),
        ("shared relation map", 7, 0x00, number(&[0, 1664, 4, 0]), SHARED),
        ("message", 21, 0x00, main_only(&message(7, b"secret")), 7),
        ("prepare", 1, 0x10, number(&[0x57F9_4534, 99, 700, 7, 1, 1]), 7),
        ("commit", 1, 0x00, number(&[1, 2]), SHARED),
        ("index page reuse", 11, 0xD0, number(&[1663, 7, 1, 3, 0, 0]), 7),
        ("GiST page reuse", 14, 0x20, number(&[1663, 7, 1, 3, 0, 0]), 7),
        ("new cid", 9, 0x70, number(&[700, 0, 0, 0, 1663, 7, 1, 0]), 7),
        ("truncate", 10, 0x30, number(&[7, 1, 0, 5]), 7),
    ];
    for (what, rmid, info, body, owner) in cases {
        let mut forge = Forge::at(5 * MIB);
        forge.record(rmid, info, 700, &body);
        let split = one(&forge, None, Tail::Kept);
        let owners: Vec<u32> = split.streams.keys().copied().filter(|key| *key != SHARED).collect();
        assert_eq!(
            owners,
            [owner].into_iter().filter(|owner| *owner != SHARED).collect::<Vec<_>>(),
            "{what}"
        );
        assert_eq!(split.records, 1, "{what}");
        let known = what != "several databases";
        assert_eq!(split.unclassified_bytes == 0, known, "{what}");
    }
}

#[test]
fn a_record_of_an_unknown_resource_manager_is_counted() {
    let mut forge = Forge::at(5 * MIB);
    forge.record(140, 0x00, 0, &main_only(b"who knows what this is"));
    let split = one(&forge, None, Tail::Kept);
    assert_eq!((split.streams.len(), split.unclassified_bytes), (1, 24 + 2 + 22));
}

#[test]
fn an_idle_database_has_no_stream() {
    let mut forge = Forge::at(5 * MIB);
    forge.record(10, 0, 700, &block(7, 1, b"row", b""));
    let (more, main) = end(1000, &[], &[], None);
    forge.record(1, more, 700, &main_only(&main));
    let (more, main) = end(900, &[], &[], None);
    forge.record(1, more | 0x20, 701, &main_only(&main));
    let split = one(&forge, None, Tail::Kept);
    assert_eq!(split.streams.keys().copied().collect::<Vec<_>>(), [SHARED, 7]);
    assert_eq!(split.commit_times, Some((900, 1000)));
}

#[test]
fn a_record_cut_within_its_headers_goes_to_its_owner_from_the_next_range_on() {
    let mut forge = Forge::at(5 * MIB);
    let at = forge.record(10, 0, 700, &block(16385, 1, &rows(16385, 100), b"main"));
    let end = forge.here();
    for cut in at + 1..end {
        let ranges = split_all(&forge, &[forge.start, cut, end], None);
        let headers = cut - at < 24 + 20 + 2;
        let streams = |part: usize| ranges[part].1.streams.keys().copied().collect::<Vec<_>>();
        assert_eq!(streams(0), if headers { vec![SHARED] } else { vec![SHARED, 16385] }, "cut {}", cut - at);
        assert_eq!(streams(1), vec![SHARED, 16385], "cut {}", cut - at);
        assert_eq!(ranges[0].1.carry.as_ref().unwrap().open_record(), Some(Lsn(at)));
        assert_eq!(ranges[1].1.records, 1);
        rows_are_where_they_belong(&ranges);
    }
}

#[test]
fn the_end_of_a_record_that_began_before_is_shared_and_counted() {
    let mut forge = Forge::at(5 * MIB + 8192);
    forge.record(10, 0, 700, &block(7, 1, &rows(16385, 20_000), b""));
    forge.record(10, 0, 700, &block(8, 1, b"next", b""));
    let from = forge.start + 8192;
    let range = forge.range(from, forge.here());
    let split = split(&geometry(), &range, forge.slice(from, forge.here()), None, Tail::Kept).unwrap();
    assert_eq!(split.streams.keys().copied().collect::<Vec<_>>(), [SHARED, 8]);
    assert!((10_000..13_000).contains(&split.unclassified_bytes), "{}", split.unclassified_bytes);
    assert_eq!(split.records, 1);
}

#[test]
fn a_dead_tail_is_not_stored() {
    let mut forge = Forge::at(5 * MIB);
    forge.record(10, 0, 700, &block(7, 1, b"row", b""));
    let valid = forge.align();
    // What was there before the segment was recycled: other records, right in themselves, of other positions.
    let mut old = Forge::at(3 * MIB);
    (0..400).for_each(|_| {
        old.record(10, 0, 700, &block(16386, 1, &rows(16386, 500), b""));
    });
    let from = forge.bytes.len();
    forge.bytes.extend_from_slice(&old.bytes[from..]);
    let kept = one(&forge, None, Tail::Kept);
    assert_eq!((kept.end, kept.carry.is_none()), (Some(Lsn(valid)), true));
    assert!(kept.unclassified_bytes > 100_000);
    let dead = one(&forge, None, Tail::Dead);
    assert_eq!((dead.end, dead.unclassified_bytes), (Some(Lsn(valid)), 0));
    let streams: Vec<&[u8]> = dead.streams.values().map(Vec::as_slice).collect();
    assert!(streams.iter().all(|stream| !contains(stream, &marker(16386)[9..15])));
    let merged = merge(&geometry(), &forge.range(forge.start, forge.here()), &streams).unwrap();
    assert_eq!(merged[..from], forge.bytes[..from]);
    assert!(merged[from..].iter().all(|byte| *byte == 0));
}

#[test]
fn wal_ends_where_postgresql_would_stop_reading() {
    type Damage = fn(&mut [u8], usize);
    let damages: [(&str, Damage); 7] = [
        ("length", |bytes, at| bytes[at] = 23),
        ("previous record", |bytes, at| bytes[at + 8] ^= 1),
        ("checksum", |bytes, at| bytes[at + 20] ^= 1),
        ("content", |bytes, at| bytes[at + 30] ^= 1),
        ("length too long", |bytes, at| bytes[at + 3] = 0x40),
        ("resource manager", |bytes, at| bytes[at + 17] = 50),
        ("zeros", |bytes, at| bytes[at..].fill(0)),
    ];
    for (what, damage) in damages {
        let mut forge = Forge::at(5 * MIB);
        forge.record(10, 0, 700, &block(7, 1, b"first", b""));
        let at = forge.record(10, 0, 700, &block(7, 1, b"second", b""));
        forge.record(10, 0, 700, &block(7, 1, b"third", b""));
        damage(&mut forge.bytes, (at - forge.start) as usize);
        let split = one(&forge, None, Tail::Dead);
        assert_eq!((split.end, split.records), (Some(Lsn(at)), 1), "{what}");
    }
}

#[test]
fn a_page_of_another_place_or_timeline_ends_the_wal() {
    type Damage = fn(&mut [u8]);
    let damages: [(&str, Damage); 5] = [
        ("magic", |page| page[0] ^= 1),
        ("unknown flag", |page| page[2] |= 0x10),
        ("newer timeline", |page| page[4] = 2),
        ("address", |page| page[9] ^= 0x20),
        ("remaining length", |page| page[16] ^= 1),
    ];
    for (what, damage) in damages {
        let mut forge = Forge::at(5 * MIB);
        forge.record(10, 0, 700, &block(7, 1, b"first", b""));
        let at = forge.record(10, 0, 700, &block(7, 1, &rows(16385, 20_000), b""));
        damage(&mut forge.bytes[8192..]);
        let whole = one(&forge, None, Tail::Dead);
        assert_eq!((whole.end, whole.records), (Some(Lsn(at)), 1), "{what}");
        // The same when the page is of the next range.
        let ranges = split_all(&forge, &[forge.start, forge.start + 8192, forge.here()], None);
        assert_eq!(ranges[1].1.end, Some(Lsn(at)), "{what}");
    }
}

#[test]
fn the_pages_of_an_older_timeline_may_come_first() {
    let mut forge = Forge::at(5 * MIB);
    (0..50).for_each(|_| {
        forge.record(10, 0, 700, &block(7, 1, &rows(16385, 500), b""));
    });
    forge.timeline = 3;
    (0..50).for_each(|_| {
        forge.record(10, 0, 700, &block(7, 1, &rows(16385, 500), b""));
    });
    let ranges = split_all(&forge, &[forge.start, forge.start + 9000, forge.here()], None);
    assert_eq!(ranges.iter().map(|(_, split)| split.records).sum::<u64>(), 100);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let forge = forge(1, &[Act::Commit { xid: 700, time: 1 }]);
    let range = forge.range(forge.start, forge.here());
    let other = Carry::at_record(Lsn(range.start.0 + 8));
    let refused = |bytes: &[u8], range: &Range, carry: Option<&Carry>| {
        split(&geometry(), range, bytes, carry, Tail::Kept).unwrap_err()
    };
    assert_eq!(refused(&forge.bytes, &range, Some(&other)), SplitError::Carry);
    assert_eq!(refused(&forge.bytes[1..], &range, None), SplitError::Range);
    let whole = one(&forge, None, Tail::Kept);
    let streams: Vec<&[u8]> = whole.streams.values().map(Vec::as_slice).collect();
    let moved = Range { start: Lsn(range.start.0 + 8192), end: Lsn(range.end.0 + 8192), ..range };
    assert_eq!(merge(&geometry(), &moved, &streams), Err(Damaged("it is of another range")));
    let none: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    assert!(merge(&geometry(), &range, &none.values().map(Vec::as_slice).collect::<Vec<_>>()).is_err());
}
