//! Selecting from forged WAL: what is kept, what is filled, where it ends.

use std::collections::{BTreeSet, HashSet};

use super::*;
use crate::wal::forge::{Forged, read};
use crate::wal::pieces::{Builder, Whole};
use crate::wal::record::Header;

/// Ranges into a selection, and all it gives.
fn select(
    forge: &Forge,
    ranges: &Ranges,
    from: u64,
    kept: &BTreeSet<u32>,
    next_xid: u64,
    until: Until,
) -> Result<(Vec<SparseSegment>, Outcome), SelectError> {
    select_with(forge, ranges, from, kept, next_xid, until, 0)
}

/// The same with the ends of all transactions before a position.
fn select_with(
    forge: &Forge,
    ranges: &Ranges,
    from: u64,
    kept: &BTreeSet<u32>,
    next_xid: u64,
    until: Until,
    transactions_until: u64,
) -> Result<(Vec<SparseSegment>, Outcome), SelectError> {
    let mut selection = Selection::new(forge.geometry, Lsn(from), kept, next_xid, until);
    selection.keep_transactions_until(Lsn(transactions_until));
    let mut segments = Vec::new();
    for (range, split) in ranges {
        let streams: Vec<&[u8]> =
            kept.iter().filter_map(|database| split.streams.get(database)).map(Vec::as_slice).collect();
        let finished = selection.push(range, &split.streams[&SHARED], &streams)?;
        finished.iter().cloned().for_each(|segment| selection.reuse(segment.into_blank()));
        segments.extend(finished);
    }
    let (rest, outcome) = selection.finish();
    segments.extend(rest);
    Ok((segments, outcome))
}

/// The segments' bytes as one, and where they start.
fn joined(segments: &[SparseSegment]) -> (u64, Vec<u8>) {
    let start = segments[0].segment.number * MIB;
    let mut bytes = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        assert_eq!(segment.segment.number, segments[0].segment.number + at as u64);
        // What is in no run is zeros, and what is in one was written.
        let mut sparse = vec![0; segment.bytes.len()];
        for run in &segment.runs {
            let run = run.start as usize..run.end as usize;
            sparse[run.clone()].copy_from_slice(&segment.bytes[run]);
        }
        assert!(sparse == segment.bytes, "{:?}", segment.segment);
        bytes.extend_from_slice(&sparse);
    }
    (start, bytes)
}

/// What of the forged records must be kept, told by a simpler account of the rules.
fn expected(
    forge: &Forge,
    from: u64,
    kept: &BTreeSet<u32>,
    next_xid: u32,
    until: Until,
    transactions_until: u64,
) -> (Vec<Forged>, Option<u64>) {
    let mut seen = HashSet::new();
    let mut records = Vec::new();
    for record in forge.records.iter().filter(|record| record.at >= from) {
        if let Until::Before(lsn) = until
            && record.at >= lsn.0
        {
            return (records, Some(record.at));
        }
        let word = |at: usize| u32::from_le_bytes(record.body[at..at + 4].try_into().unwrap());
        let keep = match (record.rmid, record.info) {
            (0, _) => false,
            (1, _) => seen.remove(&record.xid) || record.xid < next_xid || record.at < transactions_until,
            (4, _) => kept.contains(&word(2)),
            // After the main data's header, short or long.
            (21, _) => kept.contains(&word(if record.body[0] == 255 { 2 } else { 5 })),
            _ => word(8) == 0 || kept.contains(&word(8)),
        };
        if record.rmid == 1
            && keep
            && let Until::Time(time) = until
            && i64::from(word(2)) > time
        {
            return (records, Some(record.at));
        }
        if keep {
            if record.rmid != 1 {
                seen.insert(record.xid);
            }
            records.push(record.clone());
        }
    }
    (records, None)
}

