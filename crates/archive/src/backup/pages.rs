//! Pages of relations: whether one is whole.
//!
//! A page that is being written while it is read may be torn. That does no harm if it was changed after the backup
//! began, because the WAL then holds it whole: so a page that is wrong and says that it is younger than the backup's
//! start is let pass, if it can be as young as it says.
//!
//! Source: PostgreSQL `src/include/storage/checksum_impl.h`, `src/include/storage/bufpage.h`.

use loomworks_core::lsn::Lsn;

/// Bytes of a page. Clusters with pages of another size are copied without looking at them.
pub(crate) const PAGE_BYTES: usize = 8192;

const LANES: usize = 32;
const ROW_BYTES: usize = LANES * 4;
const PRIME: u32 = 16_777_619;

/// What the lanes begin with.
const BEGIN: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// One step of all lanes at once. A plain loop over arrays of a fixed size becomes vector instructions.
#[inline(always)]
fn mix(lanes: &mut [u32; LANES], values: &[u32; LANES]) {
    for lane in 0..LANES {
        let mixed = lanes[lane] ^ values[lane];
        lanes[lane] = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

/// The checksum that a page must carry at its place in the relation.
pub(crate) fn checksum(page: &[u8; PAGE_BYTES], block: u32) -> u16 {
    let mut lanes = BEGIN;
    let (rows, _) = page.as_chunks::<ROW_BYTES>();
    for (number, row) in rows.iter().enumerate() {
        let (words, _) = row.as_chunks::<4>();
        let mut values = [0; LANES];
        for (value, word) in values.iter_mut().zip(words) {
            *value = u32::from_le_bytes(*word);
        }
        if number == 0 {
            // The checksum itself (bytes 8 and 9) counts as zero.
            values[2] &= 0xffff_0000;
        }
        mix(&mut lanes, &values);
    }
    mix(&mut lanes, &[0; LANES]);
    mix(&mut lanes, &[0; LANES]);
    let folded = lanes.iter().fold(0, |all, lane| all ^ lane);
    u16::try_from((folded ^ block) % 65_535 + 1).expect("at most 65535")
}

fn u16_at(page: &[u8; PAGE_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

/// The position in the WAL of the page's last change.
pub(crate) fn lsn(page: &[u8; PAGE_BYTES]) -> Lsn {
    let half =
        |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    Lsn(half(0) << 32 | half(4))
}

/// Whether a page is as PostgreSQL would accept it at this place.
pub(crate) fn is_whole(page: &[u8; PAGE_BYTES], block: u32, checksums: bool) -> bool {
    const FLAGS: u16 = 0x0007;
    let (stored, flags) = (u16_at(page, 8), u16_at(page, 10));
    let (lower, upper, special) = (u16_at(page, 12), u16_at(page, 14), u16_at(page, 16));
    if upper == 0 {
        // New: nothing was written yet.
        return page == &[0; PAGE_BYTES];
    }
    let sane = flags & !FLAGS == 0
        && lower <= upper
        && upper <= special
        && usize::from(special) <= PAGE_BYTES
        && special.is_multiple_of(8);
    sane && (!checksums || stored == checksum(page, block))
}

/// Whether a page that is wrong may stay so: it was changed between the two positions.
pub(crate) fn is_replaced_by_wal(lsn: Lsn, start: Lsn, end: Lsn) -> bool {
    start <= lsn && lsn <= end
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A page as PostgreSQL would write it.
    pub(crate) fn page(fill: u8, lsn: Lsn, block: u32) -> [u8; PAGE_BYTES] {
        let mut page = [fill; PAGE_BYTES];
        page[..24].fill(0);
        page[0..4].copy_from_slice(&u32::try_from(lsn.0 >> 32).unwrap().to_le_bytes());
        page[4..8].copy_from_slice(&((lsn.0 & 0xffff_ffff) as u32).to_le_bytes());
        page[12..14].copy_from_slice(&28_u16.to_le_bytes());
        page[14..16].copy_from_slice(&4096_u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192_u16.to_le_bytes());
        page[18..20].copy_from_slice(&0x2004_u16.to_le_bytes());
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    /// The algorithm as its description has it, a word at a time.
    fn slowly(page: &[u8; PAGE_BYTES], block: u32) -> u16 {
        let mut page = *page;
        page[8..10].fill(0);
        let mut lanes = BEGIN;
        let words: Vec<u32> = page.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        for (number, word) in words.iter().chain(&[0; 2 * LANES]).enumerate() {
            let mixed = lanes[number % LANES] ^ word;
            lanes[number % LANES] = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
        }
        ((lanes.iter().fold(0, |all, lane| all ^ lane) ^ block) % 65_535 + 1) as u16
    }

    #[test]
    fn the_lanes_give_what_the_words_give() {
        for block in [0, 1, 131_072, u32::MAX] {
            let page = page(block as u8 ^ 0x5a, Lsn(77), block);
            assert_eq!(checksum(&page, block), slowly(&page, block));
        }
    }

    #[test]
    fn a_page_is_whole_at_its_place_only() {
        let good = page(7, Lsn(0x1_0000_0002), 5);
        assert_eq!(lsn(&good), Lsn(0x1_0000_0002));
        assert!(is_whole(&good, 5, true));
        assert!(!is_whole(&good, 6, true));
        assert!(is_whole(&good, 6, false), "without checksums only its head can be looked at");
        for byte in [0, 8, 9, 24, 8191] {
            let mut bad = good;
            bad[byte] ^= 0x10;
            assert!(!is_whole(&bad, 5, true), "{byte}");
        }
        let mut bad = good;
        bad[12..14].copy_from_slice(&5000_u16.to_le_bytes());
        assert!(!is_whole(&bad, 5, false), "its free space ends before it begins");
    }

    #[test]
    fn a_new_page_has_nothing_on_it() {
        let mut page = [0; PAGE_BYTES];
        assert!(is_whole(&page, 9, true));
        page[8000] = 1;
        assert!(!is_whole(&page, 9, true));
    }
}
