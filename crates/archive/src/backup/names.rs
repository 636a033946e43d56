//! What a backup's objects are called.

use crate::keys::DatabaseOid;

pub(crate) const BACKUPS: &str = "backups";
pub(crate) const PACKS: &str = "packs";

/// The write that makes it a backup.
pub(crate) fn manifest(label: &str) -> String {
    format!("{BACKUPS}/{label}/manifest")
}

/// The same content, before its WAL is archived.
pub(crate) fn copied(label: &str) -> String {
    format!("{BACKUPS}/{label}/copied")
}

/// Says that a try has begun, and which backup's chunks it may refer to.
pub(crate) fn begun(label: &str, attempt: &str) -> String {
    format!("{BACKUPS}/{label}/begun-{attempt}")
}

/// The names of all packs that a try's result needs.
pub(crate) fn packs(label: &str, attempt: &str) -> String {
    format!("{BACKUPS}/{label}/packs-{attempt}")
}

/// A group's manifest.
pub(crate) fn group(label: &str, attempt: &str, oid: DatabaseOid) -> String {
    format!("{BACKUPS}/{label}/groups-{attempt}/{oid}")
}

/// Whether a label can be a part of an object's name, and of one only.
pub(crate) fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=100).contains(&label.len()) && label.bytes().all(allowed)
}

/// Whether an object says that a try has begun.
pub(crate) fn is_begun(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|last| last.starts_with("begun-"))
}
