//! Process-wide count of the bytes that the buffers of this crate hold, and its limit.
//!
//! Blocks of caches and scratch are [`crate::AlignedBuf`]s, and what is not a buffer is small or
//! mapped from files: an allowance here is what keeps a cache within a limit that no allocator
//! enforces.

use crate::error::{KernelError, Result};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes held, out of bytes allowed.
struct Allowance {
    held: AtomicUsize,
    most: AtomicUsize,
}

static PROCESS: Allowance =
    Allowance { held: AtomicUsize::new(0), most: AtomicUsize::new(usize::MAX) };

/// Bytes that buffers hold now.
#[must_use]
pub fn held_bytes() -> usize {
    PROCESS.held.load(Relaxed)
}

/// Lets buffers hold at most `bytes` from now on; `None` lifts that. What is held stays.
pub fn allow_bytes(bytes: Option<usize>) {
    PROCESS.most.store(bytes.unwrap_or(usize::MAX), Relaxed);
}

/// Gives the system back what the C allocator keeps of freed memory, where it can be told to
/// (glibc): large pieces, once freed, otherwise stay with the process.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes a number of bytes to keep, and is safe to call from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of a live buffer; given back when dropped.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    bytes: usize,
}

impl HeldBytes {
    /// Takes `bytes` of the process's allowance.
    ///
    /// # Errors
    /// [`KernelError::OverLimit`], with nothing taken.
    pub(crate) fn take(bytes: usize) -> Result<Self> {
        PROCESS.take(bytes)?;
        Ok(Self { bytes })
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        PROCESS.held.fetch_sub(self.bytes, Relaxed);
    }
}

impl Allowance {
    fn take(&self, bytes: usize) -> Result<()> {
        let most = self.most.load(Relaxed);
        let grown = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= most);
        self.held
            .fetch_update(Relaxed, Relaxed, grown)
            .map(drop)
            .map_err(|held| KernelError::OverLimit { bytes, held, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_the_allowance_takes_nothing() {
        let small = Allowance { held: AtomicUsize::new(60), most: AtomicUsize::new(100) };
        small.take(40).unwrap();
        let error = small.take(1).unwrap_err().to_string();
        assert!(error.contains("1 more bytes") && error.contains("100 of 100"), "{error}");
        assert_eq!(small.held.load(Relaxed), 100);
        assert!(small.take(usize::MAX).is_err());
    }

    #[test]
    fn a_buffer_gives_back_what_it_held() {
        let share = HeldBytes::take(1 << 40).unwrap();
        assert!(held_bytes() >= 1 << 40);
        drop(share);
        assert!(held_bytes() < 1 << 40);
    }
}
