//! Writing segments while the next ones are merged.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{Scope, ScopedJoinHandle};

use crate::repository::{RepositoryError, file_error};
use crate::wal::{Blank, SparseSegment};

/// Most of the time of a layout is what the system takes to find memory for what is written; each processor does that for
/// itself.
const WRITERS: usize = 2;
/// Each writer has a segment in memory: one is enough of segments that are this long.
const LONG_SEGMENT_BYTES: u64 = 256 << 20;

/// Threads that write segments into a directory, in turn.
pub(super) struct Writers<'scope> {
    writers: Vec<Writer<'scope>>,
    next: usize,
    written: Receiver<Blank>,
}

struct Writer<'scope> {
    to_write: SyncSender<SparseSegment>,
    /// How many it has written.
    thread: ScopedJoinHandle<'scope, Result<u64, RepositoryError>>,
}

impl<'scope> Writers<'scope> {
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        directory: &'env Path,
        segment_bytes: u64,
    ) -> Self {
        let (give_back, written) = mpsc::channel();
        let count = if segment_bytes < LONG_SEGMENT_BYTES { WRITERS } else { 1 };
        let writers = std::iter::repeat_n(give_back, count)
            .map(|give_back| {
                let (to_write, segments) = mpsc::sync_channel::<SparseSegment>(0);
                let thread = scope.spawn(move || {
                    let mut count = 0;
                    for segment in segments {
                        write(&segment, directory, segment_bytes)?;
                        count += 1;
                        // When nothing more is merged, nobody takes it.
                        let _ = give_back.send(segment.into_blank());
                    }
                    Ok(count)
                });
                Writer { to_write, thread }
            })
            .collect();
        Self { writers, next: 0, written }
    }

    /// Memory of segments that were written meanwhile.
    pub(super) fn blanks(&self) -> impl Iterator<Item = Blank> + '_ {
        self.written.try_iter()
    }

    /// Waits until a writer takes the segment. `false`: it has failed, which [`Self::finish`] tells.
    pub(super) fn write(&mut self, segment: SparseSegment) -> bool {
        self.next = (self.next + 1) % self.writers.len();
        self.writers[self.next].to_write.send(segment).is_ok()
    }

    /// Waits until all is written. How many segments that were.
    pub(super) fn finish(self) -> Result<u64, RepositoryError> {
        let threads: Vec<_> = self.writers.into_iter().map(|writer| writer.thread).collect();
        let ended = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.sum()
    }
}

/// A segment has its name when it is complete.
#[expect(clippy::disallowed_methods, reason = "whoever is interrupted lays everything out anew")]
fn write(segment: &SparseSegment, directory: &Path, segment_bytes: u64) -> Result<(), RepositoryError> {
    let SparseSegment { segment, bytes, runs } = segment;
    let path = directory.join(segment.file_name(segment_bytes));
    let writing = path.with_extension("writing");
    let written = File::create(&writing).and_then(|file| {
        file.set_len(segment_bytes)?;
        for run in runs {
            file.write_all_at(&bytes[run.start as usize..run.end as usize], run.start.into())?;
        }
        std::fs::rename(&writing, &path)
    });
    written.map_err(file_error("write", &path))
}

#[cfg(test)]
mod tests {
    use loomworks_core::lsn::Segment;

    use super::*;

    const BYTES: u64 = 32 << 10;

    fn segment(number: u64) -> SparseSegment {
        let mut bytes = vec![0; BYTES as usize];
        bytes[8192..16384].fill(number as u8);
        SparseSegment {
            segment: Segment { timeline: 1, number },
            bytes,
            runs: std::iter::once(8192..16384).collect(),
        }
    }

    /// Writes so many segments; the memory that came back meanwhile.
    fn write_all(directory: &Path, count: u64) -> (Result<u64, RepositoryError>, Vec<Blank>) {
        std::thread::scope(|scope| {
            let mut writers = Writers::start(scope, directory, BYTES);
            let taken = (1..=count).take_while(|&number| writers.write(segment(number))).count();
            let blanks = writers.blanks().collect();
            let written = writers.finish();
            assert_eq!(written.is_ok(), taken as u64 == count);
            (written, blanks)
        })
    }

    #[test]
    fn all_segments_are_written_where_they_have_something() {
        let directory = tempfile::tempdir().unwrap();
        let (written, blanks) = write_all(directory.path(), 9);
        assert_eq!(written.unwrap(), 9);
        for number in 1..=9 {
            let expected = segment(number);
            let read = std::fs::read(directory.path().join(expected.segment.file_name(BYTES))).unwrap();
            assert_eq!(read, expected.bytes);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 9, "nothing else is left");
        // A writer that has taken the next one has given the memory of the one before back.
        assert!(blanks.len() >= 5, "{}", blanks.len());
        assert!(blanks.iter().all(|Blank(bytes)| bytes[..] == [0; BYTES as usize]));
    }

    #[test]
    fn one_that_cannot_be_written_ends_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(segment(4).segment.file_name(BYTES))).unwrap();
        let error = write_all(directory.path(), 50).0.unwrap_err();
        assert!(error.to_string().contains("write"), "{error}");
    }
}
