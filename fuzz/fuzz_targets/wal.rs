//! Any bytes: as WAL they split and merge back; as streams they are an error or give bytes; nothing panics.
//!
//! ```text
//! │ how 1 │ version 1 │ cut 2 │ bytes of WAL, or of a stream after its checksum │
//! ```

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use loomworks_archive::wal::{Geometry, Range, SHARED, Selection, Tail, Until, Version, merge, split};
use loomworks_core::lsn::Lsn;

const START: u64 = 5 << 20;

fuzz_target!(|input: &[u8]| {
    let [how, version, low, high, bytes @ ..] = input else { return };
    let versions = [Version::V15, Version::V16, Version::V17, Version::V18];
    let geometry = Geometry {
        version: versions[usize::from(version % 4)],
        segment_bytes: 1 << 20,
        system_identifier: 0x1122_3344_5566_7788,
    };
    let cut = usize::from(u16::from_le_bytes([*low, *high]));
    match how % 2 {
        0 => wal(&geometry, how / 2, cut, bytes),
        _ => stream(&geometry, bytes),
    }
});

/// Splits the bytes in two, merges them back, and selects from what was split.
fn wal(geometry: &Geometry, how: u8, cut: usize, bytes: &[u8]) {
    let start = START + 8192 * u64::from(how & 1) * 126;
    let cut = cut.min(bytes.len());
    let kept: BTreeSet<u32> = [1, 16384].into();
    let until = [Until::End, Until::Before(Lsn(start + cut as u64)), Until::Time(500), Until::End][usize::from(how >> 1 & 3)];
    let mut selection = Selection::new(*geometry, Lsn(start), &kept, 700, until);
    let mut carry = None;
    let mut from = start;
    for part in [&bytes[..cut], &bytes[cut..]] {
        let range = Range { timeline: 1, start: Lsn(from), end: Lsn(from + part.len() as u64) };
        from = range.end.0;
        let split = split(geometry, &range, part, carry.as_ref(), Tail::Kept).expect("a range is a range");
        let streams: Vec<&[u8]> = split.streams.values().map(Vec::as_slice).collect();
        assert!(merge(geometry, &range, &streams).expect("merges back") == part);
        let ours: Vec<&[u8]> =
            split.streams.iter().filter(|(owner, _)| kept.contains(owner)).map(|(_, stream)| stream.as_slice()).collect();
        if selection.push(&range, &split.streams[&SHARED], &ours).is_err() {
            return;
        }
        carry = split.carry;
    }
    let _ = selection.finish();
}

/// A stream with a right frame and a right checksum around anything.
fn stream(geometry: &Geometry, bytes: &[u8]) {
    let range = Range { timeline: 1, start: Lsn(START), end: Lsn(START + 3 * 8192) };
    let mut stream = vec![1, 0, 0, 0, 0, 0, 0, 0];
    stream.extend_from_slice(&START.to_le_bytes());
    stream.extend_from_slice(&(3_u32 * 8192).to_le_bytes());
    stream.extend_from_slice(&1_u32.to_le_bytes());
    stream.extend_from_slice(&SHARED.to_le_bytes());
    stream.extend_from_slice(bytes);
    let crc = crc32c(&stream[8..]);
    stream[4..8].copy_from_slice(&crc.to_le_bytes());
    if let Ok(merged) = merge(geometry, &range, &[&stream]) {
        assert_eq!(merged.len(), 3 * 8192);
    }
    let kept = BTreeSet::new();
    let mut selection = Selection::new(*geometry, Lsn(START + 40), &kept, 700, Until::End);
    let _ = selection.push(&range, &stream, &[]);
    let _ = selection.finish();
}

/// CRC-32C, bit by bit: a few hundred bytes at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 })
    })
}