fn until() -> impl Strategy<Value = (u8, f64, i64)> {
    (0_u8..3, 0.0_f64..1.0, 0_i64..1000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_selection_reads_as_what_was_kept_at_its_old_places(
        pages in 1_u64..6,
        acts in vec(act(), 2..150),
        cuts in cuts(),
        kept in vec(16384_u32..16388, 0..3),
        next_xid in 698_u32..710,
        first in any::<prop::sample::Index>(),
        (until, fraction, time) in until(),
    ) {
        let forge = forge(pages, &acts);
        prop_assume!(!forge.records.is_empty());
        let mut kept: BTreeSet<u32> = kept.into_iter().collect();
        let first = first.index(forge.records.len());
        let from = forge.records[first].at;
        let ranges = split_all(&forge, &bounds(&forge, &cuts), Some(Carry::at_record(Lsn(forge.start))));
        let skipped = ranges.iter().take_while(|(range, _)| range.end.0 <= from).count();
        let ranges: Ranges = ranges.into_iter().skip(skipped).collect();
        let until = match until {
            0 => Until::End,
            1 => Until::Before(Lsn(forge.start + (fraction * forge.bytes.len() as f64) as u64)),
            _ => Until::Time(time),
        };
        let mut transactions_until = 0;
        let selected = loop {
            let made =
                select_with(&forge, &ranges, from, &kept, u64::from(next_xid), until, transactions_until);
            match made {
                // The source of the copies that `act` makes.
                Err(SelectError::NeedsDatabase(1)) => prop_assert!(kept.insert(1)),
                Err(SelectError::Copied(at)) => {
                    prop_assert!(at.0 > transactions_until, "once for each copy");
                    transactions_until = at.0;
                }
                selected => break selected,
            }
        };
        let (segments, outcome) = selected.unwrap();
        let (wanted, stop) = expected(&forge, from, &kept, next_xid, until, transactions_until);
        let (start, bytes) = joined(&segments);
        let (found, end) = read(&forge.geometry, start, &bytes, from);
        let kept_ones: Vec<Forged> =
            found.iter().filter(|record| !(record.rmid == 0 && matches!(record.info, 0x20 | 0x40))).cloned().collect();
        prop_assert_eq!(kept_ones, wanted);
        // It ends where it says, and nothing follows.
        let place = |lsn| forge.geometry.place(lsn);
        let begins_after_header = found.is_empty() && end == from;
        prop_assert!(end == outcome.end.0 || (begins_after_header && place(end) == place(outcome.end.0)));
        prop_assert!(bytes[(end - start) as usize..].iter().all(|byte| *byte == 0));
        match until {
            Until::End => prop_assert_eq!(place(outcome.end.0), place((forge.here() + 7) & !7)),
            Until::Time(_) => {
                prop_assert_eq!(outcome.reached, stop.is_some());
                if let Some(stop) = stop {
                    prop_assert_eq!(place(outcome.end.0), place(stop));
                }
                prop_assert!(outcome.last_commit.is_none_or(|last| last <= time));
            }
            Until::Before(lsn) => {
                let room = lsn.0.saturating_sub(outcome.end.0);
                prop_assert!(room < 24 + 48 || outcome.end.0 >= lsn.0, "{} of {}", outcome.end, lsn);
            }
        }
        // Nobody else's rows came with it.
        for database in (16384..16388).filter(|database| !kept.contains(database)) {
            prop_assert!(!contains(&bytes, &marker(database)[9..15]));
        }
    }

    #[test]
    fn streams_with_wrong_content_never_panic(
        acts in vec(act(), 1..30),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        which in any::<prop::sample::Index>(),
    ) {
        let forge = forge(2, &acts);
        let ranges = split_all(&forge, &[forge.start, forge.start + 9000.min(forge.bytes.len() as u64 - 1), forge.here()], None);
        let kept: BTreeSet<u32> = [16384, 16385, 1].into();
        let mut selection = Selection::new(forge.geometry, Lsn(forge.start + 24), &kept, 700, Until::End);
        for (range, split) in &ranges {
            let mut streams = split.streams.clone();
            let owners: Vec<u32> = streams.keys().copied().collect();
            let stream = streams.get_mut(&owners[which.index(owners.len())]).unwrap();
            for (at, value) in &edits {
                let at = 28 + at.index(stream.len() - 28);
                stream[at] = *value;
            }
            // As if whoever damaged it had known how.
            let crc = crc32c::crc32c(&stream[8..]);
            stream[4..8].copy_from_slice(&crc.to_le_bytes());
            let all: Vec<&[u8]> = streams.values().map(Vec::as_slice).collect();
            let _ = merge(&forge.geometry, range, &all);
            let given: Vec<&[u8]> =
                streams.iter().filter(|(owner, _)| kept.contains(owner)).map(|(_, s)| s.as_slice()).collect();
            let _ = selection.push(range, &streams[&SHARED], &given);
        }
        let _ = selection.finish();
    }
}

fn row(forge: &mut Forge, database: u32, xid: u32) -> u64 {
    forge.record(10, 0, xid, &block(database, 5, &rows(database, 50), &[1]))
}

fn ends(
    forge: &mut Forge,
    info: u8,
    xid: u32,
    time: i64,
    subxacts: &[u32],
    dropped: &[u32],
    prepared: Option<u32>,
) -> u64 {
    let (more, main) = end(time, subxacts, dropped, prepared);
    forge.record(1, info | more, xid, &main_only(&main))
}

/// The positions of the records that are left, and what the selection came to.
fn left(forge: &Forge, kept: &[u32], next_xid: u64, until: Until) -> (Vec<u64>, Outcome) {
    let ranges = split_all(forge, &[forge.start, forge.here()], None);
    let kept = kept.iter().copied().collect();
    let from = forge.records[0].at;
    let (segments, outcome) = select(forge, &ranges, from, &kept, next_xid, until).unwrap();
    let (start, bytes) = joined(&segments);
    let (found, _) = read(&forge.geometry, start, &bytes, from);
    let real = found.iter().filter(|record| !(record.rmid == 0 && matches!(record.info, 0x20 | 0x40)));
    (real.map(|record| record.at).collect(), outcome)
}

#[test]
fn the_end_of_a_transaction_is_kept_if_it_matters() {
    let mut forge = Forge::at(5 * MIB);
    let ours = row(&mut forge, 16384, 1000);
    let _theirs = row(&mut forge, 16385, 1001);
    let catalog = forge.record(10, 0, 1002, &block(0, 1262, b"name", b""));
    let by_subxact = row(&mut forge, 16384, 1004);
    let mut wanted = vec![ours, catalog, by_subxact];
    wanted.push(ends(&mut forge, 0x00, 1000, 1, &[], &[], None));
    ends(&mut forge, 0x00, 1001, 1, &[], &[], None);
    wanted.push(ends(&mut forge, 0x20, 1002, 1, &[], &[], None));
    wanted.push(ends(&mut forge, 0x00, 1003, 1, &[1004], &[], None));
    // Nothing kept, but files of ours go; files of theirs.
    wanted.push(ends(&mut forge, 0x00, 1005, 1, &[], &[16385, 16384], None));
    wanted.push(ends(&mut forge, 0x00, 1005, 1, &[], &[0], None));
    ends(&mut forge, 0x20, 1006, 1, &[], &[16385], None);
    // Older than the backup, itself or one of its subtransactions.
    wanted.push(ends(&mut forge, 0x00, 999, 1, &[], &[], None));
    wanted.push(ends(&mut forge, 0x00, 1007, 1, &[998], &[], None));
    // Prepared ones go by their own id, whoever ends them.
    row(&mut forge, 16384, 1010);
    wanted.push(forge.records.last().unwrap().at);
    wanted.push(ends(&mut forge, 0x30, 0, 1, &[], &[], Some(1010)));
    ends(&mut forge, 0x30, 0, 1, &[], &[], Some(1011));
    ends(&mut forge, 0x40, 0, 1, &[], &[], Some(1012));
    wanted.push(ends(&mut forge, 0x40, 0, 1, &[], &[], Some(997)));
    let (found, _) = left(&forge, &[16384], 1000, Until::End);
    assert_eq!(found, wanted);
}

#[test]
fn transaction_ids_are_compared_across_their_wrap() {
    let mut forge = Forge::at(5 * MIB);
    let catalog = forge.record(10, 0, 0, &block(0, 1262, b"name", b""));
    // Shortly before the wrap and shortly after it.
    let old = ends(&mut forge, 0x00, 0xFFFF_FFF0, 1, &[], &[], None);
    ends(&mut forge, 0x00, 0xFFFF_FFFF, 1, &[], &[], None);
    ends(&mut forge, 0x00, 5, 1, &[], &[], None);
    assert_eq!(left(&forge, &[], (7 << 32) | 0xFFFF_FFFA, Until::End).0, [catalog, old]);
    let (all, _) = left(&forge, &[], (8 << 32) | 6, Until::End);
    assert_eq!(all.len(), 4, "all are older");
}

#[test]
fn what_a_side_cluster_must_not_do_is_dropped() {
    let mut forge = Forge::at(5 * MIB);
    let kept = forge.record(0, 0x70, 0, &main_only(b"restore point"));
    forge.record(8, 0x10, 0, &main_only(b"running transactions"));
    forge.record(5, 0x00, 0, &main_only(b"make a tablespace"));
    forge.record(5, 0x10, 0, &main_only(b"drop it"));
    forge.record(1, 0x50, 1000, &main_only(b"assignment"));
    forge.record(1, 0x60, 1000, &main_only(b"invalidations"));
    ends(&mut forge, 0x00, 1000, 1, &[], &[], None);
    assert_eq!(left(&forge, &[16384], 1000, Until::End).0, [kept], "and they do not count as touching");
}

#[test]
fn a_time_is_between_two_kept_commits() {
    let mut forge = Forge::at(5 * MIB);
    let mut all = Vec::new();
    for (xid, database, time) in [(1000, 16384, 10), (1001, 16385, 15), (1002, 16384, 20), (1003, 16385, 30)]
    {
        all.push(row(&mut forge, database, xid));
        all.push(ends(&mut forge, 0x00, xid, time, &[], &[], None));
    }
    for (time, reached, count, last) in
        [(9, true, 1, None), (10, true, 3, Some(10)), (19, true, 3, Some(10)), (20, false, 4, Some(20))]
    {
        let (found, outcome) = left(&forge, &[16384], 1000, Until::Time(time));
        assert_eq!((found.len(), outcome.reached, outcome.last_commit), (count, reached, last), "{time}");
    }
    let (_, outcome) = left(&forge, &[16384], 1000, Until::Time(12));
    assert_eq!(outcome.end, Lsn(all[5]));
    let (_, outcome) = left(&forge, &[16384], 1000, Until::Time(25));
    assert_eq!(outcome.latest_time, Some(30), "the WAL reaches it, though nothing kept does");
}

#[test]
fn a_copy_needs_its_source() {
    let numbers = |source: u32| {
        [16384, 1663, source, 1663].iter().flat_map(|n: &u32| n.to_le_bytes()).collect::<Vec<_>>()
    };
    let mut forge = Forge::at(5 * MIB);
    forge.record(4, 0x00, 1000, &main_only(&numbers(16385)));
    let ranges = split_all(&forge, &[forge.start, forge.here()], None);
    let from = forge.records[0].at;
    let needs = select(&forge, &ranges, from, &[16384].into(), 1000, Until::End).unwrap_err();
    assert_eq!(needs, SelectError::NeedsDatabase(16385));
    assert!(select(&forge, &ranges, from, &[16384, 16385].into(), 1000, Until::End).is_ok());
    assert!(select(&forge, &ranges, from, &[16386].into(), 1000, Until::End).is_ok());
}

#[test]
fn a_segment_with_nothing_to_keep_is_one_page() {
    let mut forge = Forge::at(5 * MIB);
    row(&mut forge, 16384, 1000);
    while forge.here() < 8 * MIB + 100_000 {
        forge.record(10, 0, 1001, &block(16385, 5, &rows(16385, 7000), &[1]));
    }
    row(&mut forge, 16384, 1000);
    let ranges = split_all(&forge, &[forge.start, 6 * MIB, 7 * MIB, 8 * MIB, forge.here()], None);
    let mut selection =
        Selection::new(forge.geometry, Lsn(forge.records[0].at), &[16384].into(), 1000, Until::End);
    let mut counts = Vec::new();
    let mut runs = Vec::new();
    for (range, split) in &ranges {
        let streams: Vec<&[u8]> = split.streams.get(&16384).map(Vec::as_slice).into_iter().collect();
        let segments = selection.push(range, &split.streams[&SHARED], &streams).unwrap();
        counts.push(segments.len());
        runs.extend(segments.into_iter().map(|segment| segment.runs));
    }
    assert_eq!(counts, [0, 1, 1, 1], "one range late");
    assert_eq!(runs, vec![vec![0..8192]; 3]);
}

#[test]
fn ranges_come_in_order_and_streams_are_of_kept_databases() {
    let mut forge = Forge::at(5 * MIB);
    row(&mut forge, 16384, 1000);
    row(&mut forge, 16384, 1000);
    let second = forge.records[1].at;
    let ranges = split_all(&forge, &[forge.start, second, forge.here()], None);
    let start = |from: u64| Selection::new(forge.geometry, Lsn(from), &[16384].into(), 1000, Until::End);
    let late = start(forge.records[0].at).push(&ranges[1].0, &ranges[1].1.streams[&SHARED], &[]).unwrap_err();
    assert_eq!(late, SelectError::OutOfOrder { expected: Lsn(forge.records[0].at), found: Lsn(second) });
    let theirs = Selection::new(forge.geometry, Lsn(second), &[7].into(), 1000, Until::End)
        .push(&ranges[1].0, &ranges[1].1.streams[&SHARED], &[&ranges[1].1.streams[&16384]])
        .unwrap_err();
    assert_eq!(theirs, SelectError::NotKept(16384));
}

#[test]
fn a_gap_with_no_room_for_a_record_is_damage() {
    let start = 5 * MIB + 40;
    let range = Range { timeline: 1, start: Lsn(5 * MIB), end: Lsn(5 * MIB + 8192) };
    for (gap, sound) in [(0, true), (8, false), (16, false), (24, true), (4, false)] {
        let place = geometry().place(start);
        let mut builder = Builder::new(place);
        if gap % 8 == 0 {
            builder.record(place + gap, 30, 0, 0x70, 0);
            builder.body(&[255, 4, 1, 2, 3, 4]);
        } else {
            let header = Header { total: 24, xid: 0, prev: 0, info: 0x70, rmid: 0, padding: 0, crc: 0 };
            builder.fragment(place + gap, 24, 24, false);
            builder.body(&header.seal(crc32c::crc32c(&[])));
        }
        let whole = Whole { valid: 8192, ..Whole::default() };
        let stream = builder.finish(&range, SHARED, whole, &[]);
        let mut selection = Selection::new(geometry(), Lsn(start), &BTreeSet::new(), 700, Until::End);
        assert_eq!(selection.push(&range, &stream, &[]).is_ok(), sound, "{gap}");
    }
}
