//! A file's bytes in memory of our own, in huge pages where the system has them.
//!
//! A mapped file lies in pages of 4 KiB. Reading gigabytes of weights for every token from those, a
//! processor spends part of its time on looking addresses up, in a virtual machine most of all:
//! decoding was 1.2 times as fast from pages of 2 MiB.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use memmap2::MmapRaw;

/// Bytes of a huge page, and of what is read at once.
const UNIT: usize = 2 << 20;
/// Most threads that read one range.
const MOST_READERS: usize = 8;
/// Fewest units that are worth a thread of their own.
const UNITS_PER_READER: usize = 4;

/// A file that is read unit by unit, when a range of it is first asked for.
pub(crate) struct ResidentFile {
    file: File,
    memory: MmapRaw,
    /// Where the file begins in the memory: at a huge page.
    start: usize,
    len: usize,
    /// The units that have been read, and nothing writes to again.
    read: Mutex<Vec<bool>>,
}

impl ResidentFile {
    /// Opens `path` and takes addresses for it, but no memory yet.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let too_large = |_| std::io::Error::from(std::io::ErrorKind::FileTooLarge);
        let len = usize::try_from(file.metadata()?.len()).map_err(too_large)?;
        let memory = memmap2::MmapMut::map_anon(len + UNIT)?;
        let start = memory.as_ptr().align_offset(UNIT);
        // The last part of the file gets small pages: a huge one would take more than it needs.
        // A refusal costs speed only.
        #[cfg(target_os = "linux")]
        let _ = memory.advise_range(memmap2::Advice::HugePage, start, len - len % UNIT);
        let read = Mutex::new(vec![false; len.div_ceil(UNIT)]);
        Ok(Self { file, memory: memory.into(), start, len, read })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes `range`, which lies within the file.
    pub(crate) fn bytes(&self, range: Range<usize>) -> std::io::Result<&[u8]> {
        assert!(range.start <= range.end && range.end <= self.len, "a range of the file");
        self.read(&range)?;
        // SAFETY: the range lies within the memory, which lives as long as `self`. Its units are
        // read, and a unit that is read is never written again.
        Ok(unsafe { std::slice::from_raw_parts(self.at(range.start), range.len()) })
    }

    /// Reads the units of `range` that have not been read.
    fn read(&self, range: &Range<usize>) -> std::io::Result<()> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let units = range.start / UNIT..range.end.div_ceil(UNIT);
        let missing: Vec<usize> = units.filter(|unit| !read[*unit]).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let readers = (missing.len() / UNITS_PER_READER).clamp(1, cores.min(MOST_READERS));
        let share = missing.len().div_ceil(readers);
        std::thread::scope(|scope| {
            let mut shares = missing.chunks(share);
            let own = shares.next().unwrap_or_default();
            let spawn = |units| {
                let reading =
                    std::thread::Builder::new().spawn_scoped(scope, move || self.fill(units));
                reading.map_err(|_| units)
            };
            let others: Vec<_> = shares.map(spawn).collect();
            let mut result = self.fill(own);
            for other in others {
                let done = match other {
                    Ok(thread) => thread.join().unwrap_or_else(|_| Err(unexpected())),
                    // No thread to be had.
                    Err(units) => self.fill(units),
                };
                result = result.and(done);
            }
            result
        })?;
        missing.into_iter().for_each(|unit| read[unit] = true);
        Ok(())
    }

    /// Fills `units`, which nobody has read yet, from the file.
    fn fill(&self, units: &[usize]) -> std::io::Result<()> {
        for unit in units {
            let first = unit * UNIT;
            let bytes = UNIT.min(self.len - first);
            // SAFETY: within the memory; nobody else looks at a unit that is being read, and the
            // callers hold the lock and share the units out.
            let target = unsafe { std::slice::from_raw_parts_mut(self.at(first), bytes) };
            self.file.read_exact_at(target, first as u64)?;
        }
        Ok(())
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.memory.as_mut_ptr().wrapping_add(self.start + offset)
    }
}

fn unexpected() -> std::io::Error {
    std::io::Error::other("a reading thread panicked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn ranges_are_what_the_file_holds_however_they_are_asked_for() {
        for len in [0, 1, UNIT - 1, UNIT, 9 * UNIT + 4097] {
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
    fn only_what_is_asked_for_is_read_and_a_shorter_file_is_an_error() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; 3 * UNIT]).unwrap();
        let resident = ResidentFile::open(file.path()).unwrap();
        assert_eq!(resident.bytes(UNIT + 1..UNIT + 2).unwrap(), [7]);
        assert_eq!(*resident.read.lock().unwrap(), [false, true, false]);
        file.as_file().set_len(UNIT as u64).unwrap();
        assert_eq!(resident.bytes(UNIT..2 * UNIT).unwrap()[0], 7);
        let error = resident.bytes(0..3 * UNIT).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        assert_eq!(*resident.read.lock().unwrap(), [false, true, false]);
    }
}
