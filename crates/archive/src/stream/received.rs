//! What has come of a segment that is being received.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::wal::PAGE_BYTES;

/// What is read at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// The file of a segment that is being received: as long as it will be, and zeros from where nothing has come yet.
pub(super) struct Partial {
    file: File,
    pub(super) len: u64,
    /// Its first page.
    pub(super) head: Vec<u8>,
}

impl Partial {
    /// `None`: it is complete by now, and has another name.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let len = file.metadata()?.len();
        let mut head = vec![0; PAGE_BYTES.min(len) as usize];
        file.read_exact_at(&mut head, 0)?;
        Ok(Some(Self { file, len, head }))
    }

    /// What has come from a byte on, and the page after it, of which nothing has: each page that has something has a header.
    ///
    /// The rest of the segment is not read, which would take longer than all that is done with some new records.
    pub(super) fn read_from(&self, from: u64) -> io::Result<Vec<u8>> {
        let from = from.min(self.len);
        let first_page = from - from % PAGE_BYTES;
        let (mut bytes, mut at) = (Vec::new(), first_page);
        while at < self.len {
            let chunk = bytes.len();
            bytes.resize(chunk + CHUNK_BYTES.min(self.len - at) as usize, 0);
            self.file.read_exact_at(&mut bytes[chunk..], at)?;
            let empty = bytes[chunk..].chunks(PAGE_BYTES as usize).position(|page| page[..8] == [0; 8]);
            if let Some(empty) = empty {
                bytes.truncate(chunk + (empty + 1) * PAGE_BYTES as usize);
                break;
            }
            at += CHUNK_BYTES;
        }
        bytes.drain(..((from - first_page) as usize).min(bytes.len()));
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use loomworks_core::durable;

    use super::*;

    const PAGE: usize = PAGE_BYTES as usize;

    /// A segment of 4 MB of which so many bytes have come.
    fn segment(come: usize) -> (tempfile::TempDir, std::path::PathBuf, Vec<u8>) {
        let mut bytes = vec![0; 4 << 20];
        bytes[..come].fill(7);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.partial");
        durable::write(&path, &bytes).unwrap();
        (directory, path, bytes)
    }

    #[test]
    fn what_has_come_is_read_with_one_page_of_nothing() {
        for come in
            [0, 100, PAGE, PAGE + 8, 3 * PAGE + 500, (1 << 20) - 8, 1 << 20, (1 << 20) + PAGE, 4 << 20]
        {
            let (_directory, path, bytes) = segment(come);
            let partial = Partial::open(&path).unwrap().unwrap();
            assert_eq!((partial.len, &partial.head[..]), (4 << 20, &bytes[..PAGE]));
            let end = (come.next_multiple_of(PAGE) + PAGE).min(4 << 20);
            for from in [0, 8, come / 2, come.saturating_sub(3), come] {
                let read = partial.read_from(from as u64).unwrap();
                assert!(read == bytes[from..end.max(from)], "{come} have come, from {from}");
            }
            assert!(partial.read_from(5 << 20).unwrap().is_empty());
        }
    }

    #[test]
    fn one_that_was_renamed_is_nothing_to_do() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Partial::open(&directory.path().join("0.partial")).unwrap().is_none());
    }
}
