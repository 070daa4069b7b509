//! Memory for buffers that are made together: one mapping, in huge pages where the system has them.
//!
//! The blocks of a cache are smaller than a huge page, but a sequence gets those of all its layers at
//! once. Side by side they are read a fifth faster where addresses are slow to look up, as in a
//! virtual machine. Each returns its memory when it is dropped, independently of the others.

use crate::aligned::{ALIGN_BYTES, AlignedBuf, HUGE_PAGE_BYTES};
use crate::error::{KernelError, Result};
use memmap2::{MmapMut, MmapRaw};
use std::sync::Arc;

/// Room for buffers of a known size in all.
#[derive(Debug)]
pub struct Slab {
    memory: Option<Arc<Mapping>>,
    used: usize,
}

/// Zeroed memory, divided into parts with an owner each.
#[derive(Debug)]
struct Mapping {
    memory: MmapRaw,
    /// The first huge page in `memory`.
    start: usize,
    bytes: usize,
}

/// A part of a slab, which nothing else refers to.
#[derive(Debug)]
pub(crate) struct SlabPart {
    mapping: Arc<Mapping>,
    offset: usize,
    bytes: usize,
}

impl Slab {
    /// Room for buffers of `bytes` in all, each counted up to the next multiple of [`ALIGN_BYTES`].
    /// Reserves addresses only: memory is taken at the first touch.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    pub fn new(bytes: usize) -> Result<Self> {
        let memory = if bytes > 0 { Some(Arc::new(Mapping::new(bytes)?)) } else { None };
        Ok(Self { memory, used: 0 })
    }

    /// The next `bytes` zero bytes; a buffer of its own when the slab has no more room.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`]; [`KernelError::OverLimit`].
    pub fn zeroed(&mut self, bytes: usize) -> Result<AlignedBuf> {
        let Some(end) = bytes.checked_next_multiple_of(ALIGN_BYTES) else {
            return Err(KernelError::OutOfMemory { bytes });
        };
        let end = self.used.saturating_add(end);
        match &self.memory {
            Some(mapping) if end <= mapping.bytes && bytes > 0 => {
                let mapping = Arc::clone(mapping);
                let offset = self.used;
                let part = SlabPart { mapping, offset, bytes: end - offset };
                let buf = AlignedBuf::part(part, bytes)?;
                self.used = end;
                Ok(buf)
            }
            _ => AlignedBuf::zeroed(bytes),
        }
    }
}

impl Mapping {
    fn new(bytes: usize) -> Result<Self> {
        let out_of_memory = KernelError::OutOfMemory { bytes };
        let Some(len) = bytes.checked_add(HUGE_PAGE_BYTES) else { return Err(out_of_memory) };
        let memory = MmapMut::map_anon(len).map_err(|_| out_of_memory)?;
        let start = memory.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // Whole huge pages only: the rest would take more memory than the slab. A refusal costs
        // speed only.
        #[cfg(target_os = "linux")]
        {
            let whole = bytes - bytes % HUGE_PAGE_BYTES;
            let _ = memory.advise_range(memmap2::Advice::HugePage, start, whole);
            let rest = len - start - whole;
            let _ = memory.advise_range(memmap2::Advice::NoHugePage, start + whole, rest);
        }
        Ok(Self { memory: memory.into(), start, bytes })
    }
}

impl SlabPart {
    /// First byte of the part: at a multiple of [`ALIGN_BYTES`], with at least `len()` bytes that
    /// were zero at first and are its owner's alone.
    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.mapping.memory.as_mut_ptr().wrapping_add(self.mapping.start + self.offset)
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for SlabPart {
    /// Gives back the pages that belong to this part alone; the last part unmaps them all.
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        if Arc::strong_count(&self.mapping) > 1 {
            const PAGE: usize = 4096;
            let offset = self.offset.next_multiple_of(PAGE);
            let end = self.offset + self.bytes;
            let pages = (end - end % PAGE).saturating_sub(offset);
            if pages > 0 {
                let start =
                    self.mapping.memory.as_mut_ptr().wrapping_add(self.mapping.start + offset);
                // SAFETY: whole pages of this part, which is the only one to use them and is gone;
                // a page size above 4096 makes the call fail, and then the memory waits for the
                // last part.
                unsafe { libc::madvise(start.cast(), pages, libc::MADV_DONTNEED) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_aligned_and_apart() {
        let sizes = [1, 64, 100, 200_000, 3 << 20, 5];
        let bytes = sizes.iter().map(|size: &usize| size.next_multiple_of(ALIGN_BYTES)).sum();
        let mut slab = Slab::new(bytes).unwrap();
        let mut buffers: Vec<_> = sizes.iter().map(|size| slab.zeroed(*size).unwrap()).collect();
        assert_eq!(slab.used, bytes);
        drop(slab);
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(
                (buffer.len(), buffer.bytes().as_ptr() as usize % ALIGN_BYTES),
                (sizes[i], 0)
            );
            assert!(buffer.bytes().iter().all(|byte| *byte == 0));
            buffer.bytes_mut().fill(u8::try_from(i + 1).unwrap());
        }
        // Dropping one changes none of the others.
        for gone in [3, 0, 3] {
            drop(buffers.remove(gone));
            for buffer in &buffers {
                let first = buffer.bytes()[0];
                assert!(first > 0 && buffer.bytes().iter().all(|byte| *byte == first));
            }
        }
    }

    #[test]
    fn a_buffer_that_does_not_fit_is_allocated_separately() {
        for bytes in [0, 128] {
            let mut slab = Slab::new(bytes).unwrap();
            assert_eq!(slab.zeroed(129).unwrap().bytes(), [0; 129]);
            assert_eq!(slab.used, 0);
            assert!(slab.zeroed(0).unwrap().is_empty());
            assert!(matches!(slab.zeroed(usize::MAX), Err(KernelError::OutOfMemory { .. })));
        }
        assert!(matches!(Slab::new(usize::MAX), Err(KernelError::OutOfMemory { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_dropped_buffer_gives_its_memory_back() {
        const BYTES: usize = 64 << 20;
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let mut slab = Slab::new(2 * BYTES).unwrap();
        let mut pair = [slab.zeroed(BYTES).unwrap(), slab.zeroed(BYTES).unwrap()];
        pair.iter_mut().for_each(|buffer| buffer.bytes_mut().fill(1));
        let full = resident();
        let [first, second] = pair;
        drop(first);
        // Other tests of this process may take a little meanwhile.
        assert!(resident() + BYTES / 2 < full, "{} of {full}", resident());
        assert!(second.bytes().iter().all(|byte| *byte == 1));
    }
}
