//! Files read on demand into anonymous memory, in huge pages where the system supports them.
//!
//! A mapped file lies in pages of 4 KiB. With gigabytes of weights read for every token, address
//! translation costs a noticeable share of the time, most of all in a virtual machine: decoding was
//! 1.2 times as fast from pages of 2 MiB.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use memmap2::{MmapMut, MmapRaw};

/// Size of a huge page, and of the unit in which the file is read.
const CHUNK_BYTES: usize = 2 << 20;
/// Maximum number of threads that read one range.
const MAX_READERS: usize = 8;
/// Minimum number of chunks for which another thread pays off.
const CHUNKS_PER_READER: usize = 4;

/// A file that is read chunk by chunk, each when a range that touches it is first requested.
pub(crate) struct ResidentFile {
    file: File,
    memory: MmapRaw,
    /// Offset of the file's first byte in `memory`, at a huge page.
    start: usize,
    len: usize,
    /// True for the chunks that have been read. Nothing writes to those again.
    loaded: Mutex<Vec<bool>>,
}

impl ResidentFile {
    /// Opens `path` and reserves address space for it, but no memory yet.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = usize::try_from(file.metadata()?.len()).map_err(|_| too_large())?;
        let memory = MmapMut::map_anon(len.checked_add(CHUNK_BYTES).ok_or_else(too_large)?)?;
        let start = memory.as_ptr().align_offset(CHUNK_BYTES);
        // The last, partial chunk stays in small pages: a huge one would exceed its size. If the system
        // refuses the advice, only speed is lost.
        #[cfg(target_os = "linux")]
        let _ = memory.advise_range(memmap2::Advice::HugePage, start, len - len % CHUNK_BYTES);
        let loaded = Mutex::new(vec![false; len.div_ceil(CHUNK_BYTES)]);
        Ok(Self { file, memory: memory.into(), start, len, loaded })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes in `range`.
    ///
    /// # Panics
    /// If the range exceeds the file.
    pub(crate) fn bytes(&self, range: Range<usize>) -> io::Result<&[u8]> {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "the range lies within the file"
        );
        self.load(&range)?;
        // SAFETY: `memory` spans `start + len` bytes and lives as long as `self`, and the assertion keeps
        // the range within `len`. Its chunks are loaded, and loaded chunks are never written again.
        Ok(unsafe { std::slice::from_raw_parts(self.at(range.start), range.len()) })
    }

    /// Reads the chunks of `range` that are not loaded yet.
    fn load(&self, range: &Range<usize>) -> io::Result<()> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let chunks = range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES);
        let missing: Vec<usize> = chunks.filter(|chunk| !loaded[*chunk]).collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.read_in_parallel(&missing)?;
        missing.into_iter().for_each(|chunk| loaded[chunk] = true);
        Ok(())
    }

    /// Reads `chunks`, which are distinct and not loaded; the caller holds the lock on `loaded`.
    fn read_in_parallel(&self, chunks: &[usize]) -> io::Result<()> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let readers = (chunks.len() / CHUNKS_PER_READER).clamp(1, cores.min(MAX_READERS));
        let mut shares = chunks.chunks(chunks.len().div_ceil(readers));
        thread::scope(|scope| {
            let own = shares.next().unwrap_or_default();
            let others: Vec<_> = shares
                .map(|share| {
                    let reader = thread::Builder::new();
                    (share, reader.spawn_scoped(scope, move || self.read_chunks(share)))
                })
                .collect();
            let mut result = self.read_chunks(own);
            for (share, reader) in others {
                let done = match reader {
                    Ok(reader) => reader.join().unwrap_or_else(|_| Err(reader_panicked())),
                    // The system has no thread to spare: this one reads the share.
                    Err(_) => self.read_chunks(share),
                };
                result = result.and(done);
            }
            result
        })
    }

    /// Reads `chunks` from the file. No other thread accesses them: they are not loaded, so nothing has
    /// been borrowed from them, and the callers hold the lock and give each chunk to one thread.
    fn read_chunks(&self, chunks: &[usize]) -> io::Result<()> {
        for chunk in chunks {
            let first = chunk * CHUNK_BYTES;
            let bytes = CHUNK_BYTES.min(self.len - first);
            // SAFETY: the chunk lies within `memory`, and access to it is exclusive (see above).
            let target = unsafe { std::slice::from_raw_parts_mut(self.at(first), bytes) };
            self.file.read_exact_at(target, first as u64)?;
        }
        Ok(())
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.memory.as_mut_ptr().wrapping_add(self.start + offset)
    }
}

fn too_large() -> io::Error {
    io::ErrorKind::FileTooLarge.into()
}

fn reader_panicked() -> io::Error {
    io::Error::other("a thread that reads the file panicked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn any_range_equals_the_file() {
        for len in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 9 * CHUNK_BYTES + 4097] {
            let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&bytes).unwrap();
            let resident = ResidentFile::open(file.path()).unwrap();
            assert_eq!(resident.len(), len);
            for range in [len / 2..len / 2, len - len.min(5)..len, 0..len / 3, 0..len] {
                assert!(resident.bytes(range.clone()).unwrap() == &bytes[range]);
            }
        }
    }

    #[test]
    fn only_requested_chunks_are_read_and_truncation_is_an_error() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; 3 * CHUNK_BYTES]).unwrap();
        let resident = ResidentFile::open(file.path()).unwrap();
        assert_eq!(resident.bytes(CHUNK_BYTES + 1..CHUNK_BYTES + 2).unwrap(), [7]);
        assert_eq!(*resident.loaded.lock().unwrap(), [false, true, false]);
        file.as_file().set_len(CHUNK_BYTES as u64).unwrap();
        assert_eq!(resident.bytes(CHUNK_BYTES..2 * CHUNK_BYTES).unwrap()[0], 7);
        let error = resident.bytes(0..3 * CHUNK_BYTES).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        assert_eq!(*resident.loaded.lock().unwrap(), [false, true, false]);
    }
}
