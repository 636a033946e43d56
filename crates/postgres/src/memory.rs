//! How much memory a server may take for its shared buffers.
//!
//! A server of many tenants reads many catalogs: a megabyte or two for each database that is worked in. What does not fit is
//! read from files and checked again for every connection.

use std::fs;

/// What a process here may have: the machine's memory, or the limit of the control group that it runs in. Bytes.
#[must_use]
pub fn available() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    // Version 2 of control groups, and 1. Source: Linux `Documentation/admin-guide/cgroup-v{1,2}`.
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = limits.into_iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    limits.chain(machine).min().unwrap_or(1 << 30)
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Shared buffers, in megabytes: a quarter of the memory, as PostgreSQL's documentation advises, within bounds. Beyond some
/// gigabytes each table that is dropped costs more than the buffers save.
#[must_use]
pub fn shared_buffers(memory: u64) -> u64 {
    ((memory / 4) >> 20).clamp(128, 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_the_memory_within_bounds() {
        let sizes = [256 << 20, 2 << 30, 8 << 30, 1 << 40];
        assert_eq!(sizes.map(shared_buffers), [128, 512, 2048, 4096]);
    }

    #[test]
    fn the_machines_memory_is_read_in_kilobytes() {
        assert_eq!(total("MemTotal:       24087924 kB\nMemFree: 1 kB\n"), Some(24_087_924 << 10));
        assert_eq!(total("nothing"), None);
        assert!(available() > 64 << 20);
    }
}
